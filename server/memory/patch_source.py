"""The lowest tier: the file that a patch was read from, kept open.

An open file can be read again after it was renamed, replaced by a rename, or removed, which is all that a
careful writer does. Only a file that is overwritten in place is lost; then ``is_intact`` says so, and what
memory still holds of it must stay there. Invariant: ``read`` returns the tensors of its digest or raises.
"""

import errno
import os
import stat
from functools import partial
from pathlib import Path

from patches.container import read_metadata
from patches.errors import PatchFormatError
from patches.format import DIGEST_KEY, MAX_FILE_BYTES, decode_patch
from server.memory.payload import Payload
from server.memory.residency import ResidencyError


class PatchSource:
    """One open patch file."""

    def __init__(self, path: Path, digest: str) -> None:
        """Open ``path``, which was just read and held ``digest``.

        Raises:
            OSError: It can't be opened any more, or another file has taken its place since.
        """
        self._digest = digest
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._content = self._look()
            self._require_named()
        except BaseException:
            self.close()
            raise

    def _require_named(self) -> None:
        # The header names the digest of the rest; whether it is true is checked where the rest is read.
        try:
            named = read_metadata(partial(os.pread, self._file)).get(DIGEST_KEY)
        except PatchFormatError:
            named = None
        if named != self._digest:
            raise OSError(errno.ESTALE, "another file has taken its place")

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_mtime_ns, status.st_size if stat.S_ISREG(status.st_mode) else -1

    def is_intact(self) -> bool:
        """Return whether the file still holds what it held when it was opened, as far as its times show."""
        return self._look() == self._content

    def read(self) -> Payload:
        """Read the file again, and check that it still holds the content of the digest.

        Raises:
            ResidencyError: It is not, or can't be read.
        """
        try:
            patch = decode_patch(self._bytes())
        except (OSError, PatchFormatError) as error:
            raise ResidencyError(f"{self._digest}: its file can't be read any more: {error}") from error
        if patch.digest != self._digest:
            raise ResidencyError(f"{self._digest}: its file was overwritten in place with {patch.digest}")
        return Payload.of(patch)

    def _bytes(self) -> bytes:
        # From offset 0 on each time: several readers may share the descriptor, and none moves it.
        parts = []
        num_bytes = 0
        while num_bytes <= MAX_FILE_BYTES and (part := os.pread(self._file, 1 << 24, num_bytes)):
            parts.append(part)
            num_bytes += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file. To be called once, when no read runs."""
        os.close(self._file)
