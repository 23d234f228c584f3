"""Files of packages are the pinned bytes or an error, and nothing is fetched that is there."""

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from patches.errors import DataUnavailable
from patches.evaluate.data import pinned
from patches.evaluate.data.packages import Package, PackageFile, PackageFiles

CONTENT = b"some data"
WHEEL = Package("pypi", "small-data.set", "1.0", "MIT")
TARBALL = Package("npm", "@scope/judge", "2.0.1", "MIT")


def pinned_file(package: Package, content: bytes = CONTENT) -> PackageFile:
    return PackageFile(package, "package/data.txt", hashlib.sha256(content).hexdigest())


def write_archives(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "small_data_set-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("package/data.txt", CONTENT)
    with tarfile.open(folder / "scope-judge-2.0.1.tgz", "w:gz") as tar:
        member = tarfile.TarInfo("package/data.txt")
        member.size = len(CONTENT)
        tar.addfile(member, io.BytesIO(CONTENT))


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("package", [WHEEL, TARBALL], ids=["pypi", "npm"])
def test_a_file_is_read_from_an_archive_and_then_from_the_cache(package: Package, tmp_path: Path) -> None:
    write_archives(tmp_path / "archives")
    files = PackageFiles(tmp_path / "cache", archives=tmp_path / "archives")
    assert files.read(pinned_file(package)) == CONTENT
    assert PackageFiles(tmp_path / "cache", archives=tmp_path / "none").read(pinned_file(package)) == CONTENT


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path) -> None:
    write_archives(tmp_path / "archives")
    files = PackageFiles(tmp_path / "cache", archives=tmp_path / "archives")
    with pytest.raises(DataUnavailable, match=r"has sha256 [0-9a-f]{64}, expected"):
        files.read(pinned_file(WHEEL, b"other data"))
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cached_file_is_read_anew(tmp_path: Path) -> None:
    write_archives(tmp_path / "archives")
    files = PackageFiles(tmp_path / "cache", archives=tmp_path / "archives")
    files.read(pinned_file(WHEEL))
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(b"damaged")
    assert files.read(pinned_file(WHEEL)) == CONTENT


def test_a_missing_archive_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(
        DataUnavailable, match=r"has no scope-judge-2\.0\.1\.tgz; download @scope/judge 2\.0\.1"
    ):
        PackageFiles(tmp_path, archives=tmp_path).read(pinned_file(TARBALL))


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no such package\n")

    monkeypatch.setattr(subprocess, "run", fail)
    told: list[str] = []
    with pytest.raises(DataUnavailable, match="ERROR: no such package; check the network"):
        PackageFiles(tmp_path, notify=told.append).read(pinned_file(WHEEL))
    assert told == ["fetching small-data.set 1.0 (MIT)"]


def test_every_pinned_file_names_a_digest() -> None:
    found = [value for value in vars(pinned).values() if isinstance(value, PackageFile)]
    found += [*pinned.REAL_TOXICITY.values(), *pinned.JAILBREAKS.values(), *pinned.HUMAN_COMPLIANCE]
    assert len(found) > 20
    assert {len(file.sha256) for file in found} == {64}
