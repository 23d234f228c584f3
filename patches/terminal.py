"""Text on its way to people: nothing in it moves a cursor, forges a line, or ends in a traceback.

File names, changelogs and messages of others reach terminals and logs through ``printable``. What a stream's
encoding lacks is escaped by the stream itself, once ``escape_what_streams_lack`` was called.
"""

import io
import sys


def printable(text: str, *, keep: str = "\n") -> str:
    """Return ``text`` with control, bidirectional and undecodable characters escaped, except ``keep``."""
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def one_line(text: str) -> str:
    """Return ``text`` as ``printable`` does, line breaks escaped too."""
    return printable(text, keep="")


def escape_what_streams_lack() -> None:
    """Have standard output and error escape characters that their encoding lacks, as under ``LC_ALL=C``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
