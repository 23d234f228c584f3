"""The server of a soak and its supervisor: starts it, tells its processes apart, kills them, starts it again.

What is on disk - patch folder, state, keys, audit log - belongs to the soak and outlives each process.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from bench.errors import RequestFailed, ServerFailed
from bench.run.rounds import progress
from bench.servers.launch import EngineOptions, ours_server
from bench.servers.processes import ServerSpec, group_members, log_tail, running_server
from bench.soak.clock import ShiftedClock
from bench.soak.contents import Content

KEY = "the-soak-knows-this-key"
#: vLLM names its processes so.
_ROLES = {"VLLM::EngineCore": "engine core", "VLLM::Worker": "worker"}


@dataclass
class SoakServer:
    """One `policypatch serve`, with state, admin key and audit log; starts and ends many times."""

    engine: EngineOptions
    folder: Path
    extra_flags: Sequence[str] = ()
    start_timeout_s: float = 600.0
    clock: ShiftedClock | None = None
    num_starts: int = 0
    #: Seconds that each start took.
    start_s: list[float] = field(default_factory=list)
    _spec: ServerSpec | None = None
    _process: subprocess.Popen[bytes] | None = None
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        for part in (self.patches, self.state):
            part.mkdir(parents=True, exist_ok=True)
        key_file = self.folder / "admin-keys"
        key_file.touch(mode=0o600)
        key_file.write_text(f"soak:{KEY}\n")

    @property
    def patches(self) -> Path:
        """The folder that is served."""
        return self.folder / "patches"

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    @property
    def audit_log(self) -> Path:
        """The audit log."""
        return self.folder / "audit.jsonl"

    @property
    def url(self) -> str:
        """Where it listens since its last start."""
        assert self._spec is not None
        return self._spec.url

    @property
    def log_path(self) -> Path:
        """The log since its last start."""
        assert self._spec is not None
        return self._spec.log_path

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            ServerFailed: it is not.
        """
        flags = [
            *("--state", str(self.state), "--admin-key-file", str(self.folder / "admin-keys")),
            *("--audit-log", str(self.audit_log), *self.extra_flags),
        ]
        own = replace(self.engine, extra_arguments=(*self.engine.extra_arguments, *flags))
        spec = ours_server(own, self.patches, self.folder)
        environment = {**spec.environment, **(self.clock.environment() if self.clock else {})}
        log_path = self.folder / f"server-{self.num_starts}.log"
        self._spec = replace(spec, log_path=log_path, environment=environment)
        self.num_starts += 1
        progress(f"starting the server, log in {log_path}")
        started_s = time.monotonic()
        running = running_server(self._spec, start_timeout_s=self.start_timeout_s)
        self._process = self._running.enter_context(running)
        self.start_s.append(time.monotonic() - started_s)

    def stop(self) -> None:
        """Stop the server, with all of its processes."""
        self._running.close()
        self._process = None

    def restart(self) -> None:
        """Stop what is left of the server and start it again, as a supervisor does."""
        self.stop()
        self.start()

    def __enter__(self) -> "SoakServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of the API server, which is the leader of all."""
        assert self._process is not None
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the API server's process is there."""
        return self._process is not None and self._process.poll() is None

    def roles(self) -> dict[str, int]:
        """Return role -> process id of the processes that matter."""
        return roles_of(self.pid)

    def kill(self, role: str) -> None:
        """Kill a process the hard way.

        Raises:
            ServerFailed: there is none of this role.
        """
        os.kill(self._pid_of(role), signal.SIGKILL)

    def freeze(self, role: str) -> None:
        """Freeze a process: it does nothing more until it is killed.

        Raises:
            ServerFailed: there is none of this role.
        """
        os.kill(self._pid_of(role), signal.SIGSTOP)

    def _pid_of(self, role: str) -> int:
        pid = self.roles().get(role)
        if pid is None:
            raise ServerFailed(f"server: expected a process of role {role}, got {self.roles()}")
        return pid

    def kill_all(self) -> None:
        """Kill every process at once, as a power cut would; what was written to disk stays."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """Return the end of its log."""
        return log_tail(self.log_path)

    def install(self, content: Content, file_name: str | None = None) -> Path:
        """Rename a patch file into the folder."""
        target = self.patches / (file_name or f"{content.name}-{content.version}.safetensors")
        staged = target.with_name(f".{target.name}.staged")
        shutil.copy(content.path, staged)
        os.replace(staged, target)
        return target


def roles_of(leader: int) -> dict[str, int]:
    """Return role -> process id of the processes of a server that matter."""
    roles = {}
    for pid in group_members(leader):
        role = "API server" if pid == leader else _role_of(pid)
        if role is not None:
            roles[role] = pid
    return roles


def _role_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        for beginning, role in _ROLES.items():
            if title.startswith(beginning):
                return role
    return None


@dataclass(frozen=True)
class AdminAnswer:
    """What came back from an admin call. A status of 0: the connection ended before an answer."""

    status: int
    document: Any
    started_s: float
    done_s: float

    @property
    def is_ok(self) -> bool:
        """Whether it was carried out."""
        return 200 <= self.status < 300

    @property
    def code(self) -> str | None:
        """The error code, where it was refused."""
        error = self.document.get("error") if isinstance(self.document, dict) else None
        return error.get("code") if isinstance(error, dict) else None


async def call_admin(
    session: aiohttp.ClientSession,
    server: SoakServer,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    data: bytes | None = None,
) -> AdminAnswer:
    """Make one admin call; a connection that ends is a result, not an error."""
    headers = {"X-Admin-Key": KEY}
    if data is not None:
        headers["Content-Type"] = "application/octet-stream"
    started_s = time.perf_counter()
    try:
        url = f"{server.url}/v1/patches/{path}"
        async with session.request(method, url, json=body, data=data, headers=headers) as response:
            document = await response.json()
            return AdminAnswer(response.status, document, started_s, time.perf_counter())
    except (aiohttp.ClientError, ConnectionError, ValueError):
        return AdminAnswer(0, None, started_s, time.perf_counter())


async def require_admin(
    session: aiohttp.ClientSession, server: SoakServer, method: str, path: str, **options: Any
) -> AdminAnswer:
    """Make an admin call that has to be carried out.

    Raises:
        RequestFailed: it was not.
    """
    answer = await call_admin(session, server, method, path, **options)
    if not answer.is_ok:
        raise RequestFailed(f"{method} {path}: {answer.status} {json.dumps(answer.document)[:300]}")
    return answer
