"""What does a patch take of the KV cache and of memory, per patch and per request?

So many requests are in flight at once: under no patch (`base`), all under one (`one`), each under its own
(`own`), and with as many more tokens of text as the patch has, the same in all (`text`). While they run, the
share of the KV cache that is in use is read from the server's metrics again and again; its peak, in blocks,
is what they took. ``bench/README.md`` says what each number means.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.errors import CheckFailed
from bench.load.client import Request, send_closed_loop
from bench.load.exposition import label_of, metric, read_metrics
from bench.run.patch_sweep import Plan, Stage, add_patched_arguments, check_answers, sweep_main_of
from bench.run.question import question_parser
from bench.run.sweep import Cell, cells_along, counts

QUESTION = "memory"
SERIES = ("base", "one", "own", "text")
_POLL_S = 0.02

EPILOG = """\
examples:
  policypatch bench memory --model ./smollm2 --in-flight 1,8
  policypatch bench memory --model ./llama-8b --load-format dummy --in-flight 1,64,256 --output-tokens 128
"""


async def measure(stage: Stage, cell: Cell, round_idx: int) -> Mapping[str, Any]:
    """Measure one cell.

    Raises:
        BenchError: an answer is missing, or not as expected.
    """
    (target,) = stage.targets.values()
    num_requests = int(cell.x)
    names: list[str | None] = [
        stage.patches[i if cell.series == "own" else 0].name if cell.series in ("one", "own") else None
        for i in range(num_requests)
    ]
    requests = target.requests(names, f"{round_idx}-{cell.series}-{cell.x}", is_cached=True)
    lengths = target.lengths
    if cell.series == "text":
        requests = [_with_text(request, lengths.num_virtual_tokens) for request in requests]
        lengths = replace(lengths, num_input_tokens=lengths.num_input_tokens + lengths.num_virtual_tokens)
    before = await read_metrics(stage.session, target.url)
    num_blocks = float(label_of(before, "vllm:cache_config_info", "num_gpu_blocks") or 0)
    if not num_blocks:
        raise CheckFailed(["vllm:cache_config_info: expected num_gpu_blocks, got none"])
    sending = asyncio.create_task(send_closed_loop(stage.session, requests, concurrency=num_requests))
    peak = 0.0
    while not sending.done():
        text = await read_metrics(stage.session, target.url)
        peak = max(peak, metric(text, "vllm:kv_cache_usage_perc"))
        await asyncio.sleep(_POLL_S)
    digests = [None if name is None else stage.digests[name] for name in names]
    check_answers(await sending, digests, lengths)
    text = await read_metrics(stage.session, target.url)
    return {
        "num_blocks": peak * num_blocks,
        "num_blocks_per_request": peak * num_blocks / num_requests,
        "patch_bytes": metric(text, "policy_patch_resident_bytes", patch=stage.patches[0].name),
        "host_bytes": metric(text, "policy_patch_tier_bytes", tier="host"),
        "device_bytes": metric(text, "policy_patch_tier_bytes", tier="device"),
    }


def _with_text(request: Request, num_tokens: int) -> Request:
    """Put a text of ``num_tokens``, the same each time, in front of the prompt."""
    ids = request.body["prompt"]
    return replace(request, body={**request.body, "prompt": [*_TEXT[:num_tokens], *ids]})


#: Ids that every vocabulary has.
_TEXT = tuple(100 + (i * 37) % 400 for i in range(4096))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument(
        "--in-flight", type=counts, default=(1, 8), metavar="N,N", help="requests at once (1,8)"
    )
    add_patched_arguments(parser)
    return parser


def plan(args: argparse.Namespace) -> Plan:
    """Return what is measured."""
    return Plan(cells_along(args.in_flight, SERIES), max(args.in_flight), measure)


main = sweep_main_of(QUESTION, build_parser, plan)


if __name__ == "__main__":
    sys.exit(main())
