"""A folder, a catalog, a gate and a real app around an engine that answers with its digest."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest

from patches.format import encode_patch
from patches.manifest import BaseModel, Manifest
from server.app import install
from server.catalog.catalog import Catalog
from server.memory.residency import NullResidency, ResidencyError
from server.metrics.patches import PatchMetrics
from server.policy.rules import OPEN_POLICY, Policy
from server.request.gate import PatchGate
from server.versions.selection import Selection

SERVED_NAME = "demo"
MAX_NUM_TOKENS = 64

BASE_MODEL = BaseModel(
    architecture="LlamaForCausalLM",
    num_layers=1,
    num_kv_heads=1,
    head_size=2,
    hidden_size=4,
    rope={"rope_theta": 10000, "rope_type": "default"},
    dtype="float32",
    tokenizer_digest="sha256:" + "a" * 64,
    weights_digest="sha256:" + "b" * 64,
)


def patch_bytes(
    name: str = "pirate",
    version: str = "1.0.0",
    *,
    fill: float = 0.0,
    num_tokens: int = 2,
    origin: dict[str, Any] | None = None,
    base_model: BaseModel = BASE_MODEL,
    has_kv: bool = True,
    **notes: str,
) -> bytes:
    """Make the bytes of a small valid patch file; another ``fill`` gives another digest."""
    manifest = Manifest(
        1, "prefix", name, version, base_model, num_tokens, origin or {"method": "text"}, **notes
    )
    embeddings = torch.full((num_tokens, 4), fill)
    dtype = getattr(torch, base_model.dtype)
    kv = torch.full((1, 2, num_tokens, 1, 2), fill, dtype=dtype) if has_kv else None
    return encode_patch(manifest, embeddings, kv)


def put(folder: Path, name: str = "pirate", version: str = "1.0.0", **parts: Any) -> Path:
    """Rename a patch file into ``folder``, as a careful writer does."""
    path = folder / f"{name}-{version}.safetensors"
    temporary = folder / f".{path.name}.tmp"
    temporary.write_bytes(patch_bytes(name, version, **parts))
    temporary.rename(path)
    return path


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        await asyncio.sleep(0.005)


class ScriptedResidency(NullResidency):
    """Counts calls; refuses or waits where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.refusals = 0
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.may_unload = asyncio.Event()
        self.may_unload.set()

    async def load(self, digest: str, kv: torch.Tensor, *, name: str, path: Path) -> int:
        self.calls.append(("load", digest))
        await self.may_load.wait()
        if self.refusals:
            self.refusals -= 1
            raise ResidencyError("worker 1 says no")
        return await super().load(digest, kv, name=name, path=path)

    async def unload(self, digest: str) -> None:
        self.calls.append(("unload", digest))
        await self.may_unload.wait()
        await super().unload(digest)


@dataclass
class FakeEngine:
    """Answers with tokens that name the content it was asked to use."""

    gate: PatchGate
    residency: ScriptedResidency
    num_tokens: int = 3
    #: Generations wait here before their first token, and here after it.
    may_start: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    #: Raise this after that many tokens.
    fails_after: int | None = None
    failure: Exception = field(default_factory=lambda: RuntimeError("the engine broke"))
    num_running: int = 0
    #: Every decision that a generation got.
    decisions: list[Selection] = field(default_factory=list)

    def generate(self) -> AsyncIterator[str]:
        """As the real client: refuses when called, not when iterated."""
        selection = self.gate.selection()
        self.decisions.append(selection)
        return self._tokens(selection)

    async def _tokens(self, selection: Selection) -> AsyncIterator[str]:
        patch = selection.patch
        if patch is None:
            async for token in self._run("base", ()):
                yield token
            return
        with self.gate.lease(patch) as lease:
            await lease.ready()
            async with contextlib.aclosing(self._run(patch.digest, patch.parts)) as outputs:
                while (token := await lease.take(outputs)) is not None:
                    lease.tokens(1)
                    yield token

    async def _run(self, text: str, parts: Sequence[Any]) -> AsyncGenerator[str, None]:
        """As the engine: one token after another, until it is told to stop."""
        self.num_running += 1
        try:
            for index in range(self.num_tokens):
                held = all(part.digest in self.residency.resident for part in parts)
                assert held, "the prefix was dropped"
                if index == self.fails_after:
                    raise self.failure
                if index < 2:
                    await (self.may_go_on if index else self.may_start).wait()
                yield text
        finally:
            self.num_running -= 1


async def events(tokens: AsyncIterator[str]) -> AsyncIterator[str]:
    """As vLLM's streams do, turn an exception into a chunk."""
    try:
        async for token in tokens:
            yield f"data: {token}\n\n"
    except Exception as error:
        yield f"data: {json.dumps({'error': str(error)})}\n\n"
    yield "data: [DONE]\n\n"


def add_generating_routes(app: FastAPI, engine: FakeEngine) -> None:
    """Add routes that ask the engine as vLLM's do."""

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        model = body.get("model", SERVED_NAME)
        if model != SERVED_NAME and not engine.gate.note_alias(model):
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        if body.get("breaks"):
            raise RuntimeError("a bug in the route")
        if body.get("ignores_patch"):
            return {"text": "base"}
        tokens = engine.generate()
        if body.get("stream"):
            return StreamingResponse(events(tokens), media_type="text/event-stream")
        return {"tokens": [token async for token in tokens]}

    @app.post("/v1/responses")
    async def responses() -> Any:
        tokens = engine.generate()

        async def run() -> list[str]:
            return [token async for token in tokens]

        app.state.background = asyncio.create_task(run())
        return {"status": "queued"}


