"""Sends attempts as bytes on a socket, since HTTP clients refuse to send much of what attackers send."""

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.attacks.attempt import HERE, Attempt

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Reply:
    """What came back; status 400 and nothing else where the server did not take the bytes for HTTP."""

    status: int
    text: str = ""
    #: X-Policy-Patch of the answer.
    patch: str | None = None


def send_raw(attempt: Attempt, port: int, body: Mapping[str, Any], digests: Mapping[str, str]) -> Reply:
    """Send ``attempt`` from the address that it is to come from.

    Args:
        attempt: What to send.
        port: Where a server listens on this machine.
        body: Fields of the body beside the attempt's own; ``model`` included.
        digests: ``name@version`` of each plain patch -> its digest.
    """
    content = json.dumps({**body, **attempt.body}).encode()
    headers: list[tuple[str | bytes, str | bytes]] = [
        ("Host", "test"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(content))),
        ("Connection", "close"),
        *attempt.headers,
    ]
    if attempt.header is not None:
        headers.append(("X-Policy-Patch", attempt.with_digests(attempt.header, digests)))
    lines = [f"{attempt.method} {attempt.path} HTTP/1.1".encode()]
    lines += [_bytes(name) + b": " + _bytes(value) for name, value in headers]
    with socket.create_connection((HERE, port), TIMEOUT_S, (attempt.peer, 0)) as connection:
        try:
            connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + content)
            with http.client.HTTPResponse(connection, method=attempt.method) as response:
                response.begin()
                text = response.read().decode()
                return Reply(response.status, text, response.getheader("X-Policy-Patch"))
        except (http.client.HTTPException, ConnectionError):
            return Reply(400)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
