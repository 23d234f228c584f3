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
    first_token_s: float | None = None
    #: Whether the condition was met; ``None`` where it was not decided.
    is_met: bool | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """For how many of the requests of an arm the condition was met."""

    num_met: int = 0
    num_decided: int = 0

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Share":
        """Count the requests whose condition was decided."""
        decided = [sample.is_met for sample in samples if sample.is_met is not None]
        return cls(sum(decided), len(decided))

    @property
    def ratio(self) -> float:
        """The share; 0 before the first."""
        return self.num_met / self.num_decided if self.num_decided else 0.0


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
    condition: Share = Share()
    stable_condition: Share = Share()

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        age_s: float,
        given_ratio: float = 0.0,
        stable: Sequence[Sample] = (),
    ) -> "Progress":
        """Sum up the samples of the canary, which are judged, beside those of the stable version."""
        num_errors = sum(sample.is_error for sample in samples)
        slow_s = percentile_90([s.first_token_s for s in samples if s.first_token_s is not None])
        error_rate = num_errors / len(samples) if samples else 0.0
        conditions = Share.of(samples), Share.of(stable)
        return cls(given_ratio, len(samples), error_rate, slow_s, age_s, *conditions)

    @property
    def condition_change(self) -> float | None:
        """How far apart the arms meet their conditions; ``None`` before both have decided."""
        is_known = self.condition.num_decided and self.stable_condition.num_decided
        return abs(self.condition.ratio - self.stable_condition.ratio) if is_known else None

    def value_of(self, rule: str) -> float | None:
        """Return what one of ``CanaryRules.limits`` looks at; ``None`` where there is nothing to see yet."""
        is_met = self.condition.ratio if self.condition.num_decided else None
        values = {
            "min_requests": self.num_requests,
            "max_error_rate": self.error_rate,
            "max_first_token_s": self.first_token_s,
            "min_condition_met": is_met,
            "max_condition_met": is_met,
            "max_condition_change": self.condition_change,
            "promote_after_s": self.age_s,
        }
        return values[rule]


class Window:
    """The latest samples of one canary, and of the version beside it."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {
            arm: deque(maxlen=MAX_SAMPLES) for arm in ("canary", "stable")
        }
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

    def add(self, sample: Sample, arm: str = "canary") -> None:
        """Add one more."""
        self._samples[arm].append(sample)

    def since(self, at_s: float, arm: str = "canary") -> list[Sample]:
        """Return the samples of an arm that are not older, and forget the others."""
        samples = self._samples[arm]
        while samples and samples[0].at_s < at_s:
            samples.popleft()
        return list(samples)


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
    if (reason := _condition_problem(rules, progress)) is not None:
        return "abort", reason
    is_over = rules.promote_after_s is not None and progress.age_s >= rules.promote_after_s
    if is_over and all(_is_judged(rule, rules, progress) for rule in rules.about_condition):
        return "promote", f"{num} requests kept the rules for {progress.age_s:.0f} s"
    return None


def _is_judged(rule: str, rules: CanaryRules, progress: Progress) -> bool:
    """Return whether enough conditions were decided for a rule about them."""
    shares = [progress.condition]
    if rule == "max_condition_change":
        shares.append(progress.stable_condition)
    return all(share.num_decided >= rules.min_requests for share in shares)


def _condition_problem(rules: CanaryRules, progress: Progress) -> str | None:
    """Return the rule about the condition that is broken, as a sentence."""
    share, stable = progress.condition, progress.stable_condition
    seen = f"the condition was met by {share.ratio:.1%} of {share.num_decided} requests"
    for rule in rules.about_condition:
        if not _is_judged(rule, rules, progress):
            continue
        limit, value = getattr(rules, rule), progress.value_of(rule)
        assert value is not None, "enough were decided"
        if rule == "min_condition_met" and value < limit:
            return f"{seen}, under {limit:.1%}"
        if rule == "max_condition_met" and value > limit:
            return f"{seen}, over {limit:.1%}"
        if rule == "max_condition_change" and value > limit:
            beside = f"that of the stable version by {stable.ratio:.1%} of {stable.num_decided}"
            return f"{seen}, {beside}: more than {limit:.1%} apart"
    return None


def percentile_90(values: Sequence[float]) -> float | None:
    """Return the value that nine in ten do not exceed; ``None`` for no values."""
    return sorted(values)[-(-len(values) * 9 // 10) - 1] if values else None
