"""What has to survive the process: the record of each name, and the files that those records need.

Layout of the folder::

    lock                     held by the one server that uses the folder
    names/NAME.json          one record; replaced in one step, and on disk before anything of it takes effect
    patches/HEX.safetensors  a copy of a patch file under its digest, checked before it was kept; its
                             signature beside it, where it has one

A record names contents by digest, and a content is kept before the record that needs it is written. So a
process may be killed at any instant: the next one finds the last record that was written, and all of its
contents. What no record needs is removed at leisure.
"""

import fcntl
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from patches.durable import sync_folder, write_bytes_atomically
from patches.errors import InvalidName, PatchError
from patches.format import SUFFIX, decode_patch, read_patch_bytes
from patches.names import NAME_PATTERN, is_digest, validate_version
from patches.signing.signature import read_claim, read_signature, signature_path
from server.versions.activation import NameRecord, Target

STATE_FORMAT: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class _Document:
    """The content of one ``names/NAME.json``."""

    format: Literal[1]
    record: NameRecord


_DOCUMENTS = TypeAdapter(_Document)
_DIGEST_PREFIX = "sha256:"


class StateError(Exception):
    """The state folder can't be used; the message says what to do."""


class CatalogState:
    """One state folder. Every method blocks on the disk; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = folder / "names"
        self._patches = folder / "patches"
        self._lock: int | None = None

    def open(self) -> Mapping[str, NameRecord]:
        """Take the folder for this process, and read every record.

        Raises:
            StateError: Another server uses it, it can't be written, or a record can't be read. An unreadable
                record is never skipped: the name would silently mean another version.
        """
        try:
            for folder in (self._folder, self._names, self._patches):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_leftovers()
            return {path.stem: _read_record(path) for path in sorted(self._names.glob("*.json"))}
        except BlockingIOError:
            self.close()
            raise StateError(
                f"--state: {self._folder} is in use by another server; give each its own"
            ) from None
        except OSError as error:
            self.close()
            raise StateError(f"--state: {self._folder}: {error.strerror or error}") from error

    def close(self) -> None:
        """Release the folder for another process."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save(self, name: str, record: NameRecord) -> None:
        """Write the record of ``name``; once this returns, the next start reads it.

        Raises:
            OSError: It can't be written; the record before it stays.
        """
        data = _DOCUMENTS.dump_json(_Document(STATE_FORMAT, record), indent=2)
        write_bytes_atomically(self._names / f"{name}.json", data + b"\n", mode=0o600)

    def forget(self, name: str) -> None:
        """Drop the record of ``name``."""
        (self._names / f"{name}.json").unlink(missing_ok=True)
        sync_folder(self._names)

    def path_of(self, digest: str) -> Path:
        """Return where the content with this digest is kept, if it is."""
        return self._patches / f"{digest.removeprefix(_DIGEST_PREFIX)}{SUFFIX}"

    def keep(self, digest: str, sources: Collection[Path]) -> bool:
        """Copy the content with this digest, and its signature, from the first of ``sources`` that holds it.

        Returns:
            Whether it is kept now.

        Raises:
            OSError: The copy can't be written.
        """
        target = self.path_of(digest)
        is_kept = target.exists()
        for source in sources:
            if is_kept:
                # Its content was checked when it was copied; a signature may have come since.
                if self._keep_signature(digest, source):
                    break
                continue
            try:
                data = read_patch_bytes(source)
                if decode_patch(data).digest != digest:
                    continue
            except PatchError:
                # The file was removed or replaced since it was loaded.
                continue
            self._keep_signature(digest, source)
            write_bytes_atomically(target, data, mode=0o600)
            return True
        return is_kept

    def _keep_signature(self, digest: str, source: Path) -> bool:
        """Copy the signature beside ``source``, and return whether there was one of this content."""
        try:
            data = read_signature(source)
            if read_claim(data).statement.digest != digest:
                return False
        except PatchError:
            # There is none, or none that could ever count. Whether it counts is asked when it is needed.
            return False
        target = signature_path(self.path_of(digest))
        if not target.exists() or target.read_bytes() != data:
            write_bytes_atomically(target, data, mode=0o600)
        return True

    def prune(self, needed: Collection[str]) -> None:
        """Remove every content but the ``needed`` digests."""
        paths = [self.path_of(digest) for digest in needed]
        kept = {path.name for path in (*paths, *map(signature_path, paths))}
        for path in self._patches.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove what a write that was cut off left behind."""
        for folder in (self._folder, self._names, self._patches):
            for path in folder.glob(".*"):
                path.unlink(missing_ok=True)


def _read_record(path: Path) -> NameRecord:
    advice = "restore it from a backup, or remove it to begin without what it pins"
    if not NAME_PATTERN.fullmatch(path.stem):
        raise StateError(f"--state: {path}: not the name of a patch; remove the file")
    try:
        record = _DOCUMENTS.validate_json(path.read_bytes()).record
        for target in record.targets():
            _check(target)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "file"
        raise StateError(f"--state: {path}: {where}: {problem['msg']}; {advice}") from None
    except PatchError as error:
        raise StateError(f"--state: {path}: {error}; {advice}") from None
    return record


def _check(target: Target) -> None:
    validate_version(target.version)
    if not is_digest(target.digest):
        raise InvalidName(f"digest: expected sha256: and 64 hexadecimal digits, got {target.digest[:80]!r}")
