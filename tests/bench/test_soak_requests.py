"""How requests of a soak end, over HTTP: whatever a server does is an outcome, none is taken for another."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from bench.load.client import open_session
from bench.soak.load import Choice, Load, eventually
from bench.soak.references import Reference, References
from bench.soak.requests import FILLER, PROMPTS, Ask, send

IDS = [1, 2, 3]
Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Answer both routes with a handler; gives the URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
        app = web.Application()
        app.router.add_post("/v1/{route:.*}", handler)
        runners.append(web.AppRunner(app, shutdown_timeout=0.1))
        await runners[-1].setup()
        site = web.TCPSite(runners[-1], "127.0.0.1", 0)
        await site.start()
        port = runners[-1].addresses[0][1]
        return f"http://127.0.0.1:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


def event(fields: object) -> bytes:
    return b"data: " + (fields if isinstance(fields, bytes) else json.dumps(fields).encode()) + b"\n\n"


def tokens(ids: list[int]) -> bytes:
    return event({"choices": [{"token_ids": ids}]})


def test_text_in_place_of_a_patch_stands_in_front_of_the_prompt() -> None:
    assert Ask(0, None, False, 3, num_text_tokens=7).body()["prompt"] == FILLER * 7 + PROMPTS[0]
    system, user = Ask(2, None, False, 3, num_text_tokens=7).body()["messages"]
    assert (system["role"], system["content"]) == ("system", FILLER * 7)
    assert [user] == Ask(2, None, False, 3).body()["messages"]


#: what the server sends -> how the request ended
STREAMS = {
    "ok": (tokens([1, 2]), tokens([3]), event(b"[DONE]")),
    "event": (tokens([1]), event({"error": {"message": "withdrawn"}}), event(b"[DONE]")),
    "cut": (tokens([1, 2, 3]),),
    "malformed": (tokens([1, 2]), event(b"[DONE]")),
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_stream_ends_as_it_was_sent(serve: Serve, kind: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Policy-Patch-Digest": "sha256:a"})
        await response.prepare(request)
        for part in STREAMS[kind]:
            await response.write(part)
        return response

    async with open_session() as session:
        outcome = await send(session, await serve(answer), Ask(0, "p", True, 3))
    assert (outcome.kind, outcome.digest) == (kind, "sha256:a")
    assert outcome.is_ok is (kind == "ok")
    if kind == "ok":
        assert outcome.token_ids == IDS
        assert outcome.sent_s < outcome.first_s <= outcome.done_s


async def test_a_refusal_a_hang_and_a_server_that_is_gone_are_told_apart(serve: Serve) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body["max_tokens"] == 1:
            await asyncio.sleep(5)
        return web.json_response({"error": {"message": "no"}}, status=503)

    url = await serve(answer)
    async with open_session() as session:
        refused = await send(session, url, Ask(2, "p", False, 3))
        hung = await send(session, url, Ask(2, "p", False, 1), hang_s=0.2)
        gone = await send(session, "http://127.0.0.1:9", Ask(2, "p", False, 1))
    assert [o.kind for o in (refused, hung, gone)] == ["status", "hung", "unreachable"]
    assert refused.detail.startswith("503")


async def test_a_load_finds_the_answer_that_is_anothers(serve: Serve) -> None:
    """The header names one content and the tokens are those of another: what a mixture looks like."""
    num_asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal num_asked
        num_asked += 1
        ids = [4, 5, 6] if num_asked == 10 else IDS
        headers = {"X-Policy-Patch-Digest": "sha256:a"}
        if (await request.json())["stream"]:
            return web.Response(body=tokens(ids) + event(b"[DONE]"), headers=headers)
        return web.json_response({"choices": [{"token_ids": ids}]}, headers=headers)

    answers = {("sha256:a", i): Reference((1, 2, 3), (7, 7, 7), (1.0, 1.0, 1.0)) for i in range(4)}
    url = await serve(answer)
    async with open_session() as session:
        load = Load(session, url, References(3, answers), [Choice("p", "sha256:a")], concurrency=4)
        async with load:

            async def is_enough() -> bool:
                return load.tally.num_ok >= 20

            assert await eventually(is_enough, 10, 0.01) is not None
    assert load.tally.num_wrong == 1
    assert load.tally.num_failed == 0
    assert load.tally.examples == ["p answered as sha256:a: other answer"]
    assert 0 < load.tally.num_streams < load.tally.num_ok
