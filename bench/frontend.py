"""What does our front end add to a request and to a token, apart from any model?

Whole servers, ours and `vllm serve`, whose engine core answers at once: processes, sockets, tokenizer, output
processor, scheduler and KV connector are those of production. What each request takes of the processor is
read from the clocks of the processes, so that other work on the machine hardly shows. Arms take turns.
``bench/README.md`` says what each number means.
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import RequestFailed
from bench.load.answers import Answers, Chat, ask_at_rate, ask_in_turn, chat_body
from bench.load.client import open_session
from bench.load.exposition import read_metrics
from bench.load.timing import quantile
from bench.load.workloads import PROMPTS
from bench.run.question import Measure, main_of, question_parser
from bench.run.rounds import progress
from bench.run.sweep import Cell, SweepRun, add_sweep_arguments, at_least_one, cells_along, model_name
from bench.servers.environment import describe_environment
from bench.servers.front_ends import (
    ADMIN_KEY,
    CALLER_KEY,
    CANARY,
    OURS,
    canary_orders,
    instant,
    make_patches,
    server_spec,
)
from bench.servers.launch import SERVED_NAME, add_engine_arguments, engine_options
from bench.servers.processes import running_server
from bench.servers.processor_time import group_processor_s
from patches.headers import PATCH_HEADER

QUESTION = "frontend"
SERIES = ("answer", "stream", "half")
VERSION = "1.0.0"
#: Requests of a cell whose latencies are taken.
NUM_TIMED = 100

EPILOG = """\
examples:
  policypatch bench frontend --model ./smollm2
  policypatch bench frontend --model ./smollm2 --arms all --rounds 20
