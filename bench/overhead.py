"""What does a policy patch cost? Throughput, time to first token and inter-token latency, arm against arm.

Arms are plain `vllm serve`, policypatch idle, policypatch patched, and the same policy as text with a warm
and with a cold prefix cache; where asked, also LoRA adapters and embeddings that the client sends. All
servers stay up; one arm runs at a time; within a round every arm sends the same user prompts, and only cells
of one round are compared. ``bench/README.md`` says what each number means.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import BenchError, CheckFailed
from bench.load.arms import ARMS, DEFAULT_ARMS, Question, require_arms
from bench.load.client import open_session
from bench.load.tokens import served_model, tokenize_policy
from bench.run.correctness import Expectation, check_servers
from bench.run.question import OUT, add_out_argument, finish, question_parser
from bench.run.rounds import Plan, Run, add_plan_arguments, measure_rounds, plan_of, progress
from bench.servers.adapters import LORA_RANKS, embedder, lora_flags, make_adapters
from bench.servers.environment import describe_environment, has_gpu, without_places
from bench.servers.launch import (
    EngineOptions,
    PatchFacts,
    add_engine_arguments,
    engine_options,
    ours_server,
    plain_server,
    prepare_patch,
    require_same_environment,
)
from bench.servers.processes import ServerSpec, require_running, running_server, speed_variables

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
class Servers:
    """The servers of a run.

    Attributes:
        urls: base URL by server.
        are_own: the bench started them.
        check: raises where one of its own has died.
        facts: what records say about them.
    """

    urls: dict[str, str]
    are_own: bool
    check: Callable[[], None] = lambda: None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OverheadOptions:
    """What is asked, and of whom."""

    policy_text: Path
    patch: Path | None = None
    patch_name: str | None = None
    is_raw: bool = False
    arms: tuple[str, ...] = DEFAULT_ARMS
    given_urls: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 600.0
    time_limit_s: float = 7200.0
    out: Path = OUT
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


def run_overhead(engine: EngineOptions, options: OverheadOptions, command: Sequence[str]) -> Path:
    """Measure, and return the path of the records.

    Raises:
        BenchError: no number can be given.
    """
    # Before anything is started, so that the load average is the machine's own.
    environment = describe_environment()
    if environment["load_average_1m"] > MAX_QUIET_LOAD:
        progress(f"note: load average {environment['load_average_1m']:.1f}: other work will be measured too")
    options.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{QUESTION}-", dir=options.out))
    patches = folder / "patches"
    patches.mkdir()
    patch: PatchFacts | None = None
    if not options.given_urls and any(arm.server == "ours" for arm in require_arms(options.arms)):
        patch = prepare_patch(
            engine, patches, policy_text=options.policy_text, patch=options.patch, is_raw=options.is_raw
        )
    setup = _describe_setup(engine, options, command)
    job = Job(engine, options, patch, setup, environment, folder / "records.jsonl")
    with servers_up(engine, options, patches, folder) as servers:
        try:
            asyncio.run(_measure(job, servers))
        except TimeoutError as error:
            raise BenchError(f"not done after {options.time_limit_s:.0f} s; see --time-limit-s") from error
    return job.records_path


@contextlib.contextmanager
def servers_up(
    engine: EngineOptions, options: OverheadOptions, patches: Path, log_folder: Path
) -> Iterator[Servers]:
    """Start the servers that the arms need, or take those that were given.

    Raises:
        ServerFailed: a server did not start.
        CheckFailed: the servers' environments differ.
    """
    if options.given_urls:
        yield Servers({name: url.rstrip("/") for name, url in options.given_urls.items()}, are_own=False)
        return
    needed = {arm.server for arm in require_arms(options.arms)}
    specs = [plain_server(engine, log_folder)] if "plain" in needed else []
    specs += [ours_server(engine, patches, log_folder)] if "ours" in needed else []
    specs += [peer_server(name, engine, log_folder) for name in ("twin", "embeds", "lora") if name in needed]
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def check() -> None:
        for spec in specs:
            require_running(spec, processes[spec.name])

    with contextlib.ExitStack() as stack:
        # One after the other: each measures free memory when it starts.
        for spec in specs:
            progress(f"starting {spec.name} on port {spec.port}, log in {spec.log_path}")
            server = running_server(spec, start_timeout_s=options.start_timeout_s)
            processes[spec.name] = stack.enter_context(server)
        variables = {name: speed_variables(process) for name, process in processes.items()}
        require_same_environment(variables)
        commands = {s.name: shlex.join(["python", *map(without_places, s.command[1:])]) for s in specs}
        speed = {name: without_places(value) for name, value in next(iter(variables.values())).items()}
        facts = {"server_commands": commands, "speed_variables": speed}
        yield Servers({spec.name: spec.url for spec in specs}, True, check, facts)


def peer_server(name: str, engine: EngineOptions, folder: Path) -> ServerSpec:
    """Describe plain vLLM with a peer's feature switched on, or, as a twin, without any.

    Raises:
        BenchError: no adapters could be made.
    """
    flags = ["--enable-prompt-embeds"] if name == "embeds" else []
    if name == "lora":
        adapters = make_adapters(engine.model, folder / "adapters", dtype=engine.dtype, ranks=LORA_RANKS)
        flags = lora_flags(adapters, max_rank=max(LORA_RANKS), num_in_batch=len(adapters))
    return plain_server(engine, folder, name=name, flags=flags)


async def _measure(job: Job, servers: Servers) -> None:
    async with asyncio.timeout(job.options.time_limit_s), open_session() as session:
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


def _describe_setup(
    engine: EngineOptions, options: OverheadOptions, command: Sequence[str]
) -> dict[str, Any]:
    is_folder = Path(engine.model).is_dir()
    return {
        "command": shlex.join(map(without_places, command)),
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
    return OverheadOptions(
        policy_text=args.policy_text,
        patch=args.patch,
        patch_name=args.patch_name,
        is_raw=args.is_raw,
        arms=args.arms,
        given_urls={name: url for name, url in given.items() if url},
        start_timeout_s=args.start_timeout_s,
        time_limit_s=args.time_limit_s,
        out=args.out,
        plan=plan_of(args),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the last line of stdout is one JSON object.

    Returns:
        0 where every figure could be measured, 1 where not. A missed goal is a result, not a failure.
    """
    parser = build_parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    try:
        options = overhead_options(args)
        engine = engine_options(args)
        engine.environment(is_gpu=False)
        if not options.policy_text.is_file():
            raise ValueError(f"--policy-text: expected a file, got {options.policy_text}")
    except ValueError as error:
        parser.error(str(error))
    command = ["python", "-m", "bench.overhead", *arguments]
    return finish(QUESTION, lambda: run_overhead(engine, options, command))


if __name__ == "__main__":
    sys.exit(main())
