"""Does it cost anything when many different patches meet in one batch?

Requests of a cell name K different patches, drawn evenly or by Zipf's law; K = 1 is what the others are held
against, within the same round. Prefixes are found in the KV cache wherever it has them, as in service; with
`--uncached` every request has its prefix written. `--lora-rank` asks the same of as many LoRA adapters, drawn
evenly, all of which vLLM may have in one batch. ``bench/README.md`` says what each number means.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.load.client import send_closed_loop
from bench.load.timing import measure_cell
from bench.load.workloads import patch_names
from bench.run.patch_sweep import Plan, Stage, add_patched_arguments, check_answers, sweep_main_of
from bench.run.question import question_parser
from bench.run.sweep import Cell, at_least_one, cells_along, counts
from bench.servers.adapters import lora_flags, make_adapters
from bench.servers.launch import engine_options, plain_server
from bench.servers.processes import ServerSpec

QUESTION = "scale"
POPULARITIES = ("uniform", "zipf")
LORA = "lora"

EPILOG = """\
examples:
  policypatch bench scale --model ./smollm2 --patches 1,4,16 --concurrency 8
  policypatch bench scale --model ./smollm2 --patches 1,4,16 --concurrency 16 --lora-rank 16
  policypatch bench scale --model ./llama-8b --load-format dummy --patches 1,4,16,64,256 --concurrency 256
"""


async def measure(stage: Stage, cell: Cell, round_idx: int) -> Mapping[str, Any]:
    """Measure one cell.

    Raises:
        BenchError: an answer is missing, or not as expected.
    """
    args = stage.args
    is_lora = cell.series == LORA
    target = stage.targets[LORA if is_lora else "ours"]
    label = f"{round_idx}-{cell.series}-{cell.x}"
    drawn = patch_names(
        [patch.name for patch in stage.patches[: int(cell.x)]],
        count=max(args.min_requests, args.waves * args.concurrency),
        popularity="uniform" if is_lora else cell.series,
        seed=args.seed,
        label=label,
    )
    requests = target.requests(drawn, label, is_cached=not args.is_uncached)
    replies = await send_closed_loop(stage.session, requests, concurrency=args.concurrency)
    digests = [None if is_lora else stage.digests[name] for name in drawn]
    check_answers(replies, digests, target.lengths)
    result = asdict(measure_cell([reply.trace for reply in replies]))
    return {**result, "num_distinct": len(set(drawn))}


def lora_servers(args: argparse.Namespace, folder: Path) -> list[ServerSpec]:
    """Describe the server that has an adapter for each patch, of its name.

    Raises:
        BenchError: the adapters could not be made.
    """
    if not args.lora_rank:
        return []
    count = max(args.patches)
    ranks, engine = [args.lora_rank], engine_options(args)
    adapters = make_adapters(
        args.model, folder / "adapters", dtype=args.dtype, ranks=ranks, count=count, name="p"
    )
    flags = lora_flags(adapters, max_rank=args.lora_rank, num_in_batch=count)
    return [plain_server(engine, folder, name=LORA, flags=flags)]


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument(
        "--patches", type=counts, default=(1, 4, 16, 64), metavar="K,K", help="different patches (1,4,16,64)"
    )
    parser.add_argument("--concurrency", type=at_least_one, default=64, metavar="N", help="in flight (64)")
    parser.add_argument("--waves", type=at_least_one, default=2, metavar="N", help="requests per slot (2)")
    parser.add_argument("--min-requests", type=at_least_one, default=16, metavar="N", help="per cell (16)")
    parser.add_argument(
        "--uncached",
        dest="is_uncached",
        action="store_true",
        help="no request finds its prefix in the KV cache",
    )
    parser.add_argument(
        "--lora-rank", type=at_least_one, metavar="R", help="compare with as many LoRA adapters of this rank"
    )
    add_patched_arguments(parser)
    return parser


def plan(args: argparse.Namespace) -> Plan:
    """Return what is measured."""
    return Plan(
        cells_along(args.patches, (*POPULARITIES, *([LORA] if args.lora_rank else ()))),
        max(args.patches),
        measure,
        variants=lambda nbytes: {"ours": ["--preload"]},
        setup={
            "concurrency": args.concurrency,
            "is_cached": not args.is_uncached,
            "lora_rank": args.lora_rank,
        },
        peers=lambda folder: lora_servers(args, folder),
    )


main = sweep_main_of(QUESTION, build_parser, plan)


if __name__ == "__main__":
    sys.exit(main())
