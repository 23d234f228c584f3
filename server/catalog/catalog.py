"""The live catalog: which patch files are served, from reading a file to dropping its tensors.

Changes run one at a time; requests never wait for one. A version is served from the moment when every worker
holds it, in one assignment of ``view``; whatever goes wrong before that leaves the view as it was. A version
that is no longer served keeps its tensors until the last request that uses it is done.

Which version a bare name means is told by ``server.versions.activation``: without an operator's call, the
highest semantic version among the files that are there. The same path with new content replaces the old
content. Two paths with the same name and version and different content: the one that was loaded first keeps
serving, the other is refused until the first is gone.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from patches.format import Patch
from patches.manifest import BaseModel
from server.audit import Audit, NullAudit
from server.catalog.folder_files import not_writable, remove_files
from server.catalog.intake import Intake
from server.catalog.log import folder_event, log_change
from server.catalog.order_queue import Orders
from server.catalog.processes import NoOtherProcesses, OtherProcesses
from server.catalog.records import Records
from server.catalog.refusals import CATALOG_REASONS, Refusals, held_conflict, refusal_of
from server.catalog.residents import Resident, ResidentRow, Residents
from server.errors import BelowMinimumVersion, FileRefused, InvalidPatchFile, PatchConflict, PatchNotFound
from server.memory.residency import Residency
from server.metrics.patches import PatchMetrics
from server.trust.trust import TRUST_REASONS, Trust
from server.versions import activation
from server.versions.activation import BY_FOLDER, Cause, NameRecord, Situation, Target
from server.versions.view import CatalogView, FileFailure, ServedPatch, with_residents

logger = logging.getLogger(__name__)


class Catalog:
    """Loads, replaces and drops patches; read by requests through ``view``."""

    def __init__(
        self,
        residency: Residency,
        base_model: BaseModel,
        max_num_tokens: int,
        metrics: PatchMetrics,
        *,
        records: Records | None = None,
        trust: Trust | None = None,
        audit: Audit | None = None,
        may_compose: bool = False,
        processes: OtherProcesses | None = None,
    ) -> None:
        #: Read it once per decision; it is never mutated.
        self.view = CatalogView(may_compose=may_compose)
        #: Which files are believed; call ``recheck`` where that has changed.
        self.trust = trust or Trust()
        #: What files must pass.
        self.intake = Intake(base_model, max_num_tokens, lambda: self.trust)
        self._metrics = metrics
        self._records = records or Records()
        self._audit: Audit = audit or NullAudit()
        self._refusals = Refusals(metrics)
        self._processes: OtherProcesses = processes or NoOtherProcesses()
        self._digests: dict[Path, str] = {}
        #: What is active is decided once the whole folder was looked at.
        self._is_starting = False
        self._changes = asyncio.Lock()
        self._orders = Orders(self._changes, self._situation, self._hold)
        #: What the workers hold, and which requests use it.
        self.residents = Residents(residency, metrics, self._changes, self._is_kept, self._processes)
        metrics.bind(lambda: list(self.rows()))

    def require_in_step(self) -> None:
        """See ``server.catalog.served.Served``: what is decided here is always up to date."""

    def rows(self, *names: str) -> Iterator[ResidentRow]:
        """List what is served or draining; with ``names``, only those."""
        return self.residents.rows(self.view, *names)

    def failures(self) -> list[FileFailure]:
        """List the files that are refused now, and the folder where it can't be read."""
        return self._refusals.all()

    async def load_file(self, path: Path) -> ServedPatch | FileFailure:
        """Serve what ``path`` holds now, in place of what it held before.

        Returns:
            What is served, or why it is not; a refused file changes nothing that serves.
        """
        async with self._changes:
            outcome = await self._load(path)
            await self._retry_conflicts()
            return outcome

    async def forget_file(self, path: Path) -> None:
        """Stop serving what ``path`` held; requests that use it run to their end."""
        async with self._changes:
            await self._forget(path)
            await self._retry_conflicts()

    def note_folder(self, path: Path, error: OSError | None) -> None:
        """Record that the folder can't be scanned, or that it can again. Nothing that serves changes."""
        self._metrics.set_folder_readable(error is None)
        if error is not None:
            message = f"the patch folder can't be read: {error.strerror or error}"
            self._refusals.add(path, FileRefused(message, reason="folder_unreadable"))
        elif self._refusals.drop(path):
            logger.warning("patch folder %s can be read again", path)

    def begin_start(self) -> None:
        """Let records rest until ``settle``: the files that follow are no news, they were there before."""
        self._is_starting = True

    async def settle(self) -> None:
        """Bring back what the records keep, and decide what is active now that every file was looked at."""
        async with self._changes:
            self._is_starting = False
            names = {*self._records.names, *(r.patch.name for r in self.residents.all())}
            for name in sorted(names):
                for target in self._records.kept(name):
                    await self._restore(target)
                self._evict_rivals(name)
            await self._refresh(*names)

    async def recheck(self) -> None:
        """Drop what ``trust`` does not believe any more, and try again what it refused."""
        async with self._changes:
            await self._drop_distrusted()
            for path in self._refusals.paths(TRUST_REASONS):
                await self._load(path)
            await self._retry_conflicts()

    async def permit_downgrade(self, name: str, version: str) -> None:
        """Load files of a version that only a signed bound keeps out; for an operator's order only.

        Raises:
            OSError: The permission could not be written down; nothing is changed.
        """
        async with self._changes:
            paths = self._refusals.paths({BelowMinimumVersion.reason}, name, version)
            if paths:
                await asyncio.to_thread(self.trust.permit, name, version)
            for path in paths:
                await self._load(path)

    def record(self, name: str) -> NameRecord:
        """Give what is remembered about ``name``; an empty record where nothing is."""
        return self._records.record(name)

    async def change(self, name: str, decide: Callable[[Situation], NameRecord]) -> NameRecord:
        """Carry out an operator's order: it holds, and survives the process, when this returns.

        Args:
            name: The patch that the order is about.
            decide: Gives the new record, or raises where the order can't be carried out.

        Raises:
            StateNotSaved: The order could not be written down; nothing is changed.
        """
        return await self._orders.give(name, decide)

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
            choose: Gives what to drop, or raises where the order can't be carried out.
            cause: Whose order it is.

        Returns:
            The new record, and what drains now.

        Raises:
            OrderRefused: A file can't be removed; nothing is changed.
            StateNotSaved: The order could not be written down; nothing is changed.
        """
        async with self._changes:
            await self._processes.require_all()
            situation = self._situation(name)
            refused = self._refusals.paths(CATALOG_REASONS, name, version)
            try:
                gone = choose(situation)
            except PatchNotFound:
                if not refused:
                    raise
                gone = ()
            leaving = [r for r in self.residents.of(name) if r.target in gone]
            left = [target for target in situation.files if target not in gone]
            going, record = activation.removals(situation.record, gone, left, cause)
            await self._records.commit(name, going, self._sources(name))
            paths = [*refused, *(path for resident in leaving for path in resident.paths)]
            try:
                await asyncio.to_thread(remove_files, paths)
            except OSError as error:
                await self._records.note(name, situation.record, self._sources(name))
                raise not_writable(error) from error
            for path in paths:
                self._digests.pop(path, None)
                self._refusals.drop(path)
            for resident in leaving:
                resident.paths.clear()
            await self._records.note(name, record, self._sources(name))
            await self._follow_record(name)
            return record, leaving

    def outcome(self, path: Path) -> ServedPatch | FileFailure | None:
        """Tell what became of a file of the folder; ``None`` where there was none."""
        resident = self.residents.get(self._digests.get(path, ""))
        return resident.patch if resident is not None else self._refusals.get(path)

    def _situation(self, name: str) -> Situation:
        return Situation(self._records.record(name), *self.residents.usable(name))

    async def _hold(self, name: str, record: NameRecord) -> None:
        await self._processes.require_all()
        await self._records.commit(name, record, self._sources(name))
        await self._follow_record(name)

    async def _follow_record(self, name: str) -> None:
        """Bring everything in line with an order that was written down."""
        self._evict_rivals(name)
        await self._show(name)
        await self._sweep(name)
        await self._retry_conflicts()

    async def _load(self, path: Path) -> ServedPatch | FileFailure:
        started_s = time.monotonic()
        patch = None
        try:
            patch = await self.intake.read(path)
            signature = await self.intake.admit(path, patch)
            served = await self._claim(path, patch)
            if await asyncio.to_thread(self.trust.adopt, served, signature):
                await self._drop_distrusted()
        except Exception as error:
            # The file is untrusted: whatever it does to the reader, the other files must go on being served.
            manifest = patch.manifest if patch is not None else None
            return self._refusals.add(path, refusal_of(path, error), manifest)
        self._metrics.load_succeeded(time.monotonic() - started_s)
        return served

    async def _claim(self, path: Path, patch: Patch) -> ServedPatch:
        """Make ``path`` stand for ``patch``: on the workers first, then in the view."""
        resident = self.residents.get(patch.digest)
        self._refuse_conflict(path, patch)
        if resident is None:
            resident = await self._make_resident(path, patch)
        old = self.residents.get(self._digests.get(path, ""))
        self._digests[path] = patch.digest
        resident.paths.add(path)
        resident.is_barred = False
        self._refusals.drop(path)
        if old is resident:
            return resident.patch
        if old is not None:
            old.paths.discard(path)
        await self._refresh(resident.patch.name, *([old.patch.name] if old is not None else []))
        return resident.patch

    def _refuse_conflict(self, path: Path, patch: Patch) -> None:
        manifest = patch.manifest
        named = self.view.names.get(manifest.name)
        rival = named.by_version.get(manifest.version) if named is not None else None
        if rival is None or rival.digest == patch.digest:
            return
        record = self._records.record(manifest.name)
        if record.needs_no_file and record.active is not None and record.active.digest == rival.digest:
            raise held_conflict(rival)
        others = self.residents[rival.digest].paths - {path}
        if others:
            raise PatchConflict(
                f"{rival.reference} is already served from {min(others).name} with different content; "
                "give this one another version",
            )

    async def _make_resident(self, path: Path, patch: Patch) -> Resident:
        manifest = patch.manifest
        self._note_loading((manifest.name, manifest.version))
        try:
            return await self.residents.load(path, patch)
        finally:
            self._note_loading()

    async def _restore(self, target: Target) -> None:
        """Put a content on the workers from its copy in the state folder, where no file of the folder did."""
        path = self._records.stored_path(target.digest)
        if target.digest in self.residents or path is None:
            return
        try:
            patch = await self.intake.read(path)
            if patch.digest != target.digest:
                raise InvalidPatchFile(f"expected {target.digest}, got {patch.digest}")
            signature = await self.intake.admit(path, patch, is_ordered=True)
            resident = await self._make_resident(path, patch)
            await asyncio.to_thread(self.trust.adopt, resident.patch, signature)
        except Exception as error:
            # As with any file: what can't be loaded is named, and the rest goes on.
            self._refusals.add(path, refusal_of(path, error))

    async def _forget(self, path: Path) -> None:
        self._refusals.drop(path)
        resident = self.residents.get(self._digests.pop(path, ""))
        if resident is None:
            return
        resident.paths.discard(path)
        if not resident.paths:
            await self._refresh(resident.patch.name)

    async def _drop_distrusted(self) -> None:
        """Take from files, and where need be from orders, what ``trust`` does not believe any more."""
        for resident in self.residents.all():
            refusal = self.trust.refusal(resident.patch)
            # A downgrade is refused to files only; an operator's order may go back.
            resident.is_barred = refusal is not None and refusal.reason != BelowMinimumVersion.reason
            if refusal is not None:
                self._take_files(resident, refusal)
                await self._refresh(resident.patch.name)

    async def _retry_conflicts(self) -> None:
        """Load files that were refused for a rival's sake, where the rival is gone."""
        for path, failure in self._refusals.conflicts():
            if not self.view.has(failure.name or "", failure.version or ""):
                await self._load(path)

    def _evict_rivals(self, name: str) -> None:
        """Stop serving files that hold other content under the version that an operator made active."""
        record = self._records.record(name)
        if record.active is None or not record.needs_no_file or record.active.digest not in self.residents:
            return
        keeper = self.residents[record.active.digest].patch
        for resident in self.residents.of(name):
            if resident.patch.version == keeper.version and resident.patch != keeper:
                self._take_files(resident, held_conflict(keeper))

    def _take_files(self, resident: Resident, refusal: FileRefused) -> None:
        for path in sorted(resident.paths):
            del self._digests[path]
            self._refusals.add(path, refusal, resident.patch.manifest)
        resident.paths.clear()

    async def _refresh(self, *names: str) -> None:
        """Bring records, view and workers in line with the files of ``names``."""
        if not self._is_starting:
            cause = Cause(BY_FOLDER, BY_FOLDER, time.time())
            for name in sorted(set(names)):
                record = self._records.record(name)
                changed = activation.with_files(record, self._files(name), cause)
                if changed is not record:
                    await self._records.note(name, changed, self._sources(name))
                if changed.active != record.active:
                    self._audit.record(folder_event(name, changed.active))
        await self._show(*names)
        await self._sweep(*names)

    def _note_loading(self, *versions: tuple[str, str]) -> None:
        self.view = replace(self.view, loading=frozenset(versions))
        self._processes.note_loading(self.view.loading)

    async def _show(self, *names: str) -> None:
        """Let requests see what serves now, in one step."""
        before = view = self.view
        for name in sorted(set(names)):
            record = NameRecord() if self._is_starting else self._records.record(name)
            followed = activation.follow_folder(record, self._files(name))
            wanted = followed if self._is_starting else record.active
            usable = ((r.patch, bool(r.paths)) for r in self.residents.of(name) if not r.is_barred)
            view = with_residents(view, name, usable, wanted, record.canary)
        async with self._processes.moved(view, names):
            self.view = view
        for name in sorted(set(names)):
            log_change(name, before, view)

    def _files(self, name: str) -> list[Target]:
        return [r.target for r in self.residents.of(name) if r.paths]

    def _sources(self, name: str) -> dict[str, list[Path]]:
        return {r.patch.digest: sorted(r.paths) for r in self.residents.of(name)}

    def _is_kept(self, resident: Resident) -> bool:
        is_ordered = resident.patch.digest in self._records.kept_digests and not resident.is_barred
        return bool(resident.paths) or is_ordered

    async def _sweep(self, *names: str) -> None:
        """Drop what nothing keeps, once no request uses it."""
        await self.residents.sweep(*names)
        if not self._is_starting:
            in_folder = [r.patch.digest for r in self.residents.all() if r.paths]
            await self._records.prune(self._records.names - self.view.names.keys(), in_folder)
