"""The watched folder, with a real file system and real events; waits end on conditions, not on times."""

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from patches.terminal import one_line
from server.catalog.folder import FolderError, PatchFolder, list_folder
from tests.server.stand import Stand


@pytest.fixture
async def watching(stand: Stand) -> AsyncIterator[PatchFolder]:
    async with PatchFolder(stand.folder, stand.catalog, rescan_s=0.2) as folder:
        yield folder


def active(stand: Stand, name: str = "pirate") -> str | None:
    named = stand.catalog.view.names.get(name)
    return named.active.version if named is not None else None


def reasons(stand: Stand) -> dict[str, str]:
    return {failure.file: failure.reason for failure in stand.catalog.failures()}


async def test_what_lies_there_at_start_is_served_when_start_returns(stand: Stand) -> None:
    stand.put("pirate")
    stand.put("sailor")
    (stand.folder / "bad-1.0.0.safetensors").write_bytes(b"no")
    async with PatchFolder(stand.folder, stand.catalog):
        assert set(stand.catalog.view.names) == {"pirate", "sailor"}
        assert list(reasons(stand)) == ["bad-1.0.0.safetensors"]


async def test_names_that_are_no_text_are_listed_escaped(stand: Stand, caplog: Any) -> None:
    """One such file once made every listing an error, and ended the watcher."""
    folder = os.fsencode(stand.folder)
    names = [b"bad\xff\xfe.safetensors", b"a\nb.safetensors", "\u202egnp.safetensors".encode()]
    paths = [Path(os.fsdecode(folder + b"/" + name)) for name in names]
    with caplog.at_level(logging.INFO):
        async with PatchFolder(stand.folder, stand.catalog, rescan_s=0.2):
            for path in paths:
                path.write_bytes(b"no")
                await stand.until(lambda path=path: one_line(path.name) in reasons(stand))
    listing = await stand.client.get("/v1/patches")
    assert listing.status_code == 200
    assert {failure["file"] for failure in listing.json()["failures"]} == {
        "bad\\udcff\\udcfe.safetensors",
        "a\\nb.safetensors",
        "\\u202egnp.safetensors",
    }
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_missing_folder_is_an_error_at_start(stand: Stand, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="No such file"):
        await PatchFolder(tmp_path / "gone", stand.catalog).__aenter__()


async def test_a_file_in_place_of_the_folder_is_an_error_at_start(stand: Stand) -> None:
    with pytest.raises(FolderError, match="Not a directory"):
        await PatchFolder(stand.put(), stand.catalog).__aenter__()


async def test_an_unreadable_folder_is_an_error_at_start(stand: Stand, monkeypatch: Any) -> None:
    """Tests may run as root, for whom every folder is readable: the refusal is simulated."""
    deny(monkeypatch)
    with pytest.raises(FolderError, match="Permission denied"):
        await PatchFolder(stand.folder, stand.catalog).__aenter__()


