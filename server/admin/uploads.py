"""Puts patch files into the patch folder and takes them out of it, for operators.

A version is never overwritten: new content gets a new version. A file is examined beside the folder's files,
under a name that the watch ignores, and appears under its own name only if it can be served.
"""

import asyncio
import base64
import binascii
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from patches.format import SUFFIX, is_patch_filename
from patches.headers import SIGNATURE_HEADER
from patches.signing.signature import MAX_SIGNATURE_BYTES, signature_path
from server.catalog.catalog import Catalog
from server.catalog.folder import PatchFolder
from server.catalog.folder_files import not_writable, publish, remove_files, write_chunks, write_synced
from server.errors import AdminCallInvalid, FileRefused, OrderRefused, PatchNotFound
from server.versions.activation import Target
from server.versions.view import FileFailure, ServedPatch

_UPLOAD_SUFFIX = ".upload"

#: Seconds without a write after which an upload counts as abandoned.
_LEFTOVER_S = 3600.0

#: Called with the name and the content before it can become active.
Hold = Callable[[str, Target], Awaitable[None]]


class Uploads:
    """The patch folder, as operators write to it."""

    def __init__(self, path: Path, folder: PatchFolder, catalog: Catalog) -> None:
        self._path = path
        self._folder = folder
        self._catalog = catalog
        #: One order about files at a time.
        self._orders = asyncio.Lock()

    def remove_leftovers(self) -> None:
        """Remove uploads that a killed server left; blocks. Recent ones may be those of another server."""
        with contextlib.suppress(OSError):
            for path in self._path.glob(f".*{_UPLOAD_SUFFIX}*"):
                if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                    path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def receive(self, chunks: AsyncIterator[bytes], signature: str | None) -> AsyncIterator[Path]:
        """Keep an upload beside the folder's files while the context lasts; yields its path.

        Args:
            chunks: The patch file.
            signature: Its signature file in base64, where it has one.

        Raises:
            AdminCallInvalid: The signature is no base64, or too long.
            OrderRefused: The folder can't be written.
            PatchTooLarge: More comes than a patch file may hold.
        """
        envelope = decode_signature(signature)
        with contextlib.ExitStack() as leftovers:
            try:
                descriptor, name = await asyncio.to_thread(tempfile.mkstemp, _UPLOAD_SUFFIX, ".", self._path)
                path = Path(name)
                leftovers.callback(path.unlink, missing_ok=True)
                with open(descriptor, "wb") as file:
                    await write_chunks(file, chunks)
                if envelope is not None:
                    leftovers.callback(signature_path(path).unlink, missing_ok=True)
                    await asyncio.to_thread(write_synced, signature_path(path), envelope)
            except OSError as error:
                raise not_writable(error) from error
            yield path

    async def put(self, name: str, version: str, upload: Path, hold: Hold | None) -> tuple[ServedPatch, bool]:
        """Serve an upload under its name and version.

        Args:
            name: What it has to hold.
            version: What it has to hold.
            upload: As ``receive`` gave it.
            hold: To be done before it can become active.

        Returns:
            What is served, and whether it is new.

        Raises:
            AdminCallInvalid: It holds another name or version.
            FileRefused: It can't be served.
            OrderRefused: There is a file of this version with other content, or the folder can't be written.
        """
        async with self._orders:
            patch = await self._catalog.intake.examine(upload)
            _require(name, version, patch.manifest.name, patch.manifest.version)
            named = self._catalog.view.names.get(name)
            served = named.by_version.get(version) if named is not None else None
            if served is not None and served.digest == patch.digest:
                return served, False
            if hold is not None:
                await hold(name, Target(version, patch.digest))
            target = self._path / f"{name}-{version}{SUFFIX}"
            try:
                await asyncio.to_thread(publish, upload, target)
            except FileExistsError:
                raise OrderRefused(
                    f"{target.name} is there with other content; give this one another version"
                ) from None
            except OSError as error:
                raise not_writable(error) from error
            await self._folder.look()
            outcome = self._catalog.outcome(target)
            if isinstance(outcome, ServedPatch):
                return outcome, True
            await asyncio.to_thread(remove_files, [target])
            await self._folder.look()
            raise _refused(outcome)

    async def load(self, name: str, version: str, file: str, hold: Hold | None) -> tuple[ServedPatch, bool]:
        """Look at a file of the folder now, also where it was refused before.

        Returns:
            What is served, and whether it is new.

        Raises:
            AdminCallInvalid: ``file`` is no name of a patch file, or holds another name or version.
            PatchNotFound: There is no such file.
            FileRefused: It can't be served.
        """
        if not is_patch_filename(file) or "\0" in file:
            raise AdminCallInvalid(f"file: expected the name of a *{SUFFIX} file", param="file")
        path = self._path / file
        before = self._catalog.outcome(path)
        if not isinstance(before, ServedPatch):
            if not await asyncio.to_thread(path.is_file):
                raise PatchNotFound(f"file: no '{file[:80]}' is in the patch folder", param="file")
            patch = await self._catalog.intake.examine(path)
            _require(name, version, patch.manifest.name, patch.manifest.version)
            if hold is not None:
                await hold(name, Target(version, patch.digest))
            self._folder.look_again(path)
            await self._folder.look()
        outcome = self._catalog.outcome(path)
        if not isinstance(outcome, ServedPatch):
            raise _refused(outcome)
        _require(name, version, outcome.name, outcome.version)
        return outcome, outcome != before


def decode_signature(text: str | None) -> bytes | None:
    """Decode the header that brings a signature.

    Raises:
        AdminCallInvalid: It is no base64, or too long.
    """
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise AdminCallInvalid(f"{SIGNATURE_HEADER}: expected base64") from None
    if len(data) > MAX_SIGNATURE_BYTES:
        raise AdminCallInvalid(f"{SIGNATURE_HEADER}: expected at most {MAX_SIGNATURE_BYTES} bytes")
    return data


def _require(name: str, version: str, found_name: str, found_version: str) -> None:
    if (name, version) != (found_name, found_version):
        raise AdminCallInvalid(
            f"path: expected what the file holds, {found_name}@{found_version}, got {name}@{version}"
        )


def _refused(failure: FileFailure | ServedPatch | None) -> FileRefused:
    if not isinstance(failure, FileFailure):
        return FileRefused("the file was removed while it was being loaded", reason="internal")
    return FileRefused.of_code(failure.code, failure.message, failure.reason)
