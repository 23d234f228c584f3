"""Files that are read before their turn comes."""

import asyncio
from pathlib import Path

import pytest

from patches.errors import PatchFormatError
from patches.format import Patch, read_patch
from server.catalog import read_ahead
from server.catalog.read_ahead import ReadAhead
from tests.server.stand import put


class Counted:
    """Notes which files are read, in threads."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def read(self, path: Path) -> Patch:
        self.paths.append(path)
        return read_patch(path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(read_ahead, "read_patch", counted.read)
    monkeypatch.setattr(read_ahead, "_MAX_AHEAD", 2)
    return counted


def files(folder: Path, count: int) -> list[tuple[Path, int]]:
    paths = [put(folder, f"p{i}", fill=float(i)) for i in range(count)]
    return [(path, path.stat().st_size) for path in paths]


async def test_each_file_is_read_once_and_in_order(tmp_path: Path, counted: Counted) -> None:
    coming, ahead = files(tmp_path, 5), ReadAhead()
    with ahead.expecting(coming):
        names = [(await ahead.read(path)).manifest.name for path, _ in coming]
    assert names == ["p0", "p1", "p2", "p3", "p4"]
    assert sorted(counted.paths) == [path for path, _ in coming]


async def test_no_more_files_are_read_ahead_than_there_may_be(tmp_path: Path, counted: Counted) -> None:
    coming, ahead = files(tmp_path, 5), ReadAhead()
    with ahead.expecting(coming):
        await ahead.read(coming[0][0])
        await asyncio.sleep(0.1)
        assert len(counted.paths) <= 3


async def test_a_file_that_is_too_large_to_be_read_beside_others_waits_for_its_turn(
    tmp_path: Path, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming, ahead = files(tmp_path, 3), ReadAhead()
    monkeypatch.setattr(read_ahead, "MAX_AHEAD_BYTES", coming[0][1])
    with ahead.expecting(coming):
        names = [(await ahead.read(path)).manifest.name for path, _ in coming]
    assert names == ["p0", "p1", "p2"]


async def test_a_file_that_was_not_expected_is_read_all_the_same(tmp_path: Path, counted: Counted) -> None:
    coming, ahead = files(tmp_path, 3), ReadAhead()
    with ahead.expecting(coming[:1]):
        assert (await ahead.read(coming[2][0])).manifest.name == "p2"
        assert (await ahead.read(coming[0][0])).manifest.name == "p0"
    assert (await ahead.read(coming[1][0])).manifest.name == "p1"


async def test_a_bad_file_is_reported_where_it_is_read_and_nowhere_else(
    tmp_path: Path, counted: Counted
) -> None:
    (good, size), bad = files(tmp_path, 1)[0], tmp_path / "bad.safetensors"
    bad.write_bytes(b"no patch")
    ahead = ReadAhead()
    with ahead.expecting([(good, size), (bad, 8)]):
        assert (await ahead.read(good)).manifest.name == "p0"
        with pytest.raises(PatchFormatError):
            await ahead.read(bad)


async def test_what_was_read_for_nothing_is_forgotten(tmp_path: Path, counted: Counted) -> None:
    coming, ahead = files(tmp_path, 2), ReadAhead()
    with ahead.expecting(coming):
        await ahead.read(coming[0][0])
    put(tmp_path, "p1", fill=9.0)
    assert (await ahead.read(coming[1][0])).digest == read_patch(coming[1][0]).digest
