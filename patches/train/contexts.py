"""Which other patches a step is taken among, and in which order (MOSAIC's compositional sampling).

Patches that were trained alone lose much of their effect beside others. A patch that is to be composed is
therefore trained behind, before and between random subsets of them: first how many, evenly, so that every
size gets its share, then which, then the order.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """The places of other patches around the one that learns, as indices into their list."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def others(self) -> tuple[int, ...]:
        """The others in order, as they stand where the one that learns is taken away."""
        return self.before + self.after


ALONE = Context()


def sample_context(num_others: int, key: str) -> Context:
    """Choose a context; equal keys give equal contexts.

    Args:
        num_others: How many other patches there are.
        key: Names the run's seed, the stage and the step.
    """
    if num_others == 0:
        return ALONE
    # Text seeds are hashed with SHA-512, the same in every process and on every machine.
    rng = random.Random(f"context:{key}")
    chosen = rng.sample(range(num_others), rng.randint(0, num_others))
    place = rng.randint(0, len(chosen))
    return Context(tuple(chosen[:place]), tuple(chosen[place:]))
