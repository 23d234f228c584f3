"""Does the catalog stay fast as it grows? Start-up, listings, metrics, selection, one more file.

Each cell starts the server's front end anew (``bench.servers.catalog_only``: no engine, workers that answer
at once) over a folder of so many patches, and asks it over HTTP. ``bench/README.md`` says what numbers mean.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import BenchError, CheckFailed
from bench.load.client import call_json, open_session
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

QUESTION = "catalog"
NUM_CALLS = 15
NUM_NAMES = 50

EPILOG = """\
examples:
  policypatch bench catalog --model ./smollm2
  policypatch bench catalog --model ./smollm2 --patches 10,100,1000 --virtual-tokens 48
"""


@dataclass(frozen=True)
class CatalogCell:
    """What a cell needs: the folder with its patches, and one patch that comes later."""

    model: str
    patches: Sequence[PatchFile]
    late: PatchFile
    folder: Path

    async def measure(self, num_patches: int, label: str) -> Mapping[str, Any]:
        """Start the front end over the first ``num_patches`` and measure it.

        Raises:
            BenchError: it did not start, or answered wrongly.
        """
        patches = self.folder / f"patches-{label}"
        link_patches(self.patches[:num_patches], patches)
        spec = front_end(self.model, patches, self.folder / f"server-{label}.log")
        with running_server(spec, start_timeout_s=START_TIMEOUT_S):
            async with open_session() as session:
                return await self._ask(session, spec.url, patches, num_patches)

    async def _ask(
        self, session: aiohttp.ClientSession, url: str, patches: Path, num_patches: int
    ) -> Mapping[str, Any]:
        facts = await call_json(session, "GET", f"{url}/bench/facts")
        if facts["num_patches"] != num_patches:
            raise CheckFailed([f"catalog: expected {num_patches} patches, got {facts['num_patches']}"])
        rng = random.Random(num_patches)
        used = rng.choices(self.patches[:num_patches], k=NUM_NAMES)
        for patch in used:
            await _complete(session, url, patch)
        return {
            "start_s": facts["start_s"],
            "start_cpu_s": facts["start_cpu_s"],
            "start_cpu_per_patch_s": facts["start_cpu_s"] / num_patches,
            "decide_s": facts["decide_s"],
            "list_s": asdict(summarise([await _get(session, f"{url}/v1/patches") for _ in range(NUM_CALLS)])),
            "one_s": asdict(summarise([await _get(session, f"{url}/v1/patches/{p.name}") for p in used])),
            "metrics_s": asdict(
                summarise([await _get(session, f"{url}/metrics/") for _ in range(NUM_CALLS)])
            ),
            "request_s": asdict(summarise([await _complete(session, url, patch) for patch in used])),
            "added_s": await self._add(session, url, patches),
        }

    async def _add(self, session: aiohttp.ClientSession, url: str, patches: Path) -> float:
        """Return the seconds from a file's landing to its first answer."""
        (patches / self.late.path.name).symlink_to(self.late.path.resolve())
        started = time.perf_counter()
        while time.perf_counter() - started < START_TIMEOUT_S:
            try:
                await _complete(session, url, self.late)
            except BenchError:
                await asyncio.sleep(0.005)
                continue
            return time.perf_counter() - started
        raise CheckFailed(["catalog: the file that came later was never served"])


async def _get(session: aiohttp.ClientSession, url: str) -> float:
    started = time.perf_counter()
    async with session.get(url) as response:
        await response.read()
        if response.status != 200:
            raise CheckFailed([f"GET {url}: expected 200, got {response.status}"])
    return time.perf_counter() - started


async def _complete(session: aiohttp.ClientSession, url: str, patch: PatchFile) -> float:
    started = time.perf_counter()
    headers = {PATCH_HEADER: patch.name}
    async with session.post(f"{url}/v1/completions", headers=headers) as response:
        answer = await response.json()
        if answer.get("digest") != patch.digest:
            raise CheckFailed([f"{patch.name}: expected {patch.digest}, got {str(answer)[:200]}"])
    return time.perf_counter() - started


def run_catalog(args: argparse.Namespace, command: str, folder: Path) -> None:
    """Measure every cell once a round.

    Raises:
        BenchError: no number can be given.
    """
    setup = {
        "command": command,
        "model": model_name(args.model),
        "num_virtual_tokens": args.virtual_tokens,
        "seed": args.seed,
    }
    cells = tuple(cells_along(args.patches))
    run = SweepRun(QUESTION, cells, args.rounds, args.seed, setup, folder)
    made = make_patch_set(
        args.model,
        folder / "made",
        count=max(args.patches) + 1,
        num_tokens=args.virtual_tokens,
        dtype="bfloat16",
        seed=args.seed,
    )
    job = CatalogCell(args.model, made[:-1], made[-1], folder)

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
        default=(10, 100, 1000),
        metavar="N,N",
        help="patches in the folder (10,100,1000)",
    )
    parser.add_argument(
        "--virtual-tokens", type=at_least_one, default=48, metavar="N", help="length of each patch (48)"
    )
    add_sweep_arguments(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures."""
    return lambda folder: run_catalog(args, command, folder)


main = main_of(QUESTION, build_parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
