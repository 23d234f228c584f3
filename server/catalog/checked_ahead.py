"""Patch files that are checked while the engine starts, which leaves this process little else to do.

Reading and hashing a folder takes longer than all else that a start does with its files. Invariants: what is
returned was found in the file as it is now, by its stamp. Its tensors have a shape and no values, so that
nothing of them can be served: who needs values reads the file again, and checks it again.
"""

import os
import threading
from pathlib import Path

import torch

from patches.errors import PatchFormatError
from patches.format import Patch, find_content, is_patch_filename, read_patch_bytes
from server.watcher import FileStamp

#: The engine's processes compute meanwhile.
_NUM_THREADS = 2


class CheckedAhead:
    """Checks the files of a folder, each once, until they are taken."""

    def __init__(self, folder: Path, num_threads: int = _NUM_THREADS) -> None:
        """Begin to check the files that lie there now; a folder that can't be read has none."""
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if is_patch_filename(entry.name))
        except OSError:
            names = []
        #: What is still to be checked, the first at the end.
        self._coming = [folder / name for name in reversed(names)]
        self._found: dict[Path, tuple[FileStamp, Patch]] = {}
        self._threads = [
            threading.Thread(target=self._run, name="patches-ahead", daemon=True) for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Check nothing more, and forget what was found."""
        self._coming.clear()
        for thread in self._threads:
            thread.join()
        self._found.clear()

    def join(self) -> None:
        """Wait until all is checked."""
        for thread in self._threads:
            thread.join()

    def take(self, path: Path) -> Patch | None:
        """Return what was found in a file, once; ``None`` where it was not checked or has changed since."""
        stamp, patch = self._found.pop(path, (None, None))
        try:
            return patch if stamp == FileStamp.of(os.stat(path)) else None
        except OSError:
            return None

    def _run(self) -> None:
        while True:
            try:
                path = self._coming.pop()
            except IndexError:
                return
            try:
                before = FileStamp.of(os.stat(path))
                content, _ = find_content(read_patch_bytes(path))
                after = FileStamp.of(os.stat(path))
            except (OSError, PatchFormatError):
                # Whoever loads it finds that, too, and says so.
                continue
            if content is not None and before == after:
                tensors = {
                    name: torch.empty(stored.shape, dtype=getattr(torch, stored.word), device="meta")
                    for name, stored in content.tensors.items()
                }
                self._found[path] = after, Patch(content.manifest, content.digest, tensors)
