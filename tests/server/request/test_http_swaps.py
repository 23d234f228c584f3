"""Requests while patches are replaced and removed, engines break and clients hang up."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.stand import Stand

HEADER = "x-policy-patch"
DIGEST_HEADER = "x-policy-patch-digest"


async def test_requests_in_flight_keep_their_version_while_it_is_replaced(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    old = await stand.load(fill=1.0)
    stand.engine.may_go_on.clear()
    first = open_stream("pirate")
    await first.start()
    assert old.digest in await first.chunk()
    new = await stand.load(fill=2.0)
    second = open_stream("pirate")
    assert (await second.start())[1][DIGEST_HEADER] == new.digest
    stand.engine.may_go_on.set()
    assert new.digest not in await first.rest()
    assert old.digest not in await second.rest()
    await stand.catalog.residents.drained()
    assert list(stand.residency.resident) == [new.digest]


async def test_a_removed_patch_is_drained_and_takes_no_new_requests(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    patch = await stand.load()
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert stand.code(await stand.chat("pirate"))[0] == 404
    card = (await stand.client.get("/v1/patches/pirate")).json()
    assert [(v["state"], v["in_flight"]) for v in card["versions"]] == [("draining", 1)]
    stand.engine.may_go_on.set()
    assert (await stream.rest()).count(patch.digest) == 3
    await stand.catalog.residents.drained()
    assert (await stand.client.get("/v1/patches/pirate")).status_code == 404


async def test_a_patch_that_is_replaced_between_decision_and_generation_still_answers(stand: Stand) -> None:
    """The decision itself keeps the tensors: no request fails because a swap came in between."""
    old = await stand.load(fill=1.0)
    real = stand.engine.generate
    swapped: list[Any] = []

    def swap_first() -> Any:
        swapped.append(asyncio.ensure_future(stand.load(fill=2.0)))
        return slow(real())

    async def slow(tokens: Any) -> Any:
        await asyncio.wait(swapped)
        async for token in tokens:
            yield token

    stand.engine.generate = swap_first
    response = await stand.chat("pirate")
    assert response.json() == {"tokens": [old.digest] * 3}
    await stand.catalog.residents.drained()
    assert old.digest not in stand.residency.resident


async def test_a_client_that_hangs_up_frees_its_patch(stand: Stand, open_stream: Callable[..., Any]) -> None:
    await stand.load()
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    await stream.chunk()
    assert stand.in_flight() == 1
    await stream.hang_up()
    await stand.until(lambda: stand.engine.num_running == 0)
    await stand.until(lambda: stand.in_flight() == 0)
    assert stand.value('policy_patch_requests_total{outcome="cancelled",patch="pirate"}') == 1


async def test_a_handler_that_gives_up_on_a_client_that_left_counts_as_cancelled(
    stand: Stand, open_stream: Callable[..., Any], caplog: Any
) -> None:
    await stand.load()
    stream = open_stream("pirate", path="/v1/messages")
    await stand.until(lambda: stand.in_flight() == 1)
    await stream.hang_up()
    assert stand.in_flight() == 0
    assert stand.value('policy_patch_requests_total{outcome="cancelled",patch="none"}') == 1
    assert caplog.text == ""


@pytest.mark.parametrize("fails_after", [0, 1, 2])
async def test_an_engine_that_breaks_in_mid_stream_frees_the_patch_and_counts_as_an_error(
    stand: Stand, open_stream: Callable[..., Any], fails_after: int
) -> None:
    await stand.load()
    stand.engine.fails_after = fails_after
    stream = open_stream("pirate")
    assert (await stream.start())[0] == 200
    assert json.dumps({"error": "the engine broke"}) in await stream.rest()
    assert stand.in_flight() == 0
    assert stand.value('policy_patch_requests_total{outcome="server_error",patch="pirate"}') == 1


async def test_a_background_response_keeps_its_patch_after_its_http_answer(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    stand.engine.may_go_on.clear()
    response = await stand.post("/v1/responses", "pirate")
    assert response.json() == {"status": "queued"}
    assert response.headers[DIGEST_HEADER] == old.digest
    await stand.until(lambda: stand.engine.num_running)
    await stand.load(fill=2.0)
    assert old.digest in stand.residency.resident
    stand.engine.may_go_on.set()
    assert await stand.app.state.background == [old.digest] * 3
    await stand.catalog.residents.drained()
    assert old.digest not in stand.residency.resident


async def test_many_mixed_requests_each_get_their_own(stand: Stand) -> None:
    patches = {f"p{i}": await stand.load(f"p{i}", fill=float(i)) for i in range(16)}
    wanted = [None, *patches] * 8
    answers = await asyncio.gather(*(stand.chat(name) for name in wanted))
    for name, answer in zip(wanted, answers, strict=True):
        expected = "base" if name is None else patches[name].digest
        assert answer.json() == {"tokens": [expected] * 3}
        assert answer.headers[HEADER] == ("none" if name is None else f"{name}@1.0.0")
    assert stand.in_flight() == 0


async def test_forty_swaps_under_load_fail_no_request_and_mix_no_versions(stand: Stand) -> None:
    stop = asyncio.Event()
    await stand.load(fill=0.0)

    async def ask() -> int:
        count = 0
        while not stop.is_set():
            response = await stand.chat("pirate", stream=count % 2 == 0)
            digest = response.headers[DIGEST_HEADER]
            assert response.status_code == 200
            assert response.text.count("sha256:") == response.text.count(digest) == 3
            count += 1
        return count

    clients = [asyncio.create_task(ask()) for _ in range(8)]
    # Threads read the files, and have to get their turn beside a loop that always has work.
    async with asyncio.timeout(60):
        for number in range(1, 41):
            await stand.load(fill=float(number))
    stop.set()
    counts = await asyncio.gather(*clients)
    await stand.catalog.residents.drained()
    assert all(counts)
    assert len(stand.residency.resident) == 1
    assert stand.in_flight() == 0
