"""What a canary sticks to, so that one caller stays with one version.

A new kind of key is a line in each of ``PATTERN``, ``MEANING`` and ``StickyKey.value_of``. Where it looks at
something of the request that no key looked at before, ``Shown`` and ``server.request.scope`` get that too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from patches import headers

#: What a key may look like.
PATTERN = r"^(request|user|header:[A-Za-z0-9-]{1,64})$"

#: The same for people.
MEANING = "header:NAME, user (the `user` of the body), or request for none"

DEFAULT = "request"

_REQUEST_ID_HEADER = "x-request-id"

#: Those that this server reads or writes itself, in lower case.
_OWN_HEADERS = frozenset(value.lower() for name, value in vars(headers).items() if name.endswith("_HEADER"))

#: Why a header tells no callers apart -> the headers of which that is so.
_USELESS: Mapping[str, Sequence[str]] = {
    "says how a message is sent, not who sends it": [
        "accept",
        "accept-charset",
        "accept-encoding",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "max-forwards",
        "pragma",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    ],
    "changes from request to request; `request` says so": [
        "cookie",
        "traceparent",
        "tracestate",
        _REQUEST_ID_HEADER,
    ],
}
_OURS = "is the server's own, and names no caller"


class Shown(Protocol):
    """What a request shows of its caller."""

    @property
    def user(self) -> str | None:
        """The ``user`` of the body, where it was read."""

    @property
    def own_id(self) -> str:
        """An id that this request shares with no other."""
        ...

    def header_value(self, name: str) -> str | None:
        """Return the first value of a header."""


@dataclass(frozen=True, slots=True)
class StickyKey:
    """A key, read: ``request``, ``user`` or ``header``."""

    kind: str
    #: The header's name, where the kind is ``header``.
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> "StickyKey":
        """Read a key.

        Raises:
            ValueError: It is none.
        """
        if not re.fullmatch(PATTERN, text):
            raise ValueError(f"key: expected {MEANING}, got {text[:80]!r}")
        kind, _, name = text.partition(":")
        return cls(kind, name)

    def require_useful(self) -> None:
        """Check that the key can keep one caller on one version.

        Raises:
            ValueError: It can't; says why.
        """
        name = self.name.lower()
        reasons = [reason for reason, names in _USELESS.items() if name in names]
        if name in _OWN_HEADERS or name.startswith(headers.PATCH_HEADER.lower()):
            reasons.append(_OURS)
        if reasons:
            raise ValueError(
                f"key: expected a header that names the caller, such as X-User-Id, got {self.name}, which "
                f"{reasons[0]}"
            )

    @property
    def needs_body(self) -> bool:
        """Whether the body has to be read ahead to know the value."""
        return self.kind == "user"

    def value_of(self, request: Shown) -> str:
        """Return what the canary sticks to; a request that does not show it is drawn by itself."""
        match self.kind:
            case "user":
                value = request.user
            case "header":
                value = request.header_value(self.name)
            case _:
                value = request.header_value(_REQUEST_ID_HEADER)
        return value or request.own_id
