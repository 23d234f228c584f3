"""Does a real server stay right under load, swaps and faults for long? One row for each thing that must hold.

Starts the server itself, with state, audit log and admin key, and plays its supervisor. Parts: `control`,
plain vLLM under the same clients; `load`, the same with patches, for minutes; `storm`, fifty swaps a second;
`faults`, what breaks around a server that lives; `deaths`, processes killed, and the server killed during
admin calls. ``bench/README.md`` says more.
"""

import argparse
import asyncio
import sys
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from bench.load.client import open_session
from bench.run.question import RECORDS, Measure, Reporting, add_out_argument, main_of, question_parser
from bench.run.rounds import progress
from bench.run.sweep import at_least_one, model_name
from bench.servers.environment import describe_environment
from bench.servers.launch import add_engine_arguments, engine_options
from bench.soak.clock import ShiftedClock, find_libfaketime
from bench.soak.contents import Content
from bench.soak.deaths import run_deaths
from bench.soak.faults import run_faults
from bench.soak.references import References
from bench.soak.report import Findings, soak_markdown, soak_summary
from bench.soak.server import SoakServer
from bench.soak.stage import FILE, HOT, LARGE, Contents, Stage, make_all
from bench.soak.storm import storm_by_calls, storm_by_files
from bench.soak.watch import run_control, run_load

QUESTION = "soak"

EPILOG = """\
examples:
  policypatch bench soak --model ./smollm2 --dtype float32
  policypatch bench soak --model ./smollm2 --dtype float32 --parts load --duration 3600
  policypatch bench soak --model ./tiny --dtype float32 --short
"""


@dataclass(frozen=True)
class SoakPlan:
    """How long and how much."""

    parts: tuple[str, ...]
    duration_s: float
    control_s: float
    storm_s: float
    rate_per_s: float
    concurrency: int
    num_hot: int
    num_kills: int
    num_output_tokens: int
    is_short: bool
    seed: int


async def _control(stage: Stage, plan: SoakPlan) -> None:
    server = stage.server
    await run_control(stage, server.engine, server.folder, seconds=plan.control_s)


async def _load(stage: Stage, plan: SoakPlan) -> None:
    await run_load(stage, seconds=plan.duration_s)


async def _storm(stage: Stage, plan: SoakPlan) -> None:
    await storm_by_calls(stage, seconds=plan.storm_s, rate_per_s=plan.rate_per_s)
    await storm_by_files(stage, seconds=plan.storm_s, rate_per_s=plan.rate_per_s)


async def _faults(stage: Stage, plan: SoakPlan) -> None:
    await run_faults(stage)


async def _deaths(stage: Stage, plan: SoakPlan) -> None:
    await run_deaths(stage, num_kills=plan.num_kills)


PARTS: dict[str, Callable[[Stage, SoakPlan], Awaitable[None]]] = {
    "control": _control,
    "load": _load,
    "storm": _storm,
    "faults": _faults,
    "deaths": _deaths,
}


async def run_parts(
    args: argparse.Namespace, plan: SoakPlan, server: SoakServer, contents: Contents, findings: Findings
) -> None:
    """Run the parts in order on a server that runs.

    Raises:
        BenchError: the server can't be asked what the parts need to know.
    """
    async with open_session() as session:
        references = References(plan.num_output_tokens)
        stage = Stage(session, server, contents, references, findings, plan.concurrency)
        stage.is_short, stage.seed = plan.is_short, plan.seed
        await stage.install(_served(contents))
        progress("asking for the references")
        await references.collect(session, server.url, _served(contents))
        for hot, file in zip(contents[HOT], contents[FILE], strict=True):
            references.alias(hot, file)
        for part in plan.parts:
            progress(f"part {part}")
            await PARTS[part](stage, plan)


def _served(contents: Contents) -> list[Content]:
    return [*contents.mixed, *contents[HOT]]


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--model", required=True, help="model folder, or the id of a cached model")
    parser.add_argument(
        "--parts",
        type=_parts,
        help=f"some of {','.join(PARTS)}, in this order (default: all; short: all but control)",
    )
    parser.add_argument(
        "--duration", type=float, metavar="S", help="seconds of the part `load` (600; short: 8)"
    )
    parser.add_argument(
        "--control-s", type=float, metavar="S", help="seconds of the part `control` (as long as `load`)"
    )
    parser.add_argument("--storm-s", type=float, metavar="S", help="seconds of each storm (60; short: 4)")
    parser.add_argument(
        "--rate", type=float, default=50.0, metavar="N", help="swaps a second in a storm (default: 50)"
    )
    parser.add_argument(
        "--concurrency", type=at_least_one, default=64, metavar="N", help="streams of the load at a time (64)"
    )
    parser.add_argument(
        "--output-tokens", type=at_least_one, default=24, metavar="N", help="length of each answer (24)"
    )
    parser.add_argument(
        "--kills",
        type=at_least_one,
        default=8,
        metavar="N",
        help="how often the server is killed during admin calls (default: 8; short: 1)",
    )
    parser.add_argument("--short", action="store_true", help="about a minute in all, for a tiny model")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides what clients ask (0)")
    parser.add_argument(
        "--start-timeout-s", type=float, default=600.0, metavar="S", help="for each start (default: 600)"
    )
    add_out_argument(parser)
    add_engine_arguments(parser)
    return parser


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(PARTS)}, got {','.join(unknown)}")
    return parts


def plan_of(args: argparse.Namespace) -> SoakPlan:
    """Read the plan from parsed arguments."""
    duration_s = args.duration or (8.0 if args.short else 600.0)
    return SoakPlan(
        parts=args.parts or tuple(part for part in PARTS if not (args.short and part == "control")),
        duration_s=duration_s,
        control_s=args.control_s or duration_s,
        storm_s=args.storm_s or (4.0 if args.short else 60.0),
        rate_per_s=args.rate,
        concurrency=args.concurrency,
        num_hot=8 if args.short else 48,
        num_kills=1 if args.short else args.kills,
        num_output_tokens=args.output_tokens,
        is_short=args.short,
        seed=args.seed,
    )


def run_soak(args: argparse.Namespace, command: str, folder: Path) -> None:
    """Run everything; what was found is on record as it comes.

    Raises:
        BenchError: the soak could not be carried out.
    """
    environment = describe_environment()
    plan = plan_of(args)
    setup = {
        "command": command,
        "model": model_name(args.model),
        "dtype": args.dtype,
        "concurrency": plan.concurrency,
        "num_output_tokens": plan.num_output_tokens,
        "seed": plan.seed,
    }
    findings = Findings(folder / RECORDS, uuid.uuid4().hex[:12], setup, environment)
    contents = make_all(
        args.model,
        folder / "contents",
        args.dtype,
        num_hot=plan.num_hot,
        num_large_tokens=args.max_model_len - 16,
    )
    library = find_libfaketime()
    clock = ShiftedClock(library, folder / "clock") if library is not None else None
    # Each device has room for every other patch, and the large one is refused by the workers.
    too_many = contents[LARGE][1].path.stat().st_size - (1 << 16)
    flags = ("--patch-device-memory", str(too_many))
    server = SoakServer(engine_options(args), folder, flags, args.start_timeout_s, clock)
    with server:
        asyncio.run(run_parts(args, plan, server, contents, findings))


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what runs the soak."""
    return lambda folder: run_soak(args, command, folder)


#: Exit code 1, too, where something did not hold: ``soak_summary`` says so.
main = main_of(QUESTION, build_parser, prepare, Reporting(soak_markdown, None, soak_summary))

if __name__ == "__main__":
    sys.exit(main())
