"""What every question has in common: how a run ends, and what it leaves."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError, CutShort
from bench.report.record import Record, append_record
from bench.run.question import RECORDS, finish, time_limit

MakeRecord = Callable[..., Record]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    line: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return line


def test_a_run_that_fails_ends_with_one_and_a_json_line_and_leaves_no_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise BenchError("the server went away")

    assert finish("scale", fail, tmp_path) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["error"] == "the server went away"
    assert captured.err == "bench scale: the server went away\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_reports_what_it_has_measured(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def measure(folder: Path) -> None:
        for arm in ("plain", "idle"):
            append_record(folder / RECORDS, make_record(arm, 1, 100.0))
        asyncio.run(be_ended())

    async def be_ended() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(3600)

    # A shell that starts the tests in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert finish("overhead", measure, tmp_path) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    line = last_line(capsys)
    assert (line["ok"], "ratios" in line) == (False, True)
    (report,) = tmp_path.glob("overhead-*/report.md")
    assert "**Cut short**" in report.read_text()


def test_a_run_that_is_cut_short_during_the_warm_up_says_why_there_is_no_figure(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(folder: Path) -> None:
        append_record(folder / RECORDS, make_record("plain", 0, 100.0))
        raise CutShort("not done after 9 s")

    assert finish("overhead", measure, tmp_path) == 1
    error = last_line(capsys)["error"]
    assert error == "not done after 9 s; records: expected at least one round after the warm-up, got none"


async def test_only_the_limits_own_time_cuts_a_run_short() -> None:
    with pytest.raises(CutShort, match="not done after 0 s"):
        async with time_limit(0):
            await asyncio.sleep(3600)
    with pytest.raises(TimeoutError, match="somebody else's") as raised:
        async with time_limit(3600):
            raise TimeoutError("somebody else's")
    assert not isinstance(raised.value, CutShort)
