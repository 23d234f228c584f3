"""The short form of `policypatch bench soak`: load, swaps, faults and deaths on a real server."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="the benchmark starts its servers itself")]


@pytest.fixture(scope="module")
def soaked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the last line of its output says."""
    out = tmp_path_factory.mktemp("soak")
    command = [sys.executable, "-m", "server", "bench", "soak", "--model", str(tiny_model), "--short"]
    command += ["--dtype", "float32", "--max-model-len", "512", "--concurrency", "32", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "exit_code": done.returncode}


def test_everything_holds(soaked: dict[str, Any]) -> None:
    assert soaked["ok"], soaked.get("failed") or soaked
    assert soaked["exit_code"] == 0


def test_every_part_was_tried(soaked: dict[str, Any]) -> None:
    lines = Path(soaked["records"]).read_text(encoding="utf-8").splitlines()
    parts = {json.loads(line)["setup"]["part"] for line in lines}
    assert parts == {"load", "swaps by calls", "swaps by files", "faults", "deaths"}
