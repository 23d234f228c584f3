"""What tests of the server stand on: patch files, and a real app around an engine that tells its digest."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest

from patches.base_model import BaseModel
from patches.format import encode_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.prefix import PrefixBody
from patches.kinds.steering import Steering, SteeringBody
from patches.manifest import Manifest
from server.catalog.catalog import Catalog
from server.catalog.refusals import ServedModel
from server.metrics.patches import PatchMetrics
from server.policy.rules import Policy
from server.request.decider import Decider
from server.request.gate import PatchGate
from tests.server.fake_engine import (
    FakeEngine,
    ScriptedResidency,
)
from tests.tiny_model import SMALLEST_MODEL

MODEL = ServedModel(SMALLEST_MODEL, max_num_tokens=64)


def patch_bytes(
    name: str = "pirate",
    version: str = "1.0.0",
    *,
    fill: float = 0.0,
    num_tokens: int = 2,
    origin: dict[str, Any] | None = None,
    base_model: BaseModel = SMALLEST_MODEL,
    has_kv: bool = True,
    **notes: str,
) -> bytes:
    """Make the bytes of a small valid patch file; another ``fill`` gives another digest."""
    manifest = Manifest(
        name, version, base_model, PrefixBody(num_tokens), origin or {"method": "text"}, **notes
    )
    embeddings = torch.full((num_tokens, base_model.hidden_size), fill)
    dtype = getattr(torch, base_model.dtype)
    shape = (base_model.num_layers, 2, num_tokens, base_model.num_kv_heads, base_model.head_size)
    kv = torch.full(shape, fill, dtype=dtype) if has_kv else None
    return encode_patch(manifest, {"embeddings": embeddings, "kv": kv})


def conditional_bytes(name: str, version: str, *, fill: float = 0.25) -> bytes:
    """Make the bytes of a vector with a condition."""
    condition = Condition((Probe((0,), "mean", 0.0, 0.0),))
    body = SteeringBody(Steering("residual", "relative", 0.1, tokens="answer"), condition)
    manifest = Manifest(name, version, SMALLEST_MODEL, body, {"method": "icv"})
    vector = torch.zeros(SMALLEST_MODEL.num_layers, SMALLEST_MODEL.hidden_size)
    vector[1] = fill
    return encode_patch(manifest, {"vector": vector, "probes": torch.ones(1, SMALLEST_MODEL.hidden_size)})


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


@dataclass
class Stand:
    """Everything that a test needs, wired as ``server.engine.launch`` does it."""

    folder: Path
    registry: CollectorRegistry
    metrics: PatchMetrics
    residency: ScriptedResidency
    catalog: Catalog
    decider: Decider
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
        return replace(SMALLEST_MODEL, **changes)

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
        self.decider.policy = Policy.from_flags(
            default_patch=policy.get("default_patch"),
            require_patch=policy.get("require_patch", False),
            require_choice=policy.get("require_choice", False),
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
