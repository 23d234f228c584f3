"""Where a catalog lies: a folder that any static HTTP server can serve, or a bucket.

Three operations are enough, and each is whole or did not happen: read, create (never over something that is
there), and swap (only where nothing changed since it was read). The swap of ``timestamp.json`` is what makes
a revision hold, so that of two publishers at once one is refused.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from patches.durable import write_bytes_atomically
from patches.text import lines_of

#: The object whose swap makes a revision hold.
TIMESTAMP = "metadata/timestamp.json"


class StoreError(Exception):
    """The store can't be read or written; the message names it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as it was read."""

    data: bytes
    #: What ``swap`` compares.
    tag: str


class Store(Protocol):
    """A place for the objects of a catalog, by path."""

    def read(self, path: str) -> Stored | None:
        """Return an object, or ``None`` where there is none.

        Raises:
            StoreError: It can't be read.
        """
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write an object that is not there; return whether it was written.

        Raises:
            StoreError: It can't be written.
        """
        ...

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        """Replace an object that is as it was read; return whether it was.

        Args:
            path: The object.
            data: Its new content.
            before: What was read; ``None`` where there was none.

        Raises:
            StoreError: It can't be written.
        """
        ...


def open_store(address: str) -> Store:
    """Return the store at an address: ``s3://BUCKET/PREFIX``, or a folder.

    Raises:
        StoreError: It is another kind of address, or the package for it is missing.
    """
    scheme, mark, _ = address.partition("://")
    if not mark:
        return FolderStore(Path(address))
    if scheme == "s3":
        return BucketStore(address)
    raise StoreError(f"--store: expected a folder or s3://BUCKET/PREFIX, got {address[:80]!r}")


class FolderStore:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str) -> Stored | None:
        """See ``Store.read``."""
        try:
            data = (self._folder / path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(self._folder / path, error) from error
        return Stored(data, hashlib.sha256(data).hexdigest())

    def create(self, path: str, data: bytes) -> bool:
        """See ``Store.create``."""
        target = self._folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(target, data, overwrite=False)
        except FileExistsError:
            return False
        except OSError as error:
            raise _failed(target, error) from error
        return True

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        """See ``Store.swap``; a lock file beside the objects keeps other processes out meanwhile."""
        target = self._folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if self.read(path) != before:
                    return False
                write_bytes_atomically(target, data)
        except OSError as error:
            raise _failed(target, error) from error
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class BucketStore:
    """A bucket of S3 or of what speaks its protocol; the environment says endpoint, region, credentials."""

    def __init__(self, address: str) -> None:
        """Open it; nothing is asked of the network yet.

        Raises:
            StoreError: The package ``obstore`` is missing, or the address is none.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ImportError as error:
            raise StoreError(
                "--store: s3:// needs the extra fleet-s3; pip install 'policypatch[fleet-s3]'"
            ) from error
        self._address = address.rstrip("/")
        try:
            self._store = S3Store.from_url(self._address)
        except BaseError as error:
            raise StoreError(f"--store: {address}: {error}") from error

    def read(self, path: str) -> Stored | None:
        """See ``Store.read``."""
        from obstore.exceptions import BaseError

        try:
            found = self._store.get(path)
            data = bytes(found.bytes())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise self._failed(path, error) from error
        return Stored(data, found.meta["e_tag"] or "")

    def create(self, path: str, data: bytes) -> bool:
        """See ``Store.create``."""
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            self._store.put(path, data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise self._failed(path, error) from error
        return True

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        """See ``Store.swap``; the store compares the tag that it gave with what was read."""
        from obstore.exceptions import BaseError, PreconditionError

        if before is None:
            return self.create(path, data)
        try:
            self._store.put(path, data, mode={"e_tag": before.tag})
        except PreconditionError:
            return False
        except (BaseError, OSError) as error:
            raise self._failed(path, error) from error
        return True

    def _failed(self, path: str, error: Exception) -> StoreError:
        return StoreError(f"{self._address}/{path}: {lines_of(str(error))[0][:200]}")


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path}: {error.strerror or error}")
