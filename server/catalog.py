"""The live catalog: which patch files are served, from reading a file to dropping its tensors.

Changes run one at a time; requests never wait for one. A version is served from the moment when every worker
holds it, in one assignment of ``view``; whatever goes wrong before that leaves the view as it was. A version
that is no longer served keeps its tensors until the last request that uses it is done.

Which version a bare name means is told by ``server.activation``: without an operator's call, the highest
semantic version among the files that are there. The same path with new content replaces the old content. Two
paths with the same name and version and different content: the one that was loaded first keeps serving, the
other is refused until the first is gone.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from patches.format import Patch, read_patch
from patches.manifest import BaseModel
from patches.names import version_key
from server.activation import BY_FOLDER, Cause, NameRecord, Target, follow_folder, with_files
from server.audit import Audit, AuditEvent, NullAudit
from server.catalog_view import CatalogView, FileFailure, ServedPatch
from server.errors import (
    BelowMinimumVersion,
    FileRefused,
    InvalidPatchFile,
    PatchConflict,
    StateNotSaved,
)
from server.ledger import Ledger
from server.metrics import PatchMetrics, ResidentRow
from server.refusals import Refusals, refusal_of, require_servable
from server.residency import Residency
from server.resident import Resident, Situation
from server.residents import Residents
from server.trust import TRUST_REASONS, Trust

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
        ledger: Ledger | None = None,
        trust: Trust | None = None,
        audit: Audit | None = None,
    ) -> None:
        #: Read it once per decision; it is never mutated.
        self.view = CatalogView()
        #: Which files are believed; call ``recheck`` where that has changed.
        self.trust = trust or Trust()
        self._base_model = base_model
        self._max_num_tokens = max_num_tokens
        self._metrics = metrics
        self._ledger = ledger or Ledger()
        self._audit: Audit = audit or NullAudit()
        self._refusals = Refusals(metrics)
        self._digests: dict[Path, str] = {}
        #: What is active is decided once the whole folder was looked at.
        self._is_starting = False
        self._changes = asyncio.Lock()
        #: What the workers hold, and which requests use it.
        self.books = Residents(residency, metrics, self._changes, self._is_kept)
        metrics.bind(lambda: list(self.residents()))

    def residents(self) -> Iterator[ResidentRow]:
        """List what the workers hold, served or draining."""
        for resident in self.books.all():
            patch = resident.patch
            named = self.view.names.get(patch.name)
            is_served = named is not None and patch in named.versions
            is_kept = self._is_kept(resident)
            yield ResidentRow(
                patch,
                is_active=named is not None and named.active == patch,
                is_draining=not is_kept,
                num_in_flight=resident.num_in_flight,
                is_previous=is_kept and not is_served,
                is_in_memory=self.books.is_ready(patch),
            )

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
            names = {*self._ledger.names, *(r.patch.name for r in self.books.all())}
            for name in sorted(names):
                for target in self._ledger.kept(name):
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
            StateNotSaved: The permission could not be written down; nothing is changed.
        """
        async with self._changes:
            paths = self._refusals.paths({BelowMinimumVersion.reason}, name, version)
            if not paths:
                return
            try:
                await asyncio.to_thread(self.trust.permit, name, version)
            except OSError as error:
                raise StateNotSaved(
                    f"the permission could not be saved ({error.strerror or error})"
                ) from error
            for path in paths:
                await self._load(path)

    def record(self, name: str) -> NameRecord:
        """Give what is remembered about ``name``; an empty record where nothing is."""
        return self._ledger.record(name)

    async def change(self, name: str, decide: Callable[[Situation], NameRecord]) -> NameRecord:
        """Carry out an operator's order: it holds, and survives the process, when this returns.

        Args:
            name: The patch that the order is about.
            decide: Gives the new record, or raises where the order can't be carried out.

        Raises:
            StateNotSaved: The order could not be written down; nothing is changed.
        """
        async with self._changes:
            residents = [r for r in self.books.of(name) if not r.is_unloading and not r.is_barred]
            situation = Situation(
                self._ledger.record(name),
                tuple(r.target for r in residents if r.paths),
                tuple(r.target for r in residents),
            )
            record = decide(situation)
            await self._ledger.commit(name, record, self._sources(name))
            self._evict_rivals(name)
            self._show(name)
            await self._sweep(name)
            await self._retry_conflicts()
            return record

    async def _load(self, path: Path) -> ServedPatch | FileFailure:
        started_s = time.monotonic()
        patch = None
        try:
            patch = await asyncio.to_thread(read_patch, path)
            require_servable(patch, self._base_model, self._max_num_tokens)
            signature = await asyncio.to_thread(self.trust.check, path, patch)
            served = await self._claim(path, patch)
            await asyncio.to_thread(self.trust.adopt, served, signature)
            await self._drop_distrusted()
        except Exception as error:
            # The file is untrusted: whatever it does to the reader, the other files must go on being served.
            manifest = patch.manifest if patch is not None else None
            return self._refusals.add(path, refusal_of(path, error), manifest)
        self._metrics.load_succeeded(time.monotonic() - started_s)
        return served

    async def _claim(self, path: Path, patch: Patch) -> ServedPatch:
        """Make ``path`` stand for ``patch``: on the workers first, then in the view."""
        resident = self.books.get(patch.digest)
        self._refuse_conflict(path, patch)
        if resident is None:
            resident = await self._make_resident(path, patch)
        old = self.books.get(self._digests.get(path, ""))
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
        record = self._ledger.record(manifest.name)
        if record.needs_no_file and record.active is not None and record.active.digest == rival.digest:
            raise _held_conflict(rival)
        others = self.books[rival.digest].paths - {path}
        if others:
            raise PatchConflict(
                f"{rival.reference} is already served from {min(others).name} with different content; "
                "give this one another version",
            )

    async def _make_resident(self, path: Path, patch: Patch) -> Resident:
        manifest = patch.manifest
        self.view = replace(self.view, loading=frozenset({(manifest.name, manifest.version)}))
        try:
            return await self.books.load(path, patch)
        finally:
            self.view = replace(self.view, loading=frozenset())

    async def _restore(self, target: Target) -> None:
        """Put a content on the workers from its copy in the state folder, where no file of the folder did."""
        path = self._ledger.stored_path(target.digest)
        if target.digest in self.books or path is None:
            return
        try:
            patch = await asyncio.to_thread(read_patch, path)
            require_servable(patch, self._base_model, self._max_num_tokens)
            if patch.digest != target.digest:
                raise InvalidPatchFile(f"expected {target.digest}, got {patch.digest}")
            signature = await asyncio.to_thread(self.trust.check, path, patch, is_ordered=True)
            resident = await self._make_resident(path, patch)
            await asyncio.to_thread(self.trust.adopt, resident.patch, signature)
        except Exception as error:
            # As with any file: what can't be loaded is named, and the rest goes on.
            self._refusals.add(path, refusal_of(path, error))

    async def _forget(self, path: Path) -> None:
        self._refusals.drop(path)
        resident = self.books.get(self._digests.pop(path, ""))
        if resident is None:
            return
        resident.paths.discard(path)
        if not resident.paths:
            await self._refresh(resident.patch.name)

    async def _drop_distrusted(self) -> None:
        """Take from files, and where need be from orders, what ``trust`` does not believe any more."""
        for resident in self.books.all():
            refusal = self.trust.refusal(resident.patch)
            # A downgrade is refused to files only; an operator's order may go back.
            resident.is_barred = refusal is not None and refusal.reason != BelowMinimumVersion.reason
            if refusal is not None:
                self._take_files(resident, refusal)
                await self._refresh(resident.patch.name)

    async def _retry_conflicts(self) -> None:
        """Load files that were refused for a rival's sake, where the rival is gone."""
        for path, failure in self._refusals.conflicts():
            named = self.view.names.get(failure.name or "")
            if named is None or failure.version not in named.by_version:
                await self._load(path)

    def _evict_rivals(self, name: str) -> None:
        """Stop serving files that hold other content under the version that an operator made active."""
        record = self._ledger.record(name)
        if record.active is None or not record.needs_no_file or record.active.digest not in self.books:
            return
        keeper = self.books[record.active.digest].patch
        for resident in self.books.of(name):
            if resident.patch.version == keeper.version and resident.patch != keeper:
                self._take_files(resident, _held_conflict(keeper))

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
                record = self._ledger.record(name)
                changed = with_files(record, self._files(name), cause)
                if changed is not record:
                    await self._ledger.note(name, changed, self._sources(name))
                if changed.active != record.active:
                    self._audit.record(_folder_event(name, changed.active))
        self._show(*names)
        await self._sweep(*names)

    def _show(self, *names: str) -> None:
        """Let requests see what serves now, in one step."""
        before = view = self.view
        for name in sorted(set(names)):
            record = NameRecord() if self._is_starting else self._ledger.record(name)
            wanted = follow_folder(record, self._files(name)) if self._is_starting else record.active
            usable = [r for r in self.books.of(name) if not r.is_barred]
            served = [r.patch for r in usable if r.paths or r.target == wanted]
            active = next((p for p in served if wanted is not None and p.digest == wanted.digest), None)
            view = view.with_name(name, served, active)
        self.view = view
        for name in sorted(set(names)):
            _log_change(name, before, view)

    def _files(self, name: str) -> list[Target]:
        return [r.target for r in self.books.of(name) if r.paths]

    def _sources(self, name: str) -> dict[str, list[Path]]:
        return {r.patch.digest: sorted(r.paths) for r in self.books.of(name)}

    def _is_kept(self, resident: Resident) -> bool:
        is_ordered = resident.patch.digest in self._ledger.kept_digests and not resident.is_barred
        return bool(resident.paths) or is_ordered

    async def _sweep(self, *names: str) -> None:
        """Drop what nothing keeps, once no request uses it."""
        await self.books.sweep(*names)
        if not self._is_starting:
            await self._ledger.prune(self._ledger.names - self.view.names.keys())


def _folder_event(name: str, active: Target | None) -> AuditEvent:
    return AuditEvent(
        event="folder.activate",
        decision="done",
        principal=BY_FOLDER,
        wish=name,
        patch=f"{name}@{active.version}" if active is not None else None,
        digest=active.digest if active is not None else None,
    )


def _held_conflict(keeper: ServedPatch) -> PatchConflict:
    return PatchConflict(
        f"{keeper.reference} is active with different content by an operator's call; "
        "give this one another version, or let the folder decide again with `patches activate --follow`"
    )


def _log_change(name: str, before: CatalogView, after: CatalogView) -> None:
    old = before.names[name].active if name in before.names else None
    new = after.names[name].active if name in after.names else None
    if old == new:
        return
    if new is None:
        logger.warning("patch %s: no version is active any more", name)
    elif old is not None and version_key(new.version) < version_key(old.version):
        logger.warning("patch %s: fell back from %s to %s", name, old.version, new.version)
    else:
        logger.info("patch %s: %s (%s) is active", name, new.version, new.digest)
