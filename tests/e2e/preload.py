"""Starts processes as forks of one that has imported vLLM already: the tests' side of `preloaded.py`."""

import contextlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from server.engine.cpu_defaults import is_cpu_build, preloadable_libraries

PROGRAM = Path(__file__).parent / "preloaded.py"
#: With what they import, nearly all that a server's processes ever import.
MODULES = (
    "server.cli",
    "server.commands.serve",
    "server.engine.launch",
    "server.engine.processes",
    "server.engine.connector",
    "server.engine.worker_extension",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
)
#: In the environment of what was forked, and of nothing else.
MARK = "POLICYPATCH_TESTS_PRELOADED"
IMPORT_TIMEOUT_S = 300


class RunningProcess(Protocol):
    """What tests ask of a process, be it `subprocess.Popen` or a fork."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class ForkedProcess:
    """A process that the preloaded one forked; it leads a session and a process group of its own."""

    def __init__(self, command: Sequence[str], connection: socket.socket) -> None:
        self.args = list(command)
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()
        self.pid: int = self._read()["pid"]

    def _read(self) -> dict[str, int]:
        data = self._connection.recv(1024)
        if not data:
            raise RuntimeError("the preloaded process ended; its own output says why")
        document: dict[str, int] = json.loads(data)
        return document

    def poll(self) -> int | None:
        """Return the exit status, if it has ended."""
        with self._lock:
            if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
                self.returncode = self._read()["status"]
                self._connection.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.02)
        return status

    def send_signal(self, sig: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preload:
    """The preloaded process, started with the context and needed with the first order."""

    def __init__(self, log: Path, modules: Sequence[str] = MODULES) -> None:
        self._log = log
        self._modules = modules
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> "Preload":
        # An address that the system makes up.
        self._listener.bind("")
        self._address = self._listener.getsockname()
        self._listener.listen()
        fd = self._listener.fileno()
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(fd), *self._modules],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | import_environment() | {MARK: "1"},
                pass_fds=[fd],
                start_new_session=True,
            )
        # From here on nobody listens once the process is gone.
        self._listener.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def start(
        self,
        command: Sequence[str],
        out: BinaryIO,
        err: BinaryIO,
        *,
        env: Mapping[str, str],
        folder: Path | None = None,
    ) -> ForkedProcess:
        """Fork a process.

        Args:
            command: A module, as for `python -m`, and its arguments.
            out: Where its output goes.
            err: Where its errors go.
            env: The whole environment.
            folder: Where modules are looked for first.
        """
        order = {
            "module": command[0],
            "argv": list(command),
            "environment": dict(env),
            "folder": os.getcwd(),
            "path": [] if folder is None else [str(folder)],
        }
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(IMPORT_TIMEOUT_S)
        try:
            connection.connect(self._address)
            with open(os.devnull, "rb") as nothing:
                fds = [nothing.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(connection, [json.dumps(order).encode()], fds)
            return ForkedProcess(command, connection)
        except (RuntimeError, OSError) as error:
            connection.close()
            log = self._log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"the preloaded process forks nothing\n{log}") from error


def start_process(
    command: Sequence[str],
    out: BinaryIO,
    err: BinaryIO,
    *,
    env: Mapping[str, str],
    preload: Preload | None,
    folder: Path | None = None,
) -> RunningProcess:
    """Run a module as `python -m` does: forked, or as a new program where nothing is preloaded.

    Args:
        command: The module and its arguments.
        out: Where its output goes.
        err: Where its errors go.
        env: The whole environment.
        preload: What it's forked from.
        folder: Where modules are looked for first.
    """
    if preload is not None:
        return preload.start(command, out, err, env=env, folder=folder)
    path = {} if folder is None else {"PYTHONPATH": os.pathsep.join([str(folder), os.getcwd()])}
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env={**env, **path},
        start_new_session=True,
    )


def run_process(
    command: Sequence[str],
    output: Path,
    *,
    env: Mapping[str, str],
    preload: Preload | None,
    folder: Path | None = None,
    timeout_s: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a module to its end, as `start_process` starts it, with its output in files beside ``output``."""
    files = [output.with_name(output.name + suffix) for suffix in (".out", ".err")]
    with files[0].open("wb") as out, files[1].open("wb") as err:
        process = start_process(command, out, err, env=env, preload=preload, folder=folder)
        try:
            status = process.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(list(command), status, *(file.read_text() for file in files))


def can_preload() -> bool:
    """Return whether servers can be forked here: vLLM for CPUs on Linux, threads not bound to cores."""
    return (
        sys.platform == "linux" and is_cpu_build() and os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind"
    )


def import_environment() -> dict[str, str]:
    """Return the variables that a server sets for its own processes and that libraries read early."""
    libraries = preloadable_libraries()
    if not any("libiomp" in library for library in libraries):
        # What vLLM adds by itself where there is no other OpenMP.
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin is not None
        libraries += sorted(map(str, Path(torch.origin).parent.glob("lib/libgomp*.so*")))[:1]
    return {"HF_HUB_OFFLINE": "1", "LD_PRELOAD": ":".join(libraries)}


def is_forked(pid: int) -> bool:
    """Return whether a process is a fork of the preloaded one, rather than a program of its own."""
    return f"{MARK}=1".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
