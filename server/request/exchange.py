"""One HTTP exchange as the outermost and the innermost of our middlewares both know it."""

import os
import re
import time
from dataclasses import dataclass, field

from starlette.types import Scope

from server.request.scope import RequestScope
from server.request.trace import NO_TRACE, RawHeaders, Trace

REQUEST_ID_HEADER = b"x-request-id"

MAX_REQUEST_ID_LENGTH = 128

#: Nothing that would have to be quoted somewhere.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:@/+=~;,-]{1,%d}" % MAX_REQUEST_ID_LENGTH)

#: Where it lies in the ASGI scope.
_KEY = "policypatch.exchange"


@dataclass(slots=True)
class Exchange:
    """One request and its response."""

    request_id: str
    trace: Trace = NO_TRACE
    #: What is known of it as a request that could run the model; ``None`` where it could not.
    request: RequestScope | None = None
    started_s: float = field(default_factory=time.monotonic)


def request_id_of(headers: RawHeaders) -> str:
    """Return the id that a request was sent with, where it is one that can stand anywhere, else a new one."""
    sent = [value for key, value in headers if key == REQUEST_ID_HEADER]
    is_usable = len(sent) == 1 and _REQUEST_ID.fullmatch(sent[0])
    return sent[0].decode("ascii") if is_usable else os.urandom(16).hex()


def with_exchange(scope: Scope, exchange: Exchange) -> Scope:
    """Return the scope of a request with ``exchange`` in it, and with its id as the only one that is sent."""
    headers = [(key, value) for key, value in scope["headers"] if key != REQUEST_ID_HEADER]
    headers.append((REQUEST_ID_HEADER, exchange.request_id.encode("ascii")))
    return {**scope, "headers": headers, _KEY: exchange}


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a request; a new one where no middleware of ours is around this one."""
    exchange = scope.get(_KEY)
    return exchange if isinstance(exchange, Exchange) else Exchange(request_id_of(scope["headers"]))
