"""``policypatch inspect``: what a patch file says about itself, as a card or as JSON."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.content import PatchContent
from patches.manifest import encode_manifest
from patches.terminal import one_line
from patches.text import lines_of
from server.commands.figures import ASCII_BLOCKS, BLOCKS
from server.commands.output import say_json
from server.commands.patch_arguments import read_content
from server.commands.patch_card import Row, mebibytes, patch_rows
from server.commands.signature_report import (
    SignatureReport,
    add_trusted_keys_argument,
    report_signature,
    trusted_keys,
)

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """\
Show what a patch file holds: name, version, digest, the base model it belongs to, how it was made, its
tensors, who signed it. The file is checked in full first; `policypatch verify` names every problem of a bad
one. Whose signature it is can be said only with --trusted-keys; without, a signature is a mere claim."""

EPILOG = """\
examples:
  policypatch inspect patches/pirate-1.0.0.safetensors
  policypatch inspect patches/pirate-1.0.0.safetensors --trusted-keys keys
  policypatch inspect --json patches/pirate-1.0.0.safetensors | jq .manifest.base_model"""

#: How deep a value stands that has lines of its own.
_DEEP = 6

_SIGNATURE_WORDS = {"trusted": "good, ", "unchecked": "", "refused": "REFUSED: ", "unsigned": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the file and the form of the output."""
    parser.add_argument("patch", metavar="FILE", type=Path, help="a patch file")
    add_trusted_keys_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a card")


def run(args: argparse.Namespace) -> int:
    """Print the card."""
    keys = trusted_keys(args)
    patch = read_content(args.patch)
    signature = report_signature(args.patch, patch, keys)
    if args.json:
        document = describe(patch, args.patch.stat().st_size, signature)
        say_json(document, sort_keys=True)
    else:
        _print_card(patch, args.patch, signature)
    return 0


def describe(patch: PatchContent, num_bytes: int, signature: SignatureReport) -> dict[str, Any]:
    """Describe a patch as JSON: digest, file size, manifest, signature, and the layout of each tensor."""
    return {
        "digest": patch.digest,
        "num_bytes": num_bytes,
        "signature": signature.as_json(),
        "manifest": json.loads(encode_manifest(patch.manifest)),
        "tensors": {
            name: {"dtype": tensor.word, "shape": list(tensor.shape), "num_bytes": tensor.nbytes}
            for name, tensor in patch.tensors.items()
        },
    }


def _print_card(patch: PatchContent, path: Path, signature: SignatureReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(markup=False, highlight=False, soft_wrap=True)
    blocks = BLOCKS if console.encoding.startswith("utf") else ASCII_BLOCKS
    size = mebibytes(path.stat().st_size)
    rows = [
        Row("signature", one_line(_SIGNATURE_WORDS[signature.state] + signature.text)),
        Row("file", f"{one_line(str(path))} ({size}, format {patch.manifest.format_version})"),
        *patch_rows(patch, blocks),
    ]
    console.print(Text(f"{patch.manifest.name}@{patch.manifest.version}", style="bold"))
    console.print(Text(patch.digest))
    console.print()
    key_width = max(len(row.key) for row in rows) + 2
    # What is piped is searched and cut by lines: only a terminal gets them wrapped.
    width = console.width - key_width if console.is_terminal else None
    for row in rows:
        if row.table:
            _print_table(console, row.table)
            continue
        lines, indent = _wrapped(row.text, width), key_width
        if width is not None and max(map(len, lines)) > width:
            # A digest is longer than the column that is left: it gets lines of its own, below its key.
            lines, indent = ["", *_wrapped(row.text, console.width - _DEEP)], _DEEP
        for key, line in zip_longest([one_line(row.key)], lines, fillvalue=""):
            text = Text.assemble((f"{key:<{indent}}", "cyan"), one_line(line))
            text.rstrip()
            console.print(text)


def _print_table(console: "Console", lines: Sequence[str]) -> None:
    from rich.text import Text

    for line, style in zip_longest(lines, ["cyan"], fillvalue=""):
        console.print(Text(one_line(line), style=style))


def _wrapped(text: str, width: int | None) -> list[str]:
    """Split a text into lines of ``width``, between two items where it lists some; digests are never cut."""
    lines = lines_of(text) or [""]
    if width is None:
        return lines
    width = max(20, width)
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    wrapped: list[str] = []
    for line in lines:
        items = line.split(", ")
        if all(len(item) < width for item in items):
            line = ", ".join(item.replace(" ", "\0") for item in items)
        wrapped += [part.replace("\0", " ") for part in textwrap.wrap(line, width, **options)] or [""]
    return wrapped
