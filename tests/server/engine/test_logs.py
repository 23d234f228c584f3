"""Our lines go through vLLM's handlers; ``tests/e2e/test_logs.py`` reads them in a real server's log."""

import io
import logging
from collections.abc import Iterator

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from patches.terminal import one_line
from server.engine.logs import PACKAGES, hush_mistakes, log_through_vllm


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
