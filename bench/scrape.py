"""What does a scrape cost? The size of the page, how long the event loop stops, what requests notice.

Each cell starts the server's front end anew (``bench.servers.catalog_only``: no engine) over a folder of so
many patches, and uses every one of them once, so that each has all its series. ``bench/README.md`` says what
numbers mean.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import CheckFailed
from bench.load.client import call_json
from bench.load.timing import summarise
from bench.run.question import Measure, main_of, question_parser
from bench.run.sweep import (
    Cell,
    SweepRun,
    add_sweep_arguments,
    at_least_one,
    cells_along,
    counts,
    model_name,
)
from bench.servers.catalog_front import START_TIMEOUT_S, front_end, link_patches
from bench.servers.patch_set import PatchFile, make_patch_set
from bench.servers.processes import running_server
from patches.headers import PATCH_HEADER

QUESTION = "scrape"
NUM_SCRAPES = 15
NUM_REQUESTS = 300
SCRAPES_PER_S = 100
#: As Prometheus asks: OpenMetrics, gzipped.
ASKED = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
    "Accept-Encoding": "gzip",
}

EPILOG = """\
examples:
  policypatch bench scrape --model ./smollm2
  policypatch bench scrape --model ./smollm2 --patches 1000 --rounds 5
"""


@dataclass(frozen=True)
class ScrapeCell:
    """What a cell needs."""

    model: str
    patches: Sequence[PatchFile]
    folder: Path

    async def measure(self, num_patches: int, label: str) -> Mapping[str, Any]:
        """Start the front end over the first ``num_patches`` and measure it.

        Raises:
            BenchError: it did not start, or answered wrongly.
        """
        used = self.patches[:num_patches]
        folder = self.folder / f"patches-{label}"
        link_patches(used, folder)
        spec = front_end(self.model, folder, self.folder / f"server-{label}.log")
        with running_server(spec, start_timeout_s=START_TIMEOUT_S):
            # What is sent counts, and unpacking it is no work of the server's.
            async with aiohttp.ClientSession(auto_decompress=False) as session:
                for patch in used:
                    await _complete(session, spec.url, patch)
                return await _ask(session, spec.url, used)


async def _ask(session: aiohttp.ClientSession, url: str, patches: Sequence[PatchFile]) -> Mapping[str, Any]:
    plain = await _scrape(session, url, {"Accept-Encoding": "identity"})
    if plain.count(b"policy_patch_time_to_first_token_seconds_count{") != len(patches):
        raise CheckFailed([f"scrape: expected the series of {len(patches)} patches"])
    stops_s, quiet_s, scrapes_s = [], [], []
    for _ in range(NUM_SCRAPES):
        started = time.perf_counter()
        await _longest_stop_s(session, url)
        await _scrape(session, url, ASKED)
        scrapes_s.append(time.perf_counter() - started)
        stops_s.append(await _longest_stop_s(session, url))
        # As long without a scrape: what the machine does by itself.
        await asyncio.sleep(scrapes_s[-1])
        quiet_s.append(await _longest_stop_s(session, url))
    alone = await _requests(session, url, patches)
    async with _storm(session, url):
        stormed = await _requests(session, url, patches)
    return {
        "page_bytes": len(plain),
        "sent_bytes": len(await _scrape(session, url, ASKED)),
        "scrape_s": asdict(summarise(scrapes_s)),
        "stop_s": asdict(summarise(stops_s)),
        "quiet_stop_s": asdict(summarise(quiet_s)),
        "request_s": asdict(summarise(alone)),
        "stormed_request_s": asdict(summarise(stormed)),
    }


async def _scrape(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> bytes:
    async with session.get(f"{url}/metrics", headers=headers) as response:
        body = await response.read()
        if response.status != 200:
            raise CheckFailed([f"GET /metrics: expected 200, got {response.status}"])
        return body


async def _longest_stop_s(session: aiohttp.ClientSession, url: str) -> float:
    return float((await call_json(session, "GET", f"{url}/bench/stops"))["longest_s"])


async def _requests(session: aiohttp.ClientSession, url: str, patches: Sequence[PatchFile]) -> list[float]:
    return [await _complete(session, url, patches[i % len(patches)]) for i in range(NUM_REQUESTS)]


@contextlib.asynccontextmanager
async def _storm(session: aiohttp.ClientSession, url: str) -> AsyncIterator[None]:
    """Scrape a hundred times a second while the context lasts."""
    scrapes: set[asyncio.Task[bytes]] = set()

    async def rage() -> None:
        while True:
            scrape = asyncio.create_task(_scrape(session, url, ASKED))
            scrapes.add(scrape)
            scrape.add_done_callback(scrapes.discard)
            await asyncio.sleep(1 / SCRAPES_PER_S)

    task = asyncio.create_task(rage())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(*scrapes)


async def _complete(session: aiohttp.ClientSession, url: str, patch: PatchFile) -> float:
    started = time.perf_counter()
    async with session.post(f"{url}/v1/completions", headers={PATCH_HEADER: patch.name}) as response:
        answer = await response.json()
        if answer.get("digest") != patch.digest:
            raise CheckFailed([f"{patch.name}: expected {patch.digest}, got {str(answer)[:200]}"])
    return time.perf_counter() - started


def run_scrape(args: argparse.Namespace, command: str, folder: Path) -> None:
    """Measure every cell once a round.

    Raises:
        BenchError: no number can be given.
    """
    setup = {"command": command, "model": model_name(args.model), "seed": args.seed}
    setup["num_virtual_tokens"] = args.virtual_tokens
    cells = tuple(cells_along(args.patches))
    run = SweepRun(QUESTION, cells, args.rounds, args.seed, setup, folder)
    made = make_patch_set(
        args.model,
        folder / "made",
        count=max(args.patches),
        num_tokens=args.virtual_tokens,
        dtype="bfloat16",
        seed=args.seed,
    )
    job = ScrapeCell(args.model, made, folder)

    async def measure(cell: Cell, round_idx: int) -> Mapping[str, Any]:
        return await job.measure(int(cell.x), f"{round_idx}-{cell.x}")

    asyncio.run(run.measure(measure))
    for patch in made:
        os.unlink(patch.path)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--model", required=True, help="model folder; only its shape and tokenizer are read")
    parser.add_argument(
        "--patches",
        type=counts,
        default=(10, 1000),
        metavar="N,N",
        help="patches in the folder, all of them used (10,1000)",
    )
    parser.add_argument(
        "--virtual-tokens", type=at_least_one, default=1, metavar="N", help="length of each patch (1)"
    )
    add_sweep_arguments(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures."""
    return lambda folder: run_scrape(args, command, folder)


main = main_of(QUESTION, build_parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
