"""What a follower passes on to the leader, and the policy that the leader passes on to followers."""

import hashlib
from typing import Any

import pytest
from starlette.requests import Request

from server.policy.connection import peer_of
from server.policy.file import parse_policy

FORBIDDING = b"version: 1\nothers: {allow: [], allow_none: true}\n"


async def test_a_body_arrives_whole_and_keeps_its_sender(fleet: Any) -> None:
    @fleet.stand.app.put("/v1/patches/{name}/{version}")
    async def put(name: str, version: str, request: Request) -> Any:
        body = await request.body()
        return {
            "digest": hashlib.sha256(body).hexdigest(),
            "target": f"{name}@{version}?{request.url.query}",
            "peer": peer_of(request.scope),
            "ends": request.headers.get("x-policypatch-ends"),
        }

    data = bytes(range(256)) * 2000

    async def chunks() -> Any:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    forged = {"X-Policypatch-Ends": '{"client": null, "server": ["/socket", null]}'}
    for content in (data, chunks()):
        response = await fleet.processes[0].client.put(
            "/v1/patches/pirate/1.0.0?hold=true", content=content, headers=forged
        )
        assert response.json() == {
            "digest": hashlib.sha256(data).hexdigest(),
            "target": "pirate@1.0.0?hold=true",
            "peer": "127.0.0.1",
            "ends": None,
        }


async def test_errors_of_the_leader_arrive_as_they_are(fleet: Any) -> None:
    response = await fleet.processes[0].client.get("/v1/patches/nobody")
    assert fleet.stand.code(response) == (404, "patch_not_found")


async def test_without_a_leader_a_follower_says_so(fleet: Any) -> None:
    (fleet.sockets / "http").unlink()
    response = await fleet.processes[0].client.get("/v1/patches")
    assert fleet.stand.code(response) == (503, "not_in_step")


async def test_a_policy_holds_in_all_processes_at_once(fleet: Any) -> None:
    one, other = fleet.processes
    await fleet.stand.load(fill=1.0)
    assert await one.version() == "pirate@1.0.0"
    async with fleet.followers.policy_moved(FORBIDDING):
        assert await other.version() == "pirate@1.0.0", "it is known there, and does not hold yet"
        fleet.stand.decider.policy = parse_policy(FORBIDDING)
    for process in (one, other):
        assert fleet.stand.code(await process.chat("pirate")) == (403, "patch_forbidden")
        assert (await process.chat("none")).status_code == 200
    # Changes of the catalog keep it.
    await fleet.stand.load("pirate", "2.0.0", fill=2.0)
    assert fleet.stand.code(await one.chat("pirate")) == (403, "patch_forbidden")


@pytest.mark.parametrize("policy", [FORBIDDING])
async def test_a_follower_begins_with_the_policy_of_the_leader(fleet: Any, policy: bytes) -> None:
    await fleet.stand.load(fill=1.0)
    assert fleet.stand.code(await fleet.processes[0].chat("pirate")) == (403, "patch_forbidden")
