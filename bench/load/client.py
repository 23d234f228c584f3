"""The load generator: streamed completions over HTTP, timed where the bytes arrive.

While a cell runs, an event of a stream is only stamped and kept; JSON is parsed after the last answer, so
that the client takes as little as possible of the processor that it shares with the server.
"""

import asyncio
import gc
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.errors import RequestFailed
from bench.load.timing import RequestTrace

#: A server is this machine's unless a URL was given, so a request that takes longer has failed.
REQUEST_TIMEOUT_S = 600.0
#: An idle connection is closed here before vLLM's servers close it, after 5 s: a request that is sent into
#: their close is lost, and would count as one that the server has failed.
KEEP_ALIVE_S = 2.0
MAX_EVENT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    """One completion to ask for."""

    url: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One complete, well-formed streamed answer."""

    trace: RequestTrace
    headers: Mapping[str, str]
    #: Text of each stream event that carried tokens, one for each of the trace's token times.
    pieces: tuple[str, ...]
    finish_reason: str | None
    num_prompt_tokens: int
    #: Prompt tokens that the server took from its prefix cache; 0 where it does not say.
    num_cached_tokens: int


@dataclass
class _RawStream:
    sent_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    events: list[tuple[float, bytes]] = field(default_factory=list)
    done_s: float = 0.0


def open_session() -> aiohttp.ClientSession:
    """Open a session with as many connections as requests in flight, past any proxy of the environment."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
        trust_env=False,
    )


async def send_closed_loop(
    session: aiohttp.ClientSession, requests: Sequence[Request], *, concurrency: int
) -> list[Reply]:
    """Send the requests in order with ``concurrency`` always in flight until they run out.

    Raises:
        RequestFailed: any answer was an error, cut off or malformed; the others are cancelled.
    """
    waiting = iter(enumerate(requests))
    streams: dict[int, _RawStream] = {}

    async def worker() -> None:
        for index, request in waiting:
            streams[index] = await _stream(session, request)

    # A collection in the client would show as latency of the server.
    gc.collect()
    gc.disable()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(requests))):
                group.create_task(worker())
    except* RequestFailed as failures:
        raise failures.exceptions[0] from None
    finally:
        gc.enable()
    return [_decode(streams[index]) for index in range(len(requests))]


async def send_open_loop(
    session: aiohttp.ClientSession, requests: Sequence[Request], *, rate_per_s: float, seed: str
) -> list[Reply]:
    """Send the requests at random times that do not wait for answers, ``rate_per_s`` of them on average.

    Who waits for an answer before asking again hides how long a queue gets; arrivals that go on show it.

    Raises:
        RequestFailed: any answer was an error, cut off or malformed; the others are cancelled.
    """
    rng = random.Random(seed)
    streams: dict[int, _RawStream] = {}

    async def send(index: int, request: Request) -> None:
        streams[index] = await _stream(session, request)

    gc.collect()
    gc.disable()
    due_s = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(requests):
                group.create_task(send(index, request))
                due_s += rng.expovariate(rate_per_s)
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
    except* RequestFailed as failures:
        raise failures.exceptions[0] from None
    finally:
        gc.enable()
    return [_decode(streams[index]) for index in range(len(requests))]


async def send_one(session: aiohttp.ClientSession, request: Request) -> Reply:
    """Send one request.

    Raises:
        RequestFailed: the answer was an error, cut off or malformed.
    """
    return _decode(await _stream(session, request))


async def call_json(
    session: aiohttp.ClientSession, method: str, url: str, body: Mapping[str, Any] | None = None
) -> Any:
    """Call an endpoint that answers in JSON.

    Raises:
        RequestFailed: no answer, a status other than 200, or no JSON.
    """
    try:
        async with session.request(method, url, json=body) as response:
            if response.status != 200:
                raise RequestFailed(f"{method} {url}: {response.status} {(await response.text())[:300]}")
            return await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RequestFailed(f"{method} {url}: {type(error).__name__}: {error}") from error


async def _stream(session: aiohttp.ClientSession, request: Request) -> _RawStream:
    payload = json.dumps(request.body).encode()
    headers = {"Content-Type": "application/json", **request.headers}
    stream = _RawStream(sent_s=time.perf_counter())
    try:
        async with session.post(request.url, data=payload, headers=headers) as response:
            if response.status != 200:
                raise RequestFailed(f"{request.url}: {response.status} {(await response.text())[:300]}")
            stream.headers = response.headers
            await _collect_events(response.content, stream)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RequestFailed(f"{request.url}: {type(error).__name__}: {error}") from error
    stream.done_s = time.perf_counter()
    return stream


async def _collect_events(content: aiohttp.StreamReader, stream: _RawStream) -> None:
    """Stamp each server-sent event on arrival; events that arrive together carry the same time."""
    buffer = b""
    async for chunk in content.iter_any():
        now = time.perf_counter()
        *events, buffer = (buffer + chunk).split(b"\n\n")
        stream.events.extend((now, event) for event in events)
        if len(buffer) > MAX_EVENT_BYTES:
            raise RequestFailed(f"stream event: expected at most {MAX_EVENT_BYTES} bytes, got more")


def _decode(stream: _RawStream) -> Reply:
    token_times: list[float] = []
    pieces: list[str] = []
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    is_done = False
    for arrival_s, event in stream.events:
        data = event.removeprefix(b"data: ")
        if data == b"[DONE]":
            is_done = True
            continue
        fields = _event_fields(data)
        usage = fields.get("usage") or usage
        for choice in fields.get("choices", ()):
            token_times.append(arrival_s)
            pieces.append(choice.get("text") or "")
            finish_reason = choice.get("finish_reason") or finish_reason
    if not is_done or usage is None or not token_times:
        raise RequestFailed(
            f"stream: expected tokens, usage and [DONE], got {len(token_times)} token events, "
            f"{'a' if usage else 'no'} usage and {'a' if is_done else 'no'} [DONE]"
        )
    return Reply(
        trace=RequestTrace(stream.sent_s, tuple(token_times), stream.done_s, int(usage["completion_tokens"])),
        headers=stream.headers,
        pieces=tuple(pieces),
        finish_reason=finish_reason,
        num_prompt_tokens=int(usage["prompt_tokens"]),
        num_cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
    )


def _event_fields(data: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise RequestFailed(f"stream event: expected JSON, got {data[:80]!r}") from error
    if not isinstance(fields, dict) or "error" in fields:
        raise RequestFailed(f"stream event: {data[:300]!r}")
    return fields
