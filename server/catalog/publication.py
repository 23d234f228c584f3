"""What serves: follows from the records, the files and what the workers hold, and is shown in one step.

Invariants: requests see everything of a change or nothing of it; a record is written before it holds; a
version that is no longer served keeps its tensors until the last request that uses it is done.

To be called while the lock on changes is held; ``view`` may be read at any time.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from server.audit import Audit
from server.catalog.control import CatalogControl
from server.catalog.log import folder_event, log_change
from server.catalog.processes import OtherProcesses
from server.catalog.records import Records
from server.catalog.residents import Resident, Residents
from server.catalog.weights import WEIGHTS_KIND, Weights
from server.memory.residency import Residency
from server.metrics.patches import PatchMetrics
from server.versions import activation
from server.versions.activation import BY_FOLDER, Cause, NameRecord, Situation, Target
from server.versions.revision import FleetRevision
from server.versions.view import CatalogView, ServedPatch, naming_of


@dataclass(frozen=True, slots=True)
class Revision:
    """What a revision of a fleet's catalog changes beside the names."""

    fleet: FleetRevision
    #: The bytes of a new policy file, empty where there is none any more; ``None`` where the policy stays.
    policy: bytes | None = None
    #: Makes the policy hold in this process; called in the step itself, and waits for nothing.
    hold: Callable[[], None] = lambda: None


