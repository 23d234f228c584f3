"""Our lines go through vLLM's handlers; ``tests/e2e/test_logs.py`` reads them in a real server's log."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from patches.terminal import one_line
from server.engine.logs import PACKAGES, log_through_vllm, without_native_lines
from server.engine.mistakes import hush_mistakes


@pytest.fixture
def shown() -> Iterator[io.StringIO]:
    """What vLLM's handler writes, while the root logger shows nothing below ERROR, as a library leaves it."""
    text = io.StringIO()
    vllm, root = logging.getLogger("vllm"), logging.getLogger()
    loggers = [logging.getLogger(name) for name in PACKAGES]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in (vllm, root, *loggers)]
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    vllm.handlers, vllm.propagate = [handler], False
    root.setLevel(logging.ERROR)
    log_through_vllm()
    yield text
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_line_at_info_is_shown_whatever_the_root_logger_says(shown: io.StringIO) -> None:
    logging.getLogger("server.catalog.log").info("patch %s: %s is active", "pirate", "1.0.1")
    assert shown.getvalue() == "[INFO] patch pirate: 1.0.1 is active\n"


def test_a_name_with_a_line_break_makes_one_line(shown: io.StringIO) -> None:
    logging.getLogger("server.catalog.refusals").error("%s is refused", "a\nERROR b\u202e.safetensors")
    assert shown.getvalue() == "[ERROR] a\\nERROR b\\u202e.safetensors is refused\n"


def test_a_traceback_keeps_its_lines_and_loses_what_would_move_a_cursor(shown: io.StringIO) -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logging.getLogger("patches").exception("it failed")
    assert "it failed\nTraceback (most recent call last):\n" in shown.getvalue()
    assert shown.getvalue().endswith("ValueError: \\x1b[2J\n")


def complain_as_vllm(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        logging.getLogger("vllm.entrypoints.anthropic.api_router").exception(
            "Error in create_messages: %s", caught
        )


@pytest.mark.parametrize(
    "error",
    [
        VLLMValidationError("prompt: expected at most 1024 tokens\nTraceback"),
        ValueError("temperature is odd"),
        TypeError("no text"),
        NotImplementedError("no such tool"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_clients_mistake_is_one_line_at_info(shown: io.StringIO, error: Exception) -> None:
    hush_mistakes()
    hush_mistakes()
    complain_as_vllm(error)
    assert shown.getvalue() == f"[INFO] a request is refused: {one_line(str(error))}\n"


def test_what_a_client_sent_is_not_logged_at_length(shown: io.StringIO) -> None:
    hush_mistakes()
    complain_as_vllm(ValueError("x" * 10_000))
    assert len(shown.getvalue()) < 300


@pytest.mark.parametrize("error", [RuntimeError("the engine broke"), EngineDeadError(), OSError("disk")])
def test_a_fault_of_the_server_keeps_its_traceback(shown: io.StringIO, error: Exception) -> None:
    hush_mistakes()
    complain_as_vllm(error)
    assert "Traceback (most recent call last):" in shown.getvalue()
    assert shown.getvalue().startswith("[ERROR]")


def test_a_line_of_noise_in_c_is_left_out_and_the_others_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with without_native_lines("NUMA binding"):
        os.write(2, b"[W1130] NUMA binding: memory is taken from the nodes (0)\n[W1130] no memory left\n")
        os.write(2, b"no end")
    assert capfd.readouterr().err == "[W1130] no memory left\nno end"
    with contextlib.suppress(ValueError), without_native_lines("NUMA binding"):
        os.write(2, b"why\n")
        raise ValueError
    assert capfd.readouterr().err == "why\n"


def test_warnings_are_lines_of_the_log_and_noise_is_none() -> None:
    program = (
        "import logging, warnings\n"
        "from server.engine.logs import log_warnings\n"
        "log_warnings()\n"
        "warnings.warn('`torch.distributed.reduce_op` is deprecated, please', FutureWarning)\n"
        "warnings.warn('take\\ncare')\n"
        "triton = logging.getLogger('vllm.triton_utils.importing')\n"
        'triton.warning("Triton is installed, but doesn\'t include CPU backend. Disabling Triton.")\n'
        "triton.warning('Triton is broken')\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    first, second = done.stderr.splitlines()
    assert "UserWarning: take\\ncare" in first
    assert second == "Triton is broken"
