"""Getting answers: what every sampler takes and gives.

Implementations: ``local`` (transformers, batched) and ``remote`` (any OpenAI-compatible server, such as
vLLM). Equal settings and seeds give equal answers from the local one; a server promises that only for
itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from patches.errors import PairsError
from patches.pairs.prompts import Messages


@dataclass(frozen=True)
class Answer:
    """What a model said."""

    text: str
    #: False where it ran into the limit of tokens.
    is_finished: bool = True


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    #: Answers per prompt, k.
    num_samples: int = 4
    #: 0 takes the likeliest token each time, and then one answer is all there is.
    temperature: float = 1.0
    #: The nucleus: the likeliest tokens that together have this probability.
    top_p: float = 0.9
    max_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            PairsError: One is outside its range.
        """
        for name, holds, expected in (
            ("num_samples", self.num_samples >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 2, "0 to 2"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
        ):
            if not holds:
                raise PairsError(f"{name}: expected {expected}, got {getattr(self, name)}")

    @property
    def num_distinct(self) -> int:
        """How many answers are worth drawing: greedy ones are all the same."""
        return 1 if self.temperature == 0 else self.num_samples

    def seed_of(self, key: str) -> int:
        """Give the seed for what ``key`` names, the same in every run."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:4], "big") >> 1


class Sampler(Protocol):
    """Answers conversations."""

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        """Answer each conversation ``num_distinct`` times.

        Args:
            conversations: What to answer.
            key: Names the call, for its seed.

        Raises:
            PairsError: No answers can be had.
        """
