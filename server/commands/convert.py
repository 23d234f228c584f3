"""``policypatch convert``: patches for a model that runs in another dtype."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patches.base_model import DTYPES
from server.commands.patch_arguments import (
    add_output_arguments,
    load,
    note,
    of_file,
    patch_errors,
    progress,
    read,
    report,
    save,
    write_errors,
)

if TYPE_CHECKING:
    from patches.format import Patch
    from patches.model import LoadedModel

DESCRIPTION = """\
Make patches for a server that runs the model in another dtype. Patches for bfloat16 or float16 need none of
this under `--dtype float32`: the server widens them, which is exact.

With --model, K/V is computed anew where a patch has its embeddings, as `compile` would have; without it, or
without embeddings, each value is rounded once. Values that float16 can't hold are refused. Name, version and
notes stay; the digest is another, so a signed patch has to be signed again.

Steering patches are served in any dtype: they are copied as they are, with their signatures, and so are
patches that are for this dtype already."""

EPILOG = """\
examples:
  policypatch convert patches/*.safetensors --dtype float16 -o half
  policypatch convert patches/pirate-1.0.0.safetensors --dtype float16 --model models/smollm2 -o half
  policypatch serve --model models/smollm2 --dtype float16 --patches half"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the files, the dtype, the model and the output."""
    parser.add_argument("patches", metavar="FILE", type=Path, nargs="+", help="patch files")
    parser.add_argument(
        "--dtype", choices=DTYPES, required=True, help="the dtype that the server runs the model in"
    )
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="M",
        help="compute K/V anew with this model folder or hub id (default: round the values)",
    )
    group.add_argument("--revision", metavar="R", help="the revision of a hub model")
    group.add_argument("--device", metavar="D", default="cpu", help="where to compute (default: cpu)")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Convert one file after the other."""
    from patches.signing.signature import signature_path

    with patch_errors():
        model = None if args.model is None else load(args)
    for path in args.patches:
        patch = read(path)
        converted = _converted(path, patch, args.dtype, model)
        if converted is patch:
            _copy(path, patch, args)
            continue
        save(converted, args)
        if signature_path(path).exists():
            note(f"{path} is signed, what was made of it is not; sign it with `policypatch sign`")
    return 0


def _converted(path: Path, patch: "Patch", dtype: str, model: "LoadedModel | None") -> "Patch":
    from patches.convert import convert_patch
    from patches.errors import PatchError
    from server.commands.errors import CommandError

    try:
        with progress(f"converting {path}"):
            return convert_patch(patch, dtype, model)
    except PatchError as error:
        raise CommandError(of_file(path, error)) from error


def _copy(path: Path, patch: "Patch", args: argparse.Namespace) -> None:
    """Copy a patch file byte for byte; its signature goes first, so that a server finds both."""
    from patches.format import write_patch_file
    from patches.signing.signature import signature_path

    copy = args.output / patch.filename
    signature = signature_path(path)
    is_signed = signature.exists()
    with write_errors(args.output):
        if is_signed:
            write_patch_file(signature.read_bytes(), signature_path(copy), overwrite=args.force)
        write_patch_file(path.read_bytes(), copy, overwrite=args.force)
    dtypes = "any dtype" if patch.manifest.kind == "steering" else f"{args.dtype} already"
    note(f"{path} is for {dtypes}, and is copied as it is{', with its signature' if is_signed else ''}")
    report(copy, patch)
