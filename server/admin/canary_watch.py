"""Watches the requests of running canaries, and ends a canary that its rules judge."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from server.audit import Audit, AuditEvent
from server.errors import PolicyPatchError
from server.metrics.canaries import CanaryMetrics
from server.versions.activation import Canary, NameRecord, Target
from server.versions.canary import Progress, Sample, Verdict, Window, judge

logger = logging.getLogger(__name__)

#: The name under which rules act, in history and audit log.
BY_RULES = "rules"


class CanaryOperator(Protocol):
    """Carries out what the rules decide."""

    async def end_canary(
        self,
        name: str,
        verdict: Verdict,
        by: str,
        *,
        expected: Target | None = None,
        reason: str | None = None,
    ) -> NameRecord:
        """See ``server.admin.operator.Operator.end_canary``."""
        ...


class ArmReports(Protocol):
    """Receives how each request of a canaried name went."""

    def finished(
        self, name: str, arm: str, outcome: str, first_token_s: float | None, is_met: bool | None
    ) -> None:
        """Count one more request. Event loop thread only.

        Args:
            name: The name that has a canary.
            arm: ``canary`` or ``stable``.
            outcome: One of ``server.metrics.patches.OUTCOMES``.
            first_token_s: Seconds to the first token.
            is_met: Whether the condition of the name's version was met; ``None`` where none was decided.
        """
        ...


class CanaryWatch:
    """Receives how each request of a canaried name went; event loop thread only."""

    def __init__(
        self,
        record: Callable[[str], NameRecord],
        operator: CanaryOperator,
        metrics: CanaryMetrics,
        audit: Audit,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._operator = operator
        self._metrics = metrics
        self._audit = audit
        self._clock = clock
        #: The canary, when this process first saw it, and how its requests went.
        self._windows: dict[str, tuple[Canary, float, Window]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        metrics.bind(self.progress)

    def progress(self, name: str, canary: Canary) -> Progress:
        """Return how a canary goes; nothing was seen of one that no request of its name came for."""
        now_s = self._clock()
        known, since_s, window = self._windows.get(name, (None, now_s, Window()))
        if known != canary:
            return Progress()
        since = [window.since(now_s - canary.rules.window_s, arm) for arm in ("canary", "stable")]
        return Progress.of(since[0], now_s - since_s, window.given_ratio, since[1])

    def finished(
        self,
        name: str,
        arm: str,
        outcome: str,
        first_token_s: float | None = None,
        is_met: bool | None = None,
    ) -> None:
        """Count a request of an arm; one that its client broke off or got wrong is not judged."""
        self._metrics.finished(name, arm, outcome, first_token_s, is_met)
        canary = self._record(name).canary
        if canary is None:
            return
        now_s = self._clock()
        known, since_s, window = self._windows.get(name, (None, now_s, Window()))
        if known != canary:
            since_s, window = now_s, Window()
        self._windows[name] = canary, since_s, window
        window.count(arm)
        if outcome not in ("ok", "server_error"):
            return
        window.add(Sample(now_s, outcome == "server_error", first_token_s, is_met), arm)
        if arm != "canary":
            return
        judged = judge(canary.rules, self.progress(name, canary))
        if judged is not None and name not in self._ending:
            task = asyncio.get_running_loop().create_task(self._end(name, canary, *judged))
            self._ending[name] = task
            task.add_done_callback(lambda _: self._ending.pop(name, None))

    async def settled(self) -> None:
        """Wait until what the rules decided is carried out."""
        while self._ending:
            await asyncio.gather(*self._ending.values())

    async def _end(self, name: str, canary: Canary, verdict: Verdict, reason: str) -> None:
        logger.warning("patch %s: the canary %s: %s: %s", name, canary.target.version, verdict, reason)
        error: PolicyPatchError | None = None
        try:
            await self._operator.end_canary(name, verdict, BY_RULES, expected=canary.target, reason=reason)
        except PolicyPatchError as refused:
            # An operator came first, or the state can't be written; the next request asks again.
            error = refused
            logger.error("patch %s: the canary could not be ended: %s", name, refused.message)
        self._audit.record(
            AuditEvent(
                event=f"canary.{verdict}",
                decision="done" if error is None else "failed",
                principal=BY_RULES,
                wish=name,
                reason=reason if error is None else error.message,
                patch=f"{name}@{canary.target.version}",
                digest=canary.target.digest,
            )
        )
