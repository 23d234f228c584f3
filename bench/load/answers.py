"""Chat requests whose answers are read whole: as little work for the client as can be.

Nothing is stamped or parsed while a cell runs; the client shares the processor with the server.
"""

import asyncio
import gc
import json
import random
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.errors import CheckFailed, RequestFailed
from patches.headers import PATCH_HEADER


@dataclass(frozen=True)
class Chat:
    """One chat request."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    #: What the answer may name as its patch; ``None`` where it has to name nothing.
    patches: Collection[str | None] = (None,)


@dataclass(frozen=True)
class Answers:
    """What came back."""

    duration_s: float
    latencies_s: Sequence[float]
    #: Events of all streams; 0 where nothing was streamed.
    num_events: int


def chat_body(model: str, prompt: str, num_tokens: int, *, is_streamed: bool) -> bytes:
    """Return the JSON of a request whose answer has exactly so many tokens."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": num_tokens,
        "ignore_eos": True,
    }
    return json.dumps(body | ({"stream": True} if is_streamed else {})).encode()


async def ask_in_turn(session: aiohttp.ClientSession, chats: Sequence[Chat], *, concurrency: int) -> Answers:
    """Send all, ``concurrency`` at a time.

    Raises:
        BenchError: an answer was an error, or made under something else than was asked for.
    """
    waiting = iter(chats)
    found: list[tuple[float, int]] = []

    async def worker() -> None:
        for chat in waiting:
            found.append(await _ask(session, chat))

    started = time.perf_counter()
    await _together([worker() for _ in range(concurrency)])
    return _answers(started, found)


async def ask_at_rate(
    session: aiohttp.ClientSession, chats: Sequence[Chat], *, rate_per_s: float, seed: str
) -> Answers:
    """Send all at random times, ``rate_per_s`` on average, whatever is still unanswered.

    Raises:
        BenchError: as ``ask_in_turn``.
    """
    rng = random.Random(seed)
    found: list[tuple[float, int]] = []

    async def later(chat: Chat, due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        _, num_events = await _ask(session, chat)
        # From when it should have been sent: a client that is late hides no wait.
        found.append((time.perf_counter() - due_s, num_events))

    due_s = started = time.perf_counter()
    parts = []
    for chat in chats:
        parts.append(later(chat, due_s))
        due_s += rng.expovariate(rate_per_s)
    await _together(parts)
    return _answers(started, found)


async def _together(parts: Sequence[Awaitable[None]]) -> None:
    async def run(part: Awaitable[None]) -> None:
        await part

    # A collection in the client would show as a latency of the server.
    gc.collect()
    gc.disable()
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(run(part))
    except* (RequestFailed, CheckFailed) as failures:
        raise failures.exceptions[0] from None
    finally:
        gc.enable()


async def _ask(session: aiohttp.ClientSession, chat: Chat) -> tuple[float, int]:
    url, started = f"{chat.url}/v1/chat/completions", time.perf_counter()
    headers = {"Content-Type": "application/json", **chat.headers}
    try:
        async with session.post(url, data=chat.body, headers=headers) as response:
            read = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RequestFailed(f"{url}: {type(error).__name__}: {error}") from error
    if response.status != 200 or b'"error"' in read:
        raise RequestFailed(f"{url}: {response.status} {read[:300]!r}")
    named = response.headers.get(PATCH_HEADER)
    if named not in chat.patches:
        raise CheckFailed([f"{PATCH_HEADER}: expected one of {list(chat.patches)}, got {named}"])
    return time.perf_counter() - started, read.count(b"data: {")


def _answers(started_s: float, found: Sequence[tuple[float, int]]) -> Answers:
    return Answers(time.perf_counter() - started_s, [s for s, _ in found], sum(n for _, n in found))
