"""What holds for every command: help that fits, mistakes in one line, output that any terminal can show."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from patches.format import Patch, write_patch
from server.cli import COMMANDS, main
from server.commands.bench import QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
#: A terminal that can show ASCII only.
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def policypatch(*words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command as a process of its own, since its streams are what is tried."""
    call = [sys.executable, "-m", "server", *words]
    return subprocess.run(call, capture_output=True, check=False, cwd=ROOT, env=os.environ | env)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_but_for_examples(
    command: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown, examples, _ = capsys.readouterr().out.partition("examples:")
    assert examples
    assert max(map(len, shown.splitlines())) <= width


# Which questions are imported by then depends on the tests before.
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_help_of_a_benchmark_fits_the_terminal_but_for_examples(
    question: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", question, "--help"]) == 0
    shown, _, _ = capsys.readouterr().out.partition("examples:")
    assert f"policypatch bench {question}" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    "words", [[], ["none-such"], ["serve"], ["inspect"], ["patches", "list"], ["patches", "list", "--ulr"]]
)
def test_a_mistake_in_the_call_is_one_line_that_names_the_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("policypatch")
    assert line.endswith("--help`")


@pytest.fixture
def foreign(make: Callable[..., Patch], tmp_path: Path) -> Path:
    """A patch with a changelog, and a path, of characters that ASCII lacks."""
    (tmp_path / "Füße").mkdir()
    return write_patch(make(changelog="Höflicher ✓"), tmp_path / "Füße")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_output_that_the_terminal_cannot_show_is_escaped(command: str, foreign: Path) -> None:
    shown = policypatch(command, str(foreign), **PLAIN)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.isascii()
    assert b"F\\xfc\\xdfe" in shown.stdout or b"\\udcc3" in shown.stdout


def test_errors_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    shown = policypatch("inspect", str(tmp_path / "ü"), **PLAIN)
    assert shown.returncode == 2
    assert shown.stderr.isascii()
    assert shown.stderr.count(b"\n") == 1


def test_json_is_json_on_every_terminal(foreign: Path) -> None:
    shown = policypatch("inspect", "--json", str(foreign), **PLAIN)
    assert json.loads(shown.stdout)["manifest"]["changelog"] == "Höflicher ✓"


def test_a_message_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no\x1b[2J\u202esuch"]) == 2
    assert r"no\x1b[2J\u202esuch" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "PLACE"],
        ["sign", "PLACE", "--key", "PLACE"],
        ["export", "--peft", "PLACE", "-o", "out"],
        ["patches", "load", "PLACE", "--url", "http://127.0.0.1:9"],
        ["policy", "check", "PLACE"],
        ["compile", "--text", "PLACE", "--model", "m", "--name", "a", "--version", "1.0.0", "-o", "out"],
    ],
    ids=lambda words: words[0],
)
def test_a_folder_in_place_of_a_file_is_named_once(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path) if word == "PLACE" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count(str(tmp_path)) == 1
    assert line.endswith("Is a directory")


def test_a_file_in_place_of_a_folder_is_told_so(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = write_patch(make(), tmp_path)
    for words in (["keygen", str(patch)], ["export", "--peft", str(patch), "-o", str(patch)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"{patch}: expected a folder, but a file is there; choose another name" in error


def test_results_move_no_cursor_either(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_patch(make(), tmp_path).rename(tmp_path / "a\x1b[2J\u202e.safetensors")
    for command in ("verify", "inspect"):
        assert main([command, str(path)]) == 0
        shown = capsys.readouterr().out
        assert r"a\x1b[2J\u202e.safetensors" in shown
        assert "\x1b" not in shown


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(foreign: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    call = [sys.executable, "-m", "server", "verify", str(foreign)]
    with os.fdopen(write_end, "w") as closed:
        done = subprocess.run(call, stdout=closed, stderr=subprocess.PIPE, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (141, b"")
