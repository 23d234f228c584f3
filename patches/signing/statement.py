"""What a signature says: this content, under this name and version, from now on nothing older.

An in-toto Statement v1, so that other tools can read it::

    {
      "_type": "https://in-toto.io/Statement/v1",
      "subject": [{"name": "toxicity", "digest": {"policypatch": "5f0c…"}}],
      "predicateType": "urn:policypatch:release:v1",
      "predicate": {"version": "1.2.0", "minimum_version": "1.1.0", "signed_at": "2026-01-31T12:00:00Z"}
    }

- ``digest.policypatch`` is the content digest of ``patches.digest`` without ``sha256:``.
- ``minimum_version`` (optional) is at most ``version``: the lowest version of this name that may be used by
  whoever saw this statement. Versions below it are downgrades.
- ``signed_at`` is the signer's clock, to the second, and told for people: nothing is decided by it.

An unknown key is refused, because a statement that is only half understood may hold a restriction.
Law: ``decode_statement(encode_statement(s)) == s``.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from patches.canonical import canonical_json, parse_json
from patches.errors import InvalidName, SignatureRefused
from patches.fields import FieldReader
from patches.names import validate_name, validate_version, version_key

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:policypatch:release:v1"

_HEX = re.compile(r"[0-9a-f]{64}")
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


@dataclass(frozen=True)
class Statement:
    """What someone puts their key to."""

    name: str
    version: str
    #: ``sha256:`` and 64 hexadecimal digits.
    digest: str
    #: UTC, whole seconds.
    signed_at: datetime
    minimum_version: str | None = None


def make_statement(
    name: str, version: str, digest: str, *, minimum_version: str | None = None, signed_at: datetime
) -> Statement:
    """Make a statement, cutting ``signed_at`` to seconds.

    Raises:
        InvalidName: A name or version is outside the grammar, or the minimum is above the version.
    """
    validate_name(name)
    validate_version(version)
    if minimum_version is not None and version_key(minimum_version) > version_key(version):
        raise InvalidName(
            f"minimum_version: expected at most {version}, the version that is signed, got {minimum_version}"
        )
    return Statement(name, version, digest, signed_at.astimezone(UTC).replace(microsecond=0), minimum_version)


def encode_statement(statement: Statement) -> bytes:
    """Write a statement as the bytes that are signed."""
    predicate = {"version": statement.version, "signed_at": statement.signed_at.strftime(_TIME_FORMAT)}
    if statement.minimum_version is not None:
        predicate["minimum_version"] = statement.minimum_version
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": statement.name, "digest": {"policypatch": statement.digest.removeprefix("sha256:")}}
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }
    return canonical_json(document).encode()


def decode_statement(payload: bytes) -> Statement:
    """Read a statement strictly.

    Raises:
        SignatureRefused: With reason ``bad_signature``.
    """
    try:
        document = parse_json(payload.decode("utf-8"))
    except ValueError as error:
        raise _refusal(f"not readable as JSON: {str(error)[:200]}") from None
    reader = FieldReader("statement", document)
    reader.one_of("_type", [STATEMENT_TYPE])
    reader.one_of("predicateType", [PREDICATE_TYPE])
    subjects = reader.objects("subject", 1)
    if len(subjects) > 1:
        reader.problem("subject", "a list of one object", len(subjects))
    predicate = reader.object("predicate")
    reader.finish()
    if reader.problems:
        raise _refusal(reader.problems[0])
    subject = subjects[0]
    digest = subject.object("digest")
    name, hexadecimal = subject.text("name"), digest.text("policypatch")
    version, signed_at = predicate.text("version"), predicate.text("signed_at")
    minimum = predicate.text("minimum_version") if "minimum_version" in predicate.free() else None
    for part in (subject, digest, predicate):
        part.finish()
    if reader.problems:
        raise _refusal(reader.problems[0])
    if not _HEX.fullmatch(hexadecimal):
        raise _refusal("statement.subject.digest.policypatch: expected 64 hexadecimal digits")
    try:
        return make_statement(
            name, version, f"sha256:{hexadecimal}", minimum_version=minimum, signed_at=_time(signed_at)
        )
    except (InvalidName, ValueError) as error:
        raise _refusal(f"statement.{error}") from None


def format_time(moment: datetime) -> str:
    """Write a moment as statements do."""
    return moment.astimezone(UTC).strftime(_TIME_FORMAT)


def _time(text: str) -> datetime:
    if not _TIME.fullmatch(text):
        raise ValueError(f"signed_at: expected a time such as 2026-01-31T12:00:00Z, got {text[:40]!r}")
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)


def _refusal(message: str) -> SignatureRefused:
    return SignatureRefused("bad_signature", f"the signature is malformed: {message}")