def add_other_routes(app: FastAPI, engine: FakeEngine) -> None:
    """Add routes that never generate."""

    @app.post("/v1/embeddings")
    @app.post("/v1/completions/render")
    async def embed(request: Request) -> Any:
        body = await request.json()
        if "model" in body:
            engine.gate.note_alias(body["model"])
        return {"embedding": [0.0]}

    @app.post("/invocations")
    async def invocations() -> Any:
        engine.gate.refuse_if_patched("pooling")
        return {"embedding": [0.0]}

    @app.post("/v1/messages")
    async def messages(request: Request) -> Any:
        # As vLLM's handlers: one that waits for the client to go gives up and returns nothing.
        await request.body()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return None

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel(response_id: str) -> Any:
        return {"id": response_id}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": []}


@dataclass
class Stand:
    """Everything that a test needs, wired as ``server.engine.launch`` does it."""

    folder: Path
    registry: CollectorRegistry
    metrics: PatchMetrics
    residency: ScriptedResidency
    catalog: Catalog
    gate: PatchGate
    engine: FakeEngine
    app: FastAPI
    client: httpx.AsyncClient

    async def load(self, name: str = "pirate", version: str = "1.0.0", **parts: Any) -> Any:
        """Put a file into the folder and load it without a watcher."""
        return await self.catalog.load_file(put(self.folder, name, version, **parts))

    async def chat(self, header: str | bytes | None = None, **body: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", header, **body)

    async def post(self, path: str, header: str | bytes | None = None, **body: Any) -> httpx.Response:
        headers = {} if header is None else {"X-Policy-Patch": header}
        return await self.client.post(path, headers=headers, json=body)

    def bytes(self, name: str = "pirate", version: str = "1.0.0", **parts: Any) -> bytes:
        return patch_bytes(name, version, **parts)

    def put(self, name: str = "pirate", version: str = "1.0.0", **parts: Any) -> Path:
        return put(self.folder, name, version, **parts)

    def other_model(self, **changes: Any) -> BaseModel:
        return replace(BASE_MODEL, **changes)

    async def until(self, condition: Callable[[], Any]) -> None:
        await until(condition)

    def code(self, response: httpx.Response) -> tuple[int, str]:
        """Status and code of an answer that has to be an OpenAI error object."""
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status_code, error["code"]

    def in_flight(self) -> int:
        """How many requests the catalog believes to be running."""
        return sum(row.num_in_flight for row in self.catalog.rows())

    def use(self, **policy: Any) -> None:
        self.gate.policy = Policy.from_flags(
            default_patch=policy.get("default_patch"), require_patch=policy.get("require_patch", False)
        )

    def exposition(self) -> str:
        """What a scrape sees, less comments and creation times."""
        lines = generate_latest(self.registry).decode().splitlines()
        return "\n".join(line for line in lines if not line.startswith("#") and "_created" not in line)

    def value(self, series: str) -> float | None:
        """The value of one series in the exposition; ``None`` where it is not there."""
        for line in self.exposition().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "patches"
    path.mkdir()
    return path


@pytest.fixture
def records() -> Any:
    return None


@pytest.fixture
async def stand(folder: Path, records: Any) -> AsyncIterator[Stand]:
    metrics = PatchMetrics(registry := CollectorRegistry())
    residency = ScriptedResidency()
    catalog = Catalog(residency, BASE_MODEL, MAX_NUM_TOKENS, metrics, records=records)
    gate = PatchGate(catalog, OPEN_POLICY, metrics, served_names=[SERVED_NAME])
    engine = FakeEngine(gate, residency)
    engine.may_start.set()
    engine.may_go_on.set()
    app = FastAPI()
    add_generating_routes(app, engine)
    add_other_routes(app, engine)
    install(app, catalog=catalog, gate=gate, metrics=metrics)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Stand(folder, registry, metrics, residency, catalog, gate, engine, app, client)


class Stream:
    """One streaming request, driven message by message as a real server does."""

    def __init__(self, app: FastAPI, header: str | None, body: dict[str, Any], path: str) -> None:
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outgoing: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
        headers = [(b"content-type", b"application/json")]
        if header is not None:
            headers.append((b"x-policy-patch", header.encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": headers,
            "server": ("test", 80),
            "client": ("test", 1),
        }
        self.task = asyncio.create_task(self._run(app, scope))
        self.error: BaseException | None = None

    async def _run(self, app: FastAPI, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._incoming.get, self._send)
        except Exception as error:
            self.error = error
        finally:
            self._outgoing.put_nowait(None)

    async def _send(self, message: Any) -> None:
        self._outgoing.put_nowait(dict(message))

    async def start(self) -> tuple[int, dict[str, str]]:
        """Wait for the response's start; gives status and headers."""
        message = await asyncio.wait_for(self._outgoing.get(), 30)
        assert message is not None
        assert message["type"] == "http.response.start"
        return message["status"], {k.decode(): v.decode() for k, v in message["headers"]}

    async def chunk(self) -> str | None:
        """Wait for the next chunk of the body; ``None`` at the end."""
        message = await asyncio.wait_for(self._outgoing.get(), 30)
        return None if message is None else message["body"].decode()

    async def rest(self) -> str:
        """Wait for everything that is still to come."""
        text = ""
        while (chunk := await self.chunk()) is not None:
            text += chunk
        return text

    async def hang_up(self) -> None:
        """Go away, as a client that closes its connection."""
        self._incoming.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(self.task, 30)


@pytest.fixture
def open_stream(stand: Stand) -> Iterator[Callable[..., Stream]]:
    streams: list[Stream] = []

    def open_one(header: str | None = None, path: str = "/v1/chat/completions", **body: Any) -> Stream:
        streams.append(Stream(stand.app, header, {"stream": True, **body}, path))
        return streams[-1]

    yield open_one
    assert all(stream.task.done() for stream in streams), "a test left a stream open"
