"""Who gets a canary, and when a canary has failed or proved itself. Pure: no clock, no I/O.

A request belongs to the canary by a hash of its sticky value, so one user stays with one version, and a
larger share only adds users. Only what came back within the last ``window_s`` seconds, and at most
``MAX_SAMPLES`` of it, is judged.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.versions.activation import Canary, CanaryRules

#: Requests that are judged at most.
MAX_SAMPLES = 1000

Verdict = Literal["promote", "abort"]


@dataclass(frozen=True, slots=True)
class Sample:
    """How one request on the canary went."""

    at_s: float
    is_error: bool
    #: ``None`` where no token came.
    first_token_s: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What the rules of a canary look at."""

    #: Share of the requests of its name that it got since it began.
    given_ratio: float = 0.0
    num_requests: int = 0
    error_rate: float = 0.0
    #: 90th percentile; ``None`` where no token came yet.
    first_token_s: float | None = None
    #: How long it has been watched.
    age_s: float = 0.0

    @classmethod
    def of(cls, samples: Sequence[Sample], age_s: float, given_ratio: float = 0.0) -> "Progress":
        """Sum up the samples that are judged."""
        num_errors = sum(sample.is_error for sample in samples)
        slow_s = percentile_90([s.first_token_s for s in samples if s.first_token_s is not None])
        return cls(given_ratio, len(samples), num_errors / len(samples) if samples else 0.0, slow_s, age_s)

    def value_of(self, rule: str) -> float:
        """Return what one of ``CanaryRules.limits`` looks at; 0 where there is nothing to see yet."""
        values = {
            "min_requests": self.num_requests,
            "max_error_rate": self.error_rate,
            "max_first_token_s": self.first_token_s,
            "promote_after_s": self.age_s,
        }
        return values[rule] or 0.0


class Window:
    """The latest samples of one canary."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        #: Arm -> its requests since the canary began.
        self.num_by_arm: dict[str, int] = {}

    def count(self, arm: str) -> None:
        """Count one more request of an arm, judged or not."""
        self.num_by_arm[arm] = self.num_by_arm.get(arm, 0) + 1

    @property
    def given_ratio(self) -> float:
        """The share of the requests that the canary got; 0 before the first."""
        total = sum(self.num_by_arm.values())
        return self.num_by_arm.get("canary", 0) / total if total else 0.0

    def add(self, sample: Sample) -> None:
        """Add one more."""
        self._samples.append(sample)

    def since(self, at_s: float) -> list[Sample]:
        """Return the samples that are not older, and forget the others."""
        while self._samples and self._samples[0].at_s < at_s:
            self._samples.popleft()
        return list(self._samples)


def is_chosen(canary: Canary, name: str, value: str) -> bool:
    """Return whether a request with this sticky value gets the canary of ``name``."""
    text = f"{name}\0{canary.target.digest}\0{value}"
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
    return number < canary.share * 2**64


def judge(rules: CanaryRules, progress: Progress) -> tuple[Verdict, str] | None:
    """Decide by a canary's rules; return the verdict with its reason, ``None`` while there is none.

    ``progress.age_s`` is by a monotonic clock: a server whose time of day jumps must not promote a version
    that no request has tried.
    """
    num, error_rate, slow_s = progress.num_requests, progress.error_rate, progress.first_token_s
    if num < rules.min_requests:
        return None
    if rules.max_error_rate is not None and error_rate > rules.max_error_rate:
        return "abort", f"{error_rate:.1%} of {num} requests failed, over {rules.max_error_rate:.1%}"
    if rules.max_first_token_s is not None and slow_s is not None and slow_s > rules.max_first_token_s:
        return "abort", f"the 90th percentile to the first token is {slow_s:.3f} s of {num} requests"
    if rules.promote_after_s is not None and progress.age_s >= rules.promote_after_s:
        return "promote", f"{num} requests kept the rules for {progress.age_s:.0f} s"
    return None


def percentile_90(values: Sequence[float]) -> float | None:
    """Return the value that nine in ten do not exceed; ``None`` for no values."""
    return sorted(values)[-(-len(values) * 9 // 10) - 1] if values else None
