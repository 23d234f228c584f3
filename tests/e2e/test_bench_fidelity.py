"""`policypatch bench fidelity` against a real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report.record import read_records
from bench.run.side_by_side import PAIRS

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="the benchmark starts its servers itself")]


def test_in_float32_the_benchmark_finds_no_difference(tiny_model: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.txt"
    policy.write_text("You are the cook of a ship. Answer every question in a few plain words.")
    command = [sys.executable, "-m", "server", "bench", "fidelity", "--model", str(tiny_model)]
    command += ["--policy-text", str(policy), "--dtype", "float32", "--out", str(tmp_path / "out")]
    command += ["--prompts", "8", "--output-tokens", "12", "--concurrency", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["agreement"].keys() == {f"{arm}/{reference}" for arm, reference, _ in PAIRS}
    for result in summary["agreement"].values():
        assert result["equal_tokens"] == result["equal_answers"] == 1
        assert result["num_steps"] == 8 * 12
        assert result["max_gap"] < 1e-4
    records = read_records([Path(summary["records"])])
    assert [record.setup["arm"] for record in records] == [arm for arm, _, _ in PAIRS]
    assert str(tmp_path) not in Path(summary["records"]).read_text()
    assert (Path(summary["records"]).parent / "report.md").read_text() in done.stdout
