"""Files that are checked while the engine starts: the start takes them as they are, and nothing else."""

import os
from pathlib import Path

import pytest

from patches.format import Patch, read_patch
from server.catalog import read_ahead
from server.catalog.checked_ahead import CheckedAhead
from server.catalog.folder import PatchFolder
from server.memory.payload import Payload
from tests.server.stand import Stand, put


def checked(folder: Path) -> CheckedAhead:
    ahead = CheckedAhead(folder)
    ahead.join()
    return ahead


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collect which files are read at the start itself."""
    paths: list[Path] = []

    def read(path: Path) -> Patch:
        paths.append(path)
        return read_patch(path)

    monkeypatch.setattr(read_ahead, "read_patch", read)
    return paths


async def test_a_start_reads_nothing_that_was_checked(stand: Stand, reads: list[Path]) -> None:
    digests = {read_patch(put(stand.folder, f"p{i}", fill=float(i))).digest for i in range(3)}
    stand.catalog.intake.files.checked = checked(stand.folder)
    async with PatchFolder(stand.folder, stand.catalog):
        assert {named.active.digest for named in stand.catalog.view.names.values()} == digests
    assert not reads


async def test_a_file_that_has_changed_since_is_read(stand: Stand, reads: list[Path]) -> None:
    put(stand.folder, fill=1.0)
    stand.catalog.intake.files.checked = checked(stand.folder)
    new = put(stand.folder, fill=2.0)
    async with PatchFolder(stand.folder, stand.catalog):
        assert stand.catalog.view.names["pirate"].active.digest == read_patch(new).digest
    assert reads == [new]


async def test_a_file_that_is_damaged_in_place_is_read_and_refused(stand: Stand, reads: list[Path]) -> None:
    path = put(stand.folder)
    stand.catalog.intake.files.checked = checked(stand.folder)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    async with PatchFolder(stand.folder, stand.catalog):
        (failure,) = stand.catalog.failures()
    assert failure.reason == "digest_mismatch"
    assert not stand.catalog.view.names


async def test_bad_files_are_refused_as_ever(stand: Stand, reads: list[Path]) -> None:
    bad = stand.folder / "bad.safetensors"
    bad.write_bytes(b"no patch")
    stand.catalog.intake.files.checked = checked(stand.folder)
    async with PatchFolder(stand.folder, stand.catalog):
        assert [failure.file for failure in stand.catalog.failures()] == [bad.name]
    assert reads == [bad]


async def test_after_the_start_every_file_is_read(stand: Stand, reads: list[Path]) -> None:
    path = put(stand.folder)
    stand.catalog.intake.files.checked = checked(stand.folder)
    async with PatchFolder(stand.folder, stand.catalog):
        assert stand.catalog.intake.files.checked is None
        await stand.catalog.load_file(path)
    assert reads == [path]


def test_nothing_of_what_was_checked_can_be_served(tmp_path: Path) -> None:
    path = put(tmp_path)
    patch = checked(tmp_path).take(path)
    assert patch is not None
    whole = read_patch(path)
    payload = Payload.of(patch)
    assert payload.is_hollow
    assert not Payload.of(whole).is_hollow
    assert (payload.layout, payload.nbytes) == (Payload.of(whole).layout, Payload.of(whole).nbytes)
    with pytest.raises(NotImplementedError, match="meta tensor"):
        payload.tensors["kv"].to("cpu")


def test_a_file_is_taken_once(tmp_path: Path) -> None:
    path, ahead = put(tmp_path), checked(tmp_path)
    assert ahead.take(path) is not None
    assert ahead.take(path) is None


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert checked(tmp_path / "none").take(tmp_path / "none" / "a.safetensors") is None