class Publication:
    """Keeps records, view and workers in line with each other."""

    def __init__(
        self,
        residency: Residency,
        metrics: PatchMetrics,
        changes: asyncio.Lock,
        control: CatalogControl,
        processes: OtherProcesses,
        *,
        weights: Weights,
        may_compose: bool,
    ) -> None:
        #: Which weights are in force.
        self.weights = weights
        #: Read it once per decision; it is never mutated.
        self.view = CatalogView(may_compose=may_compose)
        self.records: Records = control.records
        self.audit: Audit = control.audit
        self.processes = processes
        #: What the workers hold, and which requests use it.
        self.residents = Residents(residency, metrics, changes, self._is_kept, processes)
        #: What is active is decided once the whole folder was looked at.
        self.is_starting = False
        #: When the change of a file began, by a monotonic clock; ``None`` where the server starts.
        self.change_began_s: float | None = None
        self._swaps = metrics.swaps

    def situation(self, name: str) -> Situation:
        """Return what an order about ``name`` is decided on."""
        files, resident = self.residents.usable(name)
        fitting = self._fitting(files, self.weights.in_force)
        return Situation(
            self.records.record(name), tuple(fitting), resident, is_of_weights=self.is_of_weights(name)
        )

    def is_of_weights(self, name: str) -> bool:
        """Return whether a name's contents are weight patches, which no request selects."""
        return self.records.record(name).is_of_weights or any(
            resident.patch.kind == WEIGHTS_KIND for resident in self.residents.of(name)
        )

    async def require_all(self) -> None:
        """Return where every process of the server takes part in changes.

        Raises:
            NotInStep: One does not.
        """
        await self.processes.require_all()

    async def commit(self, name: str, record: NameRecord) -> None:
        """Write ``record`` down, which holds from then on; ``show`` lets requests see what follows from it.

        Raises:
            StateNotSaved: It can't be written; the record before it holds.
        """
        await self.records.commit(name, record, self._sources(name))

    async def note(self, name: str, record: NameRecord) -> None:
        """Make ``record`` the one that holds, written or not; for what can't be refused any more."""
        await self.records.note(name, record, self._sources(name))

    async def refresh(self, *names: str) -> None:
        """Bring records, view and workers in line with the files of ``names``."""
        moved = []
        if not self.is_starting:
            cause = Cause(BY_FOLDER, BY_FOLDER, time.time())
            for name in sorted(set(names)):
                record = self.records.record(name)
                changed = activation.with_files(record, self._files(name, self.weights.in_force), cause)
                if changed is not record:
                    await self.note(name, changed)
                if changed.active != record.active:
                    moved.append(name)
                    self.audit.record(folder_event(name, changed.active))
        if not self.is_starting:
            # No request is answered before that, and ``settle`` shows all names at once.
            await self.show(*names)
        if self.change_began_s is not None:
            for name in moved:
                self._swaps.followed_folder(name, time.monotonic() - self.change_began_s)
        await self.sweep(*names)

    async def show(self, *names: str, revision: Revision | None = None) -> None:
        """Show requests what serves now, in one step, and what else a revision of the catalog changes."""
        before, view = self.view, self.view_under(self.weights.in_force, *names)
        if revision is not None:
            view = replace(view, fleet=revision.fleet)
        async with self.processes.moved(view, names, revision.policy if revision is not None else None):
            self.view = view
            if revision is not None:
                revision.hold()
        for name in sorted(set(names)):
            log_change(name, before, view)

    async def show_all(self) -> None:
        """Show requests what serves under the weights that are in force now, in one step."""
        await self.show(*self.residents.names)

    def view_under(self, weights: ServedPatch | None, *names: str) -> CatalogView:
        """Return what requests would see of ``names``, were a weight patch in force."""
        concerned = set(names)
        weight_names = set(self.view.weight_names - concerned)
        mismatched = {pair for pair in self.view.mismatched if pair[0] not in concerned}
        kept = set(self.view.kept - {r.patch.digest for r in self.residents.of(*concerned)})
        namings = []
        for name in sorted(concerned):
            record = NameRecord() if self.is_starting else self.records.record(name)
            followed = activation.follow_folder(record, self._files(name, weights))
            # What the record says under other weights than it was written for, it will say next.
            is_stale = record.active is not None and not self.fits(record.active, weights)
            wanted = followed if self.is_starting or is_stale else record.active
            of_name = self.residents.of(name)
            held = [r for r in of_name if not r.is_barred and r.patch.kind != WEIGHTS_KIND]
            others = [r for r in held if self.weights.is_mismatched(r.patch.manifest, weights)]
            if self.weights.keeps_mismatched:
                kept.update(r.patch.digest for r in others)
                others = []
            mismatched.update((name, r.patch.version) for r in others)
            if of_name and self.is_of_weights(name):
                weight_names.add(name)
            usable = ((r.patch, bool(r.paths)) for r in held if r not in others)
            namings.append(naming_of(name, usable, wanted, record.canary))
        view = replace(
            self.view,
            weights=weights,
            mismatched=frozenset(mismatched),
            weight_names=frozenset(weight_names),
            kept=frozenset(kept),
        )
        return view.with_names(namings)

    def served(self, name: str, version: str) -> ServedPatch | None:
        """Return what serves as this version; before ``settle``, what the files so far would have serve."""
        view = self.view_under(self.weights.in_force, name) if self.is_starting else self.view
        named = view.names.get(name)
        return named.by_version.get(version) if named is not None else None

    async def sweep(self, *names: str) -> None:
        """Drop what nothing keeps, once no request uses it."""
        await self.residents.sweep(*names)
        if not self.is_starting:
            in_folder = [r.patch.digest for r in self.residents.all() if r.paths]
            await self.records.prune(self.records.names - self.view.names.keys(), in_folder)

    def note_loading(self, *versions: tuple[str, str]) -> None:
        """Show requests what is being put on the workers; nothing where ``versions`` is empty."""
        self.view = replace(self.view, loading=frozenset(versions))
        self.processes.note_loading(self.view.loading)

    def _files(self, name: str, weights: ServedPatch | None) -> Sequence[Target]:
        # No file makes a weight patch the one in force: an operator does.
        files = [r.target for r in self.residents.of(name) if r.paths and r.patch.kind != WEIGHTS_KIND]
        return self._fitting(files, weights)

    def _fitting(self, files: Sequence[Target], weights: ServedPatch | None) -> Sequence[Target]:
        """Return which files decide under a weight patch: those for its weights, or all where none is.

        A version for other weights takes no name out of service.
        """
        fitting = [t for t in files if self.fits(t, weights)]
        return fitting or files

    def fits(self, target: Target, weights: ServedPatch | None) -> bool:
        """Return whether a content can serve under a weight patch; what is not loaded is not asked."""
        resident = self.residents.get(target.digest)
        return resident is None or not self.weights.is_mismatched(resident.patch.manifest, weights)

    def _sources(self, name: str) -> dict[str, Collection[Path]]:
        return {r.patch.digest: sorted(r.paths) for r in self.residents.of(name)}

    def _is_kept(self, resident: Resident) -> bool:
        is_ordered = resident.patch.digest in self.records.kept_digests and not resident.is_barred
        return bool(resident.paths) or is_ordered
