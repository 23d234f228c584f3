"""A process of the engine that can't start says why once, where the server's own process finds it."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.children import begin, cause_of, failure
from server.engine.start_errors import EngineFailed, engine_started
from server.engine.support import UnsupportedSetup

CORE, WORKER = "vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor"
SAID = {CORE: "EngineCore failed to start.", WORKER: "WorkerProc failed to start."}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where processes report to, in one that has begun as theirs do."""
    path = tmp_path / "report.log"
    monkeypatch.setenv("POLICYPATCH_START_REPORT", str(path))
    loggers = {name: list(logging.getLogger(name).filters) for name in SAID}
    begin()
    yield path
    logging.captureWarnings(False)
    for name, filters in loggers.items():
        logging.getLogger(name).filters = filters


def fail(name: str, error: BaseException, cause: BaseException | None = None) -> None:
    """End as a process of vLLM's does whose start fails."""
    try:
        raise error from cause
    except BaseException:
        logging.getLogger(name).exception(SAID[name])


def told(match: str, kind: type[Exception]) -> None:
    """Check what the server's process makes of it."""
    with pytest.raises(kind, match=match), engine_started():
        raise RuntimeError("Engine core initialization failed. See root cause above.")


def test_a_mistake_is_told_with_its_cause_and_the_place_of_the_traceback(report: Path) -> None:
    with pytest.raises(SystemExit):
        fail(WORKER, ValueError("no such\nformat"), ImportError("no module named x"))
    with pytest.raises(SystemExit):
        fail(CORE, Exception("WorkerProc initialization failed due to an exception"))
    told(
        rf"could not start: ValueError: no such format \(ImportError: no module named x\).* is in {report}$",
        UnsupportedSetup,
    )
    assert report.read_text().count("Traceback") == 1
    assert report.stat().st_mode & 0o777 == 0o600


def test_what_may_be_gone_at_the_next_try_is_no_mistake(report: Path) -> None:
    with pytest.raises(SystemExit):
        fail(CORE, RuntimeError("out of memory"))
    told("could not start: RuntimeError: out of memory", EngineFailed)
    report.unlink()
    with pytest.raises(SystemExit):
        fail(CORE, RuntimeError("Worker failed with error 'no room', please check the stack trace above"))
    told("could not start: no room; the traceback", EngineFailed)


def test_the_first_report_is_the_one_that_is_told(report: Path) -> None:
    for text in ("first", "second"):
        with pytest.raises(SystemExit):
            fail(WORKER, ValueError(text))
    told("ValueError: first", UnsupportedSetup)


def test_other_lines_and_processes_that_report_to_nobody_pass(
    report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger(CORE).error("EngineCore failed to start.")
    try:
        raise ValueError
    except ValueError:
        logging.getLogger(CORE).exception("EngineCore encountered a fatal error.")
    monkeypatch.delenv("POLICYPATCH_START_REPORT")
    fail(CORE, ValueError("x"))
    assert not report.exists()
    assert failure() is None
    told("what it says above is why", EngineFailed)


def test_the_innermost_error_is_found_in_a_circle_too() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert cause_of(first) is second


def test_a_process_that_multiprocessing_starts_begins_that_way(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import logging, multiprocessing, os, warnings\n"
        "from server.engine import children\n"
        "if __name__ == '__main__':\n"
        "    children.prepare_children()\n"
        "    process = multiprocessing.get_context('spawn').Process(\n"
        "        target=warnings.warn, args=('in a child',))\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=True,
    )
    # One line, as a handler of the log is given it.
    (line,) = done.stderr.splitlines()
    assert "UserWarning: in a child" in line
