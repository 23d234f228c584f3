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
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.load.timing import quantile
from bench.load.workloads import PROMPTS
from bench.report.record import Record, append_record
from bench.run.question import OUT, add_out_argument, finish, markdown_into, question_parser
from bench.servers.environment import describe_environment, without_places
from patches.compile import compile_patch
from patches.compose import compose_patches
from patches.errors import ComposeError
from patches.format import Patch, read_patch
from patches.join import join_kv, rotary_of_network
from patches.label import Label
from patches.manifest import DTYPES
from patches.model import LoadedModel, load_model

QUESTION = "compose"

#: Way -> what it says in a table.
WAYS = {
    "joined": "joined, same order",
    "reversed": "prepared, other order",
    "first": "first patch alone",
    "second": "second patch alone",
    "base": "no patch",
}

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
    out: Path = OUT

    def __post_init__(self) -> None:
        if len(self.patches) < 2:
            raise ValueError(f"patches: expected at least two, got {len(self.patches)}")
        if not 1 <= self.num_prompts <= len(PROMPTS) or self.num_output_tokens < 1:
            raise ValueError(f"--prompts, --output-tokens: expected 1 to {len(PROMPTS)}, and from 1 on")


@dataclass(frozen=True)
class Batch:
    """Prompts as token ids, padded on the left: ``[B, S]`` each."""

    ids: torch.Tensor
    mask: torch.Tensor

    def followed_by(self, ids: torch.Tensor) -> "Batch":
        """Append ``[B, T]`` tokens."""
        return Batch(torch.cat([self.ids, ids], dim=1), torch.cat([self.mask, torch.ones_like(ids)], dim=1))


