"""What is signed: round trips, and everything that is not exactly it."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from patches.errors import InvalidName, SignatureRefused
from patches.signing.statement import decode_statement, encode_statement, make_statement

DIGEST = "sha256:" + "5" * 64
NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize("minimum", [None, "0.9.0", "1.2.0-rc.1", "1.2.0"])
def test_a_statement_survives_encoding(minimum: str | None) -> None:
    statement = make_statement("pirate", "1.2.0", DIGEST, minimum_version=minimum, signed_at=NOW)
    assert decode_statement(encode_statement(statement)) == statement


def test_the_time_is_in_utc_and_whole_seconds() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=5))).replace(microsecond=7)
    assert make_statement("pirate", "1.2.0", DIGEST, signed_at=local).signed_at == NOW


def test_a_statement_cannot_forbid_its_own_version() -> None:
    with pytest.raises(InvalidName, match=r"minimum_version: expected at most 1\.2\.0"):
        make_statement("pirate", "1.2.0", DIGEST, minimum_version="1.2.1", signed_at=NOW)


def changed(path: str, value: Any) -> bytes:
    document = json.loads(encode_statement(make_statement("pirate", "1.2.0", DIGEST, signed_at=NOW)))
    target = document
    *parents, last = path.split(".")
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    target[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("_type", "https://in-toto.io/Statement/v2", "_type: expected"),
        ("predicateType", "https://slsa.dev/provenance/v1", "predicateType: expected"),
        ("subject", [], "subject: expected a list"),
        ("subject", [{}, {}], "subject: expected a list of one object"),
        ("subject.0.name", "../etc", "name: expected 1 to 64"),
        ("subject.0.name", 7, "name: expected a text"),
        ("subject.0.digest.policypatch", "5" * 63, "64 hexadecimal digits"),
        ("subject.0.digest.policypatch", "5" * 63 + "\n", "64 hexadecimal digits"),
        ("subject.0.digest.md5", "5" * 32, "unknown key 'md5'"),
        ("predicate.version", "one", "version: expected a semantic version"),
        ("predicate.minimum_version", "2.0.0", "minimum_version: expected at most"),
        ("predicate.minimum_version", None, "minimum_version: expected a text"),
        ("predicate.signed_at", "yesterday", "signed_at: expected a time"),
        ("predicate.signed_at", "2026-02-31T00:00:00Z", "day is out of range"),
        ("predicate.expires", "2026-02-01T00:00:00Z", "unknown key 'expires'"),
        ("extra", 1, "unknown key 'extra'"),
    ],
)
def test_anything_else_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(SignatureRefused, match=message) as caught:
        decode_statement(changed(path, value))
    assert caught.value.reason == "bad_signature"


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"\xff", b'{"_type":1,"_type":2}', b"[" * 100_000])
def test_what_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(SignatureRefused):
        decode_statement(payload)
