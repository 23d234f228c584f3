"""The file operations of orders: each leaves the folder as it was, or as the order wants it."""

import asyncio
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import BinaryIO

from patches.durable import sync_folder
from patches.format import MAX_FILE_BYTES
from patches.signing.signature import signature_path
from server.errors import OrderRefused, PatchTooLarge


def remove_files(paths: Collection[Path]) -> None:
    """Remove patch files and their signatures; blocks.

    Raises:
        OSError: One can't be removed.
    """
    for path in paths:
        path.unlink(missing_ok=True)
        signature_path(path).unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


def not_writable(error: OSError) -> OrderRefused:
    """Make the error of an order whose folder can't be written."""
    return OrderRefused(f"the patch folder can't be written ({error.strerror or error}); nothing was changed")


async def write_chunks(file: BinaryIO, chunks: AsyncIterator[bytes]) -> None:
    """Write an upload to disk, and no more of it than a patch file may hold.

    Raises:
        PatchTooLarge: More comes.
        OSError: It can't be written.
    """
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > MAX_FILE_BYTES:
            raise PatchTooLarge(f"file: expected at most {MAX_FILE_BYTES} bytes")
        await asyncio.to_thread(file.write, chunk)
    await asyncio.to_thread(_sync, file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file to disk; blocks."""
    with path.open("xb") as file:
        file.write(data)
        _sync(file)


def publish(upload: Path, target: Path) -> None:
    """Move an upload and its signature into the folder; blocks.

    Raises:
        FileExistsError: The name is taken.
        OSError: The folder can't be written.
    """
    # The signature first: without it the patch might be refused for a moment.
    signature = signature_path(upload)
    if target.exists():
        raise FileExistsError
    if signature.exists():
        os.replace(signature, signature_path(target))
    # A link, unlike a rename, fails where the name is taken.
    os.chmod(upload, 0o644)
    os.link(upload, target)
    sync_folder(target.parent)
