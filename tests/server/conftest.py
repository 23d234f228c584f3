"""A folder, a catalog, a gate and a real app around an engine that answers with its digest."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from server.app import install
from server.catalog.catalog import Catalog
from server.catalog.control import CatalogControl
from server.engine.thread_turns import take_turns
from server.metrics.patches import PatchMetrics
from server.policy.rules import OPEN_POLICY
from server.request.decider import Decider
from server.request.gate import PatchGate
from server.request.lease import Leases
from tests.server.fake_engine import (
    SERVED_NAME,
    FakeEngine,
    ScriptedResidency,
    add_generating_routes,
    add_other_routes,
)
from tests.server.stand import MODEL, Stand, Stream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "patches"
    path.mkdir()
    return path


@pytest.fixture
def records() -> Any:
    return None


@pytest.fixture
def processes() -> Any:
    return None


@pytest.fixture
def weights() -> Any:
    """What the weights of the model are changed with; None: they never change."""
    return None


@pytest.fixture
async def stand(folder: Path, records: Any, processes: Any, weights: Any) -> AsyncIterator[Stand]:
    take_turns()
    metrics = PatchMetrics(registry := CollectorRegistry())
    residency = ScriptedResidency()
    control = CatalogControl(records) if records is not None else None
    catalog = Catalog(residency, MODEL, metrics, control, processes=processes, weights=weights)
    leases = Leases(catalog, metrics)
    decider = Decider(catalog, OPEN_POLICY, leases, served_names=[SERVED_NAME])
    decider.door = catalog.weights.door
    gate = PatchGate(decider, leases)
    engine = FakeEngine(gate, residency)
    engine.may_start.set()
    engine.may_go_on.set()
    app = FastAPI()
    add_generating_routes(app, engine)
    add_other_routes(app, engine)
    install(app, catalog=catalog, decider=decider, metrics=metrics)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Stand(folder, registry, metrics, residency, catalog, decider, gate, engine, app, client)


@pytest.fixture
def open_stream(stand: Stand) -> Iterator[Callable[..., Stream]]:
    streams: list[Stream] = []

    def open_one(header: str | None = None, path: str = "/v1/chat/completions", **body: Any) -> Stream:
        streams.append(Stream(stand.app, header, {"stream": True, **body}, path))
        return streams[-1]

    yield open_one
    assert all(stream.task.done() for stream in streams), "a test left a stream open"
