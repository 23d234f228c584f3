"""How far the two forms of composition differ: prepared by `policypatch compose`, and joined.

For every order of two patches the prepared form answers prompts greedily. Then the same answers are read
again under the other ways to have these patches, and at each of their tokens the next-token distributions are
compared: Kullback-Leibler divergence from the prepared form, in nats over the whole vocabulary, and whether
the likeliest token is the same. What the patches change at all (the base model), what the order changes (the
prepared form of the other order) and what is left of each patch alone say how large a divergence is.

No server: the model runs here, in transformers. That a server's joined compositions are these is what
`tests/e2e/test_composition.py` checks.
"""

import argparse
import itertools
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.load.timing import quantile
from bench.load.workloads import PROMPTS
from bench.report.compose_report import WAYS, compose_markdown
from bench.report.record import Record, append_record
from bench.run.question import (
    RECORDS,
    Measure,
    Reporting,
    add_out_argument,
    main_of,
    options_of,
    question_parser,
)
from bench.run.reader import Batch, Reader
from bench.servers.environment import describe_environment, without_places
from patches.base_model import DTYPES
from patches.compile import compile_patch
from patches.compose import compose_patches
from patches.errors import ComposeError
from patches.format import Patch, read_patch
from patches.join import join_kv, rotary_of_network
from patches.label import Label
from patches.model import LoadedModel, load_model

QUESTION = "compose"

EPILOG = """\
examples:
  python -m bench.compose --model ./smollm2 examples/patches/*.safetensors
  python -m bench.compose --model ./smollm2 a-1.0.0.safetensors b-1.0.0.safetensors --prompts 24
"""


@dataclass(frozen=True)
class ComposeOptions:
    """What is compared."""

    model: str
    patches: Sequence[Path]
    #: Compare only orders that begin with this patch.
    first: str | None = None
    dtype: str = "float32"
    num_prompts: int = 8
    num_output_tokens: int = 16

    def __post_init__(self) -> None:
        if len(self.patches) < 2:
            raise ValueError(f"patches: expected at least two, got {len(self.patches)}")
        if not 1 <= self.num_prompts <= len(PROMPTS):
            raise ValueError(f"--prompts: expected 1 to {len(PROMPTS)}, got {self.num_prompts}")
        if self.num_output_tokens < 1:
            raise ValueError(f"--output-tokens: expected 1 or more, got {self.num_output_tokens}")


def recompiled(model: LoadedModel, patch: Patch) -> Patch:
    """Compute a patch's K/V again, in the model's dtype.

    Raises:
        ComposeError: it has no embeddings.
    """
    name = patch.manifest.name
    if patch.embeddings is None:
        raise ComposeError(f"{name}: has no embeddings, so nothing can be prepared from it")
    return compile_patch(model, patch.embeddings, Label(name, "1.0.0"), {"method": "trained"})


def kv_of(patch: Patch) -> torch.Tensor:
    """Return the K/V of a patch that was compiled."""
    assert patch.kv is not None
    return patch.kv


def compare_distributions(prepared: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Compare ``[B, T, V]`` logits with those of the prepared form.

    Semantics: ``kl = sum(p * (log p - log q))`` with ``p`` the prepared form's distribution, per token.
    """
    p, q = torch.log_softmax(prepared, dim=-1), torch.log_softmax(other, dim=-1)
    kl = (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)
    values = kl.flatten().tolist()
    return {
        "kl_mean": float(kl.mean()),
        "kl_first_token": float(kl[:, 0].mean()),
        **{f"kl_p{round(100 * share)}": quantile(values, share) for share in (0.5, 0.9)},
        "same_likeliest": float((prepared.argmax(-1) == other.argmax(-1)).float().mean()),
        "num_steps": len(values),
    }


def compare_order(
    reader: Reader, kvs: Mapping[str, torch.Tensor | None], batch: Batch, num_tokens: int
) -> dict[str, dict[str, float]]:
    """Answer under the prepared form, and read its answers in every other way.

    Args:
        reader: the model.
        kvs: "prepared" and the ways -> what lies in front.
        batch: the prompts.
        num_tokens: length of the answers.
    """
    answers = reader.greedy(kvs["prepared"], batch, num_tokens)
    # The last token of an answer is not read: nothing is predicted behind it.
    whole = batch.followed_by(answers[:, :-1])
    prepared = reader.logits(kvs["prepared"], whole, num_tokens)
    return {way: compare_distributions(prepared, reader.logits(kvs[way], whole, num_tokens)) for way in WAYS}


def run_compose(options: ComposeOptions, command: str, folder: Path) -> None:
    """Measure every order of two patches.

    Raises:
        PatchError: the model, or a patch, cannot be used.
    """
    environment, run_id = describe_environment(), uuid.uuid4().hex[:12]
    model = load_model(options.model, dtype=options.dtype)
    patches = [recompiled(model, read_patch(path)) for path in options.patches]
    rotary = rotary_of_network(model.network, model.base_model.head_size)
    reader = Reader(model)
    batch = reader.batch(PROMPTS[:: len(PROMPTS) // options.num_prompts][: options.num_prompts])
    setup = {
        "command": command,
        "model": without_places(options.model),
        "dtype": model.base_model.dtype,
        "num_prompts": options.num_prompts,
        "num_output_tokens": options.num_output_tokens,
    }
    prepared = {
        (a.digest, b.digest): compose_patches(model, [a, b], Label("pair", "1.0.0")).kv
        for a, b in itertools.permutations(patches, 2)
        if options.first is None or options.first in (a.manifest.name, b.manifest.name)
    }
    for a, b in itertools.permutations(patches, 2):
        names = [a.manifest.name, b.manifest.name]
        if options.first not in (None, names[0]):
            continue
        print(f"bench compose: {', '.join(names)}", file=sys.stderr, flush=True)
        kvs = {
            "prepared": prepared[a.digest, b.digest],
            "joined": join_kv([kv_of(a), kv_of(b)], rotary),
            "reversed": prepared[b.digest, a.digest],
            "first": a.kv,
            "second": b.kv,
            "base": None,
        }
        for way, result in compare_order(reader, kvs, batch, options.num_output_tokens).items():
            place = setup | {"order": names, "way": way}
            append_record(folder / RECORDS, Record(QUESTION, run_id, place, result, environment))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; defaults are those of ``ComposeOptions``."""
    d = ComposeOptions
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("patches", type=Path, nargs="+", metavar="PATCH", help="patch files, at least two")
    parser.add_argument("--model", required=True, help="model folder, or the id of a cached model")
    parser.add_argument("--first", metavar="NAME", help="only orders that begin with this patch")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=d.dtype,
        help="patches are compiled anew in it (default: %(default)s)",
    )
    for flag, name, meaning in (
        ("--prompts", "num_prompts", f"prompts, up to {len(PROMPTS)}"),
        ("--output-tokens", "num_output_tokens", "tokens of an answer"),
    ):
        default = getattr(d, name)
        parser.add_argument(
            flag, dest=name, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    add_out_argument(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures.

    Raises:
        ValueError: a number is out of range.
    """
    options = options_of(ComposeOptions, args)
    return lambda folder: run_compose(options, command, folder)


def summary_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the last line of stdout."""
    return {
        "kl_mean": {f"{', '.join(r.setup['order'])}: {r.setup['way']}": r.result["kl_mean"] for r in records}
    }


main = main_of(QUESTION, build_parser, prepare, Reporting(compose_markdown, None, summary_of))

if __name__ == "__main__":
    sys.exit(main())
