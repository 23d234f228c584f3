"""What does it cost when there are more patches than device slots, or more than host memory holds?

Three servers over the same patches: `resident` has a device slot for each, `slots` only for one in `--share`,
and `disk` no more host memory than that either, so that it reads files again and again. Requests name
patches evenly, arrive at random times that wait for no answer, and find no prefix in the KV cache: each needs
the tensors.
``bench/README.md`` says what each number means.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.load.client import send_open_loop
from bench.load.exposition import metric, read_metrics
from bench.load.timing import measure_cell
from bench.load.workloads import patch_names
from bench.run.patch_sweep import Plan, Stage, add_patched_arguments, check_answers, sweep_main_of
from bench.run.question import question_parser
from bench.run.sweep import Cell, at_least_one, cells_along

QUESTION = "overflow"

EPILOG = """\
examples:
  policypatch bench overflow --model ./smollm2 --patches 16 --share 4 --rate 2
  policypatch bench overflow --model ./llama-8b --load-format dummy --patches 256 --share 8 --rate 40
"""


async def measure(stage: Stage, cell: Cell, round_idx: int) -> Mapping[str, Any]:
    """Measure one cell.

    Raises:
        BenchError: an answer is missing, or not as expected.
    """
    args, target = stage.args, stage.targets[str(cell.x)]
    # The same draw, and the same arrivals, for all servers of a round.
    drawn = patch_names(
        list(stage.digests), count=args.requests, popularity="uniform", seed=args.seed, label=str(round_idx)
    )
    before = await _moved(stage, target.url)
    requests = target.requests(drawn, f"{round_idx}-{cell.x}", is_cached=False)
    arrivals = f"{args.seed}/{round_idx}"
    replies = await send_open_loop(stage.session, requests, rate_per_s=args.rate, seed=arrivals)
    check_answers(replies, [stage.digests[name] for name in drawn], target.lengths)
    after = await _moved(stage, target.url)
    moved = {name: after[name] - before[name] for name in after}
    return {**asdict(measure_cell([reply.trace for reply in replies])), **moved}


async def _moved(stage: Stage, url: str) -> dict[str, float]:
    text = await read_metrics(stage.session, url)
    return {
        "num_device_loads": metric(text, "policy_patch_tier_loads_total", tier="device"),
        "num_disk_loads": metric(text, "policy_patch_tier_loads_total", tier="host"),
    }


def variants(num_slots: int, patch_bytes: int) -> dict[str, list[str]]:
    """Return the flags of each server."""
    few = ["--patch-device-memory", str(num_slots * patch_bytes)]
    return {
        "resident": ["--preload"],
        "slots": ["--preload", *few],
        "disk": [*few, "--patch-host-memory", str(num_slots * patch_bytes)],
    }


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument(
        "--patches", type=at_least_one, default=16, metavar="K", help="different patches (16)"
    )
    parser.add_argument("--share", type=at_least_one, default=4, metavar="N", help="patches per slot (4)")
    parser.add_argument("--requests", type=at_least_one, default=48, metavar="N", help="per cell (48)")
    parser.add_argument("--rate", type=float, default=2.0, metavar="R", help="requests per second (2)")
    add_patched_arguments(parser)
    return parser


def plan(args: argparse.Namespace) -> Plan:
    """Return what is measured."""
    return Plan(
        cells_along(("resident", "slots", "disk")),
        args.patches,
        measure,
        variants=lambda nbytes: variants(max(1, args.patches // args.share), nbytes),
        setup={"rate_per_s": args.rate, "num_patches": args.patches, "share": args.share},
    )


main = sweep_main_of(QUESTION, build_parser, plan)


if __name__ == "__main__":
    sys.exit(main())
