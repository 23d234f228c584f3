"""Judges a fleet's canaries by what all servers count together, with the rules of a single server's.

A verdict is a revision like any other. Where Prometheus can't be asked or knows too few requests, there is no
verdict: the canary stays at its share.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from server.fleet import changes
from server.fleet.changes import ChangeRefused, Names
from server.fleet.document import CanaryEntry, Document, seconds_of
from server.fleet.orders import AHEAD_S, carry_out
from server.fleet.publisher import Publisher
from server.versions.canary import Progress, Share, Verdict, judge

#: Refusals and clients that went away are no fault of a version.
_JUDGED = 'outcome=~"ok|server_error"'


class Counts(Protocol):
    """What is asked; see ``server.fleet.prometheus.Prometheus``."""

    def select(self, metric: str, *matchers: str) -> str:
        """Return the selector of a metric of the fleet's servers."""
        ...

    def number(self, query: str, at_s: float | None = None) -> float | None:
        """Return the number that a query comes to at a moment; ``None`` where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one canary stands."""

    name: str
    canary: CanaryEntry
    progress: Progress
    verdict: Verdict | None = None
    reason: str | None = None
    #: The revision that carries the verdict out.
    revision: int | None = None

    def line(self, *, is_dry: bool = False) -> str:
        """Return it for people."""
        what = f"{self.name} {self.canary.version}"
        if self.verdict is None:
            return f"{what}: {self.progress.num_requests} requests so far, no verdict"
        if self.revision is None:
            return f"{what}: would be {self.verdict}, but another order came first"
        verb = "would publish" if is_dry else "published"
        return f"{what}: {self.verdict}: {self.reason}; {verb} revision {self.revision}"


class FleetJudge:
    """Looks at every canary of one catalog that has rules."""

    def __init__(self, publisher: Publisher, counts: Counts, *, is_dry: bool = False) -> None:
        self._publisher = publisher
        self._counts = counts
        self._is_dry = is_dry

    def look(self) -> Iterator[Judgement]:
        """Judge each canary, and publish what comes of it.

        Raises:
            PrometheusError: It can't be asked.
            FleetError: What is published can't be read or followed.
            StoreError: The store can't be read or written.
        """
        document = self._publisher.read().document
        if document is None:
            return
        for name, entry in document.names.items():
            canary = entry.meaning.canary if entry.meaning is not None else None
            if canary is None:
                continue
            progress = progress_of(self._counts, name, canary)
            # What is still to come would hold with the verdict, earlier than it was to.
            is_pending = document.effective_s is not None and document.effective_s > time.time()
            judged = judge(canary.rules, progress) if not is_pending else None
            if judged is None:
                yield Judgement(name, canary, progress)
            else:
                verdict, reason = judged
                revision = self._end(name, canary, verdict)
                yield Judgement(name, canary, progress, verdict, reason, revision)

    def _end(self, name: str, canary: CanaryEntry, verdict: Verdict) -> int | None:
        def change(before: Document) -> tuple[Document, Names]:
            entry = before.names.get(name)
            now = entry.meaning.canary if entry is not None and entry.meaning is not None else None
            if now is None or (now.version, now.since) != (canary.version, canary.since):
                raise ChangeRefused(f"the canary of '{name}' is another by now")
            is_promoted = verdict == "promote"
            return before, changes.canary_ended(before.names, name, is_promoted=is_promoted)

        ahead_s = AHEAD_S if verdict == "promote" else 0.0
        try:
            carried = carry_out(
                self._publisher, self._publisher.read(), change, ahead_s=ahead_s, is_dry=self._is_dry
            )
        except ChangeRefused:
            # An operator came first; what runs now is looked at next time.
            return None
        return carried.after.revision


def progress_of(counts: Counts, name: str, canary: CanaryEntry) -> Progress:
    """Return how a canary goes in the whole fleet.

    Its age is by the clock of what is asked, which dated the requests, too.

    Args:
        counts: What is asked.
        name: Its name.
        canary: What the catalog says of it.
    """
    now_s = counts.number("vector(time())")
    age_s = now_s - seconds_of(canary.since) if now_s is not None else 0.0
    # What was before it is another canary's.
    window = f"{max(1, int(min(canary.rules.window_s, age_s)))}s"

    def total(metric: str, *matchers: str, by: str = "") -> str:
        selected = counts.select(metric, f'patch="{name}"', *matchers)
        return f"sum{by}(increase({selected}[{window}]))"

    def number(query: str) -> float:
        # At one moment, so that no share has more in its part than in its whole.
        return counts.number(query, now_s) or 0.0

    def share(arm: str) -> Share:
        metric, matcher = "policy_patch_arm_condition_total", f'arm="{arm}"'
        met = number(total(metric, matcher, 'outcome="met"'))
        return Share(round(met), round(number(total(metric, matcher))))

    requests, is_canary = "policy_patch_arm_requests_total", 'arm="canary"'
    judged = number(total(requests, is_canary, _JUDGED))
    failed = number(total(requests, is_canary, 'outcome="server_error"'))
    given, everything = number(total(requests, is_canary)), number(total(requests))
    buckets = total("policy_patch_arm_first_token_seconds_bucket", is_canary, by=" by (le) ")
    progress = Progress(
        given_ratio=given / everything if everything else 0.0,
        num_requests=round(judged),
        error_rate=failed / judged if judged else 0.0,
        first_token_s=counts.number(f"histogram_quantile(0.9, {buckets})", now_s),
        age_s=age_s,
    )
    if canary.rules.about_condition:
        progress = replace(progress, condition=share("canary"), stable_condition=share("stable"))
    return progress
