"""The ``user`` field of a request's body, for canaries that stick to it."""

import json
from collections import deque

from starlette.types import Message, Receive

#: Bodies beyond this are passed on unread; such a request sticks to nothing.
MAX_BODY_BYTES = 1 << 20


async def read_user(receive: Receive) -> tuple[str | None, Receive]:
    """Read the body ahead; return the user, if it names one, and what to read the body from again."""
    messages: deque[Message] = deque()
    body = bytearray()
    is_whole = False
    while not is_whole and len(body) <= MAX_BODY_BYTES:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)

    async def again() -> Message:
        return messages.popleft() if messages else await receive()

    return (_user(bytes(body)) if is_whole else None), again


def _user(body: bytes) -> str | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        # The route reads the body by its own rules, and says what is wrong with it.
        return None
    user = document.get("user") if isinstance(document, dict) else None
    return user if isinstance(user, str) and user else None
