"""`policypatch eval`, as a person calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.critical.gradient import linear_parameters
from patches.critical.scores import write_scores
from patches.format import Patch, write_patch
from patches.model import LoadedModel
from server.cli import main

SUITE = """
tasks:
  reading: {measure: perplexity, data: [{file: texts.jsonl}], options: {max_tokens: 8}}
  writing: {measure: outputs, data: [{file: texts.jsonl}], options: {max_tokens: 4}}
"""
TEXTS = ["answer politely", "never answer rudely", "answer the user"]


@pytest.fixture
def call(
    tiny_model_folder: Path, tiny_patch: Patch, other_patch: Patch, tmp_path: Path, monkeypatch: Any
) -> Callable[..., int]:
    """Measure two patches of the tiny model; needs no package, since no judge has a say."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    (tmp_path / "small.yaml").write_text(SUITE)
    files = [str(write_patch(patch, tmp_path)) for patch in (tiny_patch, other_patch)]

    def run(*flags: str) -> int:
        where = ["--suite", str(tmp_path / "small.yaml"), "-o", str(tmp_path / "out")]
        return main(["eval", "--model", str(tiny_model_folder), "--patch", *files, *where, *flags])

    return run


def results(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_every_arm_is_in_the_report(call: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "policy.txt").write_text("never answer rudely")
    assert call("--compose", "--policy-text", str(tmp_path / "policy.txt")) == 0
    arms = ["base", "system", "polite", "short", "polite, short", "short, polite"]
    assert results(tmp_path)["arms"] == arms
    found = {r["arm"]: r for r in results(tmp_path)["results"] if r["path"] == "small/reading/perplexity"}
    assert list(found) == arms
    assert {r["n"] for r in found.values()} == {3}
    assert len({r["value"] for r in found.values()}) == len(arms)
    assert "polite, short" in (tmp_path / "out" / "report.md").read_text()
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("limit", "status"), [("1000000000", 0), ("1", 1)])
def test_the_gate_decides_the_exit_status(
    limit: str, status: int, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text(f"thresholds: [{{figure: small/reading/perplexity, max: {limit}}}]")
    assert call("--gate", str(gate)) == status
    assert {check["passed"] for check in results(tmp_path)["gate"]} == {status == 0}
    assert f"gate: {'FAILED, 2 of 2 checks' if status else 'passed'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "--limit: expected at least 1, got 0"),
        (["--url", "localhost:8000"], "--url: expected http://HOST:PORT or https://HOST"),
        (["--url", "http://127.0.0.1:9", "--lora", "x"], "--lora goes with a model in this process"),
        (["--url", "http://127.0.0.1:9", "--noise", "x"], "--noise goes with a model in this process"),
        (["--suite", "harms"], "suite: unknown 'harms'"),
        (["--gate", "gone.yaml"], "gone.yaml: No such file"),
        (["--exclude", "gone.jsonl"], "gone.jsonl: can't be read"),
        (["--policy-text", "gone.txt"], "gone.txt: No such file"),
        (["--lora", "gone"], "gone: expected a LoRA adapter"),
    ],
)
def test_a_mistake_in_the_call_is_named(
    flags: list[str], message: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_the_run(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--url", "http://127.0.0.1:9") == 1
    assert "no answer" in capsys.readouterr().err


def test_a_lora_adapter_is_an_arm(call: Callable[..., int], tiny_model_folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    adapter = get_peft_model(network, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        adapter.save_pretrained(tmp_path / "adapter")
    assert call("--lora", str(tmp_path / "adapter")) == 0
    assert results(tmp_path)["arms"][-1] == "lora:adapter"
    assert results(tmp_path)["setup"]["arms"]["lora:adapter"].startswith("lora, sha256:")
    found = {
        r["arm"]: r["value"] for r in results(tmp_path)["results"] if r["path"].endswith("reading/perplexity")
    }
    assert found["lora:adapter"] != found["base"]


def test_noise_on_weights_by_their_scores_makes_arms(
    call: Callable[..., int], tiny_model: LoadedModel, tmp_path: Path
) -> None:
    weights, generator = linear_parameters(tiny_model.network), torch.Generator().manual_seed(0)
    gradient = {n: torch.rand(w.shape, generator=generator) / w.detach().std() for n, w in weights.items()}
    scores = write_scores(tmp_path / "scores", tiny_model.base_model, gradient, weights, {})
    assert call("--noise", str(scores.folder)) == 0
    assert results(tmp_path)["arms"][-3:] == ["noise-top", "noise-bottom", "noise-random"]
    values = [r["value"] for r in results(tmp_path)["results"] if r["path"] == "small/reading/perplexity"]
    assert len(set(values)) == len(values)
