"""What happens to requests while the patch that they name is replaced?

So many requests are kept in flight, all under one name. In a cell `swap` a file with new content takes the
place of the old one, by a rename; in a cell `steady` nothing happens; in a cell `operations` files of another
name appear, are replaced and go all the time, which is none of these requests' business. Every
answer must be complete and name one of the two contents, and no request that was sent after the new content
had answered may be answered by the old one. ``bench/README.md`` says what each number means.
"""

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.errors import CheckFailed
from bench.load.client import Reply, send_closed_loop
from bench.load.timing import measure_cell
from bench.run.patch_sweep import Plan, Stage, add_patched_arguments, check_answers, sweep_main_of
from bench.run.question import question_parser
from bench.run.sweep import Cell, at_least_one, cells_along
from bench.servers.patch_set import PatchFile, make_patch_set
from patches.headers import DIGEST_HEADER

QUESTION = "swap"
PATCH = "hot-0"
#: Beside the folder that is served: contents of a name that no request asks for.
OTHERS = "others"

EPILOG = """\
examples:
  policypatch bench swap --model ./smollm2 --concurrency 8
  policypatch bench swap --model ./llama-8b --load-format dummy --concurrency 64 --requests 512
"""


def make_contents(served: Path, args: argparse.Namespace) -> list[PatchFile]:
    """Make two contents of one name, outside of the folder that is served."""
    contents = []
    for i in range(2):
        (made,) = make_patch_set(
            args.model,
            served.parent / f"content-{i}",
            count=1,
            num_tokens=args.virtual_tokens,
            dtype=args.dtype,
            name="hot",
            seed=args.seed + i,
        )
        contents.append(made)
    make_others(served, args)
    return contents


def make_others(served: Path, args: argparse.Namespace) -> None:
    """Make two contents of a name that no request asks for."""
    for i in range(2):
        make_patch_set(
            args.model,
            served.parent / OTHERS,
            count=1,
            num_tokens=args.virtual_tokens,
            dtype=args.dtype,
            name="other",
            seed=args.seed + 100 + i,
            version=f"1.0.{i}",
        )


def replace_file(source: Path, target: Path) -> float:
    """Put the content of ``source`` at ``target`` by a rename; return when that was."""
    staged = target.with_name(f".{target.name}.staged")
    shutil.copy(source, staged)
    os.replace(staged, target)
    return time.perf_counter()


async def measure(stage: Stage, cell: Cell, round_idx: int) -> Mapping[str, Any]:
    """Measure one cell.

    Raises:
        BenchError: a request failed, or an answer mixes versions.
    """
    (target,) = stage.targets.values()
    old, new = (stage.patches[(round_idx + i) % len(stage.patches)] for i in range(2))
    served = stage.folder / "hot.safetensors"
    replace_file(old.path, served)
    await _settled(stage, target.url, old.digest)
    args = stage.args
    requests = target.requests([PATCH] * args.requests, f"{round_idx}-{cell.x}", is_cached=True)
    sending = asyncio.create_task(send_closed_loop(stage.session, requests, concurrency=args.concurrency))
    landed_s = None
    if cell.x == "swap":
        await asyncio.sleep(args.swap_after_s)
        landed_s = await asyncio.to_thread(replace_file, new.path, served)
    num_operations = await _operate(stage, sending) if cell.x == "operations" else 0
    replies = await sending
    check_answers(replies, [_one_of(reply, (old.digest, new.digest)) for reply in replies], target.lengths)
    result = asdict(measure_cell([reply.trace for reply in replies]))
    if num_operations:
        result |= {"num_operations": num_operations}
    return {**result, **after_swap(replies, new.digest, landed_s)}


async def _operate(stage: Stage, sending: "asyncio.Task[list[Reply]]") -> int:
    """Change files of another name at a steady rate while requests are being sent; returns how often."""
    others = sorted((stage.folder.parent / OTHERS).glob("*.safetensors"))
    served = stage.folder / "other.safetensors"
    num_operations = 0
    while not sending.done():
        step = num_operations % 3
        if step == 2:
            await asyncio.to_thread(served.unlink)
        else:
            await asyncio.to_thread(replace_file, others[step], served)
        num_operations += 1
        await asyncio.wait({sending}, timeout=1 / stage.args.operations_per_s)
    served.unlink(missing_ok=True)
    return num_operations


def _one_of(reply: Reply, digests: Sequence[str]) -> str:
    return next((digest for digest in digests if digest == reply.headers.get(DIGEST_HEADER)), digests[0])


def after_swap(replies: Sequence[Reply], new: str, landed_s: float | None) -> dict[str, float]:
    """Return how soon the new content answered after its file had landed; check that it took over for good.

    Raises:
        CheckFailed: it never answered, or the old one answered a request that was sent after that.
    """
    if landed_s is None:
        return {}
    by_new = [reply for reply in replies if reply.headers.get(DIGEST_HEADER) == new]
    if not by_new:
        raise CheckFailed(["swap: expected an answer by the new content, got none; ask for more requests"])
    first_s = min(reply.trace.token_times_s[0] for reply in by_new)
    late = [
        reply for reply in replies if reply.trace.sent_s > first_s and reply.headers.get(DIGEST_HEADER) != new
    ]
    if late:
        raise CheckFailed([f"swap: {len(late)} requests got the old content after the new one had answered"])
    return {"takeover_s": first_s - landed_s, "num_by_new": len(by_new)}


async def _settled(stage: Stage, url: str, digest: str) -> None:
    """Wait until ``digest`` is what the name means."""
    for _ in range(3000):
        async with stage.session.get(f"{url}/v1/patches/{PATCH}") as response:
            card = await response.json()
        versions = card.get("versions", ())
        if any(v["digest"] == digest and v["state"] == "active" for v in versions) and len(versions) == 1:
            return
        await asyncio.sleep(0.02)
    raise CheckFailed([f"swap: expected {digest} to become active, got {str(card)[:300]}"])


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--concurrency", type=at_least_one, default=8, metavar="N", help="in flight (8)")
    parser.add_argument("--requests", type=at_least_one, default=64, metavar="N", help="per cell (64)")
    parser.add_argument(
        "--swap-after-s",
        type=float,
        default=2.0,
        metavar="S",
        help="from the first request to the new file (2)",
    )
    parser.add_argument(
        "--operations-per-s",
        type=float,
        default=5.0,
        metavar="N",
        help="changes of another name's files in a cell `operations` (5)",
    )
    add_patched_arguments(parser)
    return parser


def plan(args: argparse.Namespace) -> Plan:
    """Return what is measured."""
    return Plan(
        cells_along(("steady", "swap", "operations")),
        2,
        measure,
        variants=lambda nbytes: {"ours": ["--keep-previous", "0"]},
        setup={
            "concurrency": args.concurrency,
            "swap_after_s": args.swap_after_s,
            "operations_per_s": args.operations_per_s,
        },
        make_patches=make_contents,
    )


main = sweep_main_of(QUESTION, build_parser, plan)


if __name__ == "__main__":
    sys.exit(main())
