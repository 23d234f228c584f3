"""Steps are shown as one line each, on a terminal and elsewhere."""

import io
import re
from pathlib import Path

import pytest

from tools.steps import StepFailed, Steps, main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_command_is_one_line_and_its_output_is_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "a" / "log"), "saying it", "sh", "-c", "echo out; echo err >&2"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"saying it \.\.\. \d+ s\n", out)
    assert err == ""
    assert (tmp_path / "a" / "log").read_text() == "\n$ sh -c echo out; echo err >&2\nout\nerr\n"


def test_a_command_that_fails_shows_the_end_of_the_log_and_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    assert main([str(log), "counting", "sh", "-c", "seq 100; exit 3"]) == 1
    out, err = capsys.readouterr()
    assert re.fullmatch(r"counting \.\.\. \d+ s, failed\n", out)
    assert err.startswith("  86\n")
    assert err.endswith(f"  100\n{log}: the command above ended with code 3\n")


def test_on_a_terminal_the_line_is_written_over(tmp_path: Path) -> None:
    terminal = Terminal()
    with Steps(tmp_path / "log", terminal).step("waiting") as results:
        results.append("for nothing")
    shown = r"waiting \.\.\. (\rwaiting \.\.\. \d+ s)+, for nothing\n"
    assert re.fullmatch(shown, terminal.getvalue())


def test_on_a_terminal_a_long_line_is_cut_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    with Steps(tmp_path / "log", terminal).step("x" * 60):
        pass
    assert all(len(line.rstrip("\n")) < 40 for line in terminal.getvalue().split("\r"))


def test_an_answer_is_returned_without_what_stands_beside_it(tmp_path: Path) -> None:
    steps = Steps(tmp_path / "log", io.StringIO())
    assert steps.ask(["sh", "-c", "echo answer; echo warning >&2"]) == "answer\n"
    assert "warning" in (tmp_path / "log").read_text()
    assert steps.ask(["false"]) is None


def test_a_program_that_is_missing_is_a_failed_step(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no-such-program"):
        Steps(tmp_path / "log", io.StringIO()).call(["no-such-program"])
