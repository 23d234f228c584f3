"""Runs a server in a process group of its own, and lets nothing of it outlive whoever started this.

    python guard.py policypatch serve ...

It ends when the server does, on SIGTERM, and when its standard input is closed: a pipe whose other end an
actor holds, which the kernel closes however that actor ended. The work is done by a child in a session of its
own, since Ray kills the children of a worker that ends, and would kill whoever was to clean up.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_POLL_S = 0.25
#: What a server has to end by itself. Whoever could deliver answers is gone, or has waited for them.
_END_S = 5.0
_PR_SET_PDEATHSIG = 1


def guard(command: Sequence[str]) -> int:
    """Run ``command`` until it ends or has to; return its status."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )
    threading.Thread(target=_await_end_of_input, args=(ending,), daemon=True).start()
    while process.poll() is None and not ending.wait(_POLL_S):
        pass
    _signal(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    # Its engine core, too, whatever became of the process that started it.
    _signal(process.pid, signal.SIGKILL)
    return process.wait()


def _await_end_of_input(ending: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ending.set()


def _die_with_parent() -> None:
    """Have the kernel kill the server where this process is killed; it does so for the main thread's end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def main(command: Sequence[str]) -> int:
    """Have a child guard the server; return the server's status."""
    child = os.fork()
    if child == 0:
        os.setsid()
        # Exits of Python clean up what belongs to the parent.
        os._exit(guard(command) & 0xFF)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
