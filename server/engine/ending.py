"""The end of a server's process, once everything that it ran has ended."""

import atexit
import contextlib
import logging
import os
import sys
import threading
from typing import NoReturn

import psutil

logger = logging.getLogger(__name__)


#: Seconds that a start has to end by itself; the engine, asked at the same time, then those to end in.
_END_S, _CHILDREN_S = 5.0, 5.0

#: As a shell reports a process that SIGINT has ended, which is how a start ends that is broken off.
_BROKEN_OFF = 130


def end_soon() -> None:
    """End this process and its children in some seconds, unless it has ended by then."""
    timer = threading.Timer(_END_S, _end_by_force)
    timer.daemon = True
    timer.start()


def _end_by_force() -> None:
    logger.warning("stopped during the start, which did not end by itself")
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(children, timeout=_CHILDREN_S)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_BROKEN_OFF)


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
