"""The load generator against a stand-in: timing, order, and streams that are not whole."""

import asyncio
import time

import aiohttp
import pytest
from aiohttp import web

from bench.errors import RequestFailed
from bench.load.arms import ARMS, Question
from bench.load.client import Request, call_json, open_session, send_closed_loop, send_one
from bench.servers.fake import FakeServer

IDS = list(range(100, 200))


def question(url: str, num_output_tokens: int = 5) -> Question:
    return Question(
        {"plain": url, "ours": url}, {"plain": "fake", "ours": "fake"}, "p", (7,), num_output_tokens
    )


def request(url: str, num_output_tokens: int = 5) -> Request:
    return question(url, num_output_tokens).request(ARMS["plain"], IDS, salt="s")


async def test_answer_holds_every_token_with_its_time(serve, session) -> None:
    url = await serve(FakeServer(token_delay_s=0.02))
    reply = await send_one(session, request(url))
    assert len(reply.pieces) == len(reply.trace.token_times_s) == reply.trace.num_output_tokens == 5
    assert reply.finish_reason == "length"
    assert reply.num_prompt_tokens == 100
    times = [reply.trace.sent_s, *reply.trace.token_times_s, reply.trace.done_s]
    assert times == sorted(times)
    assert reply.trace.token_times_s[0] - reply.trace.sent_s >= 0.02


async def test_tokens_found_in_the_prefix_cache_are_reported(serve, session) -> None:
    url = await serve(FakeServer(block_size=32))
    first = await send_one(session, request(url))
    second = await send_one(session, request(url))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 96)


async def test_closed_loop_answers_in_order_and_never_exceeds_its_concurrency(session, serve) -> None:
    in_flight, most = 0, 0

    async def answer(http_request: web.Request) -> web.Response:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        number = (await http_request.json())["number"]
        await asyncio.sleep(0.02 if number % 2 else 0.001)
        in_flight -= 1
        usage = f'{{"choices": [], "usage": {{"prompt_tokens": {number}, "completion_tokens": 1}}}}'
        return web.Response(
            text=f'data: {{"choices": [{{"text": "x"}}]}}\n\ndata: {usage}\n\ndata: [DONE]\n\n'
        )

    class Numbers(FakeServer):
        def app(self) -> web.Application:
            app = web.Application()
            app.router.add_post("/", answer)
            return app

    url = await serve(Numbers())
    requests = [Request(f"{url}/", {"number": number}) for number in range(12)]
    replies = await send_closed_loop(session, requests, concurrency=3)
    assert [reply.num_prompt_tokens for reply in replies] == list(range(12))
    assert most == 3


@pytest.mark.parametrize("fault", ["cut_off", "error_in_stream"])
async def test_stream_that_is_not_complete_fails(serve, session, fault: str) -> None:
    url = await serve(FakeServer(fault=fault))
    with pytest.raises(RequestFailed, match=r"out of luck|no \[DONE\]"):
        await send_one(session, request(url))


async def test_error_status_fails_with_the_servers_words(serve, session) -> None:
    url = await serve(FakeServer())
    bad = Request(request(url).url, request(url).body, {"X-Policy-Patch": "nobody"})
    with pytest.raises(RequestFailed, match=r"404.*no patch 'nobody'"):
        await send_closed_loop(session, [request(url), bad, request(url)], concurrency=2)


async def test_one_failure_ends_the_loop_at_once(serve, session) -> None:
    url = await serve(FakeServer(token_delay_s=4))
    bad = Request(request(url).url, request(url).body, {"X-Policy-Patch": "nobody"})
    started = time.perf_counter()
    with pytest.raises(RequestFailed):
        await send_closed_loop(session, [request(url), bad], concurrency=2)
    assert time.perf_counter() - started < 3.5


async def test_server_that_is_not_there_fails(session: aiohttp.ClientSession) -> None:
    with pytest.raises(RequestFailed, match="ClientConnectorError"):
        await send_one(session, request("http://127.0.0.1:1"))
    with pytest.raises(RequestFailed, match="GET"):
        await call_json(session, "GET", "http://127.0.0.1:1/v1/models")


@pytest.mark.parametrize(
    "body",
    ["data: {\n\n", "data: []\n\n", "data: [DONE]\n\n", ""],
    ids=["broken", "list", "empty", "nothing"],
)
async def test_malformed_stream_fails(serve, session, body: str) -> None:
    class Broken(FakeServer):
        def app(self) -> web.Application:
            async def answer(_: web.Request) -> web.Response:
                return web.Response(text=body)

            app = web.Application()
            app.router.add_post("/v1/completions", answer)
            return app

    url = await serve(Broken())
    with pytest.raises(RequestFailed, match="stream"):
        await send_one(session, request(url))


async def test_a_connection_that_idled_is_not_used_again(serve, monkeypatch) -> None:
    """Its server may be closing it just then."""
    peers: list[object] = []

    async def answer(http_request: web.Request) -> web.Response:
        peers.append(http_request.transport)
        return web.Response()

    class Server:
        def app(self) -> web.Application:
            app = web.Application()
            app.router.add_get("/", answer)
            return app

    url = await serve(Server())
    monkeypatch.setattr("bench.load.client.KEEP_ALIVE_S", 0.2)
    async with open_session() as session:
        for idle_s in (0.0, 1.0, 0.0):
            async with session.get(url) as response:
                await response.read()
            await asyncio.sleep(idle_s)
    assert peers[0] is peers[1] is not peers[2]