def deny(monkeypatch: Any) -> None:
    def refuse(path: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("server.catalog.folder.os.scandir", refuse)


async def test_other_files_are_ignored(stand: Stand) -> None:
    for name in ("README.md", ".pirate.safetensors", "pirate.safetensors.sig", "notes.safetensors.tmp"):
        (stand.folder / name).write_bytes(b"x")
    (stand.folder / "folder.safetensors").mkdir()
    os.mkfifo(stand.folder / "pipe.safetensors")
    (stand.folder / "dangling.safetensors").symlink_to("nowhere")
    assert list_folder(stand.folder).files == {}


@pytest.mark.usefixtures("watching")
async def test_a_file_renamed_into_place_is_served(stand: Stand) -> None:
    stand.put("pirate", "1.0.0")
    await stand.until(lambda: active(stand) == "1.0.0")


@pytest.mark.usefixtures("watching")
async def test_a_replaced_file_becomes_the_active_content(stand: Stand) -> None:
    stand.put(fill=1.0)
    await stand.until(lambda: active(stand))
    old = stand.catalog.view.names["pirate"].active
    stand.put(fill=2.0)
    await stand.until(lambda: stand.catalog.view.names["pirate"].active != old)
    await stand.until(lambda: len(stand.residency.resident) == 1)


@pytest.mark.usefixtures("watching")
async def test_a_removed_file_is_gone(stand: Stand) -> None:
    path = stand.put()
    await stand.until(lambda: active(stand))
    path.unlink()
    await stand.until(lambda: not stand.residency.resident)
    assert active(stand) is None


@pytest.mark.usefixtures("watching")
async def test_a_renamed_file_never_stops_serving(stand: Stand) -> None:
    path = stand.put()
    await stand.until(lambda: active(stand))
    patch = stand.catalog.view.names["pirate"].active
    path.rename(stand.folder / "other-name.safetensors")
    await stand.until(lambda: not path.exists())
    await stand.until(lambda: in_folder(stand) == {"other-name.safetensors"})
    assert stand.residency.calls == [("load", patch.digest)]


def in_folder(stand: Stand) -> set[str]:
    """The files that the catalog believes to be there."""
    return {path.name for resident in stand.catalog.residents.all() for path in resident.paths}


@pytest.mark.usefixtures("watching")
async def test_a_file_that_is_copied_in_place_is_refused_until_it_is_whole(stand: Stand) -> None:
    data = stand.bytes()
    path = stand.folder / "pirate-1.0.0.safetensors"
    with path.open("wb") as file:
        file.write(data[:100])
        file.flush()
        await stand.until(lambda: reasons(stand))
        assert active(stand) is None
        file.write(data[100:])
    await stand.until(lambda: active(stand) == "1.0.0")
    assert reasons(stand) == {}


@pytest.mark.usefixtures("watching")
async def test_a_half_written_replacement_leaves_the_old_content_serving(stand: Stand) -> None:
    path = stand.put(fill=1.0)
    await stand.until(lambda: active(stand))
    old = stand.catalog.view.names["pirate"].active
    path.write_bytes(stand.bytes(fill=2.0)[:-3])
    await stand.until(lambda: reasons(stand))
    assert stand.catalog.view.names["pirate"].active == old


async def test_a_swapped_link_target_is_noticed_without_an_event_in_the_folder(
    stand: Stand, tmp_path: Path, watching: PatchFolder
) -> None:
    """As Kubernetes updates a ConfigMap: the files are links through a link that is replaced."""
    for generation, fill in (("1", 1.0), ("2", 2.0)):
        (tmp_path / generation).mkdir()
        (tmp_path / generation / "pirate-1.0.0.safetensors").write_bytes(stand.bytes(fill=fill))
    data = tmp_path / "..data"
    data.symlink_to("1")
    (stand.folder / "pirate-1.0.0.safetensors").symlink_to(data / "pirate-1.0.0.safetensors")
    await stand.until(lambda: active(stand))
    old = stand.catalog.view.names["pirate"].active
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(data)
    await stand.until(lambda: stand.catalog.view.names["pirate"].active != old)


async def test_what_serves_goes_on_when_the_folder_vanishes_and_changes_count_when_it_is_back(
    stand: Stand, watching: PatchFolder, caplog: Any
) -> None:
    stand.put("pirate")
    await stand.until(lambda: active(stand))
    with caplog.at_level(logging.WARNING, "server.catalog"):
        shutil.rmtree(stand.folder)
        await stand.until(lambda: reasons(stand) == {"patches": "folder_unreadable"})
        assert active(stand) == "1.0.0"
        assert stand.value("policy_patch_folder_readable") == 0
        stand.folder.mkdir()
        stand.put("pirate", "2.0.0")
        await stand.until(lambda: active(stand) == "2.0.0")
        await stand.until(lambda: in_folder(stand) == {"pirate-2.0.0.safetensors"})
    assert reasons(stand) == {}
    assert stand.value("policy_patch_folder_readable") == 1
    assert "can't be read" in caplog.text
    assert "can be read again" in caplog.text


async def put_until_noticed(stand: Stand, name: str = "pirate") -> Path:
    """Replace a file until it is served: the first events may fall into the time before the watch is up."""
    fill = 0.0
    while True:
        fill += 1.0
        path: Path = stand.put(name, fill=fill)
        for _ in range(100):
            if active(stand, name):
                return path
            await asyncio.sleep(0.01)


async def test_events_are_followed_again_in_a_folder_that_came_back(stand: Stand) -> None:
    """The regular look is an hour away: both times it is an event that is noticed."""
    async with asyncio.timeout(60), PatchFolder(stand.folder, stand.catalog, rescan_s=3600):
        await put_until_noticed(stand, "before")
        shutil.rmtree(stand.folder)
        await stand.until(lambda: reasons(stand))
        stand.folder.mkdir()
        await stand.until(lambda: not reasons(stand))
        await put_until_noticed(stand)


async def test_what_serves_goes_on_when_the_folder_becomes_unreadable(
    stand: Stand, watching: PatchFolder, monkeypatch: Any
) -> None:
    stand.put("pirate")
    await stand.until(lambda: active(stand))
    deny(monkeypatch)
    await stand.until(lambda: reasons(stand))
    (stand.folder / "pirate-1.0.0.safetensors").unlink()
    await watching.look()
    assert active(stand) == "1.0.0"
    monkeypatch.undo()
    await stand.until(lambda: active(stand) is None)


async def test_an_empty_mount_point_is_no_order_to_drop_everything(stand: Stand, monkeypatch: Any) -> None:
    path = stand.put("pirate")
    async with PatchFolder(stand.folder, stand.catalog) as folder:
        pass
    path.unlink()
    listing = list_folder(stand.folder)
    unmounted = type(listing)((listing.identity[0] + 1, listing.identity[1]), listing.files)
    monkeypatch.setattr("server.catalog.folder.list_folder", lambda _: unmounted)
    await folder.look()
    assert active(stand) == "1.0.0"
    assert reasons(stand) == {"patches": "folder_unreadable"}


async def test_without_events_the_folder_is_looked_at_all_the_same(stand: Stand, monkeypatch: Any) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr("server.watcher.awatch", refuse)
    async with PatchFolder(stand.folder, stand.catalog):
        stand.put("pirate")
        await stand.until(lambda: active(stand))


async def test_an_unforeseen_error_does_not_end_the_watch(stand: Stand, monkeypatch: Any) -> None:
    errors = [RuntimeError("surprise"), RuntimeError("and again")]
    real = list_folder

    def flaky(path: Path) -> Any:
        if errors:
            raise errors.pop()
        return real(path)

    async with PatchFolder(stand.folder, stand.catalog, rescan_s=0.1):
        monkeypatch.setattr("server.catalog.folder.list_folder", flaky)
        stand.put("pirate")
        await stand.until(lambda: active(stand))
    assert errors == []


async def test_a_refusal_by_the_workers_is_tried_again(stand: Stand, monkeypatch: Any) -> None:
    monkeypatch.setattr("server.catalog.folder._FIRST_RETRY_S", 0.01)
    stand.residency.refusals = 2
    async with PatchFolder(stand.folder, stand.catalog, rescan_s=0.05):
        stand.put("pirate")
        await stand.until(lambda: active(stand))
    assert reasons(stand) == {}


async def test_a_corrupt_file_is_not_read_again_and_again(stand: Stand) -> None:
    (stand.folder / "x.safetensors").write_bytes(b"no")
    async with PatchFolder(stand.folder, stand.catalog) as folder:
        pass
    for _ in range(5):
        await folder.look()
    assert "policy_patch_load_failures_total" in stand.exposition()
    lines = [line for line in stand.exposition().splitlines() if "load_failures_total{" in line]
    counted = [line.rpartition(" ")[2] for line in lines]
    assert [number for number in counted if number != "0.0"] == ["1.0"]


async def test_stopping_leaves_everything_serving(stand: Stand) -> None:
    stand.put("pirate")
    async with asyncio.timeout(30), PatchFolder(stand.folder, stand.catalog):
        pass
    (stand.folder / "pirate-1.0.0.safetensors").unlink()
    assert active(stand) == "1.0.0"


async def test_events_alone_are_enough(stand: Stand) -> None:
    """The regular look is an hour away: a change that is noticed was noticed by its event."""
    async with asyncio.timeout(60), PatchFolder(stand.folder, stand.catalog, rescan_s=3600):
        path = await put_until_noticed(stand)
        path.unlink()
        await stand.until(lambda: active(stand) is None)


async def test_a_link_that_leads_nowhere_keeps_no_other_file_from_being_served(
    watching: PatchFolder, stand: Stand
) -> None:
    (stand.folder / "loop.safetensors").symlink_to("loop.safetensors")
    (stand.folder / "through-a-file.safetensors").symlink_to(stand.put("sailor") / "x")
    stand.put("pirate")
    await watching.look()
    assert {active(stand), active(stand, "sailor")} == {"1.0.0"}
    assert reasons(stand) == {}
