"""Follows a fleet's catalog: hears of revisions, loads them, and lets each hold in one step at its instant.

Invariants: what holds is one revision, of all names and the policy; a revision is never followed by a lower
one; whatever goes wrong leaves the revision that holds, and says why.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from server.audit import Audit, AuditEvent
from server.catalog.catalog import Catalog
from server.catalog.folder import PatchFolder
from server.catalog.publication import Revision
from server.errors import NotInStep, StateNotSaved
from server.fleet.document import Document, Meaning, seconds_of
from server.fleet.reader import CatalogReader, Heard, SyncFailed
from server.fleet.staging import Stage, Staged
from server.metrics.fleet import FleetMetrics
from server.options import FleetOptions
from server.policy.rules import Policy
from server.policy.watch import PolicyHolder
from server.versions.activation import Canary, CanaryRules, Cause, NameRecord, Target, adopted
from server.versions.revision import FleetMeaning, FleetRevision
from server.watcher import Watcher

logger = logging.getLogger(__name__)

#: Who causes what a catalog says, in histories and in the audit log.
BY_CATALOG = "catalog"

#: Further apart, clocks can't name one instant; the store tells its own in whole seconds.
_MAX_SKEW_S = 2.0

#: Seconds between two tries of a start.
_RETRY_S = 2.0


class CatalogSync(Watcher):
    """Follows one catalog; entered once at start-up, and then some revision holds."""

    def __init__(
        self,
        reader: CatalogReader,
        stage: Stage,
        catalog: Catalog,
        holder: PolicyHolder,
        metrics: FleetMetrics,
        audit: Audit,
        *,
        every_s: float,
        may_be_stale: bool,
    ) -> None:
        """Make one.

        Args:
            reader: Reads the catalog.
            stage: Loads what it names.
            catalog: Where it is to hold.
            holder: Its policy is replaced with each revision that brings another.
            metrics: Told where the server stands.
            audit: Told of each revision that holds.
            every_s: Seconds between looks.
            may_be_stale: Whether requests that need no required patch are answered after the lease.
        """
        super().__init__("catalog of the fleet", every_s=every_s)
        self._reader = reader
        self._stage = stage
        self._catalog = catalog
        self._holder = holder
        self._flag_policy: Policy = holder.policy
        self._metrics = metrics
        self._audit = audit
        self._may_be_stale = may_be_stale
        #: Held while anything of a revision is brought in.
        self._turn = asyncio.Lock()
        self._staged: Staged | None = None
        self._policy_data = b""
        self._lease_ends_s = 0.0
        self._failure: SyncFailed | None = None
        self._switching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Bring a revision in, however long that takes; then begin to look."""
        await self.look()
        if not self._has_begun():
            await self._begin_as_before()
        while not self._has_begun():
            await asyncio.sleep(_RETRY_S)
            await self.look()
        return await super().__aenter__()

    async def __aexit__(self, *error: object) -> None:
        self._stop_waiting()
        await super().__aexit__(*error)  # type: ignore[arg-type]
        self._reader.close()

    async def look(self) -> None:
        """Look once, and bring in what is new."""
        async with self._turn:
            try:
                await self._follow(await asyncio.to_thread(self._reader.hear))
            except SyncFailed as error:
                self._fail(error)
            except (NotInStep, StateNotSaved) as error:
                self._fail(_failure_of(error))
            else:
                if self._failure is not None:
                    logger.warning("the catalog of the fleet can be followed again")
                self._failure = self._catalog.fleet_problem = None
            self._note_standing()

    def _has_begun(self) -> bool:
        return self._catalog.view.fleet is not None

    async def _begin_as_before(self) -> None:
        """Serve what an earlier process had heard, where the store is away and its lease lasts."""
        heard = await asyncio.to_thread(self._reader.remembered)
        if heard is None or heard.lease_ends_s <= time.time():
            return
        async with self._turn:
            try:
                await self._follow(heard)
            except (SyncFailed, NotInStep, StateNotSaved) as error:
                logger.error("the catalog that was heard last can't be served: %s", error)

    async def _follow(self, heard: Heard) -> None:
        document, fleet = heard.document, self._catalog.view.fleet
        if fleet is not None and document.revision < fleet.heard:
            raise SyncFailed("rolled_back", f"revision {document.revision} is older than {fleet.heard}")
        self._lease_ends_s = heard.lease_ends_s
        # A clock that is set back later makes no lease longer.
        lease_ends_s = time.monotonic() + heard.lease_ends_s - time.time()
        if self._staged is None or self._staged.document != document:
            await self._note_heard(document, lease_ends_s, time.monotonic() + self._ahead_s(heard))
            cause = Cause("catalog", BY_CATALOG, time.time())
            self._staged = await self._stage.prepare(document, cause)
            self._stop_waiting()
        ahead_s, fleet = self._ahead_s(heard), self._catalog.view.fleet
        if fleet is not None and fleet.number == document.revision:
            if abs(lease_ends_s - fleet.lease_ends_s) > 1.0:
                await self._catalog.stand_at(replace(fleet, lease_ends_s=lease_ends_s))
        elif ahead_s <= 0:
            self._stop_waiting()
            await self._switch(self._staged, lease_ends_s)
        else:
            if fleet is None:
                await self._begin_before(document, lease_ends_s, ahead_s)
            if self._switching is None:
                waiting = self._wait(self._staged, lease_ends_s, ahead_s)
                self._switching = asyncio.get_running_loop().create_task(waiting)

    def _stop_waiting(self) -> None:
        if self._switching is not None:
            self._switching.cancel()
            self._switching = None

    def _ahead_s(self, heard: Heard) -> float:
        """Return in how many seconds the revision is to hold; clocks that differ can't tell an instant."""
        effective_s = heard.document.effective_s
        if effective_s is None or (heard.skew_s is not None and abs(heard.skew_s) > _MAX_SKEW_S):
            return 0.0
        return max(0.0, effective_s - time.time())

    async def _note_heard(self, document: Document, lease_ends_s: float, due_s: float) -> None:
        """Have requests for what is coming be told to try again."""
        view = self._catalog.view
        if view.fleet is None or view.fleet.heard == document.revision:
            # Heard before: trying again makes it due no later.
            return
        served = {(p.name, p.version) for named in view.names.values() for p in named.versions}
        named = {(name, version) for name, entry in document.names.items() for version in entry.versions}
        fleet = replace(
            view.fleet,
            heard=document.revision,
            lease_ends_s=lease_ends_s,
            due_s=due_s,
            coming=frozenset(named - served),
        )
        await self._catalog.stand_at(fleet)

    async def _begin_before(self, document: Document, lease_ends_s: float, ahead_s: float) -> None:
        """Serve, in a server that has just joined, what held before a revision whose instant is to come."""
        before = max(map(int, document.retained), default=None)
        if before is None:
            return
        meanings = document.meanings(before) or {}
        due_s = time.monotonic() + ahead_s
        await self._adopt(document, meanings, self._revision(document, before, lease_ends_s, due_s))

    async def _wait(self, staged: Staged, lease_ends_s: float, ahead_s: float) -> None:
        """Have a revision hold at its instant; what fails then, the next look tries again."""
        await asyncio.sleep(ahead_s)
        async with self._turn:
            # From here on nothing stops it: whoever would, waits for its turn.
            self._switching = None
            if (fleet := self._catalog.view.fleet) is not None:
                # It may have been stamped meanwhile.
                lease_ends_s = max(lease_ends_s, fleet.lease_ends_s)
            try:
                await self._switch(staged, lease_ends_s)
            except (NotInStep, StateNotSaved) as error:
                self._fail(_failure_of(error))
            self._note_standing()

    async def _switch(self, staged: Staged, lease_ends_s: float) -> None:
        document = staged.document
        policy = staged.policy_data if staged.policy_data != self._policy_data else None

        def hold() -> None:
            self._holder.policy = staged.policy if staged.policy is not None else self._flag_policy

        revision = self._revision(document, document.revision, lease_ends_s, time.monotonic())
        revision = replace(revision, policy=policy, hold=hold)
        await self._adopt(document, document.meanings(document.revision) or {}, revision)
        self._policy_data = staged.policy_data
        logger.info("revision %d of the fleet's catalog is in force", document.revision)
        details = {"revision": document.revision}
        self._audit.record(AuditEvent(event="catalog.revision", decision="done", details=details))
        await self._stage.clear(document)

    async def _adopt(self, document: Document, meanings: Mapping[str, Meaning], revision: Revision) -> None:
        cause = Cause("catalog", BY_CATALOG, time.time())

        def decide(name: str, record: NameRecord) -> NameRecord:
            meaning = meanings.get(name)
            if meaning is None:
                return adopted(record, None, None, cause)
            now = _meaning(document, name, meaning)
            return adopted(record, now.active, now.canary, cause)

        await self._catalog.adopt(decide, tuple(document.names), revision)

    def _revision(self, document: Document, number: int, lease_ends_s: float, due_s: float) -> Revision:
        """Return what a revision changes beside the names, be it ``document`` or one that it retains."""
        # What differed is told against the newest revision, so that only that one can be gone back from.
        retained = document.retained if number == document.revision else {}
        fleet = FleetRevision(
            number,
            document.revision,
            lease_ends_s,
            due_s=due_s,
            may_be_stale=self._may_be_stale,
            retained={
                int(revision): {
                    n: _meaning(document, n, m) if m is not None else None for n, m in then.items()
                }
                for revision, then in retained.items()
            },
        )
        return Revision(fleet)

    def _fail(self, error: SyncFailed) -> None:
        before = self._failure
        if before is None or (before.reason, str(before)) != (error.reason, str(error)):
            logger.error("the catalog of the fleet can't be followed (%s): %s", error.reason, error)
        self._failure = error
        self._catalog.fleet_problem = f"{error.reason}: {error}"
        self._metrics.failed(error.reason)

    def _note_standing(self) -> None:
        fleet = self._catalog.view.fleet
        if fleet is not None:
            is_in_step = fleet.number == fleet.heard or time.monotonic() < fleet.due_s
            self._metrics.stands_at(fleet.number, fleet.heard, self._lease_ends_s, is_in_step=is_in_step)


