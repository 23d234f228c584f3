"""policypatch under Ray Serve: one server process for each replica, which lives and dies with its actor.

Runs in an environment of its own (`ray[serve]` 2.60), never beside vLLM; `deploy/ray/serve.yaml` names it:

    serve deploy deploy/ray/serve.yaml

Ray starts, places, scales and routes. What a server serves, the fleet's catalog says: nothing of it belongs
into Ray's configuration, where a change that fails takes replicas away.
"""

import asyncio
import fcntl
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDict
from ray import serve
from yarl import URL

#: Keeps a server from outliving its actor.
_GUARD = Path(__file__).with_name("guard.py")

#: Headers that belong to one connection.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"content-length")
)
_POLL_S = 0.25


class ServerFailed(RuntimeError):
    """The server ended, or did not become ready."""


class Server:
    """One server. Ready once a revision of the catalog holds there; gone as soon as its process is."""

    def __init__(
        self, command: Sequence[str], patches: Path, environment: Mapping[str, str], start_timeout_s: float
    ) -> None:
        """Start it and wait until it is ready.

        Args:
            command: The server's command line, without its address and folder.
            patches: Takes a folder for each server of this machine.
            environment: Added to this process's own.
            start_timeout_s: Seconds for the model and the first revision.

        Raises:
            ServerFailed: It ended, or took too long.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        folder, lock = free_folder(patches)
        self._url = f"http://127.0.0.1:{port}"
        words = [*command, f"--patches={folder}", "--host=127.0.0.1", f"--port={port}"]
        # The guard's end of the pipe is closed when this process is gone, however it went.
        self._guard = subprocess.Popen(
            [sys.executable, _GUARD, *words],
            stdin=subprocess.PIPE,
            env=os.environ | environment,
            pass_fds=[lock],
        )
        os.close(lock)
        self._session: aiohttp.ClientSession | None = None
        self._wait_ready(time.monotonic() + start_timeout_s)
        threading.Thread(target=self._end_with_server, daemon=True).start()

    def _wait_ready(self, deadline_s: float) -> None:
        while time.monotonic() < deadline_s:
            if self._guard.poll() is not None:
                raise ServerFailed(f"the server ended with {self._guard.returncode}; its log says why")
            try:
                with urllib.request.urlopen(f"{self._url}/ready", timeout=5):
                    return
            except OSError:
                time.sleep(_POLL_S)
        raise ServerFailed("the server did not become ready in time")

    def _end_with_server(self) -> None:
        """End the actor with its server: Ray asks another at once, where a 503 would be the answer."""
        self._guard.wait()
        os._exit(1)

    async def check_health(self) -> None:
        """Raise where the server is not alive; one that is behind is alive, and answers for itself."""
        async with self._client().get(f"{self._url}/health") as answer:
            if answer.status != 200:
                raise ServerFailed(f"/health: {answer.status}")

    def __serve_build_asgi_app__(self) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await _live(receive, send)
            else:
                await self._answer(scope, receive, send)

        # A function, since uvicorn takes methods for the older form of ASGI.
        return app

    def __del__(self) -> None:
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            # As Ray limits what comes: no limit here, and no time but the client's patience.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, piece by piece, and stop where the client hangs up."""
        body = await _body(receive)
        passing = asyncio.ensure_future(self._pass_on(scope, body, send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((passing, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            passing.cancel()
        if passing.done() and not passing.cancelled():
            passing.result()

    async def _pass_on(self, scope: Any, body: bytes, send: Any) -> None:
        query = scope["query_string"].decode("latin-1")
        target = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
        headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _HOP_BY_HOP
        )
        url = URL(f"{self._url}{target}{'?' + query if query else ''}", encoded=True)
        try:
            asked = await self._client().request(
                scope["method"], url, headers=headers, data=body, allow_redirects=False
            )
        except aiohttp.ClientError:
            # The server died with nothing answered; in a moment this process follows it, and Ray sends what
            # comes then to others.
            await _gone(send)
            return
        async with asked as answer:
            kept = [pair for pair in answer.raw_headers if pair[0].lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def free_folder(base: Path) -> tuple[Path, int]:
    """Return a folder below ``base`` that no server uses, and a descriptor that keeps it so.

    A server that starts anew finds what an earlier one saw, against a store that goes back.
    """
    for number in itertools.count():
        folder = base / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return folder, lock
    raise AssertionError("there is always another number")


async def _gone(send: Any) -> None:
    error = {"message": "the server of this replica ended; try again", "code": "server_gone", "param": None}
    body = json.dumps({"error": error | {"type": "ServiceUnavailableError"}}).encode()
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _live(receive: Any, send: Any) -> None:
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


async def _body(receive: Any) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def app(args: Mapping[str, Any]) -> Any:
    """Return the application that `serve.yaml` describes.

    Args:
        args: ``command`` and ``patches``, and maybe ``environment`` and ``start_timeout_s``.
    """
    environment = {key: str(value) for key, value in args.get("environment", {}).items()}
    timeout_s = float(args.get("start_timeout_s", 1800.0))
    # Ray asks the class for its app once it is made.
    deployment = serve.deployment(serve.ingress(None)(Server))
    return deployment.bind(list(args["command"]), Path(args["patches"]), environment, timeout_s)
