"""Find Prometheus, Alertmanager and their tools, or unpack them from Debian's packages. Nothing is installed.

    python tools/debian_programs.py      # prints where each program lies

Looked up in this order: the folder that POLICYPATCH_PROMETHEUS_DIR names; PATH; the cache folder. `apt-get
download` and `dpkg-deb -x` put what is missing there; neither needs root, and no daemon is started.

Debian's builds read templates and pages from a fixed folder, where only root could put them. In the unpacked
copies that path leads to the working directory: start them in ``working_folder``.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

FOLDER_VARIABLE = "POLICYPATCH_PROMETHEUS_DIR"
#: Program -> its other name, which is Debian's, and the package that holds it.
PROGRAMS = {
    "prometheus": ("prometheus", "prometheus"),
    "promtool": ("promtool", "prometheus"),
    "alertmanager": ("prometheus-alertmanager", "prometheus-alertmanager"),
    "amtool": ("amtool", "prometheus-alertmanager"),
}
#: The fixed folder, and one of the same length that is wherever a program is started.
_FIXED, _RELOCATED = b"/usr/share/prometheus", b"/proc/self/cwd///////"
#: For a package, or a list of packages; a mirror that does not answer is given up.
_TIMEOUT_S = 300


class ProgramsMissing(Exception):
    """A program is neither there nor can it be fetched; the text says what to do."""


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where unpacked packages stay."""
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "policypatch" / "debian"


def programs(environment: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Return the path of each program of ``PROGRAMS``, after fetching what is missing.

    Raises:
        ProgramsMissing: A program is missing and cannot be fetched.
    """
    if folder := environment.get(FOLDER_VARIABLE):
        found = _found_in(folder)
        if missing := sorted(PROGRAMS.keys() - found.keys()):
            raise ProgramsMissing(
                f"{FOLDER_VARIABLE}: expected a folder with {', '.join(PROGRAMS)}, got {folder} without "
                f"{', '.join(missing)}; name another folder, or unset the variable"
            )
        return found
    cache = cache_folder(environment)
    places = f"{environment.get('PATH', os.defpath)}{os.pathsep}{cache / 'usr' / 'bin'}"
    found = _found_in(places)
    if missing_packages := sorted({PROGRAMS[name][1] for name in PROGRAMS.keys() - found.keys()}):
        for package in missing_packages:
            _unpack(package, cache)
        found = _found_in(places)
    if missing := sorted(PROGRAMS.keys() - found.keys()):
        raise ProgramsMissing(f"{cache}: expected {', '.join(missing)} after unpacking; {_advice()}")
    return found


def working_folder(program: Path) -> Path:
    """Return where a program has to be started, so that it finds its templates."""
    folder = program.parent.parent / "share" / "prometheus"
    return folder if folder.is_dir() else program.parent


def _found_in(places: str) -> dict[str, Path]:
    paths = {
        name: shutil.which(name, path=places) or shutil.which(debian_name, path=places)
        for name, (debian_name, _) in PROGRAMS.items()
    }
    return {name: Path(path) for name, path in paths.items() if path}


def _unpack(package: str, cache: Path) -> None:
    """Download a package and unpack it over what the cache holds.

    Raises:
        ProgramsMissing: There is no apt, or a step failed.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise ProgramsMissing(f"{package}: expected {tool} to fetch it with, got none; {_advice()}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        # Run as root, apt downloads as another user, who has to be able to write here.
        folder.chmod(0o777)
        _download(package, folder)
        (archive,) = folder.glob("*.deb")
        unpacked = folder / "unpacked"
        _run(["dpkg-deb", "-x", str(archive), str(unpacked)], folder)
        shared = Path("usr", "share", "prometheus")
        if (unpacked / shared).is_dir():
            # Its links to other packages' scripts stay what they are.
            shutil.copytree(unpacked / shared, cache / shared, symlinks=True, dirs_exist_ok=True)
        (cache / "usr" / "bin").mkdir(parents=True, exist_ok=True)
        for program in (unpacked / "usr" / "bin").iterdir():
            program.write_bytes(program.read_bytes().replace(_FIXED, _RELOCATED))
            # One rename for each program: another process finds a whole one, or none.
            program.replace(cache / "usr" / "bin" / program.name)


def _download(package: str, folder: Path) -> None:
    """Download a package, with a list of packages of our own where the system's is missing or out of date."""
    try:
        _run(["apt-get", "download", package], folder)
    except ProgramsMissing:
        (folder / "lists" / "partial").mkdir(parents=True)
        own_lists = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
        _run(["apt-get", *own_lists, "update"], folder)
        _run(["apt-get", *own_lists, "download", package], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramsMissing(f"{' '.join(command)}: no end within {_TIMEOUT_S} s; try again") from error
    if done.returncode:
        raise ProgramsMissing(f"{' '.join(command)}: {done.stderr.strip()}; {_advice()}")


def _advice() -> str:
    packages = sorted({package for _, package in PROGRAMS.values()})
    return f"install {' and '.join(packages)}, or name a folder of their programs in {FOLDER_VARIABLE}"


def main() -> int:
    """Print where each program lies."""
    try:
        found = programs()
    except ProgramsMissing as error:
        print(error, file=sys.stderr)
        return 1
    for name, path in found.items():
        print(f"{name:<13} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
