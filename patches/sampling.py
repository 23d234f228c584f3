"""How answers are drawn from a model: for pairs, for benign rows and in an evaluation."""

import hashlib
from dataclasses import dataclass

from patches.errors import SamplingInvalid


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; greedily, and one to a prompt, unless something else is asked for."""

    max_tokens: int = 96
    #: 0 takes the likeliest token each time, and then one answer is all there is.
    temperature: float = 0.0
    #: The nucleus: the likeliest tokens that together have this probability.
    top_p: float = 1.0
    #: Answers per prompt, k.
    num_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            SamplingInvalid: One is outside its range.
        """
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature <= 2, "0 to 2"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("num_samples", self.num_samples >= 1, "at least 1"),
        ):
            if not holds:
                raise SamplingInvalid(f"{name}: expected {expected}, got {getattr(self, name)}")

    @property
    def num_distinct(self) -> int:
        """How many answers are worth drawing: greedy ones are all the same."""
        return 1 if self.temperature == 0 else self.num_samples

    def seed_of(self, key: str) -> int:
        """Return the seed for what ``key`` names, the same in every run."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:4], "big") >> 1
