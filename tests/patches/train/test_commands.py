"""`policypatch pairs` and `policypatch train`, as a person calls them."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from patches.format import read_patch
from patches.pairs.rows import read_pairs
from patches.train import checkpoint, loop
from server.cli import main

POLICY = "answer politely, never answer rudely"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.txt"
    path.write_text(POLICY)
    return path


@pytest.fixture
def pairs_args(tiny_model_folder: Path, policy: Path, tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*(f"say {n}" for n in range(12)), "", "say 3"]))
    sides = ["--model", str(tiny_model_folder), "--reference-text", str(policy)]
    files = ["--prompts", str(prompts), "-o", str(tmp_path / "made.jsonl")]
    return ["pairs", *sides, *files, "--samples", "2", "--max-tokens", "6", "--batch-size", "5"]


@pytest.fixture
def train_args(tiny_model_folder: Path, pairs_file: Path, policy: Path, tmp_path: Path) -> list[str]:
    data = ["--model", str(tiny_model_folder), "--pairs", str(pairs_file), "--init-text", str(policy)]
    label = ["--name", "kind", "--version", "1.0.0", "-o", str(tmp_path / "patches")]
    return ["train", *data, *label, "--tokens", "16", "--batch-size", "4"]


def test_pairs_writes_rows_and_says_what_was_left_out(
    pairs_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pairs_args) == 0
    rows = read_pairs(tmp_path / "made.jsonl")
    assert "1 empty prompts, 1 repeated prompts" in capsys.readouterr().out
    assert {row.split for row in rows} <= {"train", "validation", "test"}
    report = json.loads((tmp_path / "made.report.json").read_text())
    assert report["counts"]["kept"] == len(rows) == sum(report["splits"].values())
    assert report["reference"] == {"kind": "text", "text": POLICY}


def test_pairs_again_gives_the_same_file_and_other_thresholds_ask_nobody(
    pairs_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(pairs_args) == 0
    before = (tmp_path / "made.jsonl").read_bytes()
    monkeypatch.setattr("patches.pairs.local.LocalSampler.sample", None)
    assert main(pairs_args) == 0
    assert (tmp_path / "made.jsonl").read_bytes() == before
    assert main([*pairs_args, "--pairs-per-prompt", "2"]) == 0
    assert len(read_pairs(tmp_path / "made.jsonl")) > before.count(b"\n")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--seed", "1"], "drawn with other settings"),
        (["--scorer", "words"], "--scorer words and --scorer-words FILE go together"),
        (["--top-p", "0"], "top_p: expected more than 0"),
        (["--url", "http://127.0.0.1:1"], "expected --model or --url, and only one"),
        (["--scorer", "refusal"], "pairs: none is left"),
        (["--test-share", "1"], "leave some for training"),
    ],
)
def test_pairs_refuses_in_one_line(
    extra: list[str], message: str, pairs_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pairs_args) == 0
    assert main([*pairs_args, *extra]) == 2
    assert message in capsys.readouterr().err


def test_pairs_refuses_a_reference_that_is_the_base(
    pairs_args: list[str], policy: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.write_text(" \n")
    assert main(pairs_args) == 2
    assert "the reference would equal the base" in capsys.readouterr().err
    index = pairs_args.index("--reference-text")
    pairs_args[index : index + 2] = ["--reference", str(tiny_model_folder)]
    assert main(pairs_args) == 2
    assert "has the weights of the base" in capsys.readouterr().err


def test_pairs_takes_another_model_as_reference(
    pairs_args: list[str], make_tiny_model: Callable[..., None], tmp_path: Path
) -> None:
    make_tiny_model(tmp_path / "other", seed=7)
    index = pairs_args.index("--reference-text")
    pairs_args[index : index + 2] = ["--reference", str(tmp_path / "other")]
    assert main(pairs_args) == 0


def test_train_writes_a_patch_that_verifies_a_log_and_a_report(
    train_args: list[str], tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_args) == 0
    file, run = tmp_path / "patches" / "kind-1.0.0.safetensors", tmp_path / "patches" / "kind-1.0.0.training"
    assert read_patch(file).digest in capsys.readouterr().out
    assert main(["verify", str(file), "--model", str(tiny_model_folder)]) == 0
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "grad_norm" in record]
    assert {"loss", "margin", "seconds", "num_tokens", "learning_rate", "time"} <= set(steps[-1])
    assert "| dpo | 4 |" in (run / "report.md").read_text()
    assert json.loads((run / "report.json").read_text())["digest"] == read_patch(file).digest


def test_ctrl_c_stops_after_the_step_and_resume_gives_the_same_patch(
    train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*train_args, "--run", str(tmp_path / "whole")]) == 0
    file = tmp_path / "patches" / "kind-1.0.0.safetensors"
    whole = file.read_bytes()
    file.unlink()
    real, seen = loop.Loop._step, []

    def interrupted(self: loop.Loop, *args: object) -> object:
        seen.append(args)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Loop, "_step", interrupted)
    assert main(train_args) == 130
    assert "stopped at step 3; the same command with --resume continues" in capsys.readouterr().err
    assert not file.exists()
    assert main(train_args) == 2
    assert "--resume continues it, --restart starts over" in capsys.readouterr().err
    assert main([*train_args, "--resume"]) == 0
    assert file.read_bytes() == whole


def test_restart_discards_the_run(train_args: list[str], tmp_path: Path) -> None:
    assert main(train_args) == 0
    assert main([*train_args, "--restart", "--seed", "1", "--force"]) == 0
    log = (tmp_path / "patches" / "kind-1.0.0.training" / "log.jsonl").read_text()
    assert log.count('"event": "stage"') == 2


def test_a_full_disk_ends_the_command_with_advice(
    train_args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", no_space)
    assert main(train_args) == 1
    assert "No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--resume"], "holds no checkpoint to resume from"),
        (["--beta", "0"], "beta: expected more than 0"),
        (["--stages", "dpo"], "dpo_reference: expected base, teacher or none"),
        (["--dpo-reference", "teacher"], "teacher needs a policy text"),
        (["--max-length", "2"], "none is left to learn from"),
        (["--init", "pool", "--tokens", "60"], "pool needs a text of at least 60 tokens"),
        (["--pairs", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
        (["--name", "No"], "name: expected"),
        (["--compose-with", "/nowhere.safetensors"], "/nowhere.safetensors"),
    ],
)
def test_train_refuses_in_one_line(
    extra: list[str], message: str, train_args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*train_args, *extra]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("init", ["tile", "pool", "system", "random"])
def test_every_start_gives_a_patch_of_n_tokens(
    init: str, train_args: list[str], tmp_path: Path, policy: Path
) -> None:
    policy.write_text(f"{POLICY}, and never ever otherwise than that")
    assert main([*train_args, "--init", init, "--stages", "sft", "--sft-epochs", "1"]) == 0
    assert read_patch(tmp_path / "patches" / "kind-1.0.0.safetensors").manifest.num_virtual_tokens == 16


def test_a_run_that_is_refused_leaves_no_folder(train_args: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n")
    before = set(tmp_path.rglob("*"))
    assert main([*train_args, "--pairs", str(broken), "--run", str(tmp_path / "run")]) == 2
    assert set(tmp_path.rglob("*")) == before
