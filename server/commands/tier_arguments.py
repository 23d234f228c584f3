"""Flags of ``policypatch serve`` about the memory that patches take."""

import argparse

from pydantic import ByteSize, TypeAdapter, ValidationError

from patches.errors import InvalidName
from patches.names import validate_name
from server.memory.options import TierOptions


def add_tier_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; their defaults are those of ``TierOptions``."""
    default = TierOptions()
    parser.add_argument(
        "--patch-device-memory",
        type=num_bytes,
        default=default.device_bytes,
        metavar="SIZE",
        help="memory of each device for the patches used last, such as 512MiB (default: "
        f"{ByteSize(default.device_bytes).human_readable(separator='')})",
    )
    parser.add_argument(
        "--patch-host-memory",
        type=num_bytes,
        default=default.host_bytes,
        metavar="SIZE",
        help="host memory for patches, of all workers together; the others are read from their files when a "
        f"request needs them (default: {ByteSize(default.host_bytes).human_readable(separator='')})",
    )
    parser.add_argument(
        "--pin-patch",
        type=patch_name,
        action="append",
        default=[],
        metavar="NAME",
        help="keep this patch in memory, and its device copy longest; may be given several times",
    )
    parser.add_argument(
        "--pin-blocks",
        type=patch_name,
        action="append",
        default=[],
        metavar="NAME",
        help="keep this patch's blocks in the KV cache while it is used at least every ten minutes; may be "
        "given several times",
    )
    parser.add_argument(
        "--pin-blocks-share",
        type=share,
        default=default.pinned_blocks_share,
        metavar="SHARE",
        help="share of the KV cache that blocks kept so may take at most; patches used last come first "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--preload",
        action="store_true",
        help="fill host memory at start, instead of with the first request of each patch",
    )


def tier_options(args: argparse.Namespace) -> TierOptions:
    """Read the flags."""
    return TierOptions(
        args.patch_device_memory,
        args.patch_host_memory,
        frozenset(args.pin_patch),
        args.preload,
        frozenset(args.pin_blocks),
        args.pin_blocks_share,
    )


def num_bytes(text: str) -> int:
    """Read a size: a number of bytes, or one with a unit such as ``MB`` or ``GiB``.

    Raises:
        argparse.ArgumentTypeError: It is none, or nothing would fit.
    """
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size such as 512MiB or 2GiB, got {text!r}")
    return size


def share(text: str) -> float:
    """Read a share.

    Raises:
        argparse.ArgumentTypeError: It is none, all or nothing.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, such as 0.1, got {text!r}")
    return number


def patch_name(text: str) -> str:
    """Read the name of a patch.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        return validate_name(text)
    except InvalidName as error:
        raise argparse.ArgumentTypeError(str(error)) from None
