"""What does a policy patch cost? Throughput, time to first token and inter-token latency, arm against arm.

Arms are plain `vllm serve`, policypatch idle, policypatch patched, and the same policy as text with a warm
and with a cold prefix cache; where asked, also LoRA adapters and embeddings that the client sends. All
servers stay up; one arm runs at a time; within a round every arm sends the same user prompts, and only cells
of one round are compared. ``bench/README.md`` says what each number means.
"""

import argparse
import asyncio
import json
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import CheckFailed
from bench.load.arms import ARMS, DEFAULT_ARMS, Question, require_arms
from bench.load.client import open_session
from bench.load.tokens import served_model, tokenize_policy
from bench.run.arm_servers import Servers, servers_up
from bench.run.correctness import Expectation, check_servers
from bench.run.question import RECORDS, Measure, add_out_argument, main_of, question_parser, time_limit
from bench.run.rounds import Plan, Run, add_plan_arguments, measure_rounds, plan_of, progress
from bench.servers.adapters import embedder
from bench.servers.environment import describe_environment, has_gpu, without_places
from bench.servers.launch import (
    EngineOptions,
    PatchFacts,
    add_engine_arguments,
    engine_options,
    prepare_patch,
)
from patches.server_address import clean_address

QUESTION = "overhead"
NUM_CHECK_PROMPTS = 4
#: Above this 1-minute load average, before anything is started, the machine is not quiet.
MAX_QUIET_LOAD = 0.5

EPILOG = """\
examples:
  policypatch bench overhead --model ./smollm2 --policy-text policy.txt
  policypatch bench overhead --model ./smollm2 --policy-text policy.txt --concurrency 1,8,64 --rounds 9
  policypatch bench overhead --model ./smollm2 --policy-text policy.txt --arms all
  policypatch bench overhead --model ./llama --patch p.safetensors --policy-text p.txt --load-format dummy
  policypatch bench overhead --model ./smollm2 --policy-text policy.txt --patch-name pirate \\
    --plain-url http://127.0.0.1:8000 --ours-url http://127.0.0.1:8001
"""


@dataclass(frozen=True)
class OverheadOptions:
    """What is asked, and of which servers."""

    policy_text: Path
    patch: Path | None = None
    patch_name: str | None = None
    is_raw: bool = False
    arms: tuple[str, ...] = DEFAULT_ARMS
    given_urls: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 600.0
    time_limit_s: float = 7200.0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        arms = require_arms(self.arms)
        missing = {arm.server for arm in arms} - self.given_urls.keys() if self.given_urls else set()
        if missing:
            raise ValueError(
                f"arms: expected a URL for each server, got none for {', '.join(sorted(missing))}"
            )
        if self.given_urls and not self.patch_name and any(arm.is_patched for arm in arms):
            raise ValueError("patch name: expected --patch-name, for servers that were not started here")
        if self.plan.num_rounds < 1 or self.plan.num_output_tokens < 2 or min(self.plan.concurrency) < 1:
            raise ValueError("plan: expected at least one round, one request in flight and two output tokens")


@dataclass(frozen=True)
class Job:
    """One run, before anything is known that only a server can say."""

    engine: EngineOptions
    options: OverheadOptions
    patch: PatchFacts | None
    setup: Mapping[str, Any]
    environment: Mapping[str, Any]
    records_path: Path


def run_overhead(engine: EngineOptions, options: OverheadOptions, command: str, folder: Path) -> None:
    """Measure every arm once a round.

    Raises:
        BenchError: no number can be given.
    """
    # Before anything is started, so that the load average is the machine's own.
    environment = describe_environment()
    if environment["load_average_1m"] > MAX_QUIET_LOAD:
        progress(f"note: load average {environment['load_average_1m']:.1f}: other work will be measured too")
    patches = folder / "patches"
    patches.mkdir()
    patch: PatchFacts | None = None
    if not options.given_urls and any(arm.server == "ours" for arm in require_arms(options.arms)):
        patch = prepare_patch(
            engine, patches, policy_text=options.policy_text, patch=options.patch, is_raw=options.is_raw
        )
    setup = _describe_setup(engine, options, command)
    job = Job(engine, options, patch, setup, environment, folder / RECORDS)
    if options.given_urls:
        asyncio.run(_measure(job, Servers(dict(options.given_urls), are_own=False)))
        return
    needed = {arm.server for arm in require_arms(options.arms)}
    with servers_up(engine, needed, patches, folder, options.start_timeout_s) as servers:
        asyncio.run(_measure(job, servers))


async def _measure(job: Job, servers: Servers) -> None:
    async with time_limit(job.options.time_limit_s), open_session() as session:
        run = await _prepare_run(session, job, servers)
        num_warm_tokens = len(run.question.policy_ids) // run.block_size * run.block_size
        if num_warm_tokens == 0 and "text-warm" in job.options.arms:
            progress(f"note: the policy fills no block of {run.block_size} tokens, so text-warm is cold too")
        expectation = Expectation(
            patch_digest=run.patch_digest,
            num_warm_tokens=num_warm_tokens if servers.are_own else None,
            is_model_real=job.engine.load_format != "dummy",
        )
        prompts = run.prompts("gate", NUM_CHECK_PROMPTS)
        facts = await check_servers(session, run.question, run.arms, prompts, expectation)
        progress(f"answers are right: {json.dumps(facts)}")
        await measure_rounds(session, run, facts)


