"""``--admin-listen``: a port or a Unix socket for the admin calls, beside the one that serves models.

The socket is bound before the engine starts, so that a wrong address is reported at once. It speaks plain
HTTP: a port belongs on a loopback or an internal interface; a Unix socket is open to the owner of the process
only.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp

UNIX_PREFIX = "unix:"

#: Seconds that calls in progress get at the end.
_STOP_S = 5


class AdminListenError(Exception):
    """The address can't be listened on; the message says what to do."""


def bind_admin(address: str) -> socket.socket:
    """Listen on ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.

    Raises:
        AdminListenError: It can't be done.
    """
    try:
        if address.startswith(UNIX_PREFIX):
            return _bind_unix(Path(address.removeprefix(UNIX_PREFIX)))
        host, port = _split(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(listener, (host, port))
    except OSError as error:
        raise AdminListenError(f"--admin-listen: {address}: {error.strerror or error}") from error


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535
    if not colon or not is_port or not _is_host(host):
        raise AdminListenError(
            f"--admin-listen: expected HOST:PORT, [IPV6]:PORT or {UNIX_PREFIX}PATH, got {address!r}; "
            "for this machine only, say 127.0.0.1:PORT"
        )
    host = host.removeprefix("[").removesuffix("]")
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return host, int(port)


def _is_host(host: str) -> bool:
    # Without brackets ::1:8040 is an address of its own, and its last part may be no port.
    if not host.startswith("["):
        return bool(host) and ":" not in host and "]" not in host
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return host.endswith("]")


def _bind_unix(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        # Left behind by a process that was killed. One that still listens there would be cut off, so ask.
        if stat.S_ISSOCK(path.lstat().st_mode) and not _is_answered(path):
            path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        return _bound(listener, str(path))
    finally:
        os.umask(before)


def _bound(listener: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the server that runs the model."""
        yield


class AdminListener:
    """Serves one app on a bound socket; an async context manager, entered once."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_S,
        )
        self._server = _Server(config)
        self._listener = listener
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AdminListener":
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
