"""Our log lines in vLLM's format, in every process of a server.

Loggers below the root say what the root says, and a library that vLLM's app imports sets it to ERROR. So ours
hand their lines to vLLM's own handlers, with its levels, colours, JSON and process names. Nothing of vLLM is
imported here: what a process says before that counts, too.
"""

import copy
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from patches.terminal import escape_what_streams_lack, one_line, printable

#: The packages whose modules log, under their own names.
PACKAGES = ("server", "patches", "prefix_kernels", "steering_kernels")

#: Says how it found Triton while vLLM is imported, before anything of it is configured.
_TRITON = "vllm.triton_utils.importing"

_STDERR = 2


class _ThroughVllm(logging.Handler):
    """Hands a record to whatever handlers vLLM has at the time, one line for each message."""

    def emit(self, record: logging.LogRecord) -> None:
        line = copy.copy(record)
        # A file may be named to look like a line of its own.
        line.msg, line.args = one_line(record.getMessage()), None
        if line.exc_info and line.exc_info[1] is not None:
            line.exc_text = printable(logging.Formatter().formatException(line.exc_info))
        logging.getLogger("vllm").callHandlers(line)


def log_through_vllm() -> None:
    """Send every line of ours, at INFO and above, through vLLM's handlers; to be called in each process."""
    escape_what_streams_lack()
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers = [_ThroughVllm()]
        logger.propagate = False
        logger.setLevel(min(logging.INFO, logging.getLogger("vllm").getEffectiveLevel()))


def log_warnings() -> None:
    """Make log lines of Python's warnings, less those that tell an operator nothing."""
    logging.captureWarnings(True)
    logger = logging.getLogger("py.warnings")
    logger.handlers = [_ThroughVllm()]
    logger.propagate = False
    # vLLM's own look at every attribute of every module.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.reduce_op` is deprecated", FutureWarning)
    logging.getLogger(_TRITON).addFilter(_matters)


def _matters(record: logging.LogRecord) -> bool:
    # Of no use where there is no GPU, and known there.
    return "doesn't include CPU backend" not in record.getMessage()


@contextmanager
def without_native_lines(text: str) -> Iterator[None]:
    """Leave out the lines with ``text`` that libraries in C write to the standard error meanwhile.

    The other ones are written at its end.
    """
    sys.stderr.flush()
    shown = os.dup(_STDERR)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, _STDERR)
            os.close(shown)
            kept.seek(0)
            for line in kept:
                if text.encode() not in line:
                    os.write(_STDERR, line)
