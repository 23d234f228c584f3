"""The same app behind uvicorn and real sockets: what becomes of headers, and of disconnects."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvicorn

from tests.server.stand import Stand


@pytest.fixture(params=["h11", "httptools"])
async def port(stand: Stand, request: Any) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(stand.app, http=request.param, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    await stand.until(lambda: server.started)
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving
    listener.close()


@pytest.fixture
async def connect(port: int) -> AsyncIterator[Callable[[], Any]]:
    """Open connections; all are closed at the end."""
    writers = []

    async def connect_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    yield connect_one
    for writer in writers:
        await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def ask(
    connect: Callable[[], Any], *header_lines: bytes, **body: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect()
    payload = json.dumps(body).encode()
    lines = [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: test",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(payload),
        *header_lines,
    ]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + payload)
    await writer.drain()
    return reader, writer


async def head_of(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(30):
        return (await reader.readuntil(b"\r\n\r\n")).decode().lower()


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Policy-Patch:"],
        [b"X-Policy-Patch:   "],
        [b"X-Policy-Patch: Pirate"],
        [b"X-Policy-Patch: pir\xc3\xa4te"],
        [b"X-Policy-Patch: \xff"],
        [b"X-Policy-Patch: pir\tate"],
        [b"X-Policy-Patch: pirate\x01"],
        [b"X-Policy-Patch: pirate", b"X-Policy-Patch: pirate"],
        [b"X-Policy-Patch: pirate", b"x-policy-patch: none"],
        [b"X-Policy-Patch: " + b"x" * 10_000],
        [b"X-Policy-Patch: pirate\r\n folded"],
    ],
)
async def test_a_bad_header_is_a_400_whoever_refuses_it(
    stand: Stand, connect: Any, lines: list[bytes]
) -> None:
    await stand.load()
    reader, _ = await ask(connect, *lines)
    assert (await head_of(reader)).startswith("http/1.1 400 ")
    assert stand.engine.decisions == []


@pytest.mark.parametrize("name", [b"X-Policy-Patch", b"x-policy-patch", b"X-POLICY-PATCH"])
async def test_a_good_header_is_read_in_any_case_and_with_space_around_it(
    stand: Stand, connect: Any, name: bytes
) -> None:
    patch = await stand.load()
    reader, _ = await ask(connect, name + b":  pirate \t ")
    head = await head_of(reader)
    assert head.startswith("http/1.1 200 ")
    assert "x-policy-patch: pirate@1.0.0\r\n" in head
    assert f"x-policy-patch-digest: {patch.digest}\r\n" in head


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_is_read_to_its_end_counts_as_ok(
    stand: Stand, connect: Any, is_stream: bool
) -> None:
    """Servers report a disconnect at the end of every exchange, which must not count as one."""
    await stand.load()
    reader, _ = await ask(connect, b"X-Policy-Patch: pirate", b"Connection: close", stream=is_stream)
    async with asyncio.timeout(30):
        text = (await reader.read()).decode()
    assert text.count("sha256:") == 4
    await stand.until(lambda: stand.in_flight() == 0)
    assert stand.value('policy_patch_requests_total{outcome="ok",patch="pirate"}') == 1


async def test_a_client_that_hangs_up_frees_its_patch(stand: Stand, connect: Any) -> None:
    await stand.load()
    stand.engine.may_go_on.clear()
    reader, writer = await ask(connect, b"X-Policy-Patch: pirate", stream=True)
    await head_of(reader)
    assert stand.in_flight() == 1
    await hang_up(writer)
    await stand.until(lambda: stand.in_flight() == 0)
    assert stand.engine.num_running == 0
    assert stand.value('policy_patch_requests_total{outcome="cancelled",patch="pirate"}') == 1
