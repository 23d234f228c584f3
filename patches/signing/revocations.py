"""The list of revoked patches: one digest a line.

Blank lines are skipped, and what follows a ``#``. A line that is not a digest spoils the whole list: a
mistyped digest would otherwise revoke nothing, silently.
"""

from collections.abc import Set
from pathlib import Path

from patches.errors import RevocationsInvalid
from patches.manifest import Manifest
from patches.names import is_digest
from patches.reading import read_regular_file
from patches.text import decode_text, lines_of

MAX_LIST_BYTES = 16 * 1024 * 1024


def read_revocations(path: Path) -> frozenset[str]:
    """Read the list.

    Raises:
        RevocationsInvalid: It can't be read, or a line is neither a digest nor a comment; the message names
            the line.
    """
    try:
        text = decode_text(read_regular_file(path, MAX_LIST_BYTES))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RevocationsInvalid(f"{path}: can't be read: {reason}") from None
    digests = set()
    for number, line in enumerate(lines_of(text), start=1):
        entry = line.partition("#")[0].strip()
        if entry and not is_digest(entry):
            raise RevocationsInvalid(
                f"{path}, line {number}: expected sha256: and 64 hexadecimal digits, got {entry[:80]!r}"
            )
        digests.add(entry)
    return frozenset(digests - {""})


def revoked_part(revoked: Set[str], digest: str, manifest: Manifest) -> str | None:
    """Return the digest that keeps a patch from being used: its own, or that of a part it was composed of."""
    digests = (digest, *(component.digest for component in manifest.components))
    return next((entry for entry in digests if entry in revoked), None)
