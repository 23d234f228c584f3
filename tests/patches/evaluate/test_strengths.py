"""Several strengths of one vector, measured beside each other by `policypatch steer`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patches.errors import CompileError
from patches.format import read_patch
from patches.kinds.steering import SteeringBody
from patches.pairs.rows import PairRow, encode_row
from patches.steer.sweep import Strength, best, read_strengths
from server.cli import main

SUITE = """
tasks:
  harm: {measure: harm, data: [{file: texts.jsonl}], options: {max_tokens: 3}}
  declined: {measure: refusal, data: [{file: texts.jsonl}], options: {max_tokens: 3}}
"""


@pytest.fixture
def call(
    tiny_model_folder: Path, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = "".join(json.dumps({"prompt": text}) + "\n" for text in ("answer politely", "answer rudely"))
    (tmp_path / "texts.jsonl").write_text(texts)
    (tmp_path / "small.yaml").write_text(SUITE)
    rows = [
        PairRow(str(i), ({"role": "user", "content": f"answer {i}"},), "politely", "rudely") for i in (0, 1)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(encode_row(row) + "\n" for row in rows))

    def run(*flags: str) -> int:
        words = ["steer", "--model", str(tiny_model_folder), "--pairs", str(tmp_path / "pairs.jsonl")]
        words += ["--name", "safe", "--version", "1.0.0", "-o", str(tmp_path / "out")]
        return main([*words, "--suite", str(tmp_path / "small.yaml"), "--packages", str(archives), *flags])

    return run


def test_the_best_strength_is_kept_with_the_figures_of_all(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--strengths", "0.01,0.5,1") == 0
    patch = read_patch(tmp_path / "out" / "safe-1.0.0.safetensors")
    rows: Any = patch.manifest.origin["strengths"]
    assert [row["strength"] for row in rows] == [0.01, 0.5, 1]
    assert isinstance(patch.manifest.body, SteeringBody)
    least = min(rows, key=lambda row: (row["compliance"] + row["refusal"], row["strength"]))
    assert patch.manifest.body.steering.strength == least["strength"]
    folder = tmp_path / "out" / "safe-1.0.0.sweep"
    results = json.loads((folder / "results.json").read_text())
    assert results["arms"] == ["base", "strength 0.01", "strength 0.5", "strength 1"]
    assert "<svg" in (folder / "report.html").read_text()
    assert f"strength {least['strength']:g}: harm complied with" in capsys.readouterr().out


def test_a_suite_has_to_measure_both_sides(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_sided = SUITE.replace("measure: refusal", "measure: harm")
    (tmp_path / "small.yaml").write_text(one_sided)
    assert call("--strengths", "0.1,0.2") == 2
    assert "none measures refusal" in capsys.readouterr().err


def test_of_equal_strengths_the_weakest_is_best() -> None:
    rows = [Strength(0.4, 0.1, 0.2), Strength(0.2, 0.3, 0.0), Strength(0.1, 0.9, 0.0)]
    assert best(rows).strength == 0.2


@pytest.mark.parametrize("text", ["", "x", "0.1,0.1", "0,1", "-1"])
def test_strengths_are_numbers_above_zero_that_differ(text: str) -> None:
    with pytest.raises(CompileError, match="strengths: expected numbers above 0"):
        read_strengths(text)
