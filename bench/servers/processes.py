"""Servers under test: started in a process group of their own, ready when they say so, always taken down.

Each server listens on 127.0.0.1 only and logs to a file. Nothing of it outlives the ``with`` block: not the
workers that it spawned, and not after an error or an interrupt.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import ServerFailed

NUM_TAIL_LINES = 40
_POLL_S = 0.25
#: A killed process may take a moment to give its memory back.
_KILL_GRACE_S = 10.0
#: Variables that change how fast a process runs, or how its memory is laid out. Both servers must agree in
#: them.
SPEED_VARIABLES = (
    "LD_PRELOAD",
    "CUDA_",
    "GOMP_",
    "KMP_",
    "MALLOC_",
    "MKL_",
    "OMP_",
    "PYTORCH_",
    "TCMALLOC_",
    "TORCH_",
    "VLLM_ATTENTION_",
    "VLLM_CPU_",
    "VLLM_USE_",
)


@dataclass(frozen=True)
class ServerSpec:
    """How to start one server.

    Attributes:
        name: what messages call it.
        command: argument vector, which makes the server listen on ``port`` of 127.0.0.1.
        port: a port that was free a moment ago.
        log_path: takes stdout and stderr.
        environment: added to this process's environment.
    """

    name: str
    command: Sequence[str]
    port: int
    log_path: Path
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """Base URL without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_server(
    spec: ServerSpec, *, start_timeout_s: float, stop_grace_s: float = 20.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, wait until ``/health`` answers 200, and take its whole process group down at the end.

    Raises:
        ServerFailed: the process ended or was not ready in time; the message ends with the log's tail.
    """
    with spec.log_path.open("wb") as log:
        try:
            process = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.environment},
                start_new_session=True,
            )
        except OSError as error:
            raise ServerFailed(f"{spec.name}: cannot run {spec.command[0]!r}: {error}") from error
    try:
        _wait_until_ready(spec, process, start_timeout_s)
        yield process
    finally:
        _stop_group(process, stop_grace_s)


def require_running(spec: ServerSpec, process: subprocess.Popen[bytes]) -> None:
    """Check that a server still runs.

    Raises:
        ServerFailed: it ended; the message ends with the log's tail.
    """
    if process.poll() is not None:
        raise ServerFailed(f"{spec.name}: ended with status {process.returncode}\n{log_tail(spec.log_path)}")


def log_tail(path: Path, num_lines: int = NUM_TAIL_LINES) -> str:
    """Return the last lines of a log, indented; reads 64 KiB at most."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().decode(errors="replace").splitlines()[-num_lines:]
    return "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"


def speed_variables(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Collect the variables that change speed from every process of a server's group.

    A launcher may set some of them for itself or its workers, so asking this process's own environment is not
    enough. Where processes disagree, the youngest wins: workers do the computing.
    """
    found: dict[str, str] = {}
    for pid in sorted(group_members(process.pid)):
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = entry.decode(errors="replace").partition("=")
                if name.startswith(SPEED_VARIABLES):
                    found[name] = value
    return found


def _wait_until_ready(spec: ServerSpec, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    # Proxies of the environment must not see requests to this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        require_running(spec, process)
        try:
            with opener.open(f"{spec.url}/health", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            pass
        time.sleep(_POLL_S)
    raise ServerFailed(f"{spec.name}: not ready after {timeout_s:.0f} s\n{log_tail(spec.log_path)}")


def _stop_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask the leader to stop, wait for the whole group, then kill what is left of it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    if not _wait_until_gone(process, grace_s):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _wait_until_gone(process, _KILL_GRACE_S)


def _wait_until_gone(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None or group_members(process.pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def group_members(group_id: int) -> list[int]:
    """Return the living processes of a group; zombies are not."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # After the command's name, which may hold anything but ends at the last ")": state, parent,
            # group.
            state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(group) == group_id and state != "Z":
                members.append(int(entry.name))
    return members
