"""One revision of a fleet's catalog: everything that its servers are to serve, in one signed file.

Pointers, canaries, the policy, trusted keys and revocations travel together, so that there is no instant at
which a new policy meets old patches. Going back is a new, higher revision with old pointers.

``retained`` says what names meant in earlier revisions, where that differs, so that a server that has just
joined can answer as of each of them. Paths are targets of the repository, which vouches for length and hash.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from patches.canonical import canonical_json, parse_json
from patches.errors import InvalidName
from patches.names import NAME_PATTERN, RESERVED_NAMES, is_digest, validate_name, validate_version
from server.versions.activation import CanaryRules
from server.versions.sticky import StickyKey

FORMAT: Literal[1] = 1

#: The target that holds the document.
DOCUMENT_TARGET = "catalog.json"

#: Larger documents are not read: some 15,000 versions.
MAX_BYTES = 4 << 20

#: Earlier revisions that a document may say the meanings of.
MAX_RETAINED = 64

#: What the name of a target may look like: two folders at most, never hidden, never outside.
_TARGET_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}(/[A-Za-z0-9][A-Za-z0-9._+-]{0,199}){0,2}$"

_STRICT = ConfigDict(extra="forbid", strict=True)

_TargetPath = Annotated[str, Field(pattern=_TARGET_PATTERN)]
_Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]


class DocumentInvalid(ValueError):
    """It is no document of a catalog; the message says where and why."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class CanaryEntry:
    """A version that a share of the requests gets where they name the bare name."""

    version: str
    #: Above 0, at most 1.
    share: Annotated[float, Field(gt=0, le=1, strict=False)]
    #: What it sticks to; see ``server.versions.sticky``.
    key: str
    #: When it began.
    since: _Moment
    #: What ends it, judged by the requests of the whole fleet.
    rules: CanaryRules = field(default_factory=CanaryRules)


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Meaning:
    """What a bare name means."""

    active: str
    canary: CanaryEntry | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that a request may get."""
        return (self.active,) if self.canary is None else (self.active, self.canary.version)


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class VersionEntry:
    """Where the file of a version is, and what it holds."""

    #: ``sha256:`` and 64 hexadecimal digits, of manifest and tensors.
    digest: str
    target: _TargetPath
    #: The signature of who made it, which says what a signature of the catalog does not.
    signature: _TargetPath | None = None


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class NameEntry:
    """One name of the catalog."""

    #: ``None`` where it means nothing any more, and earlier revisions are still to be had.
    meaning: Meaning | None
    versions: Annotated[dict[str, VersionEntry], Field(min_length=1)]


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Document:
    """One revision."""

    format: Literal[1]
    #: That of the role that signs it, too; each is higher than the one before.
    revision: Annotated[int, Field(ge=1)]
    published_at: _Moment
    #: When it is to hold everywhere; ``None`` for as soon as a server hears of it.
    effective_at: _Moment | None = None
    names: dict[str, NameEntry] = field(default_factory=dict)
    #: Earlier revision -> the names that meant something else then; ``None`` where there was no such name.
    retained: dict[str, dict[str, Meaning | None]] = field(default_factory=dict)
    policy: _TargetPath | None = None
    #: Digests that are never served.
    revoked: tuple[str, ...] = ()
    #: Public keys whose signatures of patches count.
    trusted_keys: tuple[_TargetPath, ...] = ()
    #: The lowest version of policypatch that can serve it.
    min_server: str | None = None

    @property
    def effective_s(self) -> float | None:
        """``effective_at`` as Unix time in seconds."""
        return seconds_of(self.effective_at) if self.effective_at is not None else None

    def meanings(self, revision: int) -> Mapping[str, Meaning] | None:
        """Return what names meant in a revision, by name; ``None`` where that is not retained."""
        then = {} if revision == self.revision else self.retained.get(str(revision))
        if then is None:
            return None
        meanings = {name: entry.meaning for name, entry in self.names.items()} | then
        return {name: meaning for name, meaning in meanings.items() if meaning is not None}

    def targets(self) -> tuple[str, ...]:
        """Return every target that it names, sorted."""
        files = [v for entry in self.names.values() for v in entry.versions.values()]
        paths = {v.target for v in files} | {v.signature for v in files if v.signature is not None}
        paths |= {*self.trusted_keys} | ({self.policy} if self.policy is not None else set())
        return tuple(sorted(paths))


_DOCUMENTS = TypeAdapter(Document)


def read_document(data: bytes) -> Document:
    """Read one revision, strictly.

    Raises:
        DocumentInvalid: It is too long, no JSON, has keys that are unknown or there twice, or contradicts
            itself.
    """
    if len(data) > MAX_BYTES:
        raise DocumentInvalid(f"expected at most {MAX_BYTES} bytes, got {len(data)}")
    try:
        # Tuples are arrays in JSON, which only the reader of JSON takes for them.
        document = _DOCUMENTS.validate_json(json.dumps(parse_json(data)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "document"
        raise DocumentInvalid(f"{where[:200]}: {problem['msg']}") from None
    except (ValueError, UnicodeError) as error:
        raise DocumentInvalid(f"no JSON: {error}") from None
    _check(document)
    return document


def write_document(document: Document) -> bytes:
    """Return the document as canonical JSON.

    Raises:
        DocumentInvalid: No reader would take it.
    """
    _check(document)
    data = canonical_json(_DOCUMENTS.dump_python(document, mode="json")).encode()
    if len(data) > MAX_BYTES:
        raise DocumentInvalid(f"expected at most {MAX_BYTES} bytes, got {len(data)}; publish fewer versions")
    return data


def seconds_of(moment: str) -> float:
    """Return a moment of a document as Unix time in seconds."""
    return datetime.fromisoformat(moment.removesuffix("Z")).replace(tzinfo=UTC).timestamp()


def moment_of(seconds: float) -> str:
    """Return Unix time in seconds as a document has it, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _check(document: Document) -> None:
    """Raise where the document contradicts itself."""
    try:
        for moment in (document.published_at, document.effective_at):
            if moment is not None:
                seconds_of(moment)
        for name, entry in document.names.items():
            _check_name(name, entry)
        for digest in document.revoked:
            _require_digest("revoked", digest)
        if document.min_server is not None:
            validate_version(document.min_server)
        _check_retained(document)
    except InvalidName as error:
        raise DocumentInvalid(str(error)) from None
    except DocumentInvalid:
        raise
    except ValueError as error:
        raise DocumentInvalid(str(error)) from None