class Reader:
    """A model that reads behind prefixes."""

    def __init__(self, model: LoadedModel) -> None:
        self._network = model.network
        self._tokenizer = model.tokenizer

    def batch(self, prompts: Sequence[str]) -> Batch:
        """Render each prompt as a chat of one user message."""
        texts = [
            self._tokenizer.apply_chat_template(  # type: ignore[union-attr]
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        rows = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]  # type: ignore[misc]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        return Batch(ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]))

    @torch.no_grad()
    def logits(self, kv: torch.Tensor | None, batch: Batch, num_last: int, cache: Any = None) -> torch.Tensor:
        """Return ``[B, num_last, V]`` float32 logits at the last positions.

        Args:
            kv: ``[L, 2, N, H_kv, D]``, what lies in front; None for nothing.
            batch: everything behind it; where ``cache`` holds a part already, only the last token is read.
            num_last: how many positions.
            cache: from ``cache_of``, to go on with; a fresh one where None.
        """
        num_prefix = 0 if kv is None else kv.shape[2]
        positions = (num_prefix + batch.mask.cumsum(1) - 1).clamp(min=0)
        ids = batch.ids
        if cache is None:
            cache = self.cache_of(kv, len(ids))
        num_read = cache.get_seq_length() - num_prefix
        front = torch.ones(len(ids), num_prefix, dtype=torch.long)
        output = self._network(
            ids[:, num_read:],
            attention_mask=torch.cat([front, batch.mask], dim=1),
            position_ids=positions[:, num_read:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=num_last,
        )
        logits: torch.Tensor = output.logits.float()
        return logits

    def cache_of(self, kv: torch.Tensor | None, batch_size: int) -> Any:
        """Return a cache that holds ``kv`` for each row of a batch."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for row, layer in enumerate(() if kv is None else kv.transpose(2, 3)):
            key, value = (side.expand(batch_size, -1, -1, -1).contiguous() for side in layer)
            cache.update(key, value, row)
        return cache

    def greedy(self, kv: torch.Tensor | None, batch: Batch, num_tokens: int) -> torch.Tensor:
        """Return ``[B, num_tokens]`` ids; answers go on behind their end, alike for every way."""
        cache = self.cache_of(kv, len(batch.ids))
        chosen = []
        for _ in range(num_tokens):
            chosen.append(self.logits(kv, batch, 1, cache)[:, -1].argmax(dim=-1, keepdim=True))
            batch = batch.followed_by(chosen[-1])
        return torch.cat(chosen, dim=1)


def recompiled(model: LoadedModel, patch: Patch) -> Patch:
    """Compute a patch's K/V again, in the model's dtype.

    Raises:
        ComposeError: it has no embeddings.
    """
    name = patch.manifest.name
    if patch.embeddings is None:
        raise ComposeError(f"{name}: has no embeddings, so nothing exact can be made of it")
    return compile_patch(model, patch.embeddings, Label(name, "1.0.0"), {"method": "trained"})


def kv_of(patch: Patch) -> torch.Tensor:
    """Give the K/V that compiling gave it."""
    assert patch.kv is not None
    return patch.kv


def compare_distributions(exact: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Compare ``[B, T, V]`` logits with those of the prepared form.

    Semantics: ``kl = sum(p * (log p - log q))`` with ``p`` the prepared form's distribution, per token.
    """
    p, q = torch.log_softmax(exact, dim=-1), torch.log_softmax(other, dim=-1)
    kl = (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)
    values = kl.flatten().tolist()
    return {
        "kl_mean": float(kl.mean()),
        "kl_first_token": float(kl[:, 0].mean()),
        **{f"kl_p{round(100 * share)}": quantile(values, share) for share in (0.5, 0.9)},
        "same_likeliest": float((exact.argmax(-1) == other.argmax(-1)).float().mean()),
        "num_steps": len(values),
    }


def compare_order(
    reader: Reader, kvs: Mapping[str, torch.Tensor | None], batch: Batch, num_tokens: int
) -> dict[str, dict[str, float]]:
    """Let the prepared form answer, and read its answers in every other way.

    Args:
        reader: the model.
        kvs: "prepared" and the ways -> what lies in front.
        batch: the prompts.
        num_tokens: length of the answers.
    """
    answers = reader.greedy(kvs["prepared"], batch, num_tokens)
    # The last token of an answer is not read: nothing is predicted behind it.
    whole = batch.followed_by(answers[:, :-1])
    exact = reader.logits(kvs["prepared"], whole, num_tokens)
    return {way: compare_distributions(exact, reader.logits(kvs[way], whole, num_tokens)) for way in WAYS}


def run_compose(options: ComposeOptions, command: Sequence[str]) -> Path:
    """Measure every order of two patches, and return the path of the records.

    Raises:
        PatchError: the model, or a patch, cannot be used.
    """
    environment, run_id = describe_environment(), uuid.uuid4().hex[:12]
    model = load_model(options.model, dtype=options.dtype)
    patches = [recompiled(model, read_patch(path)) for path in options.patches]
    rotary = rotary_of_network(model.network, model.base_model.head_size)
    reader = Reader(model)
    batch = reader.batch(PROMPTS[:: len(PROMPTS) // options.num_prompts][: options.num_prompts])
    path = options.out / f"{QUESTION}-{run_id}" / "records.jsonl"
    path.parent.mkdir(parents=True)
    setup = {
        "command": shlex.join(map(without_places, command)),
        "model": without_places(options.model),
        "dtype": model.base_model.dtype,
        "num_prompts": options.num_prompts,
        "num_output_tokens": options.num_output_tokens,
    }
    exact = {
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
            "prepared": exact[a.digest, b.digest],
            "joined": join_kv([kv_of(a), kv_of(b)], rotary),
            "reversed": exact[b.digest, a.digest],
            "first": a.kv,
            "second": b.kv,
            "base": None,
        }
        for way, result in compare_order(reader, kvs, batch, options.num_output_tokens).items():
            place = setup | {"order": names, "way": way}
            append_record(path, Record(QUESTION, run_id, place, result, environment))
    return path


def markdown_report(records: Sequence[Record]) -> str:
    """Render a row for each order, and the medians over the orders."""
    setup, where = records[0].setup, records[0].environment
    orders = list(dict.fromkeys(tuple(record.setup["order"]) for record in records))
    found = {(tuple(r.setup["order"]), r.setup["way"]): r.result for r in records}

    def cells(key: str, chosen: Sequence[tuple[str, ...]], form: str) -> str:
        values = {way: [found[order, way][key] for order in chosen] for way in WAYS}
        return " | ".join(form.format(quantile(values[way], 0.5)) for way in WAYS)

    lines = [f"# {QUESTION}"]
    for key, title, form in (
        ("kl_mean", "KL divergence from the prepared form, nats a token, mean", "{:.3f}"),
        ("same_likeliest", "tokens at which the likeliest token is the prepared form's", "{:.0%}"),
    ):
        lines += [
            "",
            f"{title}:",
            "",
            f"| order | {' | '.join(WAYS.values())} |",
            "| :-- |" + " --: |" * len(WAYS),
        ]
        lines += [f"| `{', '.join(order)}` | {cells(key, [order], form)} |" for order in orders]
        lines.append(f"| *median of {len(orders)}* | {cells(key, orders, form)} |")
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    lines += [
        "",
        f"- {setup['num_prompts']} prompts, answers of {setup['num_output_tokens']} tokens; model "
        f"{setup['model']}, {setup['dtype']}",
        f"- {where['cpu_model']}; Python {where['python']}, {versions}",
        "",
    ]
    return "\n".join(lines)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the last line of stdout is one JSON object.

    Returns:
        0 where every figure could be measured, 1 where not.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        options = ComposeOptions(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))
    return finish(
        QUESTION,
        lambda: run_compose(options, ["python", "-m", f"bench.{QUESTION}", *arguments]),
        report=markdown_into(markdown_report),
        summary=lambda records: {
            "kl_mean": {
                f"{', '.join(r.setup['order'])}: {r.setup['way']}": r.result["kl_mean"] for r in records
            }
        },
    )


if __name__ == "__main__":
    sys.exit(main())
