"""What commands print: the only place of them that writes to a stream.

Names, messages and texts of others may hold what moves a cursor or turns text around; here it is escaped.
Tables and bars that are drawn with rich escape what they draw with ``patches.terminal`` themselves.
"""

import sys

from patches.terminal import printable


def say(text: str) -> None:
    """Print a result."""
    print(printable(text))


def complain(text: str) -> None:
    """Print what is worth knowing beside the result, on standard error."""
    print(printable(text), file=sys.stderr)
