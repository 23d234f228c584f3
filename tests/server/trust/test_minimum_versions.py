"""Bounds that never go down by themselves, in memory and on disk."""

import os
import threading
from pathlib import Path

import pytest

from server.trust.minimum_versions import MinimumVersions, MinimumVersionsError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "minimum-versions.json"


def raised(path: Path | None, *minimums: str) -> MinimumVersions:
    versions = MinimumVersions(path)
    for minimum in minimums:
        versions.raise_to("pirate", minimum)
    versions.save()
    return versions


def test_a_bound_forbids_what_is_below_it_and_nothing_else(path: Path) -> None:
    versions = raised(path, "1.2.0")
    allowed = [v for v in ("1.1.9", "1.2.0-rc.1", "1.2.0", "1.10.0") if versions.allows("pirate", v)]
    assert allowed == ["1.2.0", "1.10.0"]
    assert versions.allows("safety", "0.0.1")


def test_a_bound_never_goes_down(path: Path) -> None:
    versions = raised(path, "1.10.0")
    assert not versions.raise_to("pirate", "1.9.0")
    assert not versions.raise_to("pirate", "1.10.0")
    assert not versions.allows("pirate", "1.9.0")


def test_bounds_survive_a_restart(path: Path) -> None:
    raised(path, "1.2.0").permit("pirate", "1.0.0")
    after = MinimumVersions(path)
    assert [v for v in ("1.0.0", "1.1.0", "1.2.0") if after.allows("pirate", v)] == ["1.0.0", "1.2.0"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_permission_ends_with_the_next_higher_bound_or_when_it_is_taken_back(path: Path) -> None:
    versions = raised(path, "1.2.0")
    versions.permit("pirate", "1.0.0")
    assert versions.allows("pirate", "1.0.0")
    versions.forbid("pirate", "1.0.0")
    assert not versions.allows("pirate", "1.0.0")
    versions.permit("pirate", "1.0.0")
    versions.raise_to("pirate", "1.3.0")
    assert not versions.allows("pirate", "1.0.0")


def test_a_permission_that_cannot_be_saved_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = raised(path, "1.2.0")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        versions.permit("pirate", "1.0.0")
    assert not versions.allows("pirate", "1.0.0")


def test_a_bound_that_cannot_be_saved_holds_and_is_saved_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = MinimumVersions(path)
    versions.raise_to("pirate", "1.2.0")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            versions.save()
    assert not versions.allows("pirate", "1.1.0")
    versions.save()
    assert not MinimumVersions(path).allows("pirate", "1.1.0")


def test_nothing_is_written_where_nothing_is_new(path: Path) -> None:
    versions = raised(path, "1.2.0")
    before = path.stat().st_ino
    versions.save()
    assert path.stat().st_ino == before


def test_the_newest_bounds_are_the_ones_on_disk(path: Path) -> None:
    """Two threads save at once: an older picture must not be renamed over a newer one."""
    versions = MinimumVersions(path)

    def raise_some(name: str) -> None:
        for number in range(20):
            versions.raise_to(name, f"1.{number}.0")
            versions.save()

    threads = [threading.Thread(target=raise_some, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: bound.minimum for name, bound in MinimumVersions(path).bounds.items()} == {
        "a": "1.19.0",
        "b": "1.19.0",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format":2,"names":[]}',
        '{"format":1,"names":[{"name":"../x","minimum":"1.0.0","permitted":[]}]}',
        '{"format":1,"names":[{"name":"x","minimum":"one","permitted":[]}]}',
        '{"format":1,"names":[{"name":"x","minimum":"1.0.0"}]}',
        '{"format":1,"names":[{"name":"x","minimum":"1.0.0","permitted":[1]}]}',
        '{"format":1}',
    ],
)
def test_a_damaged_file_is_an_error_and_no_empty_memory(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(MinimumVersionsError, match="restore it from a backup"):
        MinimumVersions(path)


def test_a_file_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(MinimumVersionsError):
        MinimumVersions(path)
