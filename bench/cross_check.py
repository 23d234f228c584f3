"""Do figures of this client agree with those of a load generator that we did not write?

One server of ours, every request patched. In turns, this package's client and `vllm bench serve`, with the
header `X-Policy-Patch`, keep as many requests in flight, of the same lengths, and each reports what it
measured. That the other one's requests were patched is told by the server, which counts them.
``bench/README.md`` says what each number means.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.errors import BenchError, CheckFailed, CutShort
from bench.load.client import send_closed_loop
from bench.load.exposition import metric, read_metrics
from bench.load.timing import measure_cell
from bench.run.patch_sweep import Plan, Stage, Target, add_patched_arguments, check_answers, sweep_main_of
from bench.run.question import question_parser
from bench.run.sweep import Cell, at_least_one, cells_along, counts
from patches.headers import PATCH_HEADER

QUESTION = "cross_check"
OURS, OTHER = "bench.load.client", "vllm bench serve"
TIMEOUT_S = 1800

#: What `vllm bench serve` runs. Its own console script also wants metadata that CPU builds of vLLM lack.
PROGRAM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)

EPILOG = """\
examples:
  policypatch bench cross-check --model ./smollm2 --concurrency 1,8
  policypatch bench cross-check --model ./llama-8b --load-format dummy --concurrency 1,8,64 --waves 8
"""


def other_command(target: Target, args: argparse.Namespace, *, patch: str, concurrency: int) -> list[str]:
    """Return the command line of `vllm bench serve`, without the file for its result."""
    lengths = target.lengths
    return [
        *(sys.executable, "-c", PROGRAM),
        *("--backend", "openai", "--base-url", target.url, "--endpoint", "/v1/completions"),
        *("--model", target.model, "--tokenizer", args.model, "--header", f"{PATCH_HEADER}={patch}"),
        *("--dataset-name", "random", "--random-range-ratio", "0"),
        *("--random-input-len", str(lengths.num_input_tokens)),
        *("--random-output-len", str(lengths.num_output_tokens)),
        *("--num-prompts", str(num_requests(args, concurrency)), "--max-concurrency", str(concurrency)),
        *("--ignore-eos", "--temperature", "0", "--percentile-metrics", "ttft,itl"),
        # What each would do before its first request is done for both by the round that warms up.
        *("--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-result"),
    ]


def num_requests(args: argparse.Namespace, concurrency: int) -> int:
    """Return how many requests a cell has."""
    return max(int(args.min_requests), int(args.waves) * concurrency)


def read_result(result: Mapping[str, Any], *, num_expected: int, num_output_tokens: int) -> dict[str, Any]:
    """Turn what `vllm bench serve` saved into what ``bench.load.timing`` calls the same things, in seconds.

    Raises:
        CheckFailed: requests failed, or answers were of another length.
    """
    got = (result["completed"], result["failed"], result["total_output_tokens"])
    expected = (num_expected, 0, num_expected * num_output_tokens)
    if got != expected:
        raise CheckFailed([f"{OTHER} (completed, failed, output tokens): expected {expected}, got {got}"])
    return {
        "num_requests": result["completed"],
        "num_input_tokens": result["total_input_tokens"],
        "num_output_tokens": result["total_output_tokens"],
        "duration_s": result["duration"],
        "output_tokens_per_s": result["output_throughput"],
        "ttft_s": {q: result[f"{key}_ttft_ms"] / 1000 for q, key in (("p50", "median"), ("p99", "p99"))},
        "itl_s": {q: result[f"{key}_itl_ms"] / 1000 for q, key in (("p50", "median"), ("p99", "p99"))},
    }


async def num_patched(stage: Stage, target: Target, patch: str) -> float:
    """Ask the server how many requests it has answered under a patch."""
    text = await read_metrics(stage.session, target.url)
    return metric(text, "policy_patch_requests_total", patch=patch, outcome="ok")


async def measure(stage: Stage, cell: Cell, round_idx: int) -> Mapping[str, Any]:
    """Measure one cell.

    Raises:
        BenchError: an answer is missing, not as expected, or not patched.
    """
    (target,) = stage.targets.values()
    (patch,) = stage.patches
    concurrency = int(cell.series.split()[0])
    count = num_requests(stage.args, concurrency)
    before = await num_patched(stage, target, patch.name)
    if cell.x == OURS:
        label = f"{round_idx}-{concurrency}"
        requests = target.requests([patch.name] * count, label, is_cached=True)
        replies = await send_closed_loop(stage.session, requests, concurrency=concurrency)
        check_answers(replies, [patch.digest] * count, target.lengths)
        result = asdict(measure_cell([reply.trace for reply in replies]))
    else:
        command = other_command(target, stage.args, patch=patch.name, concurrency=concurrency)
        seed = str(stage.args.seed * 1000 + round_idx * 10 + concurrency)
        saved = stage.folder.parent / f"other-{round_idx}-{concurrency}.json"
        result = read_result(
            await asyncio.to_thread(run_other, [*command, "--seed", seed], saved),
            num_expected=count,
            num_output_tokens=target.lengths.num_output_tokens,
        )
    counted = await num_patched(stage, target, patch.name) - before
    if counted != count:
        raise CheckFailed([f"{cell.x}: {count} requests were sent, the server answered {counted:g} patched"])
    return result


def run_other(command: Sequence[str], saved: Path) -> dict[str, Any]:
    """Run `vllm bench serve` and read what it saved.

    Raises:
        CutShort: it took too long.
        BenchError: it failed.
    """
    place = ["--result-dir", str(saved.parent), "--result-filename", saved.name]
    try:
        done = subprocess.run(
            [*command, *place], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CutShort(f"{OTHER}: not done after {TIMEOUT_S} s") from error
    if done.returncode != 0 or not saved.exists():
        said = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-10:])
        raise BenchError(f"{OTHER}: ended with status {done.returncode}\n{said}")
    result: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
    return result


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser("cross-check", __doc__, EPILOG)
    parser.add_argument("--concurrency", type=counts, default=(1, 8), metavar="N,N", help="in flight (1,8)")
    parser.add_argument("--waves", type=at_least_one, default=4, metavar="N", help="requests per slot (4)")
    parser.add_argument("--min-requests", type=at_least_one, default=8, metavar="N", help="per cell (8)")
    add_patched_arguments(parser)
    return parser


def plan(args: argparse.Namespace) -> Plan:
    """Return what is measured."""
    return Plan(
        cells_along((OURS, OTHER), [f"{number} at a time" for number in args.concurrency]),
        1,
        measure,
        variants=lambda nbytes: {"ours": ["--preload"]},
        setup={"waves": args.waves, "min_requests": args.min_requests},
    )


main = sweep_main_of(QUESTION, build_parser, plan)


if __name__ == "__main__":
    sys.exit(main())
