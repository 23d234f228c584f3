"""Getting answers: what every sampler takes and gives.

Implementations: ``local`` (transformers, batched) and ``remote`` (any OpenAI-compatible server, such as
vLLM). Equal settings and seeds give equal answers from the local one; a server promises that only for
itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from patches.pairs.prompts import Messages
from patches.sampling import Sampling

#: How both sides of a pair answer, unless something else is asked for.
PAIRS_SAMPLING = Sampling(num_samples=4, temperature=1.0, top_p=0.9, max_tokens=128)


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    #: False where it ran into the limit of tokens.
    is_finished: bool = True


class Sampler(Protocol):
    """Answers conversations."""

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        """Answer each conversation ``num_distinct`` times.

        Args:
            conversations: What to answer.
            key: Names the call, for its seed.

        Raises:
            PairsError: No answers are available.
        """
