"""One admin call over HTTP or a Unix socket, from a terminal. Not a library: errors are meant to be read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from server.commands.errors import CommandError

#: Where the key is looked for, if no file is named.
KEY_VARIABLE = "POLICYPATCH_ADMIN_KEY"

#: Seconds for a whole call; an upload has to reach every worker.
_TIMEOUT_S = 300.0


class Refused(Exception):
    """The server says no; the message is its own."""


class AdminClient:
    """Calls ``/v1/patches`` of one server; a context manager."""

    def __init__(self, url: str, key: str | None) -> None:
        """Prepare calls to ``url``, ``http(s)://…`` or ``unix:PATH``."""
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        headers = {"X-Admin-Key": key} if key is not None else {}
        if api_key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.Client(
            base_url="http://policypatch" if socket is not None else url,
            transport=httpx.HTTPTransport(uds=socket) if socket is not None else None,
            headers=headers,
            timeout=_TIMEOUT_S,
        )
        self._url = url

    def __enter__(self) -> "AdminClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(
        self,
        method: str,
        path: str = "",
        *,
        body: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Any:
        """Make one call and give its JSON.

        Raises:
            Refused: The server answered with an error.
            CommandError: It could not be reached, or is no policypatch server.
        """
        try:
            response = self._client.request(
                method, f"/v1/patches{path}", json=body, content=content, headers=headers, params=query
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"--url: {self._url} can't be reached: {error}") from error
        try:
            document = response.json()
        except ValueError:
            raise CommandError(f"--url: {self._url} answered {response.status_code} and no JSON") from None
        if response.is_success:
            return document
        raise Refused(_message(document, response.status_code))


def read_key(path: Path | None) -> str | None:
    """Read the admin key from the first line of a file, else from the environment."""
    if path is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CommandError(f"--key-file: {path}: {getattr(error, 'strerror', None) or error}") from error
    if not lines or not lines[0].strip():
        raise CommandError(f"--key-file: {path}: expected a key on the first line")
    return lines[0].strip()


def to_json(document: Any) -> str:
    """Write an answer for programs."""
    return json.dumps(document, indent=2, ensure_ascii=True)


def _message(document: Any, status: int) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict) and "message" in error:
        return f"{error['message']} ({error.get('code') or status})"
    return f"the server answered {status}"
