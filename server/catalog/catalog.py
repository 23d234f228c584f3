"""The live catalog: which patch files are served, from reading a file to dropping its tensors.

Changes run one at a time; requests never wait for one. A version is served from the moment when every worker
holds it, in one assignment of the view; whatever goes wrong before that leaves the view as it was. A version
that is no longer served keeps its tensors until the last request that uses it is done.

Which version a bare name means is decided in ``server.versions.activation``: without an operator's call, the
highest semantic version among the files that are there. What becomes of a file is decided in
``server.catalog.loading``, and what requests see of it in ``server.catalog.publication``; this module takes
what the folder and operators ask, one after the other.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from server.catalog.control import CatalogControl
from server.catalog.folder_files import not_writable, remove_files
from server.catalog.intake import Intake
from server.catalog.loading import Loading
from server.catalog.order_queue import Orders
from server.catalog.processes import NoOtherProcesses, OtherProcesses
from server.catalog.publication import Publication, Revision
from server.catalog.refusals import CATALOG_REASONS, ServedModel
from server.catalog.residents import Resident, ResidentRow, Residents
from server.catalog.state_folder import StateError
from server.catalog.weights import Effects, WeightControl, Weights
from server.errors import FileRefused, OrderRefused, PatchNotFound, StateNotSaved
from server.memory.residency import Residency
from server.metrics.patches import PatchMetrics
from server.metrics.swaps import SwapMetrics
from server.trust.trust import Trust
from server.versions import activation
from server.versions.activation import Cause, NameRecord, Situation, Target
from server.versions.revision import FleetRevision
from server.versions.view import CatalogView, FileFailure, ServedPatch

logger = logging.getLogger(__name__)


class Catalog:
    """Loads, replaces and drops patches; read by requests through ``view``."""

    def __init__(
        self,
        residency: Residency,
        model: ServedModel,
        metrics: PatchMetrics,
        control: CatalogControl | None = None,
        *,
        may_compose: bool = False,
        processes: OtherProcesses | None = None,
        weights: WeightControl | None = None,
    ) -> None:
        control, processes = control or CatalogControl(), processes or NoOtherProcesses()
        #: Which weights are in force.
        self.weights = Weights(model.base_model, weights, processes, metrics.weights)
        self._metrics = metrics
        self._changes = asyncio.Lock()
        #: What requests see, and why.
        self.publication = Publication(
            residency,
            metrics,
            self._changes,
            control,
            processes,
            weights=self.weights,
            may_compose=may_compose,
        )
        #: Returns what the policy needs of what a view serves.
        self.needs: Callable[[CatalogView], Iterable[str]] = lambda view: ()
        #: Why the catalog of the fleet can't be followed; ``None`` where it is, or there is none.
        self.fleet_problem: str | None = None
        #: What files must pass.
        self.intake = Intake(model, control.trust, self._weights_digests)
        self._files = Loading(self.publication, self.intake, metrics)
        self._orders = Orders(self._changes, self.publication.situation, self._hold)
        metrics.bind(self.rows, self.record)

    @property
    def view(self) -> CatalogView:
        """What serves now; read it once per decision."""
        return self.publication.view

    @property
    def residents(self) -> Residents:
        """What the workers hold, and which requests use it."""
        return self.publication.residents

    @property
    def swaps(self) -> SwapMetrics:
        """Counts changes of what serves."""
        return self._metrics.swaps

    @property
    def trust(self) -> Trust:
        """Which files are accepted; call ``recheck`` where that has changed."""
        return self.intake.trust

    def require_in_step(self) -> None:
        """See ``server.catalog.served.Served``: what is decided here is always up to date."""

    def rows(self, *names: str) -> Iterator[ResidentRow]:
        """List what is served or draining; with ``names``, only those."""
        return self.residents.rows(self.view, *names)

    def failures(self) -> list[FileFailure]:
        """List the files that are refused now, and the folder where it can't be read."""
        return self._files.refusals.all()

    def outcome(self, path: Path) -> ServedPatch | FileFailure | None:
        """Return what became of a file of the folder; ``None`` where there was none."""
        return self._files.outcome(path)

    def record(self, name: str) -> NameRecord:
        """Return what is remembered about ``name``; an empty record where nothing is."""
        return self.publication.records.record(name)

    async def load_file(self, path: Path) -> ServedPatch | FileFailure:
        """Serve what ``path`` holds now, in place of what it held before.

        Returns:
            What is served, or why it is not; a refused file changes nothing that serves.
        """
        async with self._changes:
            outcome = await self._files.load(path)
            await self._files.retry_conflicts()
            return outcome

    async def forget_file(self, path: Path) -> None:
        """Stop serving what ``path`` held; requests that use it run to their end."""
        async with self._changes:
            await self._files.forget(path)
            await self._files.retry_conflicts()

    def note_folder(self, path: Path, error: OSError | None) -> None:
        """Record that the folder can't be scanned, or that it can again. Nothing that serves changes."""
        self._metrics.files.folder_scanned(is_readable=error is None)
        if error is not None:
            message = f"the patch folder can't be read: {error.strerror or error}"
            self._files.refusals.add(path, FileRefused(message, reason="folder_unreadable"))
        elif self._files.refusals.drop(path):
            logger.warning("patch folder %s can be read again", path)

    def begin_start(self) -> None:
        """Leave records as they are until ``settle``: the files that follow were there before this start."""
        self.publication.is_starting = True

    async def settle(self) -> None:
        """Bring back what the records keep, and decide what is active now that every file was looked at."""
        async with self._changes:
            records = self.publication.records
            self.publication.is_starting = False
            await self._files.settle()
            self.publication.change_began_s = None
            names = {*records.names, *(r.patch.name for r in self.residents.all())}
            # Weight patches first: what was made for the model under one of them is judged by it.
            for name in sorted(names, key=lambda name: (not records.record(name).is_of_weights, name)):
                for target in records.kept(name):
                    await self._files.restore(target)
                self._files.evict_rivals(name)
            await self._resume_weights(names)
            await self.publication.refresh(*names)

    async def recheck(self) -> None:
        """Drop what ``trust`` does not accept any more, and try again what it refused."""
        async with self._changes:
            await self._files.recheck()
            await self._files.retry_conflicts()

    async def permit_downgrade(self, name: str, version: str) -> None:
        """Load files of a version that only a signed bound keeps out; for an operator's order only.

        Raises:
            OSError: The permission could not be written down; nothing is changed.
        """
        async with self._changes:
            await self._files.permit_downgrade(name, version)

    async def change(self, name: str, decide: Callable[[Situation], NameRecord]) -> NameRecord:
        """Carry out an operator's order: it holds, and survives the process, when this returns.

        Args:
            name: The patch that the order is about.
            decide: Returns the new record, or raises where the order can't be carried out.

        Raises:
            StateNotSaved: The order could not be written down; nothing is changed.
        """
        return await self._orders.give(name, decide)

    async def stand_at(self, fleet: FleetRevision) -> None:
        """Show requests where the server stands in the fleet's catalog; no name changes."""
        async with self._changes:
            await self.publication.show(revision=Revision(fleet))

    async def adopt(
        self, decide: Callable[[str, NameRecord], NameRecord], names: Collection[str], revision: Revision
    ) -> None:
        """Bring in a revision of the fleet's catalog: all names, the policy and the revision in one step.

        Args:
            decide: Returns the new record of a name.
            names: Those that the revision says anything about; every other name means nothing from now on.
            revision: What it changes beside them.

        Raises:
            NotInStep: A process of the server does not take part; nothing is changed.
            StateNotSaved: A record could not be written down; nothing is changed.
        """
        async with self._changes:
            await self.publication.require_all()
            publication, records = self.publication, self.publication.records
            concerned = sorted({*names, *records.names, *self.residents.names})
            before = {name: records.record(name) for name in concerned}
            after = {name: decide(name, record) for name, record in before.items()}
            moved = [name for name in concerned if after[name] is not before[name]]
            try:
                for name in moved:
                    await publication.commit(name, after[name])
            except StateNotSaved:
                # Those that were written first hold no longer than until here.
                for name in moved:
                    if records.record(name) is not before[name]:
                        await publication.note(name, before[name])
                raise
            await publication.show(*moved, revision=revision)
            await publication.sweep(*moved)

    async def remove(
        self,
        name: str,
        version: str | None,
        choose: Callable[[Situation], Collection[Target]],
        cause: Cause,
    ) -> tuple[NameRecord, list[Resident]]:
        """Carry out an operator's order to drop contents of ``name`` with their files.

        Args:
            name: The patch that the order is about.
            version: Refused files of this version go too; of every version where it is ``None``.
            choose: Returns what to drop, or raises where the order can't be carried out.
            cause: Whose order it is.

        Returns:
            The new record, and what drains now.

        Raises:
            OrderRefused: A file can't be removed; nothing is changed.
            StateNotSaved: The order could not be written down; nothing is changed.
        """
        async with self._changes:
            await self.publication.require_all()
            situation = self.publication.situation(name)
            refused = self._files.refusals.paths(CATALOG_REASONS, name, version)
            try:
                gone = choose(situation)
            except PatchNotFound:
                if not refused:
                    raise
                gone = ()
            leaving = [r for r in self.residents.of(name) if r.target in gone]
            if any(resident.patch == self.weights.in_force for resident in leaving):
                raise OrderRefused(f"'{name}' is in force; roll it back first")
            left = [target for target in situation.files if target not in gone]
            going, record = activation.removals(situation.record, gone, left, cause)
            await self.publication.commit(name, going)
            try:
                paths = [*refused, *(path for resident in leaving for path in resident.paths)]
                await asyncio.to_thread(remove_files, paths)
            except OSError as error:
                await self.publication.note(name, situation.record)
                raise not_writable(error) from error
            self._files.drop(leaving, refused)
            await self.publication.note(name, record)
            await self._follow_record(name)
            return record, leaving

    async def _hold(self, name: str, record: NameRecord) -> None:
        await self.publication.require_all()
        if self.publication.is_of_weights(name):
            await self._hold_weights(name, replace(record, is_of_weights=True))
            return
        await self.publication.commit(name, record)
        await self._follow_record(name)

    async def _hold_weights(self, name: str, record: NameRecord) -> None:
        self.weights.require_allowed(name, record)
        in_force = self.weights.in_force
        wanted = in_force if in_force is not None and in_force.name != name else self._meant(record)
        if wanted == in_force:
            await self.publication.commit(name, record)
            return
        self.require_enough(wanted)
        async with self.weights.changed_to(wanted, self.residents) as keep:
            await self.publication.commit(name, record)
            keep()
            await self.publication.show_all()
        # What bare names mean under these weights is written down, too.
        await self.publication.refresh(*self.residents.names)

    def _weights_digests(self) -> Collection[str]:
        return {self.weights.digest_under(resident.patch) for resident in self.residents.of_weights()}

    def _meant(self, record: NameRecord) -> ServedPatch | None:
        return self.residents[record.active.digest].patch if record.active is not None else None

    def require_enough(self, wanted: ServedPatch | None) -> None:
        """Check that what the policy needs would still be served under a weight patch.

        Raises:
            OrderRefused: Something would not.
        """
        if lost := self.effects(wanted).lost:
            raise OrderRefused(f"the policy needs {', '.join(lost)}, made for other weights")

    def effects(self, wanted: ServedPatch | None) -> Effects:
        """Return what would not be served any more, were a weight patch in force."""
        view = self.publication.view_under(wanted, *self.residents.names)
        now, then = ({p.reference for n in v.names.values() for p in n.versions} for v in (self.view, view))
        needed_now, needed_then = (set(self.needs(v)) for v in (self.view, view))
        kept = {p.reference for n in view.names.values() for p in n.versions if p.digest in view.kept}
        return Effects(sorted(now - then), sorted(kept), sorted(needed_now - needed_then))

    async def _resume_weights(self, names: Collection[str]) -> None:
        """Bring the weights in line with the record that says which patch is in force.

        Raises:
            StateError: Its content is unavailable: the server must not answer with other weights.
        """
        for name in sorted(names):
            record = self.record(name)
            if not record.is_of_weights or record.active is None:
                continue
            if record.active.digest not in self.residents:
                raise StateError(
                    f"--state: {name}@{record.active.version} is in force and can't be loaded "
                    "(the log says why); mend that, or remove its record to serve the model's own weights"
                )
            async with self.weights.changed_to(self._meant(record), self.residents) as keep:
                keep()

    async def _follow_record(self, name: str) -> None:
        """Bring everything in line with an order that was written down."""
        self._files.evict_rivals(name)
        await self.publication.show(name)
        await self.publication.sweep(name)
        await self._files.retry_conflicts()
