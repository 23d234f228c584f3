"""``policypatch inspect``: what a patch file says about itself, as a card or as JSON."""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.canonical import JsonValue, canonical_json
from patches.manifest import Manifest, encode_manifest
from server.commands.patch_arguments import BLOCK_SIZE, read
from server.commands.signature_report import (
    SignatureReport,
    add_trusted_keys_argument,
    report_signature,
    trusted_keys,
)

if TYPE_CHECKING:
    from rich.table import Table

    from patches.format import Patch

DESCRIPTION = """\
Show what a patch file holds: name, version, digest, the base model it belongs to, how it was made, its
tensors, who signed it. The file is checked in full first; `policypatch verify` names every problem of a bad
one. Whose signature it is can be said only with --trusted-keys; without, a signature is a mere claim."""

EPILOG = """\
examples:
  policypatch inspect patches/pirate-1.0.0.safetensors
  policypatch inspect patches/pirate-1.0.0.safetensors --trusted-keys keys
  policypatch inspect --json patches/pirate-1.0.0.safetensors | jq .manifest.base_model"""

#: Wide enough for a digest beside its key, so that nothing is cut where the output is no terminal.
MIN_WIDTH = 100


_SIGNATURE_WORDS = {"trusted": "good, ", "unchecked": "", "refused": "REFUSED: ", "unsigned": ""}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the file and the form of the output."""
    parser.add_argument("patch", metavar="FILE", type=Path, help="a patch file")
    add_trusted_keys_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a card")


def run(args: argparse.Namespace) -> int:
    """Print the card."""
    keys = trusted_keys(args)
    patch = read(args.patch)
    signature = report_signature(args.patch, patch, keys)
    if args.json:
        document = describe(patch, args.patch.stat().st_size, signature)
        print(json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True))
    else:
        _print_card(patch, args.patch, signature)
    return 0


def describe(patch: "Patch", num_bytes: int, signature: SignatureReport) -> dict[str, Any]:
    """Describe a patch as JSON: digest, file size, manifest, signature, and the layout of each tensor."""
    return {
        "digest": patch.digest,
        "num_bytes": num_bytes,
        "signature": signature.as_json(),
        "manifest": json.loads(encode_manifest(patch.manifest)),
        "tensors": {
            name: {"dtype": _dtype(tensor), "shape": list(tensor.shape), "num_bytes": tensor.nbytes}
            for name, tensor in (("embeddings", patch.embeddings), ("kv", patch.kv))
            if tensor is not None
        },
    }


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _print_card(patch: "Patch", path: Path, signature: SignatureReport) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    if not console.is_terminal or console.width < MIN_WIDTH:
        console.width = max(MIN_WIDTH, console.width)
    title = Text(f"{patch.manifest.name}@{patch.manifest.version}", style="bold")
    console.print(Panel(_table(patch, path, signature), title=title, title_align="left", expand=False))


def _table(patch: "Patch", path: Path, signature: SignatureReport) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in _rows(patch, path, signature):
        table.add_row(Text(printable(key)), Text(printable(value)))
    return table


def _rows(patch: "Patch", path: Path, signature: SignatureReport) -> Iterator[tuple[str, str]]:
    manifest = patch.manifest
    yield "digest", patch.digest
    yield "signature", _SIGNATURE_WORDS[signature.state] + signature.text
    yield "file", f"{path} ({_mebibytes(path.stat().st_size)}, format {manifest.format_version})"
    yield "virtual tokens", _tokens(manifest.num_virtual_tokens)
    for name, tensor in (("embeddings", patch.embeddings), ("kv", patch.kv)):
        shape = (
            "none"
            if tensor is None
            else f"{_dtype(tensor)} {list(tensor.shape)}, {_mebibytes(tensor.nbytes)}"
        )
        yield name, shape
    yield from _base_model_rows(manifest)
    yield from _origin_rows(manifest)
    for key in ("license", "changelog", "supersedes"):
        if (value := getattr(manifest, key)) is not None:
            yield key, value
    if manifest.evaluation is not None:
        yield from _nested("evaluation", manifest.evaluation)


def _base_model_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    model = manifest.base_model
    yield (
        "base model",
        f"{model.architecture}, {model.num_layers} layers, {model.num_kv_heads} KV heads "
        f"of {model.head_size}, hidden size {model.hidden_size}",
    )
    yield "  dtype", model.dtype
    yield "  rope", canonical_json(model.rope)
    yield "  tokenizer", model.tokenizer_digest
    yield "  weights", model.weights_digest


def _origin_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "made by", str(manifest.origin["method"])
    for i, part in enumerate(manifest.components):
        yield f"  part {i + 1}", f"{part.name}@{part.version} {part.digest}"
    for key, value in manifest.origin.items():
        if key not in ("method", "components"):
            yield f"  {key}", value if isinstance(value, str) else canonical_json(value)


def _nested(title: str, values: Mapping[str, JsonValue]) -> Iterator[tuple[str, str]]:
    yield title, "" if values else "{}"
    for key, value in values.items():
        yield f"  {key}", value if isinstance(value, str) else canonical_json(value)


def _tokens(num_tokens: int) -> str:
    blocks, rest = divmod(num_tokens, BLOCK_SIZE)
    fill = f"{blocks} blocks of {BLOCK_SIZE}" + (f" and {rest} tokens" if rest else "")
    return f"{num_tokens} ({fill})"


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.2f} MiB"


def printable(text: str) -> str:
    """Escape what could move a terminal's cursor or change the order of its text; line breaks stay."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )
