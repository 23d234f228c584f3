"""Several processes, one catalog: every pointer moves everywhere at once, or nowhere."""

import asyncio
from typing import Any

import pytest

from server.errors import NotInStep
from server.frontends.messages import content_body, content_of, name_body, with_name_body
from server.versions.view import CatalogView
from tests.server.stand import Stand


async def test_followers_answer_as_the_leader_does(fleet: Any) -> None:
    assert (await fleet.processes[0].chat("pirate")).status_code == 404
    served = await fleet.stand.load(fill=1.0)
    for process in fleet.processes:
        assert await process.version() == served.reference
        assert (await process.chat()).headers["x-policy-patch"] == "none"


async def test_a_follower_that_comes_later_learns_everything(fleet: Any) -> None:
    await fleet.stand.load(fill=1.0)
    await fleet.stand.load("terse", "2.0.0", fill=2.0)
    fleet.steps._words.append(0)
    late = await fleet.make_process(3)
    assert await late.version() == "pirate@1.0.0"
    assert await late.version("terse") == "terse@2.0.0"


async def test_a_pointer_moves_in_all_processes_at_once(fleet: Any) -> None:
    """While one follower has not confirmed, nobody serves the new version; then everybody does."""
    one, other = fleet.processes
    await fleet.stand.load(fill=1.0)
    release = other.follower.held["prepare"] = asyncio.Event()
    load = asyncio.create_task(fleet.stand.load("pirate", "2.0.0", fill=2.0))
    await asyncio.sleep(0.2)
    assert not load.done()
    assert {await p.version() for p in fleet.processes} == {"pirate@1.0.0"}
    assert (await fleet.stand.chat("pirate")).headers["x-policy-patch"] == "pirate@1.0.0"
    release.set()
    await load
    assert {await p.version() for p in (one, other)} == {"pirate@2.0.0"}


async def test_an_order_that_a_follower_does_not_confirm_changes_nothing(fleet: Any) -> None:
    one, other = fleet.processes
    await fleet.stand.load(fill=1.0)
    await fleet.stand.load("pirate", "2.0.0", fill=2.0)
    other.follower.muted = {"here", "reset"}
    with pytest.raises(NotInStep, match="nothing was changed: front end 2"):
        await fleet.operator.rollback("pirate", "alice")
    assert await one.version() == "pirate@2.0.0"
    assert (await fleet.stand.chat("pirate")).headers["x-policy-patch"] == "pirate@2.0.0"
    # It is cut off until it gives a sign of life, and the next order does not wait for it.
    assert fleet.stand.code(await other.chat("pirate")) == (503, "not_in_step")
    await fleet.operator.activate("pirate", "1.0.0", "alice")
    assert await one.version() == "pirate@1.0.0"
    assert fleet.stand.code(await other.chat("pirate")) == (503, "not_in_step")
    other.follower.muted = set()
    await fleet.stand.until(lambda: other.mirror.is_in_step)
    assert await other.version() == "pirate@1.0.0"


async def test_a_content_that_a_follower_does_not_confirm_is_not_served(fleet: Any) -> None:
    one, other = fleet.processes
    await fleet.stand.load(fill=1.0)
    other.follower.muted = {"confirm", "reset"}
    failure = await fleet.stand.load("pirate", "2.0.0", fill=2.0)
    assert failure.reason == "residency_failed"
    assert len(fleet.stand.residency.resident) == 1, "no worker holds what was not confirmed"
    assert await one.version() == "pirate@1.0.0"


async def test_a_follower_that_confirms_another_length_is_cut_off(fleet: Any) -> None:
    other = fleet.processes[1]
    real = other.mirror.learn
    other.mirror.learn = lambda body: {"confirmed": {d: n + 1 for d, n in real(body)["confirmed"].items()}}
    assert (await fleet.stand.load(fill=1.0)).reason == "residency_failed"


async def test_a_process_that_was_stopped_never_decides_by_what_was(fleet: Any) -> None:
    """The guard is the shared number: this follower has read no message since before the swap."""
    one, other = fleet.processes
    await fleet.stand.load(fill=1.0)
    assert await other.version() == "pirate@1.0.0"
    # Whatever it is sent stays unread; the words are all that reaches it.
    other.follower.muted = {"all"}
    other.mirror.heard = lambda: None
    await fleet.stand.load("pirate", "2.0.0", fill=2.0)
    await fleet.stand.load("pirate", "3.0.0", fill=3.0)
    assert await one.version() == "pirate@3.0.0"
    for header in ("pirate", "pirate@1.0.0", None):
        assert fleet.stand.code(await other.chat(header)) == (503, "not_in_step")
    assert fleet.stand.code(await other.client.get("/ready")) == (503, "not_in_step")
    # It is alive, and gets back by itself: a probe must not have it started again. The app has no such route.
    assert (await other.client.get("/health")).status_code == 404


async def test_a_step_that_was_not_prepared_here_is_not_decided_by(fleet: Any) -> None:
    """Even where the leader still counts on this process."""
    other = fleet.processes[1]
    await fleet.stand.load(fill=1.0)
    fleet.steps.advance()
    assert fleet.steps.is_attached(2)
    assert fleet.stand.code(await other.chat("pirate")) == (503, "not_in_step")


async def test_a_follower_without_its_leader_refuses(fleet: Any) -> None:
    await fleet.stand.load(fill=1.0)
    await fleet.followers.__aexit__(None, None, None)
    await fleet.stand.until(lambda: not any(p.mirror.is_in_step for p in fleet.processes))
    for process in fleet.processes:
        assert fleet.stand.code(await process.chat("pirate")) == (503, "not_in_step")
        assert fleet.stand.code(await process.client.get("/ready")) == (503, "not_in_step")


async def test_silence_of_the_leader_ends_what_a_follower_decides(fleet: Any) -> None:
    process = fleet.processes[0]
    await fleet.stand.load(fill=1.0)
    now_s = process.mirror._clock()
    process.mirror._clock = lambda: now_s + 11
    assert fleet.stand.code(await process.chat("pirate")) == (503, "not_in_step")


async def test_messages_say_everything_that_a_view_holds(stand: Stand) -> None:
    for version in ("1.0.0", "2.0.0"):
        await stand.load("pirate", version, fill=float(version[0]))
    await stand.load("terse", "1.0.0", fill=9.0)
    view, contents = stand.catalog.view, {}
    for named in view.names.values():
        for patch in named.versions:
            copy, signer = content_of(content_body(patch, "alice"))
            assert (copy, copy.manifest, copy.nbytes) == (patch, patch.manifest, patch.nbytes)
            assert signer == "alice"
            contents[copy.digest] = copy
    rebuilt = CatalogView()
    for name in view.names:
        rebuilt = with_name_body(rebuilt, name, name_body(view, name), contents.__getitem__)
    assert rebuilt == view
    assert with_name_body(rebuilt, "terse", name_body(view, "gone"), contents.__getitem__).names.keys() == {
        "pirate"
    }
