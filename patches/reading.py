"""Reading a file that someone else put there: only regular files, never more bytes than expected."""

import os
import stat


class FileTooLarge(ValueError):
    """The file holds more bytes than the reader takes."""


def read_regular_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a whole file, following symbolic links, without ever waiting for a pipe's writer.

    Raises:
        FileTooLarge: It holds more than ``max_bytes``.
        OSError: It can't be read, or is not a regular file.
        ValueError: The path has a null byte in it.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "expected a regular file")
        if status.st_size > max_bytes:
            raise FileTooLarge(f"expected at most {max_bytes} bytes, got {status.st_size}")
        return file.read(status.st_size)


def _open_at_once(path: str, flags: int) -> int:
    # Opening a named pipe would otherwise wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)
