"""Reading a file of text that the caller names: bounded, UTF-8, errors in one line."""

from pathlib import Path

from patches import text
from server.commands.errors import CommandError

MAX_TEXT_BYTES = 1024 * 1024


def read_text_file(path: Path) -> str:
    """Read a file of UTF-8 text.

    Raises:
        CommandError: It can't be read, is larger than ``MAX_TEXT_BYTES``, or is no UTF-8.
    """
    try:
        with path.open("rb") as file:
            return decode_text(file.read(MAX_TEXT_BYTES + 1), str(path))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error


def decode_text(content: bytes, where: str) -> str:
    """Return UTF-8 as text, without a byte order mark, its lines ended by line feeds.

    The same text compiles to the same tokens, whichever system its lines were ended on.

    Raises:
        CommandError: It is larger than ``MAX_TEXT_BYTES``, or no UTF-8.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise CommandError(f"{where}: expected at most {MAX_TEXT_BYTES} bytes of text")
    try:
        return text.decode_text(content).replace("\r\n", "\n")
    except ValueError as error:
        raise CommandError(f"{where}: {error}") from None
