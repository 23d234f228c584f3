"""What followers use stays on the workers, and what operators want to know of it is told."""

import asyncio
from typing import Any

import pytest


def stream_of(process: Any, module: Any, header: str) -> Any:
    return module.Stream(process.app, header, {"stream": True}, "/v1/chat/completions")


@pytest.fixture
def streams(fleet: Any) -> Any:
    import sys

    module = sys.modules[type(fleet.stand).__module__]
    return lambda process, header="pirate": stream_of(process, module, header)


async def test_what_a_follower_answers_keeps_its_version(fleet: Any, streams: Any) -> None:
    process = fleet.processes[0]
    old = await fleet.stand.load(fill=1.0)
    process.engine.may_go_on.clear()
    stream = streams(process)
    await stream.start()
    await stream.chunk()
    new = await fleet.stand.load(fill=2.0)
    assert await fleet.processes[1].version() == "pirate@1.0.0"
    assert {old.digest, new.digest} == fleet.stand.residency.resident.keys()
    (card,) = (await process.client.get("/v1/patches")).json()["data"]
    states = {v["digest"]: (v["state"], v["in_flight"]) for v in card["versions"]}
    assert states[old.digest] == ("draining", 1)
    process.engine.may_go_on.set()
    assert new.digest not in await stream.rest()
    await fleet.stand.until(lambda: list(fleet.stand.residency.resident) == [new.digest])


async def test_a_request_that_is_decided_but_not_told_of_still_answers(fleet: Any) -> None:
    """Between decision and generation the leader knows nothing of it; it asks before it drops anything."""
    process = fleet.processes[0]
    old = await fleet.stand.load(fill=1.0)
    real, swapped = process.engine.generate, []

    def swap_first() -> Any:
        swapped.append(asyncio.ensure_future(fleet.stand.load(fill=2.0)))
        return slow(real())

    async def slow(tokens: Any) -> Any:
        await asyncio.wait(swapped)
        async for token in tokens:
            yield token

    process.engine.generate = swap_first
    response = await process.chat("pirate")
    assert response.json()["tokens"] == [old.digest] * 3
    await fleet.stand.until(lambda: old.digest not in fleet.stand.residency.resident)


async def test_a_follower_that_dies_holds_nothing(fleet: Any, streams: Any) -> None:
    process = fleet.processes[0]
    old = await fleet.stand.load(fill=1.0)
    process.engine.may_go_on.clear()
    stream = streams(process)
    await stream.start()
    await stream.chunk()
    await fleet.stand.load(fill=2.0)
    assert old.digest in fleet.stand.residency.resident
    await process.follower.__aexit__(None, None, None)
    await fleet.stand.until(lambda: old.digest not in fleet.stand.residency.resident)
    assert fleet.followers.num_attached == 1
    await stream.hang_up()


async def test_many_requests_ask_the_leader_once(fleet: Any) -> None:
    process = fleet.processes[0]
    await fleet.stand.load(fill=1.0)
    asked = []
    real = fleet.followers._handle
    fleet.followers._handle = lambda f, kind, body: (asked.append(kind), real(f, kind, body))[1]
    await asyncio.gather(*(process.version() for _ in range(8)))
    assert asked.count("ready") == 1
    await fleet.stand.until(lambda: fleet.stand.in_flight() == 0)


async def test_a_prefix_that_the_workers_lost_is_an_error_of_the_follower_too(fleet: Any) -> None:
    process = fleet.processes[0]
    served = await fleet.stand.load(fill=1.0)
    del fleet.stand.residency.resident[served.digest]
    assert fleet.stand.code(await process.chat("pirate")) == (503, "patch_not_ready")
    await fleet.stand.until(lambda: fleet.stand.in_flight() == 0)


async def test_a_forced_delete_ends_what_followers_answer(fleet: Any, streams: Any) -> None:
    process = fleet.processes[0]
    await fleet.stand.load(fill=1.0)
    process.engine.may_go_on.clear()
    stream = streams(process)
    await stream.start()
    await stream.chunk()
    _, num_in_flight = await fleet.operator.remove("pirate", None, "alice", is_forced=True)
    assert num_in_flight == 1
    assert "was withdrawn" in await stream.rest()
    assert fleet.stand.code(await process.chat("pirate"))[0] == 404
    await fleet.stand.until(lambda: not fleet.stand.residency.resident)


async def test_what_came_back_serves_again(fleet: Any) -> None:
    process = fleet.processes[0]
    served = await fleet.stand.load(fill=1.0)
    await fleet.operator.remove("pirate", None, "alice", is_forced=True)
    await fleet.stand.until(lambda: not fleet.stand.residency.resident)
    await fleet.stand.load(fill=1.0)
    assert await process.version() == served.reference


async def test_metrics_and_audit_log_know_what_followers_do(fleet: Any, streams: Any) -> None:
    process = fleet.processes[0]
    served = await fleet.stand.load(fill=1.0)
    await process.version()
    (event,) = process.events
    assert (event.patch, event.details["signer"]) == (served.reference, f"signer of {served.digest[:12]}")
    process.engine.may_go_on.clear()
    stream = streams(process)
    await stream.start()
    await fleet.stand.until(lambda: fleet.stand.in_flight() == 1)
    fleet.stand.metrics.others = await fleet.followers.figures()
    assert fleet.stand.value('policy_patch_requests_running{patch="pirate"}') == 1
    count = 'policy_patch_time_to_first_token_seconds_count{patch="pirate"}'
    assert fleet.stand.value(count) == 2
    process.engine.may_go_on.set()
    await stream.rest()
