"""The live catalog: which patch files are served, from reading a file to dropping its tensors.

Changes run one at a time; requests never wait for one. A version is served from the moment when every worker
holds it, in one assignment of ``view``; whatever goes wrong before that leaves the view as it was. A version
that is no longer served keeps its tensors until the last request that uses it is done.

Which version a bare name means: the highest semantic version among the files that are there. The same path
with new content replaces the old content. Two paths with the same name and version and different content: the
one that was loaded first keeps serving, the other is refused until the first is gone.
"""

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from patches.errors import BaseModelMismatch, PatchFormatError
from patches.fingerprint import require_same_base_model
from patches.format import Patch, read_patch
from patches.manifest import BaseModel
from server.catalog_view import CatalogView, FileFailure, ServedPatch
from server.errors import (
    BaseModelConflict,
    FileRefused,
    InvalidPatchFile,
    PatchConflict,
    PatchNotReady,
    PatchTooLarge,
)
from server.metrics import PatchMetrics, ResidentRow
from server.residency import Residency, ResidencyError

logger = logging.getLogger(__name__)

#: Why a file that is a valid patch can still be refused, beside ``patches.errors.FORMAT_REASONS``.
CATALOG_REASONS = (
    "base_model_mismatch",
    "too_many_tokens",
    "not_compiled",
    "conflict",
    "residency_failed",
    "unload_failed",
    "folder_unreadable",
    "internal",
)


class _Resident:
    """One content on the workers."""

    __slots__ = ("is_unloading", "num_in_flight", "patch", "paths")

    def __init__(self, patch: ServedPatch) -> None:
        self.patch = patch
        #: Files that hold this content now; without one it is only drained.
        self.paths: set[Path] = set()
        self.num_in_flight = 0
        self.is_unloading = False


