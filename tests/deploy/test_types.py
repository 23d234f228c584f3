"""The dashboards against the types that Grafana publishes: the oldest version they are for, and a new one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"


@pytest.fixture(scope="module")
def checker() -> Path:
    """The checker in a folder with what npm installs for it; kept from run to run."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed: Grafana's types are not looked at on this machine")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "policypatch" / "dashboard-types"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (ROOT / "tools/dashboards/types/package.json").read_text(encoding="utf-8")
    stamp = folder / "installed.json"
    (folder / "package.json").write_text(wanted, encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"npm could not install Grafana's types: {done.stderr[-2000:]}"
        stamp.write_text(wanted, encoding="utf-8")
    shutil.copy(ROOT / "tools/dashboards/types/check.mjs", folder)
    return folder


def check(checker: Path, dashboards: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", "check.mjs", str(dashboards)]
    return subprocess.run(command, cwd=checker, capture_output=True, text=True, timeout=300, check=False)


def test_grafana_would_take_every_dashboard(checker: Path) -> None:
    done = check(checker, DASHBOARDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("4 dashboards, 0 errors") == 2


def test_an_option_that_grafana_does_not_know_is_noticed(checker: Path, tmp_path: Path) -> None:
    text = (DASHBOARDS / "patch.json").read_text(encoding="utf-8")
    assert '"displayMode": "list"' in text
    (tmp_path / "patch.json").write_text(text.replace('"displayMode": "list"', '"displayMode": "lst"'))
    done = check(checker, tmp_path)
    assert done.returncode == 1
    assert '"lst"\' is not assignable' in done.stdout
