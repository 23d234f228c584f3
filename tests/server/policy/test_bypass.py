"""Ways around a policy, sent to the real app: none may work.

The engine answers with the digest of the patch that it was asked to use; so what got through is what the
engine was asked for, whatever the answer says.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn

from server.policy.file import parse_policy
from tests.attacks.attempt import COMPOSED, KEY, PLAIN, POLICY, Attempt
from tests.attacks.bypass_attempts import ATTEMPTS, GROUPS
from tests.attacks.bypass_sender import send_raw
from tests.server.stand import Stand

#: What only this app has: routes that ask the engine although the table of routes does not know that they do.
OF_THIS_APP = (
    Attempt("invocations", None, path="/invocations"),
    Attempt("invocations, opting out", None, "none", path="/invocations"),
    Attempt("a route that nobody listed", "safety", path="/v1/unlisted"),
    Attempt("a route that nobody listed, opting out", None, "none", path="/v1/unlisted"),
    Attempt("a route that nobody listed, a patch", None, "pirate", path="/v1/unlisted"),
    Attempt("generating by GET", None, "none", path="/v1/by-get", method="GET"),
    Attempt("responses, naming nothing", "safety", path="/v1/responses"),
    Attempt("from an address called unix", None, "sailor", headers=(("X-Tenant", "acme"),), peer="unix"),
)


@pytest.fixture
async def patches(stand: Stand) -> dict[str, str]:
    """Load what is there to be reached; gives digest -> name."""
    plain = {name: await stand.load(*name.split("@"), fill=float(index)) for index, name in enumerate(PLAIN)}
    for index, (name, parts) in enumerate(COMPOSED.items()):
        components = [
            {"name": plain[p].name, "version": plain[p].version, "digest": plain[p].digest} for p in parts
        ]
        origin = {"method": "compose", "components": components}
        plain[name] = await stand.load(name, origin=origin, fill=30.0 + index)
    stand.decider.policy = parse_policy(POLICY.encode())
    return {patch.digest: name for name, patch in plain.items()}


@pytest.fixture(autouse=True)
def routes(stand: Stand) -> None:
    async def generate() -> Any:
        return {"tokens": [token async for token in stand.engine.generate()]}

    async def by_get() -> Any:
        return {"tokens": [token async for token in stand.engine.generate()]}

    stand.app.add_api_route("/v1/unlisted", generate, methods=["POST"])
    stand.app.add_api_route("/v1/by-get", by_get, methods=["GET"])


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


async def send(stand: Stand, attempt: Attempt, patches: dict[str, str]) -> httpx.Response:
    digests = {name: digest for digest, name in patches.items()}
    headers = [(b"Content-Type", b"application/json"), *attempt.headers]
    if attempt.header is not None:
        headers.append((b"X-Policy-Patch", attempt.with_digests(attempt.header, digests)))
    raw = [(as_bytes(name), as_bytes(value)) for name, value in headers]
    transport = httpx.ASGITransport(stand.app, raise_app_exceptions=False, client=(attempt.peer, 4711))
    model = attempt.with_digests(attempt.model, digests)
    body = json.dumps({"model": model, **attempt.body}).encode()
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(attempt.method, attempt.path, headers=raw, content=body)


async def outcome(
    stand: Stand, patches: dict[str, str], attempt: Attempt, port: int | None = None
) -> str | None:
    """Tell which patch the engine was asked for; ``None`` where the attempt was refused, as it has to be."""
    stand.engine.decisions.clear()
    if port is None:
        response = await send(stand, attempt, patches)
        status, text = response.status_code, response.text
    else:
        digests = {name: digest for digest, name in patches.items()}
        body = {"model": attempt.with_digests(attempt.model, digests)}
        reply = await asyncio.to_thread(send_raw, attempt, port, body, digests)
        status, text = reply.status, reply.text
    if attempt.path == "/v1/responses" and status == 200:
        await stand.app.state.background
    reached = [patches[d.patch.digest] if d.patch else "the base model" for d in stand.engine.decisions]
    if reached:
        return ", ".join(name.removesuffix("@1.0.0") for name in reached) + f" ({status})"
    is_refusal = status >= 300 and not {"tokens", "embedding"} & set(text.split('"'))
    return None if is_refusal else f"{status} {text[:80]}"


@pytest.mark.parametrize("group", [*GROUPS, "this app"])
async def test_no_attempt_gets_through(stand: Stand, patches: dict[str, str], group: str) -> None:
    """An attempt that is no breach is answered by the one patch that may."""
    attempts = GROUPS.get(group, OF_THIS_APP)
    outcomes = {attempt.what: await outcome(stand, patches, attempt) for attempt in attempts}
    expected = {attempt.what: attempt.answer and f"{attempt.answer} (200)" for attempt in attempts}
    assert outcomes == expected


@contextlib.asynccontextmanager
async def served(stand: Stand, parser: str, **options: Any) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(stand.app, http=parser, ws="none", lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    await stand.until(lambda: server.started)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


@pytest.mark.parametrize("parser", ["h11", "httptools"])
async def test_no_attempt_gets_through_as_bytes_on_a_socket(
    stand: Stand, patches: dict[str, str], parser: str
) -> None:
    async with served(stand, parser, proxy_headers=False) as port:
        outcomes = {one.what: await outcome(stand, patches, one, port) for one in ATTEMPTS}
    assert outcomes == {one.what: one.answer and f"{one.answer} (200)" for one in ATTEMPTS}


async def test_a_server_that_believed_forwarded_addresses_would_let_some_through(
    stand: Stand, patches: dict[str, str]
) -> None:
    """What uvicorn does by itself; so the attempts with forged addresses are real ones."""
    async with served(stand, "h11") as port:
        outcomes = [await outcome(stand, patches, one, port) for one in GROUPS["somebody else's tenant"]]
    expected = [one.answer and f"{one.answer} (200)" for one in GROUPS["somebody else's tenant"]]
    assert "safety.sailor (200)" in [
        got for got, wanted in zip(outcomes, expected, strict=True) if got != wanted
    ]


def test_there_are_enough_attempts() -> None:
    assert len({attempt.what for attempt in ATTEMPTS}) == len(ATTEMPTS)
    assert sum(attempt.answer is None for attempt in ATTEMPTS) >= 200


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        (Attempt("a listed key", header="sailor", headers=(KEY,)), "safety.sailor"),
        (Attempt("an alias", model="demo:pirate"), "safety.pirate"),
        (Attempt("anybody", header="pirate"), "safety.pirate"),
    ],
    ids=lambda value: getattr(value, "what", ""),
)
async def test_what_is_allowed_is_had(
    stand: Stand, patches: dict[str, str], attempt: Attempt, answer: str
) -> None:
    response = await send(stand, attempt, patches)
    assert response.status_code == 200
    assert response.headers["x-policy-patch"].partition("@")[0] == answer
