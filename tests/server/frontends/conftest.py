"""A leader with the catalog of ``stand``, and followers of it, as processes are but on one event loop."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from server.admin.listener import AdminListener, bind_admin
from server.admin.operator import Operator
from server.app import install
from server.catalog.door import Door
from server.frontends.channel import Body
from server.frontends.follower import FollowedResidents, Follower
from server.frontends.leader import FollowerPool
from server.frontends.mirror import Mirror, MirrorAudit
from server.frontends.relay import FromFollowers, Relay
from server.frontends.step import Steps, num_words
from server.metrics.patches import PatchMetrics
from server.policy.rules import OPEN_POLICY
from server.request.decider import Decider
from server.request.gate import PatchGate
from server.request.lease import Leases
from tests.server.fake_engine import FakeEngine, add_generating_routes, add_other_routes
from tests.server.stand import Stand

#: Long enough for one event loop on a busy machine, short enough to wait for.
CONFIRM_S = 1.0


class MutedFollower(Follower):
    """Answers no message of the kinds in ``muted``, as a process that was stopped."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.muted: set[str] = set()
        #: Kind -> what answers to it wait for.
        self.held: dict[str, asyncio.Event] = {}

    def _handle(self, kind: str, body: Body) -> Body | Awaitable[Body | None] | None:
        if kind in self.muted or "all" in self.muted:
            return asyncio.get_running_loop().create_future()
        if kind in self.held:
            return self._later(self.held[kind], kind, body)
        return super()._handle(kind, body)

    async def _later(self, event: asyncio.Event, kind: str, body: Body) -> Body | None:
        await event.wait()
        answer = super()._handle(kind, body)
        assert not isinstance(answer, Awaitable)
        return answer


@dataclass
class Process:
    """One follower: its decider, an engine client, an app and somebody who calls it."""

    follower: MutedFollower
    mirror: Mirror
    decider: Decider
    engine: Any
    app: Any
    client: httpx.AsyncClient
    events: list[Any]

    async def chat(self, header: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if header is None else {"X-Policy-Patch": header}
        return await self.client.post("/v1/chat/completions", headers=headers, json=body)

    async def version(self, header: str = "pirate") -> str:
        response = await self.chat(header)
        assert response.status_code == 200, response.text
        reference: str = response.headers["x-policy-patch"]
        assert response.json()["tokens"] == [response.headers["x-policy-patch-digest"]] * 3
        return reference


@dataclass
class AuditList:
    """Keeps events for tests to read."""

    events: list[Any] = field(default_factory=list)

    def record(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
async def sockets() -> AsyncIterator[Path]:
    # Paths of Unix sockets are short.
    with tempfile.TemporaryDirectory(prefix="pp-") as folder:
        yield Path(folder)


@pytest.fixture
def steps() -> Steps:
    return Steps([0] * num_words(3))


@pytest.fixture
def policy() -> bytes | None:
    return None


@pytest.fixture
def pool(steps: Steps, sockets: Path, policy: bytes | None) -> FollowerPool:
    return FollowerPool(steps, sockets / "lead", policy, confirm_s=CONFIRM_S)


@dataclass
class Fleet:
    """The leader, and what is needed to start followers."""

    stand: Stand
    followers: FollowerPool
    operator: Operator
    steps: Steps
    sockets: Path
    make_process: Callable[[int], Any]
    processes: list[Process] = field(default_factory=list)


@pytest.fixture
def processes(pool: FollowerPool) -> FollowerPool:
    """What the catalog of ``stand`` tells of its changes."""
    return pool


@pytest.fixture
async def fleet(stand: Stand, pool: FollowerPool, steps: Steps, sockets: Path) -> AsyncIterator[Fleet]:
    """A leader and two followers, all in step."""
    pool.bind(stand.catalog.residents, lambda digest: f"signer of {digest[:12]}")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(pool)
        relayed = AdminListener(FromFollowers(stand.app), bind_admin(f"unix:{sockets / 'http'}"))
        await stack.enter_async_context(relayed)

        async def make_process(index: int) -> Process:
            metrics = PatchMetrics(CollectorRegistry())
            residents = FollowedResidents(metrics)
            door = Door() if stand.decider.door is not None else None
            mirror = Mirror(index, steps, residents, OPEN_POLICY, door=door)
            audit = AuditList()
            leases = Leases(mirror, metrics)
            decider = Decider(
                mirror,
                OPEN_POLICY,
                leases,
                served_names=["demo"],
                audit=MirrorAudit(audit, mirror.signer_of),
            )
            mirror.bind(decider)
            decider.door = door
            engine = FakeEngine(PatchGate(decider, leases), stand.residency)
            engine.may_start.set()
            engine.may_go_on.set()
            follower = MutedFollower(index, sockets / "lead", mirror, residents.residency, metrics)
            decider.canaries = follower
            app = Relay(_make_app(engine, decider, metrics), sockets / "http", lambda: mirror.is_in_step)
            await stack.enter_async_context(follower)
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test"
                )
            )
            return Process(follower, mirror, decider, engine, app, client, audit.events)

        fleet = Fleet(stand, pool, Operator(stand.catalog), steps, sockets, make_process)
        fleet.processes = [await make_process(1), await make_process(2)]
        yield fleet


def _make_app(engine: FakeEngine, decider: Decider, metrics: PatchMetrics) -> FastAPI:
    app = FastAPI()
    add_generating_routes(app, engine)
    add_other_routes(app, engine)
    install(app, catalog=None, decider=decider, metrics=metrics)
    return app
