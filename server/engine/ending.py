"""The end of a server's process, once everything that it ran has ended."""

import atexit
import logging
import os
import sys
from typing import NoReturn

logger = logging.getLogger(__name__)


def end_process(status: int) -> NoReturn:
    """End with one line in the log where all went well, and without taking the interpreter apart.

    Libraries that are bound with nanobind, such as Triton, report whatever they still hold at that point as
    leaked, in thirty lines. What has to be done at exit is done here: files, children, temporary folders.
    """
    if status == 0:
        logger.info("stopped")
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
