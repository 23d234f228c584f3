"""Activate, follow and roll back over HTTP, and what files do meanwhile."""

import asyncio
from typing import Any

import pytest

from server.catalog.folder import PatchFolder
from tests.server.stand import Stand


async def test_an_activated_version_answers_and_no_file_changes_that(stand: Stand, admin: Any) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    answer = await admin.post("pirate/activate", version="1.0.0")
    assert answer.status_code == 200
    assert (answer.json()["active"]["version"], answer.json()["is_pinned"]) == ("1.0.0", True)
    await stand.load("pirate", "2.0.0")
    assert await admin.answers() == "pirate@1.0.0"
    assert await admin.states() == {"2.0.0": "loaded", "1.1.0": "loaded", "1.0.0": "active"}


async def test_follow_gives_the_name_back_to_the_files(stand: Stand, admin: Any) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    await admin.post("pirate/activate", version="1.0.0")
    answer = await admin.post("pirate/activate", follow=True)
    assert (answer.json()["active"]["version"], answer.json()["is_pinned"]) == ("1.1.0", False)
    await stand.load("pirate", "1.2.0")
    assert await admin.answers() == "pirate@1.2.0"


async def test_rollback_goes_back_and_the_version_that_was_left_stays_out(stand: Stand, admin: Any) -> None:
    """Its file is there, is touched, goes and comes back: it never becomes active by itself."""
    await stand.load("pirate", "1.0.0")
    path = stand.folder / "pirate-1.1.0.safetensors"
    await stand.load("pirate", "1.1.0")
    assert (await admin.post("pirate/rollback")).json()["active"]["version"] == "1.0.0"
    await stand.load("pirate", "1.1.0")
    assert await admin.answers() == "pirate@1.0.0"
    await stand.catalog.forget_file(path)
    await stand.load("pirate", "1.1.0")
    assert await admin.answers() == "pirate@1.0.0"
    await stand.load("pirate", "1.0.5")
    assert await admin.answers() == "pirate@1.0.0"
    await stand.load("pirate", "1.1.1")
    assert await admin.answers() == "pirate@1.1.1"


async def test_rollback_reads_no_disk_and_brings_back_replaced_content(stand: Stand, admin: Any) -> None:
    old = await stand.load(fill=1.0)
    new = await stand.load(fill=2.0)
    assert set(stand.residency.resident) == {old.digest, new.digest}
    calls = list(stand.residency.calls)
    (stand.folder / "pirate-1.0.0.safetensors").unlink()
    stand.folder.rmdir()
    answer = await admin.post("pirate/rollback")
    assert answer.json()["active"] == {"version": "1.0.0", "digest": old.digest}
    assert (await stand.chat("pirate")).json() == {"tokens": [old.digest] * 3}
    assert stand.residency.calls == [*calls, ("unload", new.digest)]


async def test_the_file_with_the_content_that_was_left_is_refused_until_the_way_is_free(
    stand: Stand, admin: Any
) -> None:
    await stand.load(fill=1.0)
    new = await stand.load(fill=2.0)
    await admin.post("pirate/rollback")
    (failure,) = stand.catalog.failures()
    assert (failure.file, failure.reason) == ("pirate-1.0.0.safetensors", "conflict")
    assert (await stand.load(fill=2.0)).reason == "conflict"
    await stand.load("pirate", "1.0.1", fill=3.0)
    assert stand.catalog.failures() == []
    assert await admin.answers(f"pirate@{new.digest}") == "pirate@1.0.0"
    assert await admin.answers() == "pirate@1.0.1"


