"""Files that operators put into the folder and take out of it: uploads, names, drains and forced ends."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from server.catalog.folder import PatchFolder
from tests.server.stand import Stand


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_an_upload_lies_in_the_folder_and_answers(stand: Stand, admin: Any) -> None:
    answer = await admin.put(stand.bytes())
    assert answer.status_code == 201, answer.text
    assert (answer.json()["name"], answer.json()["active_version"]) == ("pirate", "1.0.0")
    assert names(stand.folder) == {"pirate-1.0.0.safetensors"}
    assert await admin.answers() == "pirate@1.0.0"
    assert admin.audit.events[-1].event == "admin.put"
    assert (admin.audit.events[-1].principal, admin.audit.events[-1].patch) == ("alice", "pirate@1.0.0")


async def test_the_same_upload_again_is_no_news(stand: Stand, admin: Any) -> None:
    await admin.put(stand.bytes())
    calls = list(stand.residency.calls)
    assert (await admin.put(stand.bytes())).status_code == 200
    assert stand.residency.calls == calls


async def test_a_version_is_never_overwritten(stand: Stand, admin: Any) -> None:
    await admin.put(stand.bytes(fill=1.0))
    answer = await admin.put(stand.bytes(fill=2.0))
    assert stand.code(answer) == (409, "order_refused")
    assert names(stand.folder) == {"pirate-1.0.0.safetensors"}
    assert (stand.folder / "pirate-1.0.0.safetensors").read_bytes() == stand.bytes(fill=1.0)


async def test_an_upload_that_is_held_is_loaded_and_never_active_by_itself(stand: Stand, admin: Any) -> None:
    await admin.put(stand.bytes())
    assert (await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0", hold=True)).status_code == 201
    assert await admin.states() == {"1.1.0": "loaded", "1.0.0": "active"}
    async with PatchFolder(stand.folder, stand.catalog):
        assert await admin.answers() == "pirate@1.0.0"
    await admin.post("pirate/activate", version="1.1.0")
    assert await admin.answers() == "pirate@1.1.0"


@pytest.mark.parametrize(
    ("parts", "path", "expected"),
    [
        ({}, "pirate/1.0.1", (400, "invalid_admin_call")),
        ({}, "sailor/1.0.0", (400, "invalid_admin_call")),
        ({}, "pirate/one", (400, "invalid_admin_call")),
        ({"has_kv": False}, "pirate/1.0.0", (422, "invalid_patch_file")),
        ({"num_tokens": 65}, "pirate/1.0.0", (413, "patch_too_large")),
    ],
)
async def test_an_upload_that_can_not_be_served_leaves_nothing_behind(
    stand: Stand, admin: Any, parts: dict[str, Any], path: str, expected: tuple[int, str]
) -> None:
    assert stand.code(await admin.put(stand.bytes(**parts), path)) == expected
    assert names(stand.folder) == set()
    assert stand.catalog.failures() == []


async def test_an_upload_that_is_no_patch_is_refused(stand: Stand, admin: Any) -> None:
    assert stand.code(await admin.put(b"no")) == (422, "invalid_patch_file")
    assert names(stand.folder) == set()


async def test_an_upload_that_the_workers_refuse_leaves_nothing_behind(stand: Stand, admin: Any) -> None:
    stand.residency.refusals = 1
    assert stand.code(await admin.put(stand.bytes())) == (500, "load_failed")
    assert names(stand.folder) == set()
    assert stand.catalog.failures() == []
    assert (await admin.put(stand.bytes())).status_code == 201


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
async def test_a_folder_that_can_not_be_written_refuses_orders(stand: Stand, admin: Any) -> None:
    stand.folder.chmod(0o500)
    assert stand.code(await admin.put(stand.bytes())) == (409, "order_refused")
    stand.folder.chmod(0o700)


async def test_a_folder_that_is_gone_refuses_uploads_and_serves_on(stand: Stand, admin: Any) -> None:
    await admin.put(stand.bytes())
    (stand.folder / "pirate-1.0.0.safetensors").unlink()
    stand.folder.rmdir()
    assert stand.code(await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0")) == (409, "order_refused")
    assert await admin.answers() == "pirate@1.0.0"


async def test_nothing_of_an_upload_is_read_without_a_key(stand: Stand, admin: Any) -> None:
    async def body() -> Any:
        raise AssertionError("the body was read")
        yield b""

    response = await admin.client.put(
        "/v1/patches/pirate/1.0.0", content=body(), headers={"Authorization": ""}
    )
    assert stand.code(response) == (401, "invalid_admin_key")


async def test_a_file_of_the_folder_is_loaded_by_its_name(stand: Stand, admin: Any) -> None:
    (stand.folder / "first.safetensors").write_bytes(stand.bytes())
    order = {"file": "first.safetensors"}
    assert (await admin.client.put("/v1/patches/pirate/1.0.0", json=order)).status_code == 201
    assert (await admin.client.put("/v1/patches/pirate/1.0.0", json=order)).status_code == 200
    assert await admin.answers() == "pirate@1.0.0"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("absent.safetensors", (404, "patch_not_found")),
        ("../state/lock", (400, "invalid_admin_call")),
        ("../first.safetensors", (400, "invalid_admin_call")),
        (".first.safetensors", (400, "invalid_admin_call")),
        ("first.safetensors", (400, "invalid_admin_call")),
        (7, (400, "invalid_admin_call")),
    ],
)
async def test_a_name_that_is_no_file_of_this_patch_is_refused(
    stand: Stand, admin: Any, file: Any, expected: tuple[int, str]
) -> None:
    (stand.folder / "first.safetensors").write_bytes(stand.bytes("sailor"))
    response = await admin.client.put("/v1/patches/pirate/1.0.0", json={"file": file})
    assert stand.code(response) == expected


async def test_delete_drains_and_the_version_below_takes_over(
    stand: Stand, admin: Any, open_stream: Any
) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    new = stand.catalog.view.names["pirate"].active
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    answer = await admin.delete("pirate/1.1.0")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["active"]["version"], answer.json()["num_in_flight"]) == ("1.0.0", 1)
    assert names(stand.folder) == {"pirate-1.0.0.safetensors"}
    assert await admin.states() == {"1.1.0": "draining", "1.0.0": "active"}
    stand.engine.may_go_on.set()
    assert (await stream.rest()).count(new.digest) == 3
    await stand.catalog.residents.drained()
    assert await admin.states() == {"1.0.0": "active"}
    assert stand.code(await admin.post("pirate/rollback")) == (409, "nothing_to_roll_back")


async def test_a_forced_delete_ends_streams_with_an_error_event(
    stand: Stand, admin: Any, open_stream: Any
) -> None:
    patch = await stand.load()
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate")
    await stream.start()
    assert (await admin.delete("pirate", force=True)).json()["is_forced"]
    rest = await stream.rest()
    assert rest.count(patch.digest) == 1
    event = json.loads(rest.split("data: ")[-2])
    assert "withdrawn" in event["error"]
    await stand.catalog.residents.drained()
    assert stand.residency.resident == {}
    assert (stand.engine.num_running, stand.in_flight()) == (0, 0)


async def test_a_forced_delete_ends_what_is_no_stream_with_503(stand: Stand, admin: Any) -> None:
    import asyncio

    await stand.load()
    stand.engine.may_start.clear()
    request = asyncio.create_task(stand.chat("pirate"))
    await stand.until(lambda: stand.engine.num_running)
    await admin.delete("pirate/1.0.0", force=True)
    response = await request
    assert stand.code(response) == (503, "patch_withdrawn")
    assert response.headers["retry-after"] == "1"


async def test_other_versions_go_on_through_a_forced_delete(
    stand: Stand, admin: Any, open_stream: Any
) -> None:
    old = await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0", fill=1.0)
    stand.engine.may_go_on.clear()
    stream = open_stream("pirate@1.0.0")
    await stream.start()
    await admin.delete("pirate/1.1.0", force=True)
    stand.engine.may_go_on.set()
    assert (await stream.rest()).count(old.digest) == 3


async def test_what_was_taken_from_its_requests_serves_again_once_it_is_back(
    stand: Stand, admin: Any
) -> None:
    patch = await stand.load()
    stand.catalog.residents.acquire(patch)
    await admin.delete("pirate", force=True)
    await admin.put(stand.bytes())
    assert await admin.answers() == "pirate@1.0.0"
    stand.catalog.residents.release(patch)


async def test_delete_takes_refused_files_of_the_version_too(stand: Stand, admin: Any) -> None:
    await stand.load(fill=1.0)
    (stand.folder / "rival.safetensors").write_bytes(stand.bytes(fill=2.0))
    await stand.catalog.load_file(stand.folder / "rival.safetensors")
    await admin.delete("pirate/1.0.0")
    assert names(stand.folder) == set()
    assert (stand.catalog.failures(), dict(stand.catalog.view.names)) == ([], {})


async def test_a_pinned_version_can_be_deleted_and_does_not_come_back(stand: Stand, admin: Any) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await admin.post("pirate/activate", version="1.0.0")
    await admin.delete("pirate/1.0.0")
    record = await admin.get("pirate/history")
    assert (record["active"]["version"], record["is_pinned"]) == ("1.1.0", False)
    assert record["history"][0]["action"] == "remove"


@pytest.mark.parametrize("path", ["sailor", "sailor/1.0.0", "pirate/9.9.9", "pirate/sha256:0123456789ab"])
async def test_what_is_not_there_can_not_be_deleted(stand: Stand, admin: Any, path: str) -> None:
    await stand.load()
    assert stand.code(await admin.delete(path)) == (404, "patch_not_found")
    assert names(stand.folder) == {"pirate-1.0.0.safetensors"}


async def test_a_file_that_can_not_be_removed_keeps_serving(
    stand: Stand, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")

    def refuse(paths: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("server.catalog.catalog.remove_files", refuse)
    assert stand.code(await admin.delete("pirate/1.1.0")) == (409, "order_refused")
    assert await admin.answers() == "pirate@1.1.0"
    assert (await admin.get("pirate/history"))["active"]["version"] == "1.1.0"


async def test_one_version_is_described_by_its_own_address(stand: Stand, admin: Any) -> None:
    patch = await stand.load("pirate", "1.0.0")
    assert (await admin.get("pirate/1.0.0"))["digest"] == patch.digest
    assert stand.code(await admin.client.get("/v1/patches/pirate/2.0.0")) == (404, "patch_not_found")


async def test_uploads_that_a_killed_server_left_are_removed_and_recent_ones_are_not(
    stand: Stand, admin: Any
) -> None:
    for name, age_s in ((".old.upload", 7200), (".old.upload.sig", 7200), (".new.upload", 10)):
        (stand.folder / name).write_bytes(b"half")
        os.utime(stand.folder / name, (time.time() - age_s,) * 2)
    await stand.load()
    admin.parts.uploads.remove_leftovers()
    assert names(stand.folder) == {".new.upload", "pirate-1.0.0.safetensors"}
