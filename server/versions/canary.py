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

from server.versions.activation import Canary

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


class Window:
    """The latest samples of one canary."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)

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


def judge(canary: Canary, samples: Sequence[Sample], age_s: float) -> tuple[Verdict, str] | None:
    """Decide by the canary's rules; return the verdict with its reason, ``None`` while there is none.

    ``age_s`` is how long it has been watched, by a monotonic clock: a server whose time of day jumps must not
    promote a version that no request has tried.
    """
    rules = canary.rules
    num = len(samples)
    if num < rules.min_requests:
        return None
    error_rate = sum(sample.is_error for sample in samples) / num
    if rules.max_error_rate is not None and error_rate > rules.max_error_rate:
        return "abort", f"{error_rate:.1%} of {num} requests failed, over {rules.max_error_rate:.1%}"
    slow_s = percentile_90([s.first_token_s for s in samples if s.first_token_s is not None])
    if rules.max_first_token_s is not None and slow_s is not None and slow_s > rules.max_first_token_s:
        return "abort", f"the 90th percentile to the first token is {slow_s:.3f} s of {num} requests"
    if rules.promote_after_s is not None and age_s >= rules.promote_after_s:
        return "promote", f"{num} requests kept the rules for {age_s:.0f} s"
    return None


def percentile_90(values: Sequence[float]) -> float | None:
    """Return the value that nine in ten do not exceed; ``None`` for no values."""
    return sorted(values)[-(-len(values) * 9 // 10) - 1] if values else None