"""


@dataclass(frozen=True)
class Arm:
    """Who is asked, and for what.

    Attributes:
        server: a name of ``bench.servers.front_ends``, or vLLM's own.
        names: patches of one request; those of the next one are further on, where there are as many.
        is_alias: they stand behind the model's name, not in the header.
        headers: sent beside.
        is_scraped: the metrics are read meanwhile, once a cell.
    """

    server: str
    names: tuple[int, ...] = ()
    is_alias: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    is_scraped: bool = False


ARMS = {
    "plain": Arm("plain"),
    "twin": Arm("twin"),
    "idle": Arm("ours"),
    "header": Arm("ours", (0,)),
    "alias": Arm("ours", (0,), is_alias=True),
    "joined": Arm("ours", (0, 1)),
    "scraped": Arm("ours", (0,), is_scraped=True),
    "one": Arm("one", (0,)),
    "many": Arm("many", (0,)),
    "keys": Arm("keys", (0,), headers=(("Authorization", f"Bearer {CALLER_KEY}"),)),
    "audit": Arm("audit", (0,)),
    "canary": Arm("canary", (0,), headers=(("X-User", "someone"),)),
    "canary-user": Arm("canary-user", (0,)),
}
DEFAULT_ARMS = ("plain", "idle", "header", "alias")


@dataclass(frozen=True)
class Server:
    """One that runs."""

    url: str
    #: Of its processes; the first of them answers HTTP.
    group_id: int
    num_patches: int


@dataclass
class Stage:
    """What the cells of a run are measured with."""

    session: aiohttp.ClientSession
    servers: Mapping[str, Server]
    args: argparse.Namespace
    #: Requests a second at which latencies are taken; half of what vLLM's own server answers at most.
    rate_per_s: float = 100.0

    async def measure(self, cell: Cell, round_idx: int) -> Mapping[str, Any]:
        """Measure one arm in one way.

        Raises:
            BenchError: an answer is missing, or not as expected.
        """
        arm, args = ARMS[str(cell.x)], self.args
        async with self._scraped(arm):
            match cell.series:
                case "answer":
                    return await self._answers(arm, args.requests)
                case "stream":
                    return await self._streams(arm, args.streams, args.tokens)
            seed = f"{args.seed}/{round_idx}"
            chats = self.chats(arm, NUM_TIMED, 1, is_streamed=False)
            answers = await ask_at_rate(self.session, chats, rate_per_s=self.rate_per_s, seed=seed)
        return {f"p{q}_s": quantile(answers.latencies_s, q / 100) for q in (50, 99)}

    async def _answers(self, arm: Arm, count: int) -> Mapping[str, Any]:
        api_s, core_s, answers = await self._used(arm, self.chats(arm, count, 1, is_streamed=False))
        return {"api_s": api_s, "core_s": core_s, "requests_per_s": count / answers.duration_s}

    async def _streams(self, arm: Arm, count: int, num_tokens: int) -> Mapping[str, Any]:
        """Compare streams of one token with longer ones: the difference is that of the tokens."""
        short_s, short_core_s, _ = await self._used(arm, self.chats(arm, count, 1, is_streamed=True))
        chats = self.chats(arm, count, num_tokens, is_streamed=True)
        api_s, core_s, answers = await self._used(arm, chats)
        return {
            "api_s": api_s,
            "core_s": core_s,
            "short_api_s": short_s,
            "token_api_s": (api_s - short_s) / (num_tokens - 1),
            "token_core_s": (core_s - short_core_s) / (num_tokens - 1),
            # One event opens a stream.
            "tokens_per_event": num_tokens / (answers.num_events / count - 1),
        }

    async def _used(self, arm: Arm, chats: Sequence[Chat]) -> tuple[float, float, Answers]:
        group_id = self.servers[arm.server].group_id
        before = group_processor_s(group_id)
        answers = await ask_in_turn(self.session, chats, concurrency=self.args.concurrency)
        after = group_processor_s(group_id)
        return (after[0] - before[0]) / len(chats), (after[1] - before[1]) / len(chats), answers

    def chats(self, arm: Arm, count: int, num_tokens: int, *, is_streamed: bool) -> list[Chat]:
        """Return the requests of an arm."""
        server = self.servers[arm.server]
        chats = []
        for i in range(count):
            names = [f"p-{(idx + i) % server.num_patches}" for idx in arm.names]
            if arm.server.startswith("canary"):
                names = [CANARY[0]]
            wish = ", ".join(names)
            model = f"{SERVED_NAME}:{wish}" if arm.is_alias else SERVED_NAME
            headers = dict(arm.headers)
            if wish and not arm.is_alias:
                headers[PATCH_HEADER] = wish
            body = chat_body(model, PROMPTS[i % len(PROMPTS)], num_tokens, is_streamed=is_streamed)
            chats.append(Chat(server.url, body, headers, _named(arm, names)))
        return chats

    @contextlib.asynccontextmanager
    async def _scraped(self, arm: Arm) -> AsyncIterator[None]:
        if not arm.is_scraped:
            yield
            return
        task = asyncio.create_task(read_metrics(self.session, self.servers[arm.server].url))
        try:
            yield
        finally:
            await task


def _named(arm: Arm, names: Sequence[str]) -> tuple[str | None, ...]:
    if arm.server not in OURS:
        return (None,)
    if arm.server.startswith("canary"):
        return tuple(f"{CANARY[0]}@{version}" for version in CANARY[1:])
    return (", ".join(f"{name}@{VERSION}" for name in names) or "none",)


def run_frontend(args: argparse.Namespace, command: str, folder: Path) -> None:
    """Start the servers of all arms, and measure every cell once a round.

    Raises:
        BenchError: no number can be given.
    """
    environment = describe_environment()
    setup = {
        **{"command": command, "model": model_name(args.model), "seed": args.seed},
        **{"num_virtual_tokens": 48, "concurrency": args.concurrency, "num_tokens": args.tokens},
    }
    series = [name for name in SERIES if name != "half" or args.has_latency]
    cells = tuple(cells_along(args.arms, series))
    run = SweepRun(QUESTION, cells, args.rounds, args.seed, setup, folder, environment)
    with started(args, folder) as servers:
        asyncio.run(_measure(run, servers, args))


async def _measure(run: SweepRun, servers: Mapping[str, Server], args: argparse.Namespace) -> None:
    async with open_session() as session:
        for name, server in servers.items():
            for path, body in canary_orders(name):
                await _order(session, f"{server.url}{path}", body)
        stage = Stage(session, servers, args)
        if args.has_latency:
            found = [(await stage.measure(Cell("plain", 0, "answer"), 0))["requests_per_s"] for _ in range(3)]
            stage.rate_per_s = max(found) / 2
            progress(f"latencies are taken at {stage.rate_per_s:.0f} requests a second")
        await run.measure(stage.measure)


async def _order(session: aiohttp.ClientSession, url: str, body: Mapping[str, object]) -> None:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with session.post(url, json=body, headers=headers) as response:
        if response.status != 200:
            raise RequestFailed(f"{url}: {response.status} {await response.text()}")


@contextlib.contextmanager
def started(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Server]]:
    """Run a server for each that an arm asks.

    Raises:
        BenchError: one did not start.
    """
    names = list(dict.fromkeys(ARMS[arm].server for arm in args.arms))
    engine = instant(engine_options(args), args.step_ms / 1000)
    patches = make_patches(args.model, folder / "made", names, args.patches)
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in names:
            spec = server_spec(name, engine, patches, args.patches, folder)
            progress(f"starting {name} on port {spec.port}, log in {spec.log_path}")
            began = time.perf_counter()
            process = stack.enter_context(running_server(spec, start_timeout_s=900.0))
            took, (api_s, core_s) = time.perf_counter() - began, group_processor_s(process.pid)
            progress(f"{name}: ready after {took:.1f} s; processor time {api_s:.1f} s, core {core_s:.1f} s")
            kind = OURS.get(name)
            count = (kind.num_patches if kind is not None else None) or args.patches
            servers[name] = Server(spec.url, process.pid, count)
        yield servers


def _arms(text: str) -> tuple[str, ...]:
    names = tuple(ARMS) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in ARMS:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(ARMS)}, or all, got {name!r}")
    # Ratios are against the first.
    return ("plain", *(name for name in names if name != "plain"))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--model", required=True, help="model folder; no weight of it is loaded")
    parser.add_argument(
        "--arms",
        type=_arms,
        default=DEFAULT_ARMS,
        metavar="A,B",
        help=f"of {', '.join(ARMS)}; or all ({','.join(DEFAULT_ARMS)})",
    )
    for flag, default, meaning in (
        ("--patches", 100, "patches in the folder"),
        ("--requests", 32, "requests of one token in a cell"),
        ("--streams", 8, "streams in a cell"),
        ("--tokens", 33, "tokens of a stream"),
        ("--concurrency", 8, "requests in flight"),
    ):
        parser.add_argument(
            flag, type=at_least_one, default=default, metavar="N", help=f"{meaning} ({default})"
        )
    parser.add_argument(
        "--step-ms", type=float, default=10.0, metavar="MS", help="from a token to the next (10)"
    )
    parser.add_argument(
        "--latency",
        dest="has_latency",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take latencies, too, at half the rate that vLLM's own server reaches (yes)",
    )
    add_sweep_arguments(parser, num_rounds=30)
    add_engine_arguments(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures."""
    if args.tokens < 2:
        raise ValueError(f"--tokens: expected 2 or more, got {args.tokens}")
    return lambda folder: run_frontend(args, command, folder)


main = main_of(QUESTION, build_parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
