"""What a canary sticks to: which keys there are, and the value that a request has for each."""

from dataclasses import dataclass, field

import pytest

from patches import headers
from server.versions.sticky import DEFAULT, StickyKey


@dataclass
class Request:
    """Shows what a test says."""

    user: str | None = None
    own_id: str = "own"
    headers: dict[str, str] = field(default_factory=dict)

    def header_value(self, name: str) -> str | None:
        return self.headers.get(name.lower())


@pytest.mark.parametrize(
    ("key", "request_", "value"),
    [
        ("user", Request("alice"), "alice"),
        ("user", Request(), "own"),
        ("header:X-User-Id", Request(headers={"x-user-id": "7"}), "7"),
        ("header:X-User-Id", Request("alice"), "own"),
        ("header:X-User-Id", Request(headers={"x-user-id": ""}), "own"),
        ("request", Request("alice", headers={"x-request-id": "r"}), "r"),
        (DEFAULT, Request("alice"), "own"),
    ],
)
def test_the_value_is_what_the_key_names_else_the_requests_own(
    key: str, request_: Request, value: str
) -> None:
    assert StickyKey.parse(key).value_of(request_) == value


@pytest.mark.parametrize("key", ["", "tenant", "header:", "header:a b", "header:" + "a" * 65, "user\n"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key: expected header:NAME, user"):
        StickyKey.parse(key)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Content-Length", "says how a message is sent"),
        ("TRANSFER-ENCODING", "says how a message is sent"),
        ("host", "says how a message is sent"),
        ("Cookie", "changes from request to request"),
        ("X-Request-Id", "changes from request to request; `request` says so"),
        ("X-Policy-Patch", "is the server's own"),
        ("x-policy-patch-arm", "is the server's own"),
        *(
            (value, "is the server's own")
            for name, value in vars(headers).items()
            if name.endswith("_HEADER")
        ),
    ],
)
def test_a_header_that_tells_no_callers_apart_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(
        ValueError, match=f"^key: expected a header that names the caller, .* got {name}.*{reason}"
    ):
        StickyKey.parse(f"header:{name}").require_useful()


@pytest.mark.parametrize("key", ["user", "request", "header:X-User-Id", "header:Authorization"])
def test_what_names_the_caller_passes(key: str) -> None:
    StickyKey.parse(key).require_useful()


def test_only_the_user_needs_the_body() -> None:
    keys = ("user", "request", "header:a")
    assert [key for key in keys if StickyKey.parse(key).needs_body] == ["user"]