async def test_a_removed_file_is_one_call_away(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await stand.catalog.forget_file(stand.folder / "pirate-1.1.0.safetensors")
    assert await admin.states() == {"1.1.0": "previous", "1.0.0": "active"}
    assert await admin.answers("pirate@1.1.0") is None
    assert (await admin.post("pirate/rollback")).json()["active"]["version"] == "1.1.0"
    assert await admin.answers() == "pirate@1.1.0"


async def test_only_the_last_version_before_is_kept_and_its_bytes_are_counted(
    stand: Stand, admin: Any
) -> None:
    patches = [await stand.load(fill=float(i), num_tokens=i) for i in (1, 2, 3)]
    assert set(stand.residency.resident) == {patches[1].digest, patches[2].digest}
    assert stand.value('policy_patch_previous_bytes{patch="pirate"}') == patches[1].nbytes
    assert (await admin.post("pirate/rollback")).status_code == 200
    assert stand.value('policy_patch_previous_bytes{patch="pirate"}') == 0
    answer = await admin.post("pirate/rollback")
    assert stand.code(answer) == (409, "nothing_to_roll_back")


async def test_the_last_file_of_a_name_takes_everything_with_it(stand: Stand) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    for version in ("1.1.0", "1.0.0"):
        await stand.catalog.forget_file(stand.folder / f"pirate-{version}.safetensors")
    assert stand.residency.resident == {}
    assert dict(stand.catalog.view.names) == {}


async def test_rolling_back_twice_never_goes_forward(stand: Stand, admin: Any) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await stand.load("pirate", version)
    versions = [(await admin.post("pirate/rollback")).json()["active"]["version"] for _ in range(2)]
    assert versions == ["1.1.0", "1.0.0"]
    assert stand.code(await admin.post("pirate/rollback")) == (409, "nothing_to_roll_back")
    assert await admin.answers() == "pirate@1.0.0"


async def test_two_operators_who_roll_back_the_same_version_do_it_once(stand: Stand, admin: Any) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await stand.load("pirate", version)
    order = {"from": "1.2.0"}
    answers = await asyncio.gather(*(admin.post("pirate/rollback", **order) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert await admin.answers() == "pirate@1.1.0"


async def test_a_pinned_version_survives_its_file(stand: Stand, admin: Any) -> None:
    patch = await stand.load("pirate", "1.0.0", fill=1.0)
    await stand.load("pirate", "1.1.0")
    await admin.post("pirate/activate", version="1.0.0")
    assert (await stand.load("pirate", "1.0.0", fill=2.0)).reason == "conflict"
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert (await stand.chat("pirate")).json() == {"tokens": [patch.digest] * 3}


async def test_a_version_is_named_by_the_beginning_of_its_digest_too(stand: Stand, admin: Any) -> None:
    patch = await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    answer = await admin.post("pirate/activate", version=patch.digest[:19])
    assert answer.json()["active"]["digest"] == patch.digest


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("pirate/activate", {"version": "9.9.9"}, (404, "patch_not_found")),
        ("pirate/activate", {"version": "one"}, (400, "invalid_admin_call")),
        ("pirate/activate", {"version": "sha256:ab"}, (400, "invalid_admin_call")),
        ("pirate/activate", {}, (400, "invalid_admin_call")),
        ("pirate/activate", {"version": "1.0.0", "follow": True}, (400, "invalid_admin_call")),
        ("pirate/activate", {"version": "1.0.0", "force": True}, (400, "invalid_admin_call")),
        ("sailor/activate", {"version": "1.0.0"}, (404, "patch_not_found")),
        ("Pirate/activate", {"version": "1.0.0"}, (400, "invalid_admin_call")),
        ("sailor/activate", {"follow": True}, (404, "patch_not_found")),
        ("sailor/rollback", {}, (404, "patch_not_found")),
        ("pirate/rollback", {}, (409, "nothing_to_roll_back")),
        ("pirate/rollback", {"from": "2.0.0"}, (409, "order_refused")),
    ],
)
async def test_an_order_that_can_not_be_carried_out_changes_nothing(
    stand: Stand, admin: Any, path: str, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    await stand.load("pirate", "1.0.0")
    before = await admin.get("pirate/history")
    assert stand.code(await admin.post(path, **body)) == expected
    assert await admin.get("pirate/history") == before
    assert await admin.answers() == "pirate@1.0.0"


async def test_the_history_names_who_did_what(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await admin.post("pirate/rollback")
    await admin.post("pirate/activate", version="1.1.0")
    history = (await admin.get("pirate/history"))["history"]
    assert [(h["action"], h["by"], h["active"]["version"]) for h in history] == [
        ("activate", "alice", "1.1.0"),
        ("rollback", "alice", "1.0.0"),
        ("folder", "folder", "1.1.0"),
        ("folder", "folder", "1.0.0"),
    ]


async def test_requests_in_flight_keep_their_version_through_a_rollback(
    stand: Stand, admin: Any, open_stream: Any
) -> None:
    await stand.load("pirate", "1.0.0")
    new = await stand.load("pirate", "1.1.0", fill=1.0)
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    await admin.post("pirate/rollback")
    stand.engine.may_go_on.set()
    assert (await stream.rest()).count(new.digest) == 3


async def test_an_order_is_carried_out_although_its_caller_hangs_up(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    order = asyncio.create_task(admin.operator.rollback("pirate", "alice"))
    await asyncio.sleep(0)
    order.cancel()
    with pytest.raises(asyncio.CancelledError):
        await order
    await stand.until(lambda: stand.catalog.view.names["pirate"].active.version == "1.0.0")
    assert stand.catalog.record("pirate").active.version == "1.0.0"


async def test_a_start_is_no_news(stand: Stand, admin: Any) -> None:
    """Files are loaded one after another; the versions below the highest one never were active."""
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        stand.put("pirate", version)
    async with PatchFolder(stand.folder, stand.catalog):
        record = await admin.get("pirate/history")
    assert (record["active"]["version"], record["previous"]) == ("1.2.0", [])
    assert len(record["history"]) == 1
