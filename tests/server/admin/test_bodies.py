"""Bodies of admin calls are judged by what they hold, within a bound; headers about them decide nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from patches.format import MAX_FILE_BYTES
from server.routes.admin_guard import MAX_BODY_BYTES
from tests.server.stand import Stand

JSON = {"Content-Type": "application/json"}


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_json_type_without_a_body_is_no_body(stand: Stand, admin: Any) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    history = await admin.client.get("/v1/patches/pirate/history", headers=JSON)
    assert history.status_code == 200, history.text
    rolled_back = await admin.client.post("/v1/patches/pirate/rollback", headers=JSON)
    assert rolled_back.status_code == 200, rolled_back.text
    removed = await admin.client.delete("/v1/patches/pirate/1.1.0", headers=JSON)
    assert removed.status_code == 200, removed.text


async def test_an_unknown_parameter_of_the_query_is_refused_and_nothing_is_done(
    stand: Stand, admin: Any
) -> None:
    """``?dry_run=true`` is a mistake whose meaning is clear: the opposite must not be done."""
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    call = admin.client.post
    for path, body in (
        ("activate?dry_run=true", {"version": "1.0.0"}),
        ("rollback?dry_run=true", {}),
        ("rollback?from=1.0.0", {}),
        ("canary?end=abort", {"version": "1.0.0"}),
    ):
        assert stand.code(await call(f"/v1/patches/pirate/{path}", json=body)) == (400, "invalid_admin_call")
    for path in ("pirate/1.1.0", "pirate"):
        dry = await admin.client.request("DELETE", f"/v1/patches/{path}", json={"dry_run": True})
        assert stand.code(dry) == (400, "invalid_admin_call")
    deleted = await admin.client.delete("/v1/patches/pirate/1.1.0?forced=true")
    assert stand.code(deleted) == (400, "invalid_admin_call")
    assert "only force" in deleted.json()["error"]["message"]
    assert await admin.answers() == "pirate@1.1.0"


async def test_a_small_body_may_come_in_chunks(stand: Stand, admin: Any) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    answer = await admin.client.post(
        "/v1/patches/pirate/activate", headers=JSON, content=chunks(b'{"vers', b'ion": "1.0.0"}')
    )
    assert answer.status_code == 200, answer.text
    assert await admin.answers() == "pirate@1.0.0"


async def test_a_body_over_the_bound_is_refused_however_its_length_is_told(stand: Stand, admin: Any) -> None:
    await stand.load("pirate")
    large = b'"' + b"x" * MAX_BODY_BYTES + b'"'
    for content in (large, chunks(large[:100], large[100:])):
        answer = await admin.client.post("/v1/patches/pirate/activate", headers=JSON, content=content)
        assert stand.code(answer) == (400, "invalid_admin_call")


async def test_an_upload_that_says_it_is_too_large_is_refused_before_it_is_read(
    stand: Stand, admin: Any
) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    for kind, code in (
        ("application/octet-stream", (413, "patch_too_large")),
        ("application/json", (400, "invalid_admin_call")),
    ):
        for length in (MAX_FILE_BYTES + 1, 10**30):
            headers = {"Content-Type": kind, "Content-Length": str(length)}
            answer = await admin.client.put("/v1/patches/pirate/1.0.0", headers=headers, content=unread())
            assert stand.code(answer) == code
    assert admin.audit.events[0].code == "patch_too_large"


@pytest.mark.parametrize(
    ("call", "body", "message"),
    [
        ("canary", {"version": "1.1.0", "share": True}, "body.share: Input should be a valid number"),
        ("canary", {"version": "1.1.0", "share": "0.5"}, "body.share: Input should be a valid number"),
        (
            "canary",
            {"version": "1.1.0", "min_requests": True},
            "body.min_requests: Input should be a valid integer",
        ),
        (
            "canary",
            {"version": "1.1.0", "min_requests": "20"},
            "body.min_requests: Input should be a valid integer",
        ),
        ("canary", {"version": "1.1.0", "window_s": "300"}, "body.window_s: Input should be a valid number"),
        (
            "canary",
            {"version": "1.1.0", "max_error_rate": False},
            "body.max_error_rate: Input should be a valid",
        ),
        ("canary", {"version": 1.1}, "body.version: Input should be a valid string"),
        ("canary", {"version": "1.1.0", "key": 5}, "body.key: Input should be a valid string"),
        (
            "canary",
            {"version": "1.1.0", "key": "header:Host"},
            "body.key: expected a header that names the caller",
        ),
        ("canary", {"version": "1.1.0", "key": "tenant"}, "body.key: expected header:NAME, user"),
        ("canary", {"end": True}, "body.end: Input should be"),
        ("activate", {"follow": 1}, "body.follow: Input should be a valid boolean"),
        ("activate", {"follow": "true"}, "body.follow: Input should be a valid boolean"),
        ("activate", {"version": True}, "body.version: Input should be a valid string"),
        ("rollback", {"from": 1}, "body.from: Input should be a valid string"),
        (
            "rollback",
            {"from": "sha256:zz"},
            "from: expected a semantic version such as 1.2.0, got 'sha256:zz'",
        ),
        ("rollback", {"from": "latest"}, "from: expected a semantic version such as 1.2.0, got 'latest'"),
        ("rollback", {"frm": "1.0.0"}, "body.frm: Extra inputs are not permitted"),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_body_of_wrong_types_is_refused_and_written_down(
    stand: Stand, admin: Any, call: str, body: dict[str, Any], message: str
) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    answer = await admin.post(f"pirate/{call}", **body)
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert answer.json()["error"]["message"].startswith(message)
    (event,) = admin.audit.events
    assert (event.event, event.decision, event.principal) == (f"admin.{call}", "failed", "alice")
    assert (event.wish, event.code) == ("pirate", "invalid_admin_call")
    assert event.reason is not None
    assert event.reason.startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "content", "event", "wish"),
    [
        ("POST", "pirate/activate", b"{", "admin.activate", "pirate"),
        ("POST", "pirate/activate", b"[" * 60_000, "admin.activate", "pirate"),
        ("POST", "pirate/canary", b'"' + b"x" * MAX_BODY_BYTES + b'"', "admin.canary", "pirate"),
        ("POST", "PIRATE/rollback", b"", "admin.rollback", "PIRATE"),
        ("PUT", "pirate/one", b"", "admin.put", "pirate@one"),
        ("PUT", "pirate/1.0.0", b"{}", "admin.put", "pirate@1.0.0"),
        ("DELETE", "pirate/one", b"", "admin.remove", "pirate@one"),
        ("DELETE", "PIRATE", b"", "admin.remove", "PIRATE"),
        ("DELETE", "pirate?force=maybe", b"", "admin.remove", "pirate"),
    ],
)
async def test_a_call_that_makes_no_sense_is_written_down_once(
    admin: Any, method: str, path: str, content: bytes, event: str, wish: str
) -> None:
    answer = await admin.client.request(method, f"/v1/patches/{path}", headers=JSON, content=content)
    assert answer.json()["error"]["code"] == "invalid_admin_call"
    assert [(e.event, e.decision, e.wish) for e in admin.audit.events] == [(event, "failed", wish)]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
async def test_numbers_without_a_finite_value_are_refused(stand: Stand, admin: Any, number: str) -> None:
    await stand.load("pirate", "1.0.0")
    assert (await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0", hold=True)).status_code == 201
    body = f'{{"version": "1.1.0", "share": 0.5, "promote_after_s": {number}}}'
    answer = await admin.client.post("/v1/patches/pirate/canary", headers=JSON, content=body)
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert stand.catalog.record("pirate").canary is None


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b'{"version": "\xff"}', b'{"min_requests": ' + b"9" * 5000 + b"}"]
)
async def test_a_body_that_no_reader_takes_is_refused_in_the_usual_shape(
    stand: Stand, admin: Any, body: bytes
) -> None:
    await stand.load("pirate")
    for order in ("activate", "canary", "rollback"):
        answer = await admin.client.post(f"/v1/patches/pirate/{order}", headers=JSON, content=body)
        assert "error" in answer.json(), answer.text
        assert stand.code(answer) == (400, "invalid_admin_call")


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "activate", b'{"version": "1.1.0", "version": "1.0.0"}', "body: the key 'version' appears"),
        ("POST", "canary", b'{"end": "abort", "\\u0065nd": "promote"}', "body: the key 'end' appears twice"),
        ("POST", "rollback", b'{"from": "1.0.0", "from": null}', "body: the key 'from' appears twice"),
        ("POST", "rollback", b'{"from": "1.0.0", "expected": "1.1.0"}', "body.expected: Extra inputs"),
        ("PUT", "1.2.0", b'{"file": "a.safetensors", "file": "b.safetensors"}', "body: the key 'file' app"),
        ("PUT", "1.2.0?hold=true&hold=false", b'{"file": "a.safetensors"}', "query: expected 'hold' once"),
        ("DELETE", "1.0.0?force=false&force=true", b"", "query: expected 'force' once"),
    ],
)
async def test_an_order_that_says_two_things_is_refused_and_written_down(
    stand: Stand, admin: Any, method: str, path: str, body: bytes, message: str
) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    before = stand.catalog.record("pirate")
    answer = await admin.client.request(method, f"/v1/patches/pirate/{path}", headers=JSON, content=body)
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert answer.json()["error"]["message"].startswith(message)
    assert stand.catalog.record("pirate") == before
    assert [(event.decision, event.reason) for event in admin.audit.events] == [
        ("failed", answer.json()["error"]["message"])
    ]


@pytest.mark.parametrize("kind", ["Application/JSON", "application/json;charset=utf-8", "text/plain", None])
async def test_the_bound_holds_for_a_body_of_any_type(stand: Stand, admin: Any, kind: str | None) -> None:
    await stand.load("pirate")
    headers = {} if kind is None else {"Content-Type": kind}
    large = chunks(b'{"version": "', b"x" * MAX_BODY_BYTES, b'"}')
    answer = await admin.client.post("/v1/patches/pirate/activate", headers=headers, content=large)
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert "bytes, got more" in answer.json()["error"]["message"]


async def test_the_type_of_a_body_is_read_in_any_case(stand: Stand, admin: Any) -> None:
    answer = await admin.client.put(
        "/v1/patches/pirate/1.0.0", headers={"Content-Type": "Application/JSON"}, content=b'{"file": "x"}'
    )
    assert stand.code(answer) != (422, "patch_invalid"), "an order was read as a patch file"
    assert "x" in answer.json()["error"]["message"]


async def test_half_a_character_is_refused_in_plain_words(stand: Stand, admin: Any) -> None:
    await stand.load("pirate")
    answer = await admin.client.post(
        "/v1/patches/pirate/rollback", headers=JSON, content=b'{"from": "\\ud83d"}'
    )
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert "codec" not in answer.text


async def test_an_integer_of_thousands_of_digits_is_refused_in_plain_words(stand: Stand, admin: Any) -> None:
    await stand.load("pirate")
    body = b'{"version": "1.0.0", "window_s": ' + b"9" * 5000 + b"}"
    answer = await admin.client.post("/v1/patches/pirate/canary", headers=JSON, content=body)
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert answer.json()["error"]["message"] == "body: an integer of 5000 digits is too long"


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonl", None]
)
async def test_a_body_of_another_type_is_refused_with_the_type_that_is_expected(
    stand: Stand, admin: Any, kind: str | None
) -> None:
    for version in ("1.0.0", "1.1.0"):
        await stand.load("pirate", version)
    headers = {} if kind is None else {"Content-Type": kind}
    for call, body in (
        ("activate", b'{"version": "1.0.0"}'),
        ("canary", b'{"version": "1.0.0"}'),
        ("rollback", b'{"from": "1.1.0"}'),
    ):
        answer = await admin.client.post(f"/v1/patches/pirate/{call}", headers=headers, content=body)
        assert stand.code(answer) == (400, "invalid_admin_call")
        expected = f"Content-Type: expected application/json, got {kind or 'none'}"
        assert answer.json()["error"]["message"].startswith(expected)
    assert await admin.answers() == "pirate@1.1.0"


async def test_a_body_of_a_type_that_is_json_too_is_taken(stand: Stand, admin: Any) -> None:
    await stand.load("pirate")
    headers = {"Content-Type": "application/merge+json; charset=utf-8"}
    answer = await admin.client.post(
        "/v1/patches/pirate/activate", headers=headers, content=b'{"version": "1.0.0"}'
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"file": "x" * 300}, "body.file: String should have at most 255 characters"),
        ({"file": 5}, "body.file: Input should be a valid string"),
        ({}, "body.file: Field required"),
        ([], "body: Input should be an object"),
    ],
)
async def test_an_order_to_load_a_file_is_refused_with_the_field_that_is_wrong(
    stand: Stand, admin: Any, body: Any, message: str
) -> None:
    answer = await admin.client.put("/v1/patches/pirate/1.0.0", json=body)
    assert stand.code(answer) == (400, "invalid_admin_call")
    assert answer.json()["error"]["message"] == message


async def test_a_caller_that_goes_away_leaves_one_line_and_no_traceback(
    stand: Stand, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = admin.parts.app(stand.gate)
    sent: list[dict[str, Any]] = []
    incoming = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]
    for method, path, kind in (
        ("PUT", "/v1/patches/pirate/2.0.0", b"application/octet-stream"),
        ("POST", "/v1/patches/pirate/activate", b"application/json"),
    ):
        messages = iter(incoming)

        async def receive(messages: Any = messages) -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", kind),
                (b"authorization", admin.client.headers["authorization"].encode()),
            ],
            "client": ("test", 1),
            "server": ("test", 80),
            "scheme": "http",
        }
        with caplog.at_level("INFO"):
            await asyncio.wait_for(app(scope, receive, send), 30)
        assert caplog.messages[-1] == f"{method} {path}: the caller broke it off"
    assert not [record for record in caplog.records if record.exc_info]
    assert [(e.event, e.decision, e.wish, e.reason) for e in admin.audit.events] == [
        ("admin.put", "failed", "pirate@2.0.0", "broken_off"),
        ("admin.activate", "failed", "pirate", "broken_off"),
    ]