async def _prepare_run(session: aiohttp.ClientSession, job: Job, servers: Servers) -> Run:
    """Ask the servers for model names and token ids, and put together what all cells share."""
    engine, options, patch = job.engine, job.options, job.patch
    models = {name: await served_model(session, url) for name, url in servers.urls.items()}
    name, url = next(iter(servers.urls.items()))
    text = options.policy_text.read_text(encoding="utf-8-sig")
    policy_ids, turn = await tokenize_policy(session, url, models[name], text, is_raw=options.is_raw)
    if patch is not None and patch.num_tokens != len(policy_ids):
        raise CheckFailed(
            [f"patch: expected {len(policy_ids)} tokens as in the text, got {patch.num_tokens}"]
        )
    block_size = engine.resolved_block_size(has_gpu())
    facts = {"num_policy_tokens": len(policy_ids), "block_size": block_size}
    patch_name = options.patch_name or (patch.name if patch else "")
    return Run(
        run_id=uuid.uuid4().hex[:12],
        question_name=QUESTION,
        plan=options.plan,
        arms=tuple(require_arms(options.arms)),
        question=Question(
            servers.urls,
            models,
            patch_name,
            policy_ids,
            options.plan.num_output_tokens,
            embedder(engine.model, engine.dtype, is_model_real=engine.load_format != "dummy")
            if "embeds" in servers.urls
            else None,
        ),
        turn=turn,
        block_size=block_size,
        patch_digest=patch.digest if patch else None,
        check_servers=servers.check,
        setup={**job.setup, **servers.facts, **facts},
        environment=job.environment,
        records_path=job.records_path,
    )


def _describe_setup(engine: EngineOptions, options: OverheadOptions, command: str) -> dict[str, Any]:
    is_folder = Path(engine.model).is_dir()
    return {
        "command": command,
        "model": without_places(os.path.abspath(engine.model)) if is_folder else engine.model,
        "dtype": engine.dtype,
        "load_format": engine.load_format,
        "device": "gpu" if has_gpu() else "cpu",
        "seed": options.plan.seed,
        "num_rounds": options.plan.num_rounds,
        "num_input_tokens": options.plan.num_input_tokens,
        "num_output_tokens": options.plan.num_output_tokens,
    }


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; defaults are those of the options' dataclasses."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    defaults = OverheadOptions
    parser.add_argument("--model", required=True, help="model folder, or the id of a cached model")
    parser.add_argument("--policy-text", required=True, type=Path, metavar="FILE", help="the policy as text")
    parser.add_argument(
        "--patch", type=Path, metavar="FILE", help="ready patch (default: compiled from the text)"
    )
    parser.add_argument(
        "--raw", dest="is_raw", action="store_true", help="no chat template around the policy"
    )
    parser.add_argument(
        "--arms",
        type=_names,
        default=DEFAULT_ARMS,
        help=f"some of {','.join(ARMS)}, or `all` (default: {','.join(DEFAULT_ARMS)})",
    )
    parser.add_argument(
        "--start-timeout-s",
        type=float,
        default=defaults.start_timeout_s,
        help="for each server (default: %(default)s)",
    )
    parser.add_argument(
        "--time-limit-s",
        type=float,
        default=defaults.time_limit_s,
        help="for all rounds together (default: %(default)s)",
    )
    add_out_argument(parser)
    given = parser.add_argument_group("servers that run already (none is started then)")
    given.add_argument("--plain-url", metavar="URL", help="`vllm serve`")
    given.add_argument("--ours-url", metavar="URL", help="`policypatch serve`")
    given.add_argument("--patch-name", metavar="NAME", help="the patch there that holds the policy")
    add_plan_arguments(parser)
    add_engine_arguments(parser)
    return parser


def _names(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(ARMS) if names == ("all",) else names


def overhead_options(args: argparse.Namespace) -> OverheadOptions:
    """Read ``OverheadOptions`` from parsed arguments.

    Raises:
        ValueError: arguments do not go together.
    """
    given = {"plain": args.plain_url, "ours": args.ours_url}
    given_urls: dict[str, str] = {}
    for name, url in given.items():
        try:
            given_urls |= {name: clean_address(url)} if url else {}
        except ValueError as error:
            raise ValueError(f"--{name}-url: {error}") from None
    return OverheadOptions(
        policy_text=args.policy_text,
        patch=args.patch,
        patch_name=args.patch_name,
        is_raw=args.is_raw,
        arms=args.arms,
        given_urls=given_urls,
        start_timeout_s=args.start_timeout_s,
        time_limit_s=args.time_limit_s,
        plan=plan_of(args),
    )


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures.

    Raises:
        ValueError: arguments do not go together, or the policy is no file.
    """
    options, engine = overhead_options(args), engine_options(args)
    engine.environment(is_gpu=False)
    if not options.policy_text.is_file():
        raise ValueError(f"--policy-text: expected a file, got {options.policy_text}")
    return lambda folder: run_overhead(engine, options, command, folder)


main = main_of(QUESTION, build_parser, prepare)

if __name__ == "__main__":
    sys.exit(main())
