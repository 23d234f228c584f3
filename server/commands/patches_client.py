"""One admin call over HTTP or a Unix socket, from a terminal. Not a library: errors are meant to be read."""

from collections.abc import Mapping
from typing import Any

import httpx

from patches.headers import ADMIN_KEY_HEADER
from server.commands.errors import CommandError
from server.commands.server_access import server_url

#: Where the key is looked for, if no file is named.
KEY_VARIABLE = "POLICYPATCH_ADMIN_KEY"

#: Seconds for a whole call; an upload has to reach every worker.
_TIMEOUT_S = 300.0


class Refused(Exception):
    """The server says no; the message is its own."""


class AdminClient:
    """Calls ``/v1/patches`` of one server; a context manager."""

    def __init__(self, url: str, key: str | None, api_key: str | None = None) -> None:
        """Prepare calls to ``url``, ``http(s)://...`` or ``unix:PATH``.

        Args:
            url: The server.
            key: Of an operator, for orders.
            api_key: Of the server's own API, where it wants one.
        """
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        url = url if socket is not None else server_url(url, "--url")
        headers = {ADMIN_KEY_HEADER: key} if key is not None else {}
        if api_key is not None:
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
        """Make one call and return its JSON.

        Raises:
            Refused: The server answered with an error.
            CommandError: It could not be reached, or is no policypatch server.
        """
        try:
            response = self._client.request(
                method, f"/v1/patches{path}", json=body, content=content, headers=headers, params=query
            )
        except UnicodeEncodeError:
            raise CommandError("expected arguments in UTF-8; one holds bytes that are no text") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"--url: {self._url} can't be reached: {error}") from error
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and document is not None:
            return document
        if (message := _message(document)) is not None:
            raise Refused(message)
        raise CommandError(f"--url: {self._url}: {_advice(response.status_code)}")


def _message(document: Any) -> str | None:
    """Return what a policypatch server says about a refusal; ``None`` where something else answered."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or "message" not in error:
        return None
    return f"{error['message']} ({error['code']})" if error.get("code") else str(error["message"])


def _advice(status: int) -> str:
    match status:
        case 401:
            return "answered 401; its API wants a key: name the variable that holds it with --api-key-env"
        case 404:
            return (
                "answered 404 for /v1/patches; give the address of a policypatch server, or of its "
                "--admin-listen, without a path"
            )
    return f"answered {status}, not as a policypatch server does; is another program there?"
