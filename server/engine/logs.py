"""Our log lines in vLLM's format, in every process of a server.

Loggers below the root say what the root says, and a library that vLLM's app imports sets it to ERROR. So ours
hand their lines to vLLM's own handlers, with its levels, colours, JSON and process names.
"""

import copy
import logging

from patches.terminal import escape_what_streams_lack, one_line, printable

#: The packages whose modules log, under their own names.
PACKAGES = ("server", "patches", "prefix_kernels")


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
