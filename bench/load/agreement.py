"""How far two sets of answers agree, token by token, where both had read the same tokens before.

Greedy answers are compared step by step up to and including the first step at which their tokens differ;
behind it the two go on from different texts, and nothing that they say can be compared.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What is reported of the differences, as shares of the steps that lie at or below.
PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Answer:
    """One greedy answer.

    Attributes:
        token_ids: its tokens.
        logprobs: for each of them, the log probability of every likely token at that step, its own included.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[Mapping[int, float], ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs) or not self.token_ids:
            raise ValueError(
                f"logprobs: expected {len(self.token_ids)}, as many as tokens, got {len(self.logprobs)}"
            )
        for token_id, step in zip(self.token_ids, self.logprobs, strict=True):
            if token_id not in step:
                raise ValueError(f"logprobs: expected one of the token {token_id} itself, got {sorted(step)}")


@dataclass(frozen=True)
class Agreement:
    """How far answers agree with their references.

    Attributes:
        num_answers: pairs that were compared.
        num_equal_answers: pairs with all tokens equal.
        num_steps: steps at which both had read the same tokens.
        num_equal_steps: those of them at which both chose the same token.
        gaps: |difference| of the log probability of the reference's token, for steps where both list it.
    """

    num_answers: int
    num_equal_answers: int
    num_steps: int
    num_equal_steps: int
    gaps: tuple[float, ...]

    def to_result(self) -> dict[str, Any]:
        """Return what a record keeps."""
        return {
            "num_answers": self.num_answers,
            "num_steps": self.num_steps,
            "num_unlisted_steps": self.num_steps - len(self.gaps),
            "equal_answers": self.num_equal_answers / self.num_answers,
            "equal_tokens": self.num_equal_steps / self.num_steps,
            "mean_gap": statistics.fmean(self.gaps),
            **{f"{name}_gap": percentile(self.gaps, share) for name, share in PERCENTILES.items()},
        }


def compare(answers: Sequence[Answer], references: Sequence[Answer]) -> Agreement:
    """Compare answers with references, pair by pair.

    Raises:
        ValueError: there is nothing to compare.
    """
    if not answers:
        raise ValueError("answers: expected at least one, got none")
    gaps: list[float] = []
    num_steps = num_equal_steps = num_equal_answers = 0
    for answer, reference in zip(answers, references, strict=True):
        num_equal = _num_common(answer.token_ids, reference.token_ids)
        num_compared = min(num_equal + 1, len(answer.token_ids), len(reference.token_ids))
        num_steps += num_compared
        num_equal_steps += num_equal
        num_equal_answers += answer.token_ids == reference.token_ids
        for step in range(num_compared):
            token_id = reference.token_ids[step]
            # Where the answer's token is another, the reference's may be missing from the answer's likeliest.
            if token_id in answer.logprobs[step]:
                gaps.append(abs(answer.logprobs[step][token_id] - reference.logprobs[step][token_id]))
    return Agreement(len(answers), num_equal_answers, num_steps, num_equal_steps, tuple(gaps))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that a share of the values does not exceed (nearest rank).

    Raises:
        ValueError: no values, or a share outside of (0, 1].
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"percentile: expected values and a share up to 1, got {len(values)} and {share}")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
