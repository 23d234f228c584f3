"""Patches with random K/V, for speed measurements of models whose weights are random too.

`policypatch compile` computes K/V with the model's weights. A model folder without weights, served with
``--load-format dummy``, has none; but how long a step takes does not depend on what the K/V holds, only on
how much of it there is. The manifest says that the values are random, so that no reader takes the answers for
more than they are.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from patches.base_model import DTYPES, BaseModel
from patches.errors import PatchError
from patches.fingerprint import fingerprint_model
from patches.format import Patch, make_patch, write_patch
from patches.kinds.prefix import PrefixBody
from patches.label import Label


def random_patch(base_model: BaseModel, num_tokens: int, label: Label, *, seed: int = 0) -> Patch:
    """Make a patch of normally distributed K/V; equal arguments give an equal digest.

    Raises:
        PatchFormatError: the parts do not make a valid patch.
    """
    dtype = getattr(torch, base_model.dtype)
    shape = (base_model.num_layers, 2, num_tokens, base_model.num_kv_heads, base_model.head_size)
    kv = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    manifest = label.manifest(
        base_model, PrefixBody(num_tokens), {"method": "trained", "values": f"random, seed {seed}"}
    )
    return make_patch(manifest, {"kv": kv})


def num_policy_tokens(model: str, text: str, *, is_raw: bool) -> int:
    """Count the tokens that `policypatch compile` would make of a policy.

    Raises:
        CompileError: the text can't become a prefix of this model.
    """
    from transformers import AutoTokenizer

    from patches.rendering import render_raw, render_system

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    return len((render_raw if is_raw else render_system)(tokenizer, text).token_ids)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the patch; the last line of stdout is one JSON object.

    Returns:
        0, or 1 where the model or the text cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.servers.random_patch", description=__doc__)
    parser.add_argument("--model", required=True, help="model folder; it needs no weights")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--num-tokens", type=int, help="length of the prefix")
    length.add_argument("--policy-text", type=Path, metavar="FILE", help="as long as this text's prefix")
    parser.add_argument("--raw", dest="is_raw", action="store_true", help="no chat template around the text")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--name", default="random", help="(default: %(default)s)")
    parser.add_argument(
        "--count",
        type=int,
        metavar="K",
        help="write K patches, NAME-0 to NAME-(K-1), with seeds from --seed on (default: one, NAME)",
    )
    parser.add_argument("--version", default="1.0.0", help="(default: %(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder for the file")
    args = parser.parse_args(argv)
    try:
        num_tokens = args.num_tokens or num_policy_tokens(
            args.model, args.policy_text.read_text(encoding="utf-8-sig"), is_raw=args.is_raw
        )
        base_model = fingerprint_model(args.model, args.dtype, may_lack_weights=True)
        names = [args.name] if args.count is None else [f"{args.name}-{i}" for i in range(args.count)]
        written = []
        for i, name in enumerate(names):
            patch = random_patch(base_model, num_tokens, Label(name, args.version), seed=args.seed + i)
            path = write_patch(patch, args.out)
            written.append({"file": path.name, "name": name, "digest": patch.digest, "nbytes": patch.nbytes})
    except (PatchError, OSError) as error:
        print(f"random_patch: {error}", file=sys.stderr)
        return 1
    facts = written[0] if args.count is None else {"patches": written}
    print(json.dumps({**facts, "num_tokens": num_tokens}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
