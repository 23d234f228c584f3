"""`policypatch bench`: hands over to the question, and gives its exit code back."""

import importlib
import subprocess
import sys

import pytest

from server.cli import build_parser, main
from server.commands import bench
from server.commands.errors import CommandError


def policypatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_lists_every_question() -> None:
    done = policypatch("--help")
    assert done.returncode == 0
    assert all(question in done.stdout for question in bench.QUESTIONS)


def test_question_gets_its_own_flags_and_its_exit_code_comes_back() -> None:
    done = policypatch("overhead", "--model", "m", "--policy-text", "missing.txt")
    assert done.returncode == 2
    assert "policypatch bench overhead: --policy-text: expected a file" in done.stderr


def test_help_of_a_question_is_the_questions() -> None:
    done = policypatch("overhead", "--help")
    assert done.returncode == 0
    assert "--concurrency" in done.stdout


def test_every_question_is_a_module_that_can_be_run() -> None:
    for question in bench.QUESTIONS:
        assert callable(importlib.import_module(bench.module_of(question)).main)


def test_unknown_question_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "nothing"])
    assert exit_.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    args = build_parser("bench").parse_args(["bench", "report", "x.jsonl"])
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r"policypatch\[bench\]"):
        bench.run(args)
