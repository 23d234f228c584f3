"""`policypatch eval --url` gives the figures of the run in this process, compositions included."""

import json
from pathlib import Path
from typing import Any

import pytest

from patches.compose import compose_patches, composed_name
from patches.format import write_patch
from patches.label import Label
from server.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

#: No judge among them: nothing is fetched.
SUITE = """
tasks:
  reading: {measure: perplexity, data: [{file: texts.jsonl}], options: {max_tokens: 8}}
  writing: {measure: outputs, data: [{file: texts.jsonl}], options: {max_tokens: 12}}
  choosing: {measure: choice, data: [{file: questions.jsonl}]}
"""
TEXTS = ["What is the capital of France?", "Name three things that float on water."]
QUESTION = {
    "prompt": "Water is wet.\nQuestion: is water wet?\nAnswer:",
    "choices": ["no", "yes"],
    "answer": 1,
}
MAX_RELATIVE_GAP = 1e-3


@pytest.fixture
def arguments(demo_model: Path, tmp_path: Path, shared_server: Any, demo_patches: Any) -> list[str]:
    texts = {"eval-kind": "Answer kindly.", "eval-brief": "Answer in one short sentence."}
    patches = [demo_patches.of_text(name, text) for name, text in texts.items()]
    for parts in (patches, patches[::-1]):
        label = Label(composed_name([part.manifest.name for part in parts]), "1.0.0")
        shared_server.install(compose_patches(demo_patches.model, parts, label))
    for patch in patches:
        shared_server.install(patch)
    files = [str(write_patch(patch, tmp_path)) for patch in patches]
    (tmp_path / "small.yaml").write_text(SUITE)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    (tmp_path / "questions.jsonl").write_text(json.dumps(QUESTION))
    (tmp_path / "policy.txt").write_text("Answer kindly.")
    arms = ["--patch", *files, "--compose", "--policy-text", str(tmp_path / "policy.txt")]
    return ["eval", "--model", str(demo_model), *arms, "--suite", str(tmp_path / "small.yaml")]


def test_a_server_and_this_process_give_the_same_figures(
    arguments: list[str], tmp_path: Path, shared_server: Any
) -> None:
    assert main([*arguments, "-o", str(tmp_path / "here"), "--dtype", "float32"]) == 0
    assert main([*arguments, "-o", str(tmp_path / "there"), "--url", shared_server.url]) == 0
    here, there = (json.loads((tmp_path / f / "results.json").read_text()) for f in ("here", "there"))
    assert len(here["arms"]) == 6
    assert [key(result) for result in here["results"]] == [key(result) for result in there["results"]]
    for mine, theirs in zip(here["results"], there["results"], strict=True):
        assert theirs["value"] == pytest.approx(mine["value"], rel=MAX_RELATIVE_GAP), key(mine)
    answers = [
        {(row["task"], row["arm"], row["id"]): row.get("answer") for row in rows(tmp_path / folder)}
        for folder in ("here", "there")
    ]
    assert answers[0] == answers[1]
    # Figures that are all alike would agree whatever answered.
    readings = [r["value"] for r in here["results"] if r["path"] == "small/reading/perplexity"]
    assert len(set(readings)) == len(here["arms"])


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["path"], result["arm"], result["category"], result["n"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
