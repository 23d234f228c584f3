"""From a path to what serves, or to the reason why it does not: reading, admitting, claiming, restoring.

The same path with new content replaces the old content. Two paths with the same name and version and
different content: the one that was loaded first keeps serving, the other is refused until the first is gone.
Whatever goes wrong with a file leaves what serves as it was.

To be called while the lock on changes is held.
"""

import asyncio
import time
from collections.abc import Collection
from pathlib import Path

from patches.format import Patch
from server.catalog.intake import Intake
from server.catalog.publication import Publication
from server.catalog.refusals import Refusals, held_conflict, refusal_of
from server.catalog.residents import Resident
from server.catalog.weights import WEIGHTS_KIND
from server.errors import BaseModelConflict, BelowMinimumVersion, FileRefused, InvalidPatchFile, PatchConflict
from server.metrics.patches import PatchMetrics
from server.trust.trust import TRUST_REASONS
from server.versions.activation import Target
from server.versions.view import FileFailure, ServedPatch


class Loading:
    """Knows what each path holds, and which paths are refused."""

    def __init__(self, publication: Publication, intake: Intake, metrics: PatchMetrics) -> None:
        self._publication = publication
        self._residents = publication.residents
        self._intake = intake
        self._metrics = metrics
        self._digests: dict[Path, str] = {}
        #: The files that are refused now.
        self.refusals = Refusals(metrics)

    def outcome(self, path: Path) -> ServedPatch | FileFailure | None:
        """Return what became of a file; ``None`` where there was none."""
        resident = self._residents.get(self._digests.get(path, ""))
        return resident.patch if resident is not None else self.refusals.get(path)

    async def load(self, path: Path) -> ServedPatch | FileFailure:
        """Serve what ``path`` holds now, or refuse it."""
        self._publication.change_began_s = started_s = time.monotonic()
        patch = None
        try:
            patch = await self._intake.read(path)
            signature = await self._intake.admit(path, patch)
            served = await self._claim(path, patch)
            if signature is not None and await asyncio.to_thread(self._intake.trust.adopt, served, signature):
                await self._drop_distrusted()
        except Exception as error:
            # The file is untrusted: whatever it does to the reader, the other files must still be served.
            manifest = patch.manifest if patch is not None else None
            refusal = refusal_of(path, error)
            # At a start, the weight patch that a file was made under may come behind it.
            may_fit_later = self._publication.is_starting and isinstance(refusal, BaseModelConflict)
            return self.refusals.add(path, refusal, manifest, is_preliminary=may_fit_later)
        self._metrics.files.load_succeeded(time.monotonic() - started_s)
        if served.kind == WEIGHTS_KIND:
            # What was made for the model under it may have come first.
            await self._retry(self.refusals.paths({BaseModelConflict.reason}))
        return served

    async def restore(self, target: Target) -> None:
        """Put a content on the workers from its copy in the state folder, where no file of the folder did."""
        path = self._publication.records.stored_path(target.digest)
        if target.digest in self._residents or path is None:
            return
        try:
            patch = await self._intake.read(path)
            if patch.digest != target.digest:
                raise InvalidPatchFile(f"expected {target.digest}, got {patch.digest}")
            signature = await self._intake.admit(path, patch, is_ordered=True)
            resident = await self._make_resident(path, patch)
            await asyncio.to_thread(self._intake.trust.adopt, resident.patch, signature)
        except Exception as error:
            # As with any file: what can't be loaded is listed as refused, and the rest is served.
            self.refusals.add(path, refusal_of(path, error))

    async def forget(self, path: Path) -> None:
        """Stop serving what ``path`` held, where no other path holds it."""
        self._publication.change_began_s = time.monotonic()
        self.refusals.drop(path)
        resident = self._residents.get(self._digests.pop(path, ""))
        if resident is None:
            return
        resident.paths.discard(path)
        if not resident.paths:
            await self._publication.refresh(resident.patch.name)

    def drop(self, leaving: Collection[Resident], refused: Collection[Path]) -> None:
        """Forget the files of ``leaving`` and those that were ``refused``, which are removed."""
        for path in (*refused, *(path for resident in leaving for path in resident.paths)):
            self._digests.pop(path, None)
            self.refusals.drop(path)
        for resident in leaving:
            resident.paths.clear()

    async def recheck(self) -> None:
        """Drop what is not accepted any more, and try again what was refused for that reason."""
        await self._drop_distrusted()
        await self._retry(self.refusals.paths(TRUST_REASONS))

    async def permit_downgrade(self, name: str, version: str) -> None:
        """Load files of a version that only a signed bound keeps out.

        Raises:
            OSError: The permission could not be written down; nothing is changed.
        """
        paths = self.refusals.paths({BelowMinimumVersion.reason}, name, version)
        if paths:
            await asyncio.to_thread(self._intake.trust.permit, name, version)
        await self._retry(paths)

    async def settle(self) -> None:
        """Refuse what fits the model under no weight patch, now that the folder was looked at."""
        paths = self.refusals.paths({BaseModelConflict.reason})
        for path in paths:
            self.refusals.drop(path)
        await self._retry(paths)

    async def retry_conflicts(self) -> None:
        """Load files that were refused because of a rival, where the rival is gone."""
        for path, failure in self.refusals.conflicts():
            if self._publication.served(failure.name or "", failure.version or "") is None:
                await self.load(path)

    def evict_rivals(self, name: str) -> None:
        """Stop serving files that hold other content under the version that an operator made active."""
        record = self._publication.records.record(name)
        if record.active is None or not record.needs_no_file or record.active.digest not in self._residents:
            return
        keeper = self._residents[record.active.digest].patch
        for resident in self._residents.of(name):
            if resident.patch.version == keeper.version and resident.patch != keeper:
                self._take_files(resident, held_conflict(keeper))

    async def _retry(self, paths: Collection[Path]) -> None:
        for path in paths:
            await self.load(path)

    async def _claim(self, path: Path, patch: Patch) -> ServedPatch:
        """Serve ``patch`` as the content of ``path``: on the workers first, then in the view."""
        resident = self._residents.get(patch.digest)
        self._refuse_conflict(path, patch)
        if resident is None:
            resident = await self._make_resident(path, patch)
        old = self._residents.get(self._digests.get(path, ""))
        self._digests[path] = patch.digest
        resident.paths.add(path)
        resident.is_barred = False
        self.refusals.drop(path)
        if old is resident:
            return resident.patch
        if old is not None:
            old.paths.discard(path)
        names = {resident.patch.name, *([old.patch.name] if old is not None else [])}
        await self._publication.refresh(*names)
        return resident.patch

    def _refuse_conflict(self, path: Path, patch: Patch) -> None:
        manifest = patch.manifest
        kinds = {resident.patch.kind for resident in self._residents.of(manifest.name)} | {manifest.kind}
        if len(kinds) > 1 and WEIGHTS_KIND in kinds:
            raise PatchConflict(
                f"'{manifest.name}' names a weight patch and a {min(kinds - {WEIGHTS_KIND})} patch; "
                "give one of them another name"
            )
        rival = self._publication.served(manifest.name, manifest.version)
        if rival is None or rival.digest == patch.digest:
            return
        record = self._publication.records.record(manifest.name)
        if record.needs_no_file and record.active is not None and record.active.digest == rival.digest:
            raise held_conflict(rival)
        others = self._residents[rival.digest].paths - {path}
        if others:
            raise PatchConflict(
                f"{rival.reference} is already served from {min(others).name} with different content; "
                "give this one another version",
            )

    async def _make_resident(self, path: Path, patch: Patch) -> Resident:
        manifest = patch.manifest
        self._publication.note_loading((manifest.name, manifest.version))
        try:
            return await self._residents.load(path, patch)
        finally:
            self._publication.note_loading()

    async def _drop_distrusted(self) -> None:
        """Take from files, and where necessary from orders, what is not accepted any more."""
        self._publication.change_began_s = time.monotonic()
        for resident in self._residents.all():
            refusal = self._intake.trust.refusal(resident.patch)
            # A downgrade is refused to files only; an operator's order may go back.
            resident.is_barred = refusal is not None and refusal.reason != BelowMinimumVersion.reason
            if refusal is not None:
                self._take_files(resident, refusal)
                await self._publication.refresh(resident.patch.name)

    def _take_files(self, resident: Resident, refusal: FileRefused) -> None:
        for path in sorted(resident.paths):
            del self._digests[path]
            self.refusals.add(path, refusal, resident.patch.manifest)
        resident.paths.clear()