def followed(
    catalog: Catalog,
    watched: PatchFolder,
    holder: PolicyHolder,
    metrics: FleetMetrics,
    audit: Audit,
    options: FleetOptions,
    folder: Path,
) -> CatalogSync:
    """Make what follows the catalog that the flags name, with its copy in ``folder``."""
    assert options.catalog is not None
    assert options.catalog_root is not None
    reader = CatalogReader(options.catalog, options.catalog_root.read_bytes(), folder)
    return CatalogSync(
        reader,
        Stage(reader, folder, watched, catalog),
        catalog,
        holder,
        metrics,
        audit,
        every_s=options.catalog_poll,
        may_be_stale=options.stale == "serve",
    )


def _failure_of(error: NotInStep | StateNotSaved) -> SyncFailed:
    return SyncFailed("state" if isinstance(error, StateNotSaved) else "not_in_step", error.message)


def _meaning(document: Document, name: str, meaning: Meaning) -> FleetMeaning:
    """Return what a bare name means, by contents."""
    versions = document.names[name].versions
    active = Target(meaning.active, versions[meaning.active].digest)
    if (canary := meaning.canary) is None:
        return FleetMeaning(active)
    target = Target(canary.version, versions[canary.version].digest)
    at_s = seconds_of(canary.since)
    # The fleet's judge ends it, by all servers together; no server does by itself.
    return FleetMeaning(
        active, Canary(target, canary.share, canary.key, CanaryRules(), BY_CATALOG, at_s, was_pinned=True)
    )
