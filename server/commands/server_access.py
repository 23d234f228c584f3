"""How a command reaches a server: its address and its key, checked once and before anything is sent.

A key is never printed, and is sent nowhere but to the server that it was named for.
"""

import argparse
import os
from pathlib import Path

from patches.server_address import clean_address
from server.commands.errors import CommandError

#: Where the key of a server's own API (``serve --api-key``) is looked for.
API_KEY_VARIABLE = "POLICYPATCH_API_KEY"

#: Of files and variables that editors and other systems wrote: no part of a key.
_AROUND_KEYS = " \t\r\n\0\ufeff"


def server_url(text: str, argument: str) -> str:
    """Return the address of a server without what a client adds itself: a slash at its end, ``/v1``.

    Raises:
        CommandError: It is none, or holds a password, which would end up in messages and reports.
    """
    try:
        return clean_address(text)
    except ValueError as error:
        raise CommandError(f"{argument}: {error}") from None


def clean_key(text: str, where: str) -> str:
    """Return a key as a header takes it.

    Raises:
        CommandError: It is empty, or holds what no header can; the message names ``where``, never the key.
    """
    key = text.strip(_AROUND_KEYS)
    if not key:
        raise CommandError(f"{where}: expected a key, got nothing")
    if not (key.isascii() and key.isprintable()):
        place = next(i for i, one in enumerate(key, 1) if not (one.isascii() and one.isprintable()))
        raise CommandError(
            f"{where}: expected a key of printable ASCII, but character {place} is none; was it copied with "
            "curly quotes, or from two lines?"
        )
    return key


def key_of_variable(name: str) -> str | None:
    """Return the key in an environment variable; ``None`` where it is not set, or empty."""
    value = os.environ.get(name, "")
    return clean_key(value, f"${name}") if value.strip(_AROUND_KEYS) else None


def key_of_file(path: Path, argument: str) -> str:
    """Return the key on the first line of a file."""
    try:
        with path.open("rb") as file:
            line = file.readline(4096)
    except OSError as error:
        raise CommandError(f"{argument}: {path}: {error.strerror or error}") from error
    return clean_key(line.decode("utf-8", "replace"), f"{argument}: {path}, first line")


def add_api_key_argument(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare the variable with the key of the server's own API."""
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        default=API_KEY_VARIABLE,
        help="environment variable with the key that the server's --api-key wants, if it wants one "
        "(default: %(default)s)",
    )
