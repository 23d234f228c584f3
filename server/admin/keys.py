"""The keys of operators: a file of ``name:key`` lines, read again when it changes.

::

    # who           what they send; or only its digest, so that the file holds no secret
    alice:correct-horse-battery-staple
    deploy-bot:sha256:6dca1a65b1d9f5d0e5b9a0a1d0c7f6f0d5f7d6c8a9b1e2f3a4b5c6d7e8f90a1b

Keys are compared by their digests, all of them and in constant time, so that the time of an answer reveals
neither how far a guess was right nor whose key it was near. The file is looked at again when the last look is
``LOOK_AGAIN_S`` old: a key that was taken out opens nothing after that.
"""

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from patches.text import decode_text, lines_of
from server.watcher import FileStamp

logger = logging.getLogger(__name__)

MIN_KEY_LENGTH = 16
MAX_FILE_BYTES = 1 << 16

#: Calls that come faster share a look: each would have to wait for another thread, and for a core.
LOOK_AGAIN_S = 0.5

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class AdminKeysError(Exception):
    """The key file can't be used; the message names the line, and never a key."""


class AdminKeys:
    """Finds whose key it is."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            AdminKeysError: It is missing, open to others, or a line of it is wrong.
        """
        self._path = path
        self._looked_s = time.monotonic()
        self._stamp = _stamp(path)
        self._names = _read(path)

    def name_of(self, key: str) -> str | None:
        """Return the name that ``key`` belongs to; ``None`` where the file does not have it."""
        digest = _digest(key)
        found = None
        for known, name in self._names.items():
            # No early end, see above.
            if hmac.compare_digest(known, digest):
                found = name
        return found

    @property
    def is_due(self) -> bool:
        """Whether the last look at the file is too long ago for its keys to be relied on."""
        return time.monotonic() - self._looked_s >= LOOK_AGAIN_S

    def refresh(self) -> None:
        """Look at the file, and read it again where it has changed. Blocks on the disk."""
        looked_s = time.monotonic()
        self._read_again()
        # Only now: a call that is checked meanwhile must not rely on keys that this look may remove.
        self._looked_s = looked_s

    def _read_again(self) -> None:
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._names = _read(self._path)
            self._stamp = stamp
        except AdminKeysError as error:
            # A half-written file must not lock the operators out; the keys from before stay good.
            logger.error("%s; the keys that were read before stay valid", error)
        else:
            logger.warning("--admin-key-file: read again, %d keys", len(self._names))


def _stamp(path: Path) -> FileStamp:
    try:
        return FileStamp.of(path.stat())
    except OSError as error:
        raise AdminKeysError(f"--admin-key-file: {path}: {error.strerror}") from None


def _read(path: Path) -> Mapping[str, str]:
    """Read digest -> name."""
    try:
        with open(path, "rb") as file:
            _require_private(path, os.fstat(file.fileno()))
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise AdminKeysError(f"--admin-key-file: {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise AdminKeysError(f"--admin-key-file: {path}: expected at most {MAX_FILE_BYTES} bytes")
    try:
        lines = lines_of(decode_text(data))
    except ValueError as error:
        raise AdminKeysError(f"--admin-key-file: {path}: {error}") from None
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            name, digest = _parse(text, f"--admin-key-file: {path}:{number}")
            if digest in names or name in names.values():
                raise AdminKeysError(f"--admin-key-file: {path}:{number}: a name or a key is there twice")
            names[digest] = name
    if not names:
        raise AdminKeysError(f"--admin-key-file: {path}: expected lines of name:key, got none")
    return names


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise AdminKeysError(f"--admin-key-file: {path}: expected a regular file")
    if status.st_mode & 0o027:
        mode = stat.S_IMODE(status.st_mode)
        raise AdminKeysError(f"--admin-key-file: {path} has mode {mode:04o}, open to others; chmod 600 it")


def _parse(line: str, where: str) -> tuple[str, str]:
    name, colon, key = line.partition(":")
    name, key = name.strip(), key.strip()
    if not colon or not _NAME.fullmatch(name):
        raise AdminKeysError(f"{where}: expected name:key, the name of letters, digits, '.', '_' and '-'")
    if key.startswith("sha256:"):
        if not _DIGEST.fullmatch(key):
            raise AdminKeysError(f"{where}: expected sha256: and 64 of 0-9, a-f")
        return name, key
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise AdminKeysError(f"{where}: expected a key of at least {MIN_KEY_LENGTH} ASCII characters")
    return name, _digest(key)


def _digest(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"