class Catalog:
    """Loads, replaces and drops patches; read by requests through ``view``."""

    def __init__(
        self, residency: Residency, base_model: BaseModel, max_num_tokens: int, metrics: PatchMetrics
    ) -> None:
        #: Read it once per decision; it is never mutated.
        self.view = CatalogView()
        self._residency = residency
        self._base_model = base_model
        self._max_num_tokens = max_num_tokens
        self._metrics = metrics
        self._residents: dict[str, _Resident] = {}
        self._digests: dict[Path, str] = {}
        self._failures: dict[Path, FileFailure] = {}
        self._changes = asyncio.Lock()
        self._drains: set[asyncio.Task[None]] = set()
        metrics.bind(lambda: list(self.residents()))

    def acquire(self, patch: ServedPatch) -> None:
        """Count one more user of ``patch``. Event loop thread only.

        Raises:
            PatchNotReady: It is not resident (any more).
        """
        resident = self._residents.get(patch.digest)
        if resident is None or resident.is_unloading:
            raise PatchNotReady(f"patch '{patch.reference}' is no longer loaded; try again")
        resident.num_in_flight += 1

    def release(self, patch: ServedPatch) -> None:
        """Count one user of ``patch`` less; the last one of a retired version frees its tensors."""
        resident = self._residents[patch.digest]
        assert resident.num_in_flight > 0, f"{patch.reference} released more often than acquired"
        resident.num_in_flight -= 1
        if resident.num_in_flight == 0 and not resident.paths:
            self._drain_soon(resident)

    def residents(self) -> Iterator[ResidentRow]:
        """List what the workers hold, served or draining."""
        for resident in tuple(self._residents.values()):
            patch = resident.patch
            named = self.view.names.get(patch.name)
            yield ResidentRow(
                patch,
                is_active=named is not None and named.active == patch,
                is_draining=not resident.paths,
                num_in_flight=resident.num_in_flight,
            )

    def failures(self) -> list[FileFailure]:
        """List the files that are refused now, and the folder where it can't be read."""
        return list(self._failures.values())

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
            self._fail(path, FileRefused(message, reason="folder_unreadable"))
        elif self._failures.pop(path, None) is not None:
            logger.warning("patch folder %s can be read again", path)
            self._count_refused()

    async def drained(self) -> None:
        """Wait until nothing that is no longer used is left on the workers."""
        while self._drains:
            await asyncio.gather(*self._drains)

    async def _load(self, path: Path) -> ServedPatch | FileFailure:
        started_s = time.monotonic()
        patch = None
        try:
            patch = await asyncio.to_thread(read_patch, path)
            self._check(patch)
            served = await self._claim(path, patch)
        except Exception as error:
            # The file is untrusted: whatever it does to the reader, the other files must go on being served.
            return self._fail(path, _refusal(path, error), patch)
        self._metrics.load_succeeded(time.monotonic() - started_s)
        return served

    def _check(self, patch: Patch) -> None:
        manifest = patch.manifest
        require_same_base_model(self._base_model, manifest.base_model)
        if manifest.num_virtual_tokens > self._max_num_tokens:
            raise PatchTooLarge(
                f"num_virtual_tokens: expected at most {self._max_num_tokens} (what the context leaves), "
                f"got {manifest.num_virtual_tokens}",
                reason="too_many_tokens",
            )
        if patch.kv is None:
            raise InvalidPatchFile(
                "the file holds embeddings but no K/V; make it with `policypatch compile`",
                reason="not_compiled",
            )

    async def _claim(self, path: Path, patch: Patch) -> ServedPatch:
        """Make ``path`` stand for ``patch``: on the workers first, then in the view."""
        resident = self._residents.get(patch.digest)
        self._refuse_conflict(path, patch)
        if resident is None:
            resident = await self._make_resident(patch)
        old = self._residents.get(self._digests.get(path, ""))
        self._digests[path] = patch.digest
        resident.paths.add(path)
        if self._failures.pop(path, None) is not None:
            self._count_refused()
        if old is resident:
            return resident.patch
        if old is not None:
            old.paths.discard(path)
        is_retired = old is not None and not old.paths
        self._swap(resident.patch, old.patch if old is not None and is_retired else None)
        if old is not None and is_retired:
            await self._retire(old)
        return resident.patch

    def _refuse_conflict(self, path: Path, patch: Patch) -> None:
        manifest = patch.manifest
        named = self.view.names.get(manifest.name)
        rival = named.by_version.get(manifest.version) if named is not None else None
        if rival is None or rival.digest == patch.digest:
            return
        others = self._residents[rival.digest].paths - {path}
        if others:
            raise PatchConflict(
                f"{rival.reference} is already served from {min(others).name} with different content; "
                "give this one another version",
            )

    async def _make_resident(self, patch: Patch) -> _Resident:
        manifest = patch.manifest
        assert patch.kv is not None
        self.view = replace(self.view, loading=frozenset({(manifest.name, manifest.version)}))
        try:
            nbytes = await self._residency.load(patch.digest, patch.kv)
        finally:
            self.view = replace(self.view, loading=frozenset())
        served = ServedPatch(
            manifest.name, manifest.version, patch.digest, manifest.num_virtual_tokens, manifest, nbytes
        )
        resident = self._residents[patch.digest] = _Resident(served)
        self._metrics.patch_added(served.digest, served.name)
        return resident

    async def _forget(self, path: Path) -> None:
        if self._failures.pop(path, None) is not None:
            self._count_refused()
        resident = self._residents.get(self._digests.pop(path, ""))
        if resident is None:
            return
        resident.paths.discard(path)
        if not resident.paths:
            self._swap(None, resident.patch)
            await self._retire(resident)

    async def _retry_conflicts(self) -> None:
        """Load files that were refused for a rival's sake, where the rival is gone."""
        for path in [p for p, failure in self._failures.items() if failure.reason == "conflict"]:
            failure = self._failures[path]
            named = self.view.names.get(failure.name or "")
            if named is None or failure.version not in named.by_version:
                await self._load(path)

    def _swap(self, added: ServedPatch | None, removed: ServedPatch | None) -> None:
        before, self.view = self.view, self.view.with_changes(added, removed)
        for name in sorted({p.name for p in (added, removed) if p is not None}):
            old, new = before.names.get(name), self.view.names.get(name)
            old_active = old.active if old is not None else None
            new_active = new.active if new is not None else None
            if old_active == new_active:
                continue
            if new_active is None:
                logger.warning("patch %s: no version is served any more", name)
            elif old_active is not None and new_active != added:
                logger.warning(
                    "patch %s: fell back from %s to %s", name, old_active.version, new_active.version
                )
            else:
                logger.info("patch %s: %s (%s) is active", name, new_active.version, new_active.digest)

    async def _retire(self, resident: _Resident) -> None:
        if resident.num_in_flight:
            logger.info("%s drains: %d in flight", resident.patch.reference, resident.num_in_flight)
        else:
            await self._unload(resident)

    def _drain_soon(self, resident: _Resident) -> None:
        try:
            task = asyncio.get_running_loop().create_task(self._drain(resident))
        except RuntimeError:
            # The loop is gone, so the process is going, and the workers with it.
            return
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def _drain(self, resident: _Resident) -> None:
        async with self._changes:
            # While this waited, the same content may have come back, or been dropped by someone else.
            if not resident.paths and not resident.num_in_flight and not resident.is_unloading:
                await self._unload(resident)

    async def _unload(self, resident: _Resident) -> None:
        resident.is_unloading = True
        patch = resident.patch
        try:
            await self._residency.unload(patch.digest)
        except Exception:
            # Whatever the engine raises, the books must stay right: nothing refers to these tensors any more.
            logger.exception("%s: the workers did not confirm that it is dropped", patch.reference)
            self._metrics.load_failed("unload_failed")
        del self._residents[patch.digest]
        self._metrics.patch_removed(patch.digest)
        logger.info("%s (%s) is unloaded", patch.reference, patch.digest)

    def _fail(self, path: Path, refusal: FileRefused, patch: Patch | None = None) -> FileFailure:
        before = self._failures.get(path)
        # Where the files lie is nobody's business over HTTP.
        message = refusal.message.replace(f"{path.parent}{os.sep}", "")
        reason = refusal.reason
        is_news = before is None or before.reason != reason
        failure = FileFailure(
            path.name,
            reason,
            refusal.code,
            message,
            since_s=time.time() if before is None or is_news else before.since_s,
            name=patch.manifest.name if patch is not None else None,
            version=patch.manifest.version if patch is not None else None,
        )
        self._failures[path] = failure
        self._metrics.load_failed(reason)
        self._count_refused()
        if is_news:
            logger.error("%s is refused (%s): %s", path.name, reason, message)
        return failure

    def _count_refused(self) -> None:
        self._metrics.set_refused_files(
            sum(failure.reason != "folder_unreadable" for failure in self._failures.values())
        )


def _refusal(path: Path, error: Exception) -> FileRefused:
    """Say in terms of this server why a file could not be loaded."""
    match error:
        case FileRefused():
            return error
        case PatchFormatError(reason="too_large"):
            return PatchTooLarge(str(error))
        case PatchFormatError():
            return InvalidPatchFile(str(error), reason=error.reason)
        case BaseModelMismatch():
            return BaseModelConflict(str(error))
        case ResidencyError():
            return FileRefused(f"the workers did not take it: {error}", reason="residency_failed")
    logger.error("patch file %s: loading it failed in an unforeseen way", path.name, exc_info=error)
    return FileRefused(f"internal error: {type(error).__name__}")
