"""Reading a file of text that the caller names: bounded, UTF-8, errors in one line."""

from pathlib import Path

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
        raise CommandError(f"{path}: {error.strerror}") from error


def decode_text(content: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        CommandError: It is larger than ``MAX_TEXT_BYTES``, or no UTF-8.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise CommandError(f"{where}: expected at most {MAX_TEXT_BYTES} bytes of text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{where}: expected UTF-8 text: {error}") from error
