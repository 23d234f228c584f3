"""``policypatch verify``: is this a valid patch file, and does it fit the model?"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from patches.base_model import DTYPES, BaseModel
from patches.content import PatchContent
from patches.errors import BaseModelMismatch, PatchFormatError
from patches.fingerprint import fingerprint_model, holds_exactly, require_patch_fits
from patches.format import find_content, read_patch_bytes
from patches.model_files import model_folder
from patches.signing.keys import TrustedKeys
from patches.signing.revocations import read_revocations, revoked_part
from server.commands.errors import CommandError
from server.commands.output import complain, say
from server.commands.patch_arguments import patch_errors
from server.commands.signature_report import (
    SignatureReport,
    add_trusted_keys_argument,
    report_signature,
    trusted_keys,
)

DESCRIPTION = """\
Check patch files against the specification (docs/format.md), their digest, and, with --model, against a
model: architecture, shape, rotary positions, tokenizer and weights. With --trusted-keys each must be signed
by one of the keys. Every problem is named.

Exit status: 0 all files are good, 1 at least one is not, 2 a file or the model can't be read."""

EPILOG = """\
examples:
  policypatch verify patches/pirate-1.0.0.safetensors
  policypatch verify patches/*.safetensors --model models/smollm2 --dtype bfloat16
  policypatch verify patches/*.safetensors --trusted-keys keys --revoked revoked.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the files and the model."""
    parser.add_argument("patches", metavar="FILE", type=Path, nargs="+", help="patch files")
    parser.add_argument("--model", metavar="M", help="a model folder, or the id of a hub model in the cache")
    parser.add_argument("--revision", metavar="R", help="the revision of a hub model")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="the dtype that the server runs the model in (default: the one each patch was made for)",
    )
    add_trusted_keys_argument(parser)
    parser.add_argument(
        "--revoked", metavar="FILE", type=Path, help="list of digests, one a line, that are not good any more"
    )


@dataclass(frozen=True)
class _Demands:
    """What each file is held against."""

    base_model: BaseModel | None
    #: Of the model that ``base_model`` is the fingerprint of.
    folder: Path | None
    is_dtype_given: bool
    keys: TrustedKeys | None
    revoked: frozenset[str]


def run(args: argparse.Namespace) -> int:
    """Check every file; the answer is no where one fails."""
    if args.dtype is not None and args.model is None:
        raise CommandError("--dtype goes with --model")
    base_model = folder = None
    keys = trusted_keys(args)
    with patch_errors():
        revoked = read_revocations(args.revoked) if args.revoked is not None else frozenset()
        if args.model is not None:
            folder = model_folder(args.model, args.revision)
            base_model = fingerprint_model(folder, args.dtype or DTYPES[0])
    demands = _Demands(base_model, folder, args.dtype is not None, keys, revoked)
    results = [_verify(path, demands) for path in args.patches]
    return 0 if all(results) else 1


def _verify(path: Path, demands: _Demands) -> bool:
    try:
        data = read_patch_bytes(path)
    except PatchFormatError as error:
        if error.reason == "unreadable":
            raise CommandError(str(error)) from error
        return _report(path, [f"{error.reason}: {error}"])
    patch, problems = find_content(data)
    texts = [f"{problem.reason}: {problem}" for problem in problems]
    if patch is not None and demands.base_model is not None:
        texts += _differences(patch, demands.base_model, demands.is_dtype_given)
        texts += _misfits(patch, demands.folder)
    if patch is not None and (part := revoked_part(demands.revoked, patch.digest, patch.manifest)):
        texts.append(f"revoked: {part} is on the list")
    signature = report_signature(path, patch, demands.keys) if patch is not None else None
    if signature is not None and demands.keys is not None and signature.state != "trusted":
        texts.append(f"{signature.reason}: {signature.text}")
    if patch is None or signature is None or texts:
        return _report(path, texts)
    _tell_good(path, patch, demands, signature)
    return True


def _tell_good(path: Path, patch: PatchContent, demands: _Demands, signature: SignatureReport) -> None:
    manifest = patch.manifest
    say(f"{path}: good: {manifest.name}@{manifest.version} {patch.digest}")
    if signature.state != "unsigned":
        say(f"  signature: {signature.text}")
    if manifest.body.payload[0] not in patch.tensors:
        say("  note: has no K/V, so a server can't serve it; `policypatch compile` or `compose` gives it one")
    if demands.base_model is not None and not demands.is_dtype_given and manifest.body.is_dtype_bound:
        made_for = manifest.base_model.dtype
        dtypes = " or ".join(dtype for dtype in DTYPES if holds_exactly(dtype, made_for))
        say(f"  note: made for {made_for}; the server must run with --dtype {dtypes}")


def _differences(patch: PatchContent, base_model: BaseModel, is_dtype_given: bool) -> list[str]:
    dtype = base_model.dtype if is_dtype_given else patch.manifest.base_model.dtype
    try:
        require_patch_fits(replace(base_model, dtype=dtype), patch.manifest)
    except BaseModelMismatch as error:
        return [f"base_model_mismatch: {text}" for text in error.differences]
    return []


def _misfits(patch: PatchContent, folder: Path | None) -> list[str]:
    from patches.checkpoint import read_checkpoint
    from patches.deltas.fit import misfits
    from patches.kinds.delta import DeltaBody

    body = patch.manifest.body
    if folder is None or not isinstance(body, DeltaBody):
        return []
    with patch_errors():
        return [f"base_model_mismatch: {text}" for text in misfits(body, read_checkpoint(folder))]


def _report(path: Path, problems: list[str]) -> bool:
    complain(f"{path}: not good:")
    for problem in problems:
        complain(f"  {problem}")
    return False
