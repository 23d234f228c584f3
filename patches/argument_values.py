"""Values of command-line arguments: sizes, shares, numbers of things, times."""

import argparse
import math

from pydantic import ByteSize, TypeAdapter, ValidationError


def num_bytes(text: str) -> ByteSize:
    """Read a size: a number of bytes, or one with a unit such as ``MB`` or ``GiB``.

    Raises:
        argparse.ArgumentTypeError: It is none, or nothing would fit.
    """
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = ByteSize(0)
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 512MiB or 2GiB, got {text!r}")
    return size


def share(text: str) -> float:
    """Read a share.

    Raises:
        argparse.ArgumentTypeError: It is none, all or nothing.
    """
    number = _number(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, such as 0.1, got {text!r}")
    return number


def count(text: str) -> int:
    """Read a number of things.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Read a time.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number = _number(text)
    if not 0 < number < 86400:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0, got {text!r}")
    return number


def finite(text: str) -> float:
    """Read a number that JSON can hold.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    number = _number(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


def _number(text: str) -> float:
    """Return a number, or one that no bound lets through."""
    try:
        return float(text)
    except ValueError:
        return math.nan
