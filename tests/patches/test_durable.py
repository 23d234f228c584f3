"""Files that are written whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from patches.durable import write_bytes_atomically, write_json_atomically


def test_json_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json_atomically(path, {"b": 1, "a": ["ü"]})
    write_json_atomically(path, {"b": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 2}
    assert os.listdir(tmp_path) == ["state.json"]


def test_the_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that overtakes its content leaves an empty file after a power cut."""
    path, steps = tmp_path / "state.json", []
    sync, rename = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else f"sync {os.fstat(descriptor).st_size} bytes")
        sync(descriptor)

    def note_rename(source: str, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_bytes_atomically(path, b"12345")
    assert steps == ["sync 5 bytes", "rename", "sync folder"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_failed_write_leaves_the_old_content_and_no_rubbish(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    write_json_atomically(path, {"old": True})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_json_atomically(path, {"new": True})
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": True}
    assert os.listdir(tmp_path) == ["state.json"]


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomically(tmp_path / "state.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_file_that_must_not_be_replaced_is_not(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_bytes_atomically(path, b"first", mode=0o600, overwrite=False)
    with pytest.raises(FileExistsError):
        write_bytes_atomically(path, b"second", mode=0o600, overwrite=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["key"]


def test_the_file_has_the_permissions_that_were_asked_for(tmp_path: Path) -> None:
    for mode in (0o600, 0o644):
        write_bytes_atomically(tmp_path / "file", b"", mode=mode)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
