"""Fields of a request's body that are wanted before its route reads it.

The ``user``, for canaries that stick to it; and the ``model``, where a layer between us and the route
forgets it.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

from server.errors import MalformedBody

#: Bodies beyond this are passed on unread; such a request sticks to nothing.
MAX_BODY_BYTES = 1 << 20

Fields = Mapping[str, Any]

_NO_FIELDS: Fields = {}


async def read_ahead(receive: Receive) -> tuple[Fields, Receive]:
    """Read a body that is not too long ahead.

    Returns:
        Its fields, if it is an object, and what to read the body from again.
    """
    body, again = await _read(receive, MAX_BODY_BYTES)
    try:
        document = json.loads(body) if body is not None else None
    except (ValueError, RecursionError):
        # The route reads the body by its own rules, and says what is wrong with it.
        return _NO_FIELDS, again
    return _fields(document), again


async def read_whole(receive: Receive) -> tuple[Fields, Receive]:
    """Read a body ahead whose route takes it for JSON without a look.

    Returns:
        As ``read_ahead``.

    Raises:
        MalformedBody: It is no object of JSON that Python's reader takes.
    """
    body, again = await _read(receive, None)
    try:
        document = json.loads(body) if body is not None else None
    except RecursionError:
        raise MalformedBody("body: expected JSON of fewer levels") from None
    except ValueError:
        # What was sent is not repeated.
        raise MalformedBody("body: expected JSON, got something else") from None
    if body is not None and not isinstance(document, dict):
        raise MalformedBody("body: expected a JSON object")
    return _fields(document), again


def model_of(fields: Fields) -> str | None:
    """Return the model that a body names, if any.

    Raises:
        MalformedBody: It is no text, and so no name of anything.
    """
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise MalformedBody("model: expected a text")
    return model or None


async def _read(receive: Receive, max_bytes: int | None) -> tuple[bytes | None, Receive]:
    """Return the body, if it came whole and is not too long, and what to read it from again."""
    messages: deque[Message] = deque()
    body = bytearray()
    is_whole = False
    while not is_whole and (max_bytes is None or len(body) <= max_bytes):
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)

    async def again() -> Message:
        return messages.popleft() if messages else await receive()

    return (bytes(body) if is_whole else None), again


def text_of(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a field that is a text, and not an empty one."""
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


def _fields(document: object) -> Fields:
    return document if isinstance(document, dict) else _NO_FIELDS
