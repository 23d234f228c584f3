"""The commands that check patches, and the help of all of them, through the command line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patches.compile import compile_text
from patches.format import Patch, write_patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from server.cli import main

ROOT = Path(__file__).resolve().parents[2]


def compiled(model: LoadedModel, name: str, folder: Path) -> Path:
    return write_patch(compile_text(model, f"answer {name}", Label(name, "1.0.0")), folder)


def test_inspect_shows_a_card_with_the_whole_digest(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = make(license="MIT", changelog="[red]Kinder[/]", evaluation={"toxicity": 0.25}, embeddings=False)
    assert main(["inspect", str(write_patch(patch, tmp_path))]) == 0
    card = capsys.readouterr().out
    for text in (
        "pirate@1.0.0",
        patch.digest,
        "LlamaForCausalLM, 2 layers, 2 KV heads of 4, hidden size 8",
        "3 (0 blocks of 16 and 3 tokens)",
        "embeddings      none",
        "bfloat16 [2, 2, 3, 2, 4]",
        "[red]Kinder[/]",
        "0.25",
    ):
        assert text in card


def test_inspect_shows_no_control_characters_of_a_hostile_file(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = make(origin={"method": "text", "text": "a\x1b[2J\u202eb", "\x1b]0;x\x07": 1})
    assert main(["inspect", str(write_patch(patch, tmp_path))]) == 0
    card = capsys.readouterr().out
    assert "\x1b" not in card
    assert "\u202e" not in card
    assert r"a\x1b[2J\u202eb" in card


TRAINED = {
    "method": "trained",
    "composed_with": [{"name": "detox", "version": "1.2.0", "digest": "sha256:" + "d" * 64}],
    "curves": {
        "sft": {"step": [1, 2, 3, 4], "loss": [4, 3, 0.5, 1], "accuracy": [0.25, None, 1, 0.5]},
        "sft_validation": {"step": [4], "loss": [0.75]},
    },
    "data": {"num_train": 2788, "num_validation": 317, "left_out": {}, "pairs_digest": "sha256:" + "e" * 64},
}


def test_inspect_draws_what_training_did_and_counts_its_data(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"training": {"sft": {"loss": 0.75, "step": 4}}, "harm": {"rate": 0.125}}
    patch = make(origin=TRAINED, evaluation=evaluation)
    assert main(["inspect", str(write_patch(patch, tmp_path))]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "beside detox@1.2.0 sha256:" + "d" * 64,
        "sft first last best",
        "loss 4 1 0.5 at 3 \u2588\u2586\u2581\u2582",
        "accuracy 0.25 0.5 1 at 3 \u2581\u2588\u2583",
        "loss 0.75 at 4",
        "data left out none, 2788 train, 317 validation",
        "pairs sha256:" + "e" * 64,
        "evaluation harm training sft",
        "rate 0.125",
    ):
        assert line in lines


@pytest.mark.parametrize("name", ["refuse-harm-1.4.0", "detox-1.3.0", "debias-1.1.0", "pirate-1.0.0"])
def test_the_card_of_a_shipped_patch_fits_two_screens_without_boxes_or_colours(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(ROOT / "examples" / "patches" / f"{name}.safetensors")]) == 0
    card = capsys.readouterr().out
    assert len(card.splitlines()) <= 50
    assert not set(card) & set("\x1b─│┌└╭╰")
    tables = [line for line in card.splitlines() if line.startswith("    ") and "sha256:" not in line]
    assert max(map(len, tables), default=0) <= 120


def test_inspect_lists_the_parts_of_a_composition(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [{"name": n, "version": "1.0.0", "digest": "sha256:" + n * 64} for n in "ab"]
    patch = make("both", origin={"method": "compose", "components": parts})
    assert main(["inspect", str(write_patch(patch, tmp_path))]) == 0
    card = capsys.readouterr().out
    assert "part 1" in card
    assert "sha256:" + "b" * 64 in card


def test_inspect_gives_json(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = make(license="MIT")
    path = write_patch(patch, tmp_path)
    assert main(["inspect", "--json", str(path)]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["digest"] == patch.digest
    assert document["num_bytes"] == path.stat().st_size
    assert document["manifest"]["license"] == "MIT"
    assert document["tensors"]["kv"] == {"dtype": "bfloat16", "shape": [2, 2, 3, 2, 4], "num_bytes": 192}


def test_inspect_of_a_bad_file_is_a_mistake_of_the_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_bytes(b"nothing like it")
    assert main(["inspect", str(tmp_path / "bad")]) == 2
    assert "expected a safetensors header" in capsys.readouterr().err


def test_verify_says_yes_to_good_files(
    tiny_model: LoadedModel, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(compiled(tiny_model, name, tmp_path)) for name in ("kind", "brief")]
    assert main(["verify", *files]) == 0
    assert main(["verify", *files, "--model", str(tiny_model_folder)]) == 0
    assert main(["verify", *files, "--model", str(tiny_model_folder), "--dtype", "float32"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count(": good: ") == 6
    assert captured.err == ""


def test_verify_names_every_problem(
    make: Callable[..., Patch], tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_patch(make(), tmp_path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes().replace(b'pirate\\"', b'PIRATE\\"').replace(b"prefix", b"suffix"))
    assert main(["verify", str(damaged), str(good)]) == 1
    captured = capsys.readouterr()
    for text in (
        "damaged.safetensors: not good:",
        "bad_name: ",
        "bad_manifest: manifest.kind",
        "digest_mismatch: ",
    ):
        assert text in captured.err
    assert ": good: pirate@1.0.0" in captured.out
    assert main(["verify", str(good), "--model", str(tiny_model_folder), "--dtype", "float32"]) == 1
    errors = capsys.readouterr().err
    for key in ("head_size", "hidden_size", "tokenizer_digest", "weights_digest"):
        assert f"base_model_mismatch: {key}: expected" in errors


def test_verify_compares_the_dtype_only_where_it_is_given(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = compiled(load_model(tiny_model_folder, dtype="bfloat16"), "kind", tmp_path)
    command = ["verify", str(path), "--model", str(tiny_model_folder)]
    assert main(command) == 0
    assert "the server must run with --dtype bfloat16 or float32" in capsys.readouterr().out
    assert main([*command, "--dtype", "float32"]) == 0
    assert main([*command, "--dtype", "float16"]) == 1
    errors = capsys.readouterr().err
    assert "dtype: expected float16, got bfloat16" in errors
    assert "policypatch convert FILE --dtype float16 -o DIR" in errors


def test_verify_notes_a_patch_that_no_server_can_use(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(write_patch(make(kv=False), tmp_path))]) == 0
    assert "has no K/V" in capsys.readouterr().out


def test_verify_of_what_cannot_be_read_is_a_mistake_of_the_caller(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(write_patch(make(), tmp_path))
    assert main(["verify", str(tmp_path / "gone")]) == 2
    assert main(["verify", str(tmp_path)]) == 2
    assert main(["verify", good, "--model", str(tmp_path)]) == 2
    assert main(["verify", good, "--dtype", "float32"]) == 2
    assert capsys.readouterr().err.count("policypatch verify: ") == 4


@pytest.mark.parametrize("command", ["compile", "compose", "inspect", "verify", "export"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"examples:\n  policypatch {command} " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compile", "compose", "inspect", "verify", "export"])
def test_help_does_not_wait_for_torch(command: str) -> None:
    script = f"import sys, server.commands.{command} as m; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--help"], {"torch", "numpy", "rich"}),
        (["inspect", "FILE"], {"torch"}),
        (["inspect", "--json", "FILE"], {"torch"}),
        (["verify", "FILE"], {"torch"}),
    ],
)
def test_a_command_that_reads_a_file_loads_nothing_heavy(
    arguments: list[str], modules: set[str], make: Callable[..., Patch], tmp_path: Path
) -> None:
    path = str(write_patch(make(), tmp_path))
    called = [path if argument == "FILE" else argument for argument in arguments]
    script = f"""
import sys
from server.cli import main
try:
    status = main({called!r})
except SystemExit as ended:
    status = ended.code
sys.exit(status or sorted(sys.modules.keys() & {modules!r}) or 0)"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
