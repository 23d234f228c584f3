"""What each process that a server starts does first.

Python's warnings become lines of the log there, and a start that fails is reported to the server's own
process, which tells it in one line; vLLM would print three tracebacks, each of another process.
"""

import importlib.util
import logging
import os
import re
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from patches.terminal import one_line, printable
from patches.text import read_text
from server.engine.logs import log_warnings

#: In the environment: the file that a process writes where it could not start.
_REPORT = "POLICYPATCH_START_REPORT"

#: Loggers of vLLM's processes -> how each begins what it says where its start failed.
_FAILED = {
    "vllm.v1.engine.core": "EngineCore failed to start",
    "vllm.v1.executor.multiproc_executor": "WorkerProc failed to start",
}
#: What the engine's process says of its workers', which have said why.
_WORKERS_SAID = "WorkerProc initialization failed"

#: Errors that a flag, a file or a missing package leads to; what is left may be gone at the next try.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    FileNotFoundError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_MAX_REASON = 500
#: How the engine's process passes on what a worker said in a step of its start; the log has its traceback.
_WORKER_TOLD = re.compile(
    r"^RuntimeError: Worker failed with error '(.*)', please check the stack", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class StartFailure:
    """Why a process of the engine could not start."""

    reason: str
    #: Whoever starts the server can mend it.
    is_mistake: bool
    #: The file with the tracebacks.
    path: Path


def begin() -> None:
    """Prepare a new process; to be called before it imports vLLM."""
    log_warnings()
    for name in _FAILED:
        logger = logging.getLogger(name)
        if _report_failure not in logger.filters:
            logger.addFilter(_report_failure)


def prepare_children() -> None:
    """Have every process that is started from here on begin with ``begin``, and report where it fails."""
    # What `multiprocessing` imports first in a new process, under another name; see the end of this file.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("server.engine.children")
    os.environ[_REPORT] = str(Path(tempfile.gettempdir(), f"policypatch-start-{uuid.uuid4().hex}.log"))


def failure() -> StartFailure | None:
    """Return what the processes that could not start reported, the first of them."""
    path = Path(os.environ.get(_REPORT, ""))
    try:
        head = read_text(path).partition("\n")[0]
    except OSError:
        return None
    kind, _, reason = head.partition(": ")
    return StartFailure(reason, kind == "mistake", path)


def cause_of(error: BaseException) -> BaseException:
    """Return the error that an error was explicitly raised from, and so on to the innermost."""
    seen = {id(error)}
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    return error


def _report_failure(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    is_failure = error is not None and record.getMessage().startswith(_FAILED.get(record.name, "\0"))
    if not is_failure or error is None or _REPORT not in os.environ:
        return True
    if not str(error).startswith(_WORKERS_SAID):
        _write(error, logging.Formatter().formatException(record.exc_info or (None, None, None)))
    _end()


def _end() -> NoReturn:
    # Instead of the error, which Python would print once more.
    sys.exit(1)


def _write(error: BaseException, trace: str) -> None:
    cause = cause_of(error)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if (told := _WORKER_TOLD.search(said)) is not None:
        said = told[1]
    reason = said if cause is error or str(cause) in said else f"{said} ({type(cause).__name__}: {cause})"
    kind = "mistake" if isinstance(error, _MISTAKES) or isinstance(cause, _MISTAKES) else "failure"
    head = one_line(f"{kind}: {' '.join(reason.split())[:_MAX_REASON]}")
    # Of several processes the first one's head is the file's; each appends in one piece.
    file = os.open(os.environ[_REPORT], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, f"{head}\n{printable(trace)}\n\n".encode("utf-8", "backslashreplace"))
    finally:
        os.close(file)


if __name__ == "__mp_main__":
    begin()
