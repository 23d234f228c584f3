"""What does it cost that vectors act on hidden states, and that they could?

Two servers over the same vectors, on all layers: `off` was started with `--steering-slots 0`, as if the kind
did not exist. Against it the other one is asked without a patch (`idle`), with one vector for all requests
(`one`), with a vector of its own for each (`own`), with a condition that is never met (`unmet`), and with one
that always is and steers the answer in the upper half of the layers (`met`). Vectors are random: time does
not depend on their values. Processor time is that of the server's processes, so that other work on the
machine shows less in it.
``bench/README.md`` says what each number means.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.errors import CheckFailed
from bench.load.client import send_closed_loop
from bench.load.exposition import metric, read_metrics
from bench.load.timing import measure_cell
from bench.run.patch_sweep import Plan, Stage, add_patched_arguments, check_answers, sweep_main_of
from bench.run.question import question_parser
from bench.run.sweep import Cell, at_least_one, cells_along
from bench.servers.patch_set import make_vector_set

QUESTION = "steering"
ARMS = ("off", "idle", "one", "own", "unmet", "met")
STEERED_ARMS = ("one", "own", "met")

EPILOG = """\
examples:
  policypatch bench steering --model ./smollm2 --concurrency 8
  policypatch bench steering --model ./llama-8b --load-format dummy --concurrency 256 --rounds 7
"""


async def measure(stage: Stage, cell: Cell, round_idx: int) -> Mapping[str, Any]:
    """Measure one arm.

    Raises:
        BenchError: an answer is missing, or not as expected.
    """
    args, arm = stage.args, str(cell.x)
    target = stage.targets["off" if arm == "off" else "on"]
    names = names_of(arm, args.requests, args.concurrency)
    before = await _steered(stage, target.url)
    requests = target.requests(names, f"{round_idx}-{arm}", is_cached=True)
    used_s = target.processor_s()
    replies = await send_closed_loop(stage.session, requests, concurrency=args.concurrency)
    used_s = target.processor_s() - used_s
    check_answers(replies, [None if name is None else stage.digests[name] for name in names], target.lengths)
    steered = await _steered(stage, target.url) - before
    check_steered(arm, steered)
    num_tokens = sum(reply.trace.num_output_tokens for reply in replies)
    timing = asdict(measure_cell([reply.trace for reply in replies]))
    return {**timing, "processor_s": used_s / num_tokens, "num_steered_tokens": steered}


def check_steered(arm: str, num_tokens: float) -> None:
    """Check that vectors acted where they should, and nowhere else.

    Raises:
        CheckFailed: they did not.
    """
    should_act = arm in STEERED_ARMS
    if (num_tokens > 0) != should_act:
        expected = "some" if should_act else "no"
        raise CheckFailed([f"{arm}: expected {expected} steered tokens, got {num_tokens:g}"])


async def _steered(stage: Stage, url: str) -> float:
    return metric(await read_metrics(stage.session, url), "policy_patch_steered_tokens_total")


def names_of(arm: str, num_requests: int, num_vectors: int) -> list[str | None]:
    """Return the patch of each request of an arm."""
    match arm:
        case "off" | "idle":
            return [None] * num_requests
        case "one":
            return ["v-0"] * num_requests
        case "own":
            return [f"v-{i % num_vectors}" for i in range(num_requests)]
    return [arm] * num_requests


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--concurrency", type=at_least_one, default=64, metavar="N", help="in flight (64)")
    parser.add_argument("--requests", type=at_least_one, default=128, metavar="N", help="per cell (128)")
    add_patched_arguments(parser)
    return parser


def plan(args: argparse.Namespace) -> Plan:
    """Return what is measured."""
    # Two slots beside, for `met` and `unmet`.
    slots = str(args.concurrency + 2)
    return Plan(
        cells_along(ARMS),
        args.concurrency,
        measure,
        variants=lambda nbytes: {
            "off": ["--steering-slots", "0"],
            "on": ["--steering-slots", slots, "--preload"],
        },
        setup={"concurrency": args.concurrency},
        make_patches=lambda folder, args: make_vector_set(
            args.model, folder, count=args.concurrency, dtype=args.dtype, seed=args.seed
        ),
    )


main = sweep_main_of(QUESTION, build_parser, plan)


if __name__ == "__main__":
    sys.exit(main())
