"""The part `load`: clients for minutes, the server's memory watched, and nothing left over at the end.

Before it, the part `control`: the same clients at plain `vllm serve`, with text as long as the patches in
front of their prompts, so that batches have as many different sizes. Its own growth is the yardstick.
"""

import asyncio
from pathlib import Path

from bench.servers.launch import EngineOptions, plain_server
from bench.servers.processes import running_server
from bench.soak.load import Choice, Load
from bench.soak.memory import MemorySamples, sample_until
from bench.soak.server import roles_of
from bench.soak.stage import HOT, MIX_LENGTHS, NUM_TOKENS, Stage
from bench.soak.storm import kept_bytes

#: Left out of the slopes: caches fill, allocators warm up.
WARMUP_S = 60.0
#: Swaps that go on at leisure while the load runs, one every so many seconds.
SWAP_EVERY_S = 5.0
#: A slope above this is a leak, a server that gains a GiB a day; unless plain vLLM does the same.
MAX_MIB_PER_MINUTE = 0.75
#: How far a slope may be above that of plain vLLM.
MAX_TIMES_CONTROL = 1.5


async def run_control(stage: Stage, engine: EngineOptions, folder: Path, *, seconds: float) -> None:
    """Run the same clients against plain vLLM for ``seconds``, and remember how its memory grows."""
    spec = plain_server(engine, folder)
    control = running_server(spec, start_timeout_s=stage.server.start_timeout_s)
    process = await asyncio.to_thread(control.__enter__)
    try:
        samples, is_over = MemorySamples(), asyncio.Event()
        watching = asyncio.create_task(sample_until(is_over, samples, lambda: roles_of(process.pid)))
        load = Load(
            stage.session,
            spec.url,
            stage.references,
            [Choice(None), *(Choice(None, num_text_tokens=length) for length in (*MIX_LENGTHS, NUM_TOKENS))],
            concurrency=stage.concurrency,
            seed=stage.seed,
        )
        async with load:
            await asyncio.sleep(seconds)
            is_over.set()
        await watching
    finally:
        await asyncio.to_thread(control.__exit__, None, None, None)
    stage.control = samples.slopes(min(WARMUP_S, seconds / 3))
    grown = ", ".join(f"{role} {slope.per_minute:+.2f}" for role, slope in stage.control.items())
    tally = load.tally
    stage.findings.note(
        "control",
        f"plain vllm serve, {stage.concurrency} streams, {seconds:g} s",
        f"{tally.num_ok} answers: {tally.num_failed} failed, {tally.num_wrong} other than ours without a "
        f"patch; memory, MiB a minute: {grown}",
        tally.num_ok > 0 and not tally.num_failed and not tally.num_wrong,
        slopes={role: slope.as_dict() for role, slope in stage.control.items()},
        load=tally.as_dict(),
    )


async def run_load(stage: Stage, *, seconds: float) -> None:
    """Run clients for ``seconds``: mixed patches, and a name that is swapped now and then."""
    hot = stage.contents[HOT]
    await stage.activate(hot[0])
    await stage.activate(hot[1])
    resident = await stage.resident()
    num_bytes = await kept_bytes(stage)
    samples = MemorySamples()
    is_over = asyncio.Event()
    watching = asyncio.create_task(sample_until(is_over, samples, stage.server.roles))
    swapping = asyncio.create_task(_swap_now_and_then(stage, is_over))
    load = stage.load(HOT)
    try:
        async with load:
            await asyncio.sleep(seconds)
            # Before the last answers: an idle server would bend the line.
            is_over.set()
    finally:
        is_over.set()
        await asyncio.gather(watching, swapping)
    tally = load.tally
    stage.findings.note(
        "load",
        f"{stage.concurrency} streams and whole answers beside them, mixed patches, {seconds:g} s",
        f"{tally.num_ok} answers ({tally.num_ok / seconds:.1f} a second): {tally.num_failed} failed, "
        f"{tally.num_wrong} wrong, {tally.num_ties} near ties",
        tally.num_ok > 0 and not tally.num_failed and not tally.num_wrong,
        load=tally.as_dict(),
    )
    _note_memory(stage, samples, seconds)
    await _note_leftovers(stage, resident, num_bytes)


async def _swap_now_and_then(stage: Stage, is_over: asyncio.Event) -> None:
    hot, index = stage.contents[HOT], 1
    while not is_over.is_set():
        index += 1
        await stage.activate(hot[index % 2])
        try:
            await asyncio.wait_for(is_over.wait(), SWAP_EVERY_S)
        except TimeoutError:
            continue


def _note_memory(stage: Stage, samples: MemorySamples, seconds: float) -> None:
    warmup_s = min(WARMUP_S, seconds / 3)
    for role, slope in samples.slopes(warmup_s).items():
        control = stage.control.get(role)
        allowed = max(MAX_MIB_PER_MINUTE, MAX_TIMES_CONTROL * control.per_minute if control else 0.0)
        # In a short run the line says nothing yet.
        is_flat = slope.per_minute <= allowed or slope.least <= 0 or seconds < 4 * WARMUP_S
        beside = f", plain vLLM's {control.per_minute:+.2f}" if control else ""
        stage.findings.note(
            "load",
            f"memory of the {role}, after {warmup_s:.0f} s",
            f"{slope.per_minute:+.2f} MiB a minute (thirds: {slope.least:+.2f} to {slope.greatest:+.2f}), "
            f"{slope.first_mib:.0f} to {slope.last_mib:.0f} MiB{beside}",
            is_flat,
            slope=slope.as_dict(),
            samples_mib=[
                [round(at_s, 1), round(size / 2**20, 2)] for at_s, size in samples.by_role[role][::5]
            ],
        )


async def _note_leftovers(stage: Stage, resident: dict[str, str], num_bytes: float) -> None:
    left = await stage.idle()
    stage.findings.note(
        "load", "in flight afterwards", str(left or "nothing, here or in the engine"), left is None
    )
    after, bytes_after = await stage.resident(), await kept_bytes(stage)
    stage.findings.note(
        "load",
        "prefixes on the workers afterwards",
        f"{len(after)} ({bytes_after / 2**20:.1f} MiB), before {len(resident)} ({num_bytes / 2**20:.1f} MiB)",
        after.keys() == resident.keys() and "draining" not in after.values(),
        num_resident=len(after),
    )
