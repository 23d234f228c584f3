"""What commands print: the only place of them that writes to a stream.

Names, messages and texts of others may hold what breaks a line, moves a cursor or turns text around; here it
is escaped. Tables and bars that rich draws escape what they hold with ``patches.terminal`` themselves.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

from patches.terminal import one_line


def say(text: str) -> None:
    """Print one line of a result."""
    print(one_line(text))


def say_lines(lines: Iterable[object]) -> None:
    """Print a result of several lines."""
    for line in lines:
        say(str(line))


def say_json(document: Any, *, sort_keys: bool = False) -> None:
    """Print a result for programs."""
    say_lines(json.dumps(document, indent=2, sort_keys=sort_keys).split("\n"))


def complain(text: str) -> None:
    """Print a line that is worth knowing beside the result, on standard error."""
    print(one_line(text), file=sys.stderr)
