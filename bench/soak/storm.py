"""Swap storms: one name gets another meaning many times a second while requests ask for it.

*By calls*: ``POST /v1/patches/hot/activate``, paced, several at a time where one takes longer than the pace.
*By files*: one file of the folder gets another content by a rename.

An answer has to be that of the content which its header names, and that content must have been what the name
meant at some moment between sending and the answer's headers: ``SwapLog.is_possible``.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.load.exposition import metric, read_metrics
from bench.load.timing import quantile
from bench.soak.contents import Content
from bench.soak.load import Tally
from bench.soak.requests import Ask, Outcome, send
from bench.soak.server import call_admin
from bench.soak.stage import FILE, HOT, Stage

#: Clients that ask for one token of the swapped name without a pause, beside the load.
NUM_PROBES = 4
#: Calls in flight at most.
NUM_CALLERS = 64
#: When that was swapped in which the storm found.
ALWAYS_S = float("-inf")
#: How much of the wanted rate has to be reached.
MIN_SHARE_OF_RATE = 0.95


@dataclass
class Swap:
    """One swap; ``done_s`` is when it was confirmed, ``None`` for a rename, which is not confirmed."""

    digest: str
    started_s: float
    done_s: float | None = None


@dataclass
class SwapLog:
    """What was swapped when, and which answers saw it."""

    swaps: list[Swap] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    num_refused: int = 0

    def is_possible(self, outcome: Outcome) -> bool:
        """Return whether the name may have meant the content of this answer when its request was decided.

        It can't where every swap to that content was surely followed by another one that was confirmed before
        the request was sent, or began only after the answer's headers.
        """
        latest_s = max(
            (s.started_s for s in self.swaps if s.done_s is not None and s.done_s <= outcome.sent_s),
            default=float("-inf"),
        )
        return any(
            swap.started_s <= outcome.headers_s and (swap.done_s is None or swap.done_s >= latest_s)
            for swap in self.swaps
            if swap.digest == outcome.digest
        )

    def first_answers_s(self) -> list[float]:
        """For each swap that a request was decided under: seconds from the call to the first such token.

        A request belongs to the latest swap to its content that began before it was sent, or before its
        headers came. Contents come round again after seconds, so that the two rarely differ.
        """
        by_digest: dict[str, list[Swap]] = {}
        for swap in self.swaps:
            by_digest.setdefault(swap.digest, []).append(swap)
        first: dict[int, float] = {}
        for outcome in self.outcomes:
            if not outcome.is_ok or outcome.digest not in by_digest:
                continue
            begun = [s for s in by_digest[outcome.digest] if s.started_s <= outcome.headers_s]
            if begun and begun[-1].started_s != ALWAYS_S:
                key = id(begun[-1])
                taken_s = outcome.first_s - begun[-1].started_s
                first[key] = min(first.get(key, taken_s), taken_s)
        return list(first.values())


async def storm_by_calls(stage: Stage, *, seconds: float, rate_per_s: float) -> None:
    """Activate one content after the other at this rate, under load, and note what came of it."""
    log = SwapLog()
    hot = stage.contents[HOT]
    await stage.activate(hot[0])
    log.swaps.append(Swap(hot[0].digest, ALWAYS_S, ALWAYS_S))
    calls_s: list[float] = []
    callers = asyncio.Semaphore(NUM_CALLERS)

    async def call(content: Content) -> None:
        async with callers:
            swap = Swap(content.digest, time.perf_counter())
            log.swaps.append(swap)
            body = {"version": content.digest}
            answer = await call_admin(stage.session, stage.server, "POST", f"{HOT}/activate", body=body)
            swap.done_s = time.perf_counter() if answer.is_ok else None
            log.num_refused += not answer.is_ok
            calls_s.append(answer.done_s - answer.started_s)

    async def swap_for(duration_s: float) -> float:
        started_s = time.perf_counter()
        pending: set[asyncio.Task[None]] = set()
        index = 0
        while (now_s := time.perf_counter()) < started_s + duration_s:
            await asyncio.sleep(max(0.0, started_s + index / rate_per_s - now_s))
            # Waits where the callers are busy: a rate that the server can't take is not queued up.
            async with callers:
                pass
            index += 1
            task = asyncio.create_task(call(hot[index % len(hot)]))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)
        return len(calls_s) / (time.perf_counter() - started_s)

    tally, rate = await _under_load(stage, HOT, log, swap_for(seconds))
    _note(stage, "swaps by calls", log, tally, rate, rate_per_s, seconds, calls_s)


async def storm_by_files(stage: Stage, *, seconds: float, rate_per_s: float) -> None:
    """Rename one content after the other over one file at this rate, under load."""
    log = SwapLog()
    contents = stage.contents[FILE]
    name = f"{FILE}.safetensors"
    stage.server.install(contents[0], name)
    await stage.settle(contents[0])
    log.swaps.append(Swap(contents[0].digest, ALWAYS_S))
    before = _num_activations(stage)

    async def swap_for(duration_s: float) -> float:
        started_s = time.perf_counter()
        index = 0
        while (now_s := time.perf_counter()) < started_s + duration_s:
            await asyncio.sleep(max(0.0, started_s + index / rate_per_s - now_s))
            index += 1
            content = contents[index % len(contents)]
            log.swaps.append(Swap(content.digest, time.perf_counter()))
            await asyncio.to_thread(stage.server.install, content, name)
        took_s = time.perf_counter() - started_s
        await stage.settle(contents[index % len(contents)])
        return (len(log.swaps) - 1) / took_s

    tally, rate = await _under_load(stage, FILE, log, swap_for(seconds))
    taken = (_num_activations(stage) - before) / seconds
    _note(stage, "swaps by files", log, tally, rate, rate_per_s, seconds, [], num_taken_per_s=round(taken, 2))


async def _under_load(stage: Stage, name: str, log: SwapLog, swapping: Any) -> tuple[Tally, float]:
    """Swap while clients ask; gives what came of their requests, and the rate of the swaps."""

    def seen(outcome: Outcome) -> None:
        if outcome.ask.patch == name:
            log.outcomes.append(outcome)

    probe_tally = Tally()

    async def probe(is_over: asyncio.Event, index: int) -> None:
        while not is_over.is_set():
            outcome = await send(stage.session, stage.url, Ask(index % 2, name, True, 1))
            probe_tally.note(outcome, stage.references.judge(outcome) if outcome.is_ok else "")
            seen(outcome)

    is_over = asyncio.Event()
    load = stage.load(name, seen=seen)
    async with load:
        probes = [asyncio.create_task(probe(is_over, i)) for i in range(NUM_PROBES)]
        try:
            rate = await swapping
        finally:
            is_over.set()
            await asyncio.gather(*probes)
    total = load.tally
    for kind, count in probe_tally.kinds.items():
        total.kinds[kind] += count
    total.num_ok += probe_tally.num_ok
    total.num_wrong += probe_tally.num_wrong
    total.num_ties += probe_tally.num_ties
    total.examples += probe_tally.examples
    return total, rate


def _note(
    stage: Stage,
    part: str,
    log: SwapLog,
    tally: Tally,
    rate: float,
    wanted_rate: float,
    seconds: float,
    calls_s: Sequence[float],
    **facts: Any,
) -> None:
    stale = [o for o in log.outcomes if o.is_ok and not log.is_possible(o)]
    first = log.first_answers_s()
    figures = {
        "num_swaps": len(log.swaps) - 1,
        "offered_per_s": round(rate, 2),
        "wanted_per_s": wanted_rate,
        "duration_s": seconds,
        "num_refused_calls": log.num_refused,
        "num_stale": len(stale),
        "num_swaps_answered": len(first),
        "first_answer_p50_s": _quantile(first, 0.5),
        "first_answer_p99_s": _quantile(first, 0.99),
        "call_p50_s": _quantile(calls_s, 0.5),
        "call_p99_s": _quantile(calls_s, 0.99),
        **facts,
    }
    taken = f", {facts['num_taken_per_s']:g} a second taken" if "num_taken_per_s" in facts else ""
    what = f"{wanted_rate:g} a second for {seconds:g} s under {stage.concurrency} streams"
    seen = (
        f"{rate:.1f} swaps a second{taken}, {tally.num_ok} answers: {tally.num_failed} failed, "
        f"{tally.num_wrong} mixed, {len(stale)} stale, {log.num_refused} calls refused"
    )
    is_ok = not (tally.num_failed or tally.num_wrong or stale or log.num_refused) and tally.num_ok > 0
    # Seconds of a short form say nothing about a rate.
    is_ok = is_ok and (stage.is_short or rate >= MIN_SHARE_OF_RATE * wanted_rate)
    stage.findings.note(part, what, seen, is_ok, **figures, load=tally.as_dict())
    if first:
        stage.findings.note(
            part,
            "from a swap to the first token under it",
            f"p50 {quantile(first, 0.5):.2f} s, p99 {quantile(first, 0.99):.2f} s over {len(first)} swaps; "
            + (f"the call itself p99 {quantile(calls_s, 0.99):.2f} s; " if calls_s else "")
            + f"a first token under this load p99 {tally.as_dict()['first_token_p99_s']} s",
            True,
            **figures,
        )


def _quantile(samples: Sequence[float], q: float) -> float | None:
    return round(quantile(samples, q), 4) if samples else None


def _num_activations(stage: Stage) -> int:
    """Count how often files gave the name another meaning, as the audit log has it."""
    lines = stage.server.audit_log.read_text(encoding="utf-8").splitlines()
    events = (json.loads(line) for line in lines if '"folder.activate"' in line)
    return sum(event.get("wish") == FILE for event in events)


async def kept_bytes(stage: Stage) -> float:
    """Return the bytes that all prefixes take, versions kept for a rollback included."""
    return metric(await read_metrics(stage.session, stage.url), "policy_patch_resident_bytes")
