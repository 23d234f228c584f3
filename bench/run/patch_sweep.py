"""What the questions about many patches share: our servers over one set of patches, and requests to them.

Patches hold random K/V (``bench.servers.patch_set``): how long a step takes does not depend on their
values, and that each answer was made under the right one is told by its digest, which is checked on every
answer.
"""

import argparse
import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import CheckFailed
from bench.load.client import Reply, Request, open_session
from bench.load.tokens import served_model, tokenize_policy
from bench.load.workloads import UserTurn, user_prompts
from bench.run.question import Main, Measure, main_of
from bench.run.rounds import progress
from bench.run.sweep import Cell, SweepRun, add_sweep_arguments, at_least_one, model_name
from bench.servers.environment import describe_environment, has_gpu
from bench.servers.launch import EngineOptions, add_engine_arguments, engine_options, ours_server
from bench.servers.patch_set import PatchFile, make_patch_set
from bench.servers.processes import ServerSpec, running_server
from bench.servers.processor_time import group_processor_s
from patches.headers import DIGEST_HEADER, PATCH_HEADER


@dataclass(frozen=True)
class Lengths:
    """How long everything is, in tokens."""

    num_virtual_tokens: int = 48
    num_input_tokens: int = 64
    num_output_tokens: int = 32


def add_patched_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every question about many patches has."""
    parser.add_argument("--model", required=True, help="model folder, or the id of a cached model")
    for flag, default, meaning in (
        ("--virtual-tokens", Lengths.num_virtual_tokens, "length of each patch"),
        ("--input-tokens", Lengths.num_input_tokens, "length of each prompt"),
        ("--output-tokens", Lengths.num_output_tokens, "length of each answer"),
    ):
        parser.add_argument(
            flag, type=at_least_one, default=default, metavar="N", help=f"{meaning} ({default})"
        )
    parser.add_argument(
        "--settle-s",
        type=float,
        default=1.0,
        metavar="S",
        help="pause before each cell (default: %(default)s)",
    )
    parser.add_argument(
        "--start-timeout-s",
        type=float,
        default=600.0,
        metavar="S",
        help="for each server (default: %(default)s)",
    )
    add_sweep_arguments(parser)
    add_engine_arguments(parser)


@dataclass(frozen=True)
class Target:
    """One running server, and how to ask it."""

    url: str
    model: str
    turn: UserTurn
    lengths: Lengths
    seed: int
    #: Names are those of LoRA adapters, which a request names as its model.
    has_adapters: bool = False
    #: Of its processes; None where the server is not the bench's own.
    group_id: int | None = None

    def processor_s(self) -> float:
        """Return the seconds that all its processes have computed so far."""
        assert self.group_id is not None, "only of servers that the bench has started"
        return sum(group_processor_s(self.group_id))

    def requests(self, names: Sequence[str | None], label: str, *, is_cached: bool) -> list[Request]:
        """Build a request for each patch named, ``None`` for none; each has a prompt of its own.

        Args:
            names: a patch for each request.
            label: another one gives other prompts.
            is_cached: the prefix may be found in the KV cache; else each request has to have it written.
        """
        prompts = user_prompts(
            self.turn,
            count=len(names),
            num_tokens=self.lengths.num_input_tokens,
            unique_within=16,
            seed=self.seed,
            label=label,
        )
        return [
            Request(
                f"{self.url}/v1/completions",
                self._body(ids, name) | ({} if is_cached else {"cache_salt": f"{label}-{i}"}),
                {} if name is None or self.has_adapters else {PATCH_HEADER: name},
            )
            for i, (name, ids) in enumerate(zip(names, prompts, strict=True))
        ]

    def _body(self, ids: Sequence[int], name: str | None) -> dict[str, Any]:
        num_tokens = self.lengths.num_output_tokens
        return {
            "model": name if name is not None and self.has_adapters else self.model,
            "prompt": list(ids),
            "max_tokens": num_tokens,
            "min_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def check_answers(replies: Sequence[Reply], digests: Sequence[str | None], lengths: Lengths) -> None:
    """Check that every answer is of the right length and made under the right patch.

    Raises:
        CheckFailed: one is not.
    """
    findings: dict[str, None] = {}
    for reply, digest in zip(replies, digests, strict=True):
        expected = (lengths.num_input_tokens, lengths.num_output_tokens, digest)
        got = (reply.num_prompt_tokens, reply.trace.num_output_tokens, reply.headers.get(DIGEST_HEADER))
        if got != expected:
            findings[f"(prompt tokens, output tokens, digest): expected {expected}, got {got}"] = None
    if findings:
        raise CheckFailed(list(findings)[:5])


@contextlib.contextmanager
def servers_over(
    engine: EngineOptions,
    patches: Path,
    folder: Path,
    variants: Mapping[str, Sequence[str]],
    timeout_s: float,
    peers: Sequence[ServerSpec] = (),
) -> Iterator[dict[str, tuple[str, int]]]:
    """Run a server of ours for each variant (its name, and the flags that only it gets), and the peers.

    Yields their URLs, and the group of their processes.

    Raises:
        ServerFailed: one did not start.
    """
    with contextlib.ExitStack() as stack:
        specs = [
            replace(
                ours_server(
                    replace(engine, extra_arguments=(*engine.extra_arguments, *flags)), patches, folder
                ),
                name=name,
                log_path=folder / f"{name}.log",
            )
            for name, flags in variants.items()
        ]
        specs += peers
        running = {}
        for spec in specs:
            progress(f"starting {spec.name} on port {spec.port}, log in {spec.log_path}")
            process = stack.enter_context(running_server(spec, start_timeout_s=timeout_s))
            running[spec.name] = spec.url, process.pid
        yield running


async def target_of(
    session: aiohttp.ClientSession, url: str, lengths: Lengths, seed: int, *, has_adapters: bool = False
) -> Target:
    """Ask a server for what requests need to know."""
    model = await served_model(session, url)
    _, turn = await tokenize_policy(session, url, model, "policy", is_raw=True)
    return Target(url, model, turn, lengths, seed, has_adapters)


@dataclass(frozen=True)
class Stage:
    """What the cells of a run are measured with."""

    session: aiohttp.ClientSession
    targets: Mapping[str, Target]
    patches: Sequence[PatchFile]
    folder: Path
    args: argparse.Namespace

    @property
    def digests(self) -> dict[str, str]:
        """Name of a patch -> its digest."""
        return {patch.name: patch.digest for patch in self.patches}


MeasureOn = Callable[[Stage, Cell, int], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Plan:
    """What a question about many patches measures.

    Attributes:
        cells: what is measured.
        num_patches: how many patches the servers have, `p-0` and so on.
        measure: measures one cell in one round.
        variants: bytes of one patch -> the servers, each with the flags that only it gets.
        setup: goes into each record.
        make_patches: makes others than those, and puts into the folder what the servers are to have.
        peers: a folder -> servers of adapters of the patches' names, to compare with.
    """

    cells: Sequence[Cell]
    num_patches: int
    measure: MeasureOn
    variants: Callable[[int], Mapping[str, Sequence[str]]] = lambda nbytes: {"ours": []}
    setup: Mapping[str, Any] = field(default_factory=dict)
    make_patches: Callable[[Path, argparse.Namespace], Sequence[PatchFile]] | None = None
    peers: Callable[[Path], Sequence[ServerSpec]] = lambda folder: ()


def sweep_main_of(
    question: str,
    build_parser: Callable[[], argparse.ArgumentParser],
    plan: Callable[[argparse.Namespace], Plan],
) -> Main:
    """Make the ``main`` of a question about many patches; see ``bench.run.question.main_of``.

    Args:
        question: the name of the module.
        build_parser: has the flags of ``add_patched_arguments``, and the question's own.
        plan: parsed arguments -> what to measure.
    """

    def prepare(args: argparse.Namespace, command: str) -> Measure:
        planned = plan(args)
        return lambda folder: run_patched(question, args, command, planned, folder)

    return main_of(question, build_parser, prepare)


def run_patched(question: str, args: argparse.Namespace, command: str, plan: Plan, folder: Path) -> None:
    """Make patches, start servers, measure every cell once a round.

    Args:
        question: what is asked.
        args: parsed arguments, with those of ``add_patched_arguments``.
        command: the command line, for the records.
        plan: what is measured.
        folder: takes records, patches and logs.

    Raises:
        BenchError: no number can be given.
    """
    # Before anything is started, so that the load average is the machine's own.
    environment = describe_environment()
    engine = engine_options(args)
    lengths = Lengths(args.virtual_tokens, args.input_tokens, args.output_tokens)
    served = folder / "patches"
    served.mkdir()
    patches = (plan.make_patches or _numbered(plan.num_patches))(served, args)
    own_flags = plan.variants(patches[0].nbytes)
    facts = {"patch_bytes": patches[0].nbytes, "variants": own_flags, **plan.setup}
    described = _describe(args, command) | facts
    run = SweepRun(question, tuple(plan.cells), args.rounds, args.seed, described, folder, environment)

    async def measure_all(running: Mapping[str, tuple[str, int]]) -> None:
        async with open_session() as session:
            targets = {}
            for name, (url, group_id) in running.items():
                has_adapters = name not in own_flags
                target = await target_of(session, url, lengths, args.seed, has_adapters=has_adapters)
                targets[name] = replace(target, group_id=group_id)
            stage = Stage(session, targets, patches, served, args)

            async def measure_one(cell: Cell, round_idx: int) -> Mapping[str, Any]:
                # The server of the cell before spins on its queues for a second, on the same cores.
                await asyncio.sleep(args.settle_s)
                return await plan.measure(stage, cell, round_idx)

            await run.measure(measure_one)

    peers = plan.peers(folder)
    with servers_over(engine, served, folder, own_flags, args.start_timeout_s, peers) as running:
        asyncio.run(measure_all(running))


def _numbered(num_patches: int) -> Callable[[Path, argparse.Namespace], Sequence[PatchFile]]:
    def make(served: Path, args: argparse.Namespace) -> Sequence[PatchFile]:
        return make_patch_set(
            args.model,
            served,
            count=num_patches,
            num_tokens=args.virtual_tokens,
            dtype=args.dtype,
            seed=args.seed,
        )

    return make


def _describe(args: argparse.Namespace, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "model": model_name(args.model),
        "dtype": args.dtype,
        "device": "gpu" if has_gpu() else "cpu",
        "num_virtual_tokens": args.virtual_tokens,
        "num_input_tokens": args.input_tokens,
        "num_output_tokens": args.output_tokens,
        "seed": args.seed,
    }
