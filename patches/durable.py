"""Small files that survive a crash: at any instant the old content or the new one is on disk, whole.

For state and keys, of a few kilobytes each. No lock: one process writes a file.
"""

import json
import os
import tempfile
from pathlib import Path

from patches.canonical import JsonValue


def write_bytes_atomically(path: Path, data: bytes, *, mode: int = 0o644, overwrite: bool = True) -> None:
    """Write ``path`` so that it appears whole or not at all, and survives a power cut once this returns.

    Args:
        path: What to write; its folder must exist.
        data: The whole content.
        mode: The permissions of the file, whatever those of a file were that it replaces.
        overwrite: Replace a file that is there.

    Raises:
        FileExistsError: The file is there and ``overwrite`` is false; it is left as it is.
        OSError: The folder can't be written. The file holds the old content, or, where only the last sync
            failed, the new one.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            # A link, unlike a rename, fails where the name is taken.
            os.link(temporary, path)
            os.unlink(temporary)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json_atomically(path: Path, document: JsonValue, *, mode: int = 0o644) -> None:
    """Write ``document`` as JSON text, as ``write_bytes_atomically`` does.

    Raises:
        OSError: The folder can't be written.
        ValueError: ``document`` holds NaN or an infinity, which are no JSON.
    """
    text = json.dumps(document, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    write_bytes_atomically(path, f"{text}\n".encode(), mode=mode)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on disk; a rename alone is not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
