"""The patch folder: keeps the catalog equal to the patch files that lie in it.

What changed is found by comparing each file's inode, times and size with the last look; when to look is a
matter of ``server.watcher``. So renames, copies in place, swapped symbolic links (as Kubernetes does them)
and lost events all end well.
"""

import asyncio
import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from patches.format import is_patch_filename
from patches.signing.signature import SUFFIX as SIGNATURE_SUFFIX
from server.catalog.catalog import Catalog
from server.versions.view import FileFailure, ServedPatch
from server.watcher import RESCAN_S, FileStamp, Watcher, folder_identity

#: Refusals that may pass without the file changing; they are tried again, at first after this many seconds.
_RETRIED_REASONS = frozenset({"residency_failed", "internal", "unreadable"})
_FIRST_RETRY_S = 2.0
_LAST_RETRY_S = 60.0

#: Errors of an entry that is no file; behind any other error may be a file that can't be seen now.
_NO_FILE = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG})


class FolderError(Exception):
    """The patch folder can't be used at start-up."""


@dataclass(frozen=True, slots=True)
class PatchStamp:
    """Differs where a patch, or what lies beside it for it, may differ."""

    patch: FileStamp
    #: Of the signature file; it may come after its patch.
    signature: FileStamp | None = None


@dataclass(frozen=True, slots=True)
class FolderListing:
    """One look at the folder."""

    #: Device and inode of the folder itself.
    identity: tuple[int, int]
    files: dict[Path, PatchStamp]


def list_folder(folder: Path) -> FolderListing:
    """Look at the patch files in ``folder`` and their signatures, following symbolic links.

    Raises:
        OSError: The folder, or the attributes of a file in it, can't be read.
    """
    identity = folder_identity(folder)
    stamps: dict[str, FileStamp] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_patch_filename(entry.name.removesuffix(SIGNATURE_SUFFIX)):
                continue
            try:
                attributes = entry.stat()
            except OSError as error:
                if error.errno not in _NO_FILE:
                    raise
                # Removed since the directory was read, or a link that leads nowhere. One of them must not
                # keep the other files from being looked at.
                continue
            if stat.S_ISREG(attributes.st_mode):
                stamps[entry.name] = FileStamp.of(attributes)
    files = {
        folder / name: PatchStamp(stamp, stamps.get(name + SIGNATURE_SUFFIX))
        for name, stamp in stamps.items()
        if is_patch_filename(name)
    }
    return FolderListing(identity, files)


class PatchFolder(Watcher):
    """Watches one folder for one catalog; entered once at start-up."""

    def __init__(self, path: Path, catalog: Catalog, *, rescan_s: float = RESCAN_S) -> None:
        super().__init__(f"patch folder {path}", every_s=rescan_s, folder=path)
        self._path = path
        self._catalog = catalog
        self._identity: tuple[int, int] | None = None
        #: Device of the last good look.
        self._device: int | None = None
        self._known: dict[Path, PatchStamp] = {}
        #: Path -> when to try it again, and how long to wait after that.
        self._retries: dict[Path, tuple[float, float]] = {}
        #: Looks never overlap: the watch and operators both cause them.
        self._looking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Load every patch file that lies there, then begin to watch.

        Raises:
            FolderError: The folder is missing or can't be read. A file that can't be loaded is no reason.
        """
        try:
            listing = await asyncio.to_thread(list_folder, self._path)
        except OSError as error:
            raise FolderError(
                f"--patches: expected a readable folder, got {self._path}: {error.strerror}"
            ) from error
        self._catalog.begin_start()
        await self._apply(listing)
        self._catalog.intake.files.drop_checked()
        await self._catalog.settle()
        return await super().__aenter__()

    def identity(self) -> object:
        """Return which folder the last look saw; ``None`` where that could not be read."""
        return self._identity

    def look_again(self, path: Path) -> None:
        """Make the next look load ``path`` again where it is refused, changed or not."""
        if isinstance(self._catalog.outcome(path), FileFailure):
            self._retries[path] = (0.0, _FIRST_RETRY_S)

    async def look(self) -> None:
        """Look once, and bring the catalog in line."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        try:
            listing = await asyncio.to_thread(list_folder, self._path)
            self._refuse_unmounted(listing)
        except OSError as error:
            self._identity = None
            self._catalog.note_folder(self._path, error)
            return
        await self._apply(listing)

    def _refuse_unmounted(self, listing: FolderListing) -> None:
        # A volume that was unmounted leaves an empty mount point, which is no order to drop everything.
        if (
            self._device is not None
            and self._known
            and not listing.files
            and listing.identity[0] != self._device
        ):
            raise OSError(0, "it is empty and on another device than before")

    async def _apply(self, listing: FolderListing) -> None:
        self._identity, self._device = listing.identity, listing.identity[0]
        self._catalog.note_folder(self._path, None)
        now_s = time.monotonic()
        # What is new comes first: a file that was only renamed never stops serving.
        due = {path for path, (due_s, _) in self._retries.items() if due_s <= now_s}
        changed = [
            (path, stamp)
            for path, stamp in sorted(listing.files.items())
            if self._known.get(path) != stamp or path in due
        ]
        with self._catalog.intake.files.expecting((path, stamp.patch.num_bytes) for path, stamp in changed):
            for path, stamp in changed:
                self._note_outcome(path, await self._catalog.load_file(path))
                self._known[path] = stamp
        for path in sorted(self._known.keys() - listing.files.keys()):
            await self._catalog.forget_file(path)
            del self._known[path]
            self._retries.pop(path, None)

    def _note_outcome(self, path: Path, outcome: ServedPatch | FileFailure) -> None:
        if not isinstance(outcome, FileFailure) or outcome.reason not in _RETRIED_REASONS:
            self._retries.pop(path, None)
            return
        _, wait_s = self._retries.get(path, (0.0, _FIRST_RETRY_S))
        self._retries[path] = (time.monotonic() + wait_s, min(wait_s * 2, _LAST_RETRY_S))
