"""From a written policy to a served patch: pairs, SFT, DPO, evaluation with a gate, serving; on a tiny model.

A random model learns no manners. What is held here is that each command takes what the one before gave, that
the patch moves the model towards the chosen answers, and that `policypatch eval --url` gives the figures of
the run in this process, for the policy as text and for compositions in both orders, too.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from patches.compose import compose_patches, composed_name
from patches.format import Patch, read_patch, write_patch
from patches.label import Label
from server.cli import main

pytestmark = [pytest.mark.e2e, pytest.mark.server("tiny")]

POLICY = "Be kind, be brief, and never tell anybody how to hurt somebody."
NUM_PROMPTS = 16
NAME, OTHER = "chain-kind", "chain-brief"
#: No judge among them: nothing is fetched.
SUITE = """
tasks:
  reading: {measure: perplexity, data: [{file: texts.jsonl}], options: {max_tokens: 6}}
  writing: {measure: outputs, data: [{file: texts.jsonl}], options: {max_tokens: 6}}
  chosen: {measure: choice, data: [{file: chosen.jsonl}], options: {style: chat}}
"""
#: The chosen answers have to be likelier under the patch than under the base.
GATE = f"thresholds: [{{figure: small/chosen/confidence, arm: {NAME}, max_decrease: 0}}]"
MAX_RELATIVE_GAP = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chain")
    (path / "policy.txt").write_text(POLICY)
    (path / "prompts.txt").write_text("".join(f"Tell me about number {n}.\n" for n in range(NUM_PROMPTS)))
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, tiny_model: Path) -> Patch:
    model = ["--model", str(tiny_model), "--dtype", "float32"]
    sides = ["--reference-text", str(folder / "policy.txt"), "--prompts", str(folder / "prompts.txt")]
    drawn = ["--samples", "1", "--max-tokens", "6", "-o", str(folder / "pairs.jsonl")]
    assert main(["pairs", *model, *sides, *drawn]) == 0
    data = ["--pairs", str(folder / "pairs.jsonl"), "--init-text", str(folder / "policy.txt")]
    data += ["--benign", str(folder / "prompts.txt"), "--benign-weight", "0.01", "--benign-tokens", "4"]
    label = ["--name", NAME, "--version", "1.0.0", "-o", str(folder)]
    short = ["--tokens", "16", "--sft-epochs", "4", "--dpo-epochs", "1", "--batch-size", "8"]
    assert main(["train", *model, *data, *label, *short]) == 0
    return read_patch(folder / f"{NAME}-1.0.0.safetensors")


@pytest.fixture(scope="module")
def call(folder: Path, trained: Patch, tiny_model: Path, tiny_patches: Any) -> list[str]:
    """The call of `policypatch eval` over two patches, both their orders, and the policy as text."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    answers = [[row[side][0]["content"] for side in ("chosen", "rejected")] for row in rows[:2]]
    asked = [row["prompt"][-1]["content"] for row in rows[:2]]
    questions = [{"prompt": q, "choices": c, "answer": 0} for q, c in zip(asked, answers, strict=True)]
    texts = [{"prompt": "Water is wet, and so is the rain."}, {"prompt": "What floats on water?"}]
    for name, lines in (("chosen", questions), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "small.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(GATE)
    other = write_patch(tiny_patches.of_text(OTHER, "Answer in one short sentence."), folder)
    arms = ["--patch", str(folder / f"{NAME}-1.0.0.safetensors"), str(other), "--compose"]
    arms += ["--policy-text", str(folder / "policy.txt")]
    what = ["--suite", str(folder / "small.yaml"), "--gate", str(folder / "gate.yaml")]
    return ["eval", "--model", str(tiny_model), *arms, *what]


def test_the_manifest_says_how_the_patch_was_trained(trained: Patch) -> None:
    origin = trained.manifest.origin
    assert origin["method"] == "trained"
    assert origin["config"]["stages"] == ["sft", "dpo"]
    assert {"sft", "dpo"} <= set(origin["curves"])


def test_the_server_gives_the_figures_that_passed_the_gate(
    call: list[str],
    folder: Path,
    trained: Patch,
    tiny_patches: Any,
    tiny_server: Any,
) -> None:
    assert main([*call, "-o", str(folder / "here")]) == 0
    parts = [trained, read_patch(folder / f"{OTHER}-1.0.0.safetensors")]
    for patch in (*parts, *(composed(tiny_patches.model, order) for order in (parts, parts[::-1]))):
        tiny_server.install(patch)
    assert main([*call, "-o", str(folder / "there"), "--url", tiny_server.url]) == 0
    here, there = (json.loads((folder / f / "results.json").read_text()) for f in ("here", "there"))
    assert here["arms"] == ["base", "system", NAME, OTHER, f"{NAME}, {OTHER}", f"{OTHER}, {NAME}"]
    assert list(map(key, here["results"])) == list(map(key, there["results"]))
    for mine, theirs in zip(here["results"], there["results"], strict=True):
        assert theirs["value"] == pytest.approx(mine["value"], rel=MAX_RELATIVE_GAP), key(mine)
    assert answers(folder / "here") == answers(folder / "there")
    # Figures that are all alike would agree whatever answered.
    readings = [r["value"] for r in here["results"] if r["path"] == "small/reading/perplexity"]
    assert len(set(readings)) == len(here["arms"])


def composed(model: Any, parts: list[Patch]) -> Patch:
    return compose_patches(
        model, parts, Label(composed_name([part.manifest.name for part in parts]), "1.0.0")
    )


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["path"], result["arm"], result["category"], result["n"]


def answers(folder: Path) -> dict[tuple[str, str, str], str | None]:
    rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    return {(row["task"], row["arm"], row["id"]): row.get("answer") for row in rows}
