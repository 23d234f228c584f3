"""A process that has imported vLLM and forks itself into servers, so that tests pay for the imports once.

    python tests/e2e/preloaded.py LISTENER_FD MODULE...

A program, started and told what to do by `preload.py`. Each connection to the listener is one order: what to
run, with which environment and output; the answers are the process id and, at the end, the exit status. It
ends with everything that it started when its standard input is closed, as it is where the tests are gone.

A server starts processes of its own as new programs ("spawn"). In a forked server these are forks, too:
before a forked process does anything, it puts a copy of itself aside, and where `multiprocessing` would start
Python anew, the copy is forked. Invariants:

- What forks has one thread, has run no server code and has held no order's file: each process begins as if it
  had just been started. Where libraries would read another environment while they are imported than this
  process had, nothing is forked and Python is started anew.
- A process that a server started is its child, with its exit status, as without all this.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import multiprocessing.util
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

#: Variables that are read while libraries are loaded or modules imported.
EARLY_VARIABLES = (
    *("LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "PYTHON", "HF_", "PROMETHEUS_"),
    *("TORCH_", "VLLM_LOGGING_", "VLLM_CONFIGURE_LOGGING", "VLLM_PLUGINS"),
)
MAX_ORDER_BYTES = 1 << 17
PR_SET_CHILD_SUBREAPER = 36

Order = dict[str, Any]


def early(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that can't be changed any more once the imports are done."""
    return {name: value for name, value in environment.items() if name.startswith(EARLY_VARIABLES)}


def main() -> None:
    """Import, take orders, and in each fork carry one out."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    # As `python -m` has it: not this file's folder.
    sys.path[0] = os.getcwd()
    before = dict(os.environ)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    if threading.active_count() != 1 or len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError(f"expected one thread, got {threading.enumerate()}; a fork could hang")
    # What is never collected is never written to, and so stays shared with every fork.
    gc.collect()
    gc.freeze()
    order = take_orders(listener)
    if order is not None:
        added = {name: value for name, value in os.environ.items() if name not in before}
        carry_out(order, Imports(early(before | added), added))


@dataclass(frozen=True)
class Imports:
    """What the imports saw of the environment, and did to it."""

    early: Mapping[str, str]
    added: Mapping[str, str]


def take_orders(listener: socket.socket) -> Order | None:
    """Fork for each order, and say how each fork ended.

    Returns:
        The order, in the process that shall carry it out; ``None`` when the tests are gone.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for pid, connection in running.values():
                        end_group(pid)
                        answer_status(pid, connection)
                    return None
                if key.fileobj is not listener:
                    selector.unregister(key.fd)
                    pid, connection = running.pop(key.fd)
                    os.close(key.fd)
                    answer_status(pid, connection)
                    continue
                connection = listener.accept()[0]
                order = receive(connection)
                if order is None:
                    connection.close()
                    continue
                flush()
                if (pid := os.fork()) == 0:
                    os.setsid()
                    answer(connection, {"pid": os.getpid()})
                    close_all([connection.detach(), listener.detach(), *running])
                    close_all([other.detach() for _, other in running.values()])
                    place(order["fds"], (0, 1, 2))
                    return order | {"fds": [], "numbers": []}
                close_all(order["fds"])
                watched = os.pidfd_open(pid)
                running[watched] = pid, connection
                selector.register(watched, selectors.EVENT_READ)


def carry_out(order: Order, imports: Imports) -> None:
    """Be the process that was ordered, as if it had just been started."""
    nested, start_child = put_copy_aside(order["fds"])
    if nested is not None:
        carry_out(nested, imports)
        return
    place(order["fds"], order["numbers"])
    # Those of the imports were made for other files: what can seek, for one that can't.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    os.environ.clear()
    os.environ.update(imports.added | order["environment"])
    os.chdir(order["folder"])
    sys.argv[:] = order["argv"]
    start_anew = multiprocessing.util.spawnv_passfds

    def spawn(path: bytes, argv: Sequence[Any], fds: Sequence[int]) -> int:
        if argv[-1] != "--multiprocessing-fork" or early(os.environ) != imports.early:
            return start_anew(path, argv, fds)
        return start_child(argv[-2], fds)

    multiprocessing.util.spawnv_passfds = spawn
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        if "program" in order:
            exec(order["program"], vars(sys.modules["__main__"]))
        else:
            sys.path[:0] = order["path"]
            runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        end_quickly(end.code or 0)
    end_quickly(0)


def end_quickly(status: int) -> NoReturn:
    """End as forks of `multiprocessing` do: what was to be done at the end is, then the process is gone.

    To take the interpreter apart with all that was imported needs three seconds.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flush()
    os._exit(status)


def put_copy_aside(fds: Sequence[int]) -> tuple[Order | None, Callable[[str, Sequence[int]], int]]:
    """Fork a copy of this process that stays as it is and is forked again for each child.

    Args:
        fds: Of this process's order; not the copy's business.

    Returns:
        In a child, the order to carry out; in this process nothing, and what starts a child.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lock = threading.Lock()

    def start_child(program: str, child_fds: Sequence[int]) -> int:
        order = {
            "program": program,
            "argv": ["-c", "--multiprocessing-fork"],
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            # The standard streams as they are now: this process may have put others in their place.
            "numbers": sorted({1, 2, *child_fds}),
        }
        flush()
        with lock:
            socket.send_fds(ours, [json.dumps(order).encode()], order["numbers"])
            return int(json.loads(ours.recv(MAX_ORDER_BYTES))["pid"])

    if os.fork():
        theirs.close()
        # The copy's children are handed to this process.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return None, start_child
    ours.close()
    close_all(fds)
    while (order := receive(theirs)) is not None:
        # The child of a child that ends at once is an orphan, and goes to the process that asked for it.
        reader, writer = os.pipe()
        if (between := os.fork()) == 0:
            if pid := os.fork():
                os.write(writer, str(pid).encode())
                os._exit(0)
            close_all([reader, writer])
            theirs.close()
            return order, start_child
        os.close(writer)
        pid = int(os.read(reader, 32))
        os.close(reader)
        os.waitpid(between, 0)
        close_all(order["fds"])
        answer(theirs, {"pid": pid})
    os._exit(0)


def receive(connection: socket.socket) -> Order | None:
    """Return the next order with its files under ``fds``; ``None`` where the other end is closed."""
    data, fds, _, _ = socket.recv_fds(connection, MAX_ORDER_BYTES, 64)
    if not data:
        return None
    order: Order = json.loads(data)
    return order | {"fds": fds}


def answer(connection: socket.socket, document: dict[str, int]) -> None:
    """Answer an order, if anybody still listens."""
    try:
        connection.send(json.dumps(document).encode())
    except OSError:
        connection.close()


def answer_status(pid: int, connection: socket.socket) -> None:
    """Say how a process ended, once it has."""
    answer(connection, {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})
    connection.close()


def place(fds: Sequence[int], numbers: Sequence[int]) -> None:
    """Give files the numbers under which a new program would have got them."""
    beyond = max((*fds, *numbers), default=0) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, beyond) for fd in fds]
    close_all(fds)
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)


def close_all(fds: Sequence[int]) -> None:
    """Close files."""
    for fd in fds:
        os.close(fd)


def flush() -> None:
    """Write what is buffered, or a fork would write it again."""
    sys.stdout.flush()
    sys.stderr.flush()


def end_group(pid: int) -> None:
    """Kill a process with all that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
