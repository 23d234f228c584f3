"""An engine and its workers, scripted: answers with its digest, and waits or fails where a test says so."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from patches.format import Patch
from server.memory.residency import NullResidency, ResidencyError
from server.request.gate import PatchGate
from server.request.lease import Lease
from server.versions.selection import Selection

SERVED_NAME = "demo"


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

    async def load(self, patch: Patch, path: Path) -> int:
        self.calls.append(("load", patch.digest))
        await self.may_load.wait()
        if self.refusals:
            self.refusals -= 1
            raise ResidencyError("worker 1 says no")
        return await super().load(patch, path)

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
    #: Raise this before anything is handed to the engine.
    refusal: Exception | None = None
    failure: Exception = field(default_factory=lambda: RuntimeError("the engine broke"))
    #: How the condition of each generation is decided at its end, one after the other.
    margins: Sequence[float] = ()
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
            meter = self.gate.base_meter()
            async for token in self._run("base", ()):
                meter.tokens(1)
                yield token
            return
        with self.gate.lease(patch) as lease:
            await lease.ready()
            async with contextlib.aclosing(self._run(patch.digest, patch.parts)) as outputs:
                while (token := await self._next(lease, outputs)) is not None:
                    lease.meter.tokens(1)
                    yield token
            for margin in self.margins:
                lease.decided(is_met=margin > 0, margin=margin)

    @staticmethod
    async def _next(lease: Lease, outputs: AsyncGenerator[str, None]) -> str | None:
        """As the engine client waits: an operator can end it."""
        if lease.is_withdrawn:
            raise lease.withdrawal()
        lease.waiting = asyncio.current_task()
        try:
            return await anext(outputs, None)
        except asyncio.CancelledError:
            lease.require_not_withdrawn()
            raise
        finally:
            lease.waiting = None

    async def _run(self, text: str, parts: Sequence[Any]) -> AsyncGenerator[str, None]:
        """As the engine client and the engine: one token after another, until it is told to stop."""
        if self.refusal is not None:
            raise self.refusal
        self.gate.sent()
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

    @app.post("/tokenize")
    @app.post("/detokenize")
    @app.post("/v1/messages/count_tokens")
    @app.post("/ping")
    async def tokenize(request: Request) -> Any:
        model = (await request.json()).get("model", SERVED_NAME)
        if model != SERVED_NAME and not engine.gate.note_alias(model):
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        return {"count": 1}

    @app.post("/invocations")
    async def invocations(request: Request) -> Any:
        # As in vLLM: the model that the body names is never asked about.
        if "prompt" in await request.json():
            return {"tokens": [token async for token in engine.generate()]}
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