def _check_name(name: str, entry: NameEntry) -> None:
    validate_name(name)
    for version, file in entry.versions.items():
        validate_version(version)
        _require_digest(f"names.{name}.versions.{version}.digest", file.digest)
    if entry.meaning is not None:
        _check_meaning(f"names.{name}", entry.meaning, entry)


def _check_meaning(where: str, meaning: Meaning, entry: NameEntry) -> None:
    for version in meaning.versions:
        if version not in entry.versions:
            raise DocumentInvalid(f"{where}: expected one of its versions, got {version[:80]!r}")
    if (canary := meaning.canary) is not None:
        if canary.version == meaning.active:
            raise DocumentInvalid(f"{where}.canary: {canary.version} is active already")
        StickyKey.parse(canary.key)
        seconds_of(canary.since)


def _check_retained(document: Document) -> None:
    if len(document.retained) > MAX_RETAINED:
        raise DocumentInvalid(f"retained: expected at most {MAX_RETAINED} revisions")
    for revision, names in document.retained.items():
        if not revision.isdecimal() or str(int(revision)) != revision or int(revision) >= document.revision:
            raise DocumentInvalid(f"retained: expected an earlier revision, got {revision[:40]!r}")
        for name, meaning in names.items():
            if meaning is None:
                if not NAME_PATTERN.fullmatch(name) or name in RESERVED_NAMES:
                    validate_name(name)
            elif (entry := document.names.get(name)) is None:
                raise DocumentInvalid(
                    f"retained.{revision}.{name[:80]}: no versions of it are in the catalog"
                )
            else:
                _check_meaning(f"retained.{revision}.{name}", meaning, entry)


def _require_digest(where: str, digest: Any) -> None:
    if not is_digest(digest):
        raise DocumentInvalid(
            f"{where}: expected sha256: and 64 hexadecimal digits, got {str(digest)[:80]!r}"
        )
