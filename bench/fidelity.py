"""How close is a patch to the policy text that it was made from?

In float32 the answers are the same; in bfloat16 every change of the order of arithmetic moves log
probabilities a little, and sometimes a token. This asks one server every question under the patch and with
the policy as text, alone and in a batch, and reports how far answers differ. The noise floor is the same text
alone and in a batch: what no implementation can be below. ``docs/fidelity.md`` says how to read it.
"""

import argparse
import asyncio
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load.agreement import Answer, compare
from bench.load.workloads import PROMPTS
from bench.report.fidelity_report import fidelity_markdown
from bench.report.record import Record, append_record
from bench.run.question import (
    RECORDS,
    Measure,
    Reporting,
    add_out_argument,
    main_of,
    options_of,
    question_parser,
    time_limit,
)
from bench.run.rounds import progress
from bench.run.side_by_side import PAIRS, Job, ask_all
from bench.servers.environment import describe_environment, has_gpu, without_places
from bench.servers.launch import (
    EngineOptions,
    PatchFacts,
    add_engine_arguments,
    engine_options,
    ours_server,
    prepare_patch,
)
from bench.servers.processes import ServerSpec, require_running, running_server

QUESTION = "fidelity"

EPILOG = """\
examples:
  python -m bench.fidelity --model ./smollm2 --policy-text policy.txt
  python -m bench.fidelity --model ./smollm2 --policy-text policy.txt --dtype float32
  python -m bench.fidelity --model ./smollm2 --policy-text examples/policies/safety.txt --raw
"""


@dataclass(frozen=True)
class FidelityOptions:
    """What is asked."""

    policy_text: Path
    is_raw: bool = False
    num_prompts: int = 64
    num_output_tokens: int = 48
    concurrency: int = 16
    start_timeout_s: float = 600.0
    time_limit_s: float = 3600.0

    def __post_init__(self) -> None:
        if not self.policy_text.is_file():
            raise ValueError(f"--policy-text: expected a file, got {self.policy_text}")
        if not 1 <= self.num_prompts <= len(PROMPTS):
            raise ValueError(f"--prompts: expected 1 to {len(PROMPTS)}, got {self.num_prompts}")
        if self.num_output_tokens < 1:
            raise ValueError(f"--output-tokens: expected 1 or more, got {self.num_output_tokens}")
        if self.concurrency < 2:
            raise ValueError(f"--concurrency: expected 2 or more, got {self.concurrency}; one is no batch")


def run_fidelity(engine: EngineOptions, options: FidelityOptions, command: str, folder: Path) -> None:
    """Ask in every arm, and put each pair of arms on record as soon as both are done.

    Raises:
        BenchError: no number can be given.
    """
    environment, run_id = describe_environment(), uuid.uuid4().hex[:12]
    patches = folder / "patches"
    patches.mkdir()
    patch = prepare_patch(engine, patches, policy_text=options.policy_text, patch=None, is_raw=options.is_raw)
    setup = {
        "command": command,
        "model": without_places(engine.model),
        "dtype": engine.dtype,
        "block_size": engine.resolved_block_size(has_gpu()),
        "num_policy_tokens": patch.num_tokens,
        "num_output_tokens": options.num_output_tokens,
        "concurrency": options.concurrency,
    }

    def note(answers: Mapping[str, list[Answer]]) -> None:
        newest = list(answers)[-1]
        for arm, reference, meaning in PAIRS:
            if arm == newest:
                result = compare(answers[arm], answers[reference]).to_result()
                pair = {"arm": arm, "reference": reference, "meaning": meaning}
                append_record(folder / RECORDS, Record(QUESTION, run_id, setup | pair, result, environment))

    spec = ours_server(engine, patches, folder)
    progress(f"starting the server on port {spec.port}, log in {spec.log_path}")
    with running_server(spec, start_timeout_s=options.start_timeout_s) as process:
        asyncio.run(_ask(job_of(options, spec, patch, lambda: require_running(spec, process)), options, note))


def job_of(
    options: FidelityOptions, spec: ServerSpec, patch: PatchFacts, check_server: Callable[[], None]
) -> Job:
    """Return what the server is asked."""
    return Job(
        url=spec.url,
        patch=patch,
        policy=options.policy_text.read_text(encoding="utf-8"),
        is_raw=options.is_raw,
        prompts=PROMPTS[:: len(PROMPTS) // options.num_prompts][: options.num_prompts],
        num_output_tokens=options.num_output_tokens,
        concurrency=options.concurrency,
        check_server=check_server,
    )


async def _ask(
    job: Job, options: FidelityOptions, note: Callable[[Mapping[str, list[Answer]]], None]
) -> None:
    async with time_limit(options.time_limit_s):
        await ask_all(job, note)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; defaults are those of the options' dataclasses."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    d = FidelityOptions
    parser.add_argument("--model", required=True, help="model folder, or the id of a cached model")
    parser.add_argument("--policy-text", required=True, type=Path, metavar="FILE", help="the policy as text")
    parser.add_argument(
        "--raw", dest="is_raw", action="store_true", help="the policy stands as it is before a chat"
    )
    for flag, name, meaning in (
        ("--prompts", "num_prompts", f"questions per arm, up to {len(PROMPTS)}"),
        ("--output-tokens", "num_output_tokens", "longest answer"),
        ("--concurrency", "concurrency", "requests in flight in the batched arms"),
    ):
        default = getattr(d, name)
        parser.add_argument(
            flag, dest=name, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--start-timeout-s", type=float, default=d.start_timeout_s, metavar="S", help="for the server"
    )
    parser.add_argument(
        "--time-limit-s", type=float, default=d.time_limit_s, metavar="S", help="for all answers together"
    )
    add_out_argument(parser)
    add_engine_arguments(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures.

    Raises:
        ValueError: a number is out of range, or the policy is no file.
    """
    options, engine = options_of(FidelityOptions, args), engine_options(args)
    engine.environment(is_gpu=False)
    return lambda folder: run_fidelity(engine, options, command, folder)


def summary_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the last line of stdout."""
    return {"agreement": {f"{r.setup['arm']}/{r.setup['reference']}": dict(r.result) for r in records}}


main = main_of(QUESTION, build_parser, prepare, Reporting(fidelity_markdown, None, summary_of))

if __name__ == "__main__":
    sys.exit(main())
