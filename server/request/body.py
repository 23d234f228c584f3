"""Fields of a request's body that are wanted before its route reads it.

The ``user``, for canaries that stick to it; and the ``model``, where a layer between us and the route
forgets it.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

#: Bodies beyond this are passed on unread; such a request sticks to nothing.
MAX_BODY_BYTES = 1 << 20

_NO_FIELDS: Mapping[str, Any] = {}


async def read_ahead(
    receive: Receive, max_bytes: int | None = MAX_BODY_BYTES
) -> tuple[Mapping[str, Any], Receive]:
    """Read the body ahead; return its fields, if it is an object, and what to read the body from again."""
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

    return (_fields(bytes(body)) if is_whole else _NO_FIELDS), again


def text_of(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a field that is a text, and not an empty one."""
    value = fields.get(name)
    return value if isinstance(value, str) and value else None


def _fields(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        # The route reads the body by its own rules, and says what is wrong with it.
        return _NO_FIELDS
    return document if isinstance(document, dict) else _NO_FIELDS
