"""The manifest: what a patch says about itself.

Frozen dataclasses with a typed, strict decode. Unknown keys, missing keys and wrong types are all named.

Law: ``decode_manifest(encode_manifest(m)) == m`` for every valid manifest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patches.base_model import BaseModel, read_base_model
from patches.canonical import JsonValue, canonical_json, parse_json
from patches.errors import InvalidName, KindMismatch, PatchFormatError
from patches.fields import FieldReader
from patches.kinds import FORMAT_VERSIONS, KINDS
from patches.kinds.body import Body
from patches.names import is_digest, validate_name, validate_version

MAX_MANIFEST_BYTES = 256 * 1024
MAX_LINE_LENGTH = 1000


@dataclass(frozen=True)
class Component:
    """One part of a composition, in its place."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a patch but its tensors."""

    name: str
    version: str
    base_model: BaseModel
    #: What only patches of its kind have.
    body: Body
    #: How the patch was made. ``method`` is one of the body's ``methods``; the other keys depend on it.
    origin: Mapping[str, JsonValue]
    #: Results of an evaluation, free in form.
    evaluation: Mapping[str, JsonValue] | None = None
    #: An SPDX expression or a name.
    license: str | None = None
    #: One line: what is new in this version.
    changelog: str | None = None
    #: The version, or the digest, that this one replaces.
    supersedes: str | None = None

    @property
    def format_version(self) -> int:
        """The version of the format that a file of it has."""
        return self.body.format_version

    @property
    def kind(self) -> str:
        """The word for its kind."""
        return self.body.kind

    @property
    def num_virtual_tokens(self) -> int:
        """How many positions it takes in front of a prompt: 0 for a kind that takes none."""
        return self.body.num_tokens

    @property
    def components(self) -> tuple[Component, ...]:
        """The parts of a composition in order; empty for every other patch."""
        if self.origin.get("method") != "compose":
            return ()
        return tuple(Component(**component) for component in self.origin["components"])


def require_kind(manifest: Manifest, kind: str, advice: str) -> None:
    """Check that a patch is of the kind that something can be done with; ``advice`` says what else helps.

    Raises:
        KindMismatch: It is of another kind.
    """
    if manifest.kind != kind:
        raise KindMismatch(
            f"{manifest.name}@{manifest.version}: expected a {kind} patch, "
            f"got a {manifest.kind} patch; {advice}"
        )


def encode_manifest(manifest: Manifest) -> str:
    """Write the canonical JSON text of a manifest.

    Raises:
        PatchFormatError: The manifest breaks a rule of the format; the message names every one.
    """
    document: dict[str, Any] = {
        "format_version": manifest.format_version,
        "kind": manifest.kind,
        "name": manifest.name,
        "version": manifest.version,
        "base_model": dict(vars(manifest.base_model)),
        **manifest.body.document(),
        "origin": manifest.origin,
    }
    for key in ("evaluation", "license", "changelog", "supersedes"):
        if (value := getattr(manifest, key)) is not None:
            document[key] = value
    try:
        text = canonical_json(document)
    except ValueError as error:
        raise PatchFormatError("bad_manifest", f"manifest: {error}") from None
    _, problems = read_manifest_text(text)
    if problems:
        raise problems[0]
    return text


def decode_manifest(text: str) -> Manifest:
    """Read a manifest's canonical JSON text.

    Raises:
        PatchFormatError: With reason ``bad_manifest``, ``bad_name``, ``too_large`` or
        ``unsupported_version``.
    """
    manifest, problems = read_manifest_text(text)
    if manifest is None:
        raise problems[0]
    return manifest


def read_manifest_text(text: str) -> tuple[Manifest | None, list[PatchFormatError]]:
    """Read a manifest and collect everything that is wrong with it.

    Returns:
        The manifest and no problems, or ``None`` and at least one problem.
    """
    try:
        size = len(text.encode("utf-8"))
        if size > MAX_MANIFEST_BYTES:
            message = f"manifest: expected at most {MAX_MANIFEST_BYTES} bytes, got {size}"
            return None, [PatchFormatError("too_large", message)]
        document = parse_json(text)
        if not isinstance(document, dict):
            raise ValueError(f"expected an object, got {type(document).__name__}")
        version = document.get("format_version")
        if type(version) is int and version not in FORMAT_VERSIONS:
            known = " or ".join(map(str, FORMAT_VERSIONS))
            message = (
                f"manifest.format_version: expected {known}, got {str(version)[:20]}; "
                "a newer policypatch may read this file"
            )
            return None, [PatchFormatError("unsupported_version", message)]
        if canonical_json(document) != text:
            raise ValueError("the text is not canonical JSON")
    except ValueError as error:
        return None, [PatchFormatError("bad_manifest", f"manifest: {str(error)[:300]}")]
    return _decode_document(document)


def _decode_document(document: dict[str, JsonValue]) -> tuple[Manifest | None, list[PatchFormatError]]:
    reader = FieldReader("manifest", document)
    name_problems: list[PatchFormatError] = []
    license_, changelog, supersedes = read_notes(reader)
    of_kind = KINDS[reader.one_of("kind", _kinds_of(document.get("format_version")))]
    reader.integer("format_version", of_kind.format_version, of_kind.format_version)
    base_model = read_base_model(reader.object("base_model"))
    manifest = Manifest(
        name=reader.text("name"),
        version=reader.text("version"),
        base_model=base_model,
        body=of_kind.read(reader, base_model),
        origin=_check_origin(reader.object("origin"), of_kind.methods),
        evaluation=reader.object("evaluation").free() if "evaluation" in document else None,
        license=license_,
        changelog=changelog,
        supersedes=supersedes,
    )
    reader.finish()
    _check_names(reader, manifest, name_problems)
    problems = name_problems + [PatchFormatError("bad_manifest", text) for text in reader.problems]
    return (None, problems) if problems else (manifest, [])


def _kinds_of(format_version: JsonValue) -> tuple[str, ...]:
    of_version = tuple(kind for kind, body in KINDS.items() if body.format_version == format_version)
    return of_version or tuple(KINDS)


def _check_names(reader: FieldReader, manifest: Manifest, problems: list[PatchFormatError]) -> None:
    for key, value, validate in (
        ("name", manifest.name, validate_name),
        ("version", manifest.version, validate_version),
    ):
        if reader.is_good(key):
            try:
                validate(value)
            except InvalidName as error:
                problems.append(PatchFormatError("bad_name", f"manifest.{error}"))


def read_notes(reader: FieldReader) -> tuple[str | None, str | None, str | None]:
    """Read licence, changelog and ``supersedes``, each of which may be left out."""
    notes = (
        reader.optional_line("license", MAX_LINE_LENGTH),
        reader.optional_line("changelog", MAX_LINE_LENGTH),
        reader.optional_line("supersedes", MAX_LINE_LENGTH),
    )
    supersedes = notes[2]
    if supersedes is not None and reader.is_good("supersedes") and not is_digest(supersedes):
        try:
            validate_version(supersedes)
        except InvalidName:
            reader.problem("supersedes", "a version or a digest", supersedes)
    return notes


def _check_origin(reader: FieldReader, methods: Sequence[str]) -> Mapping[str, JsonValue]:
    method = reader.one_of("method", methods)
    if method == "compose":
        components = reader.objects("components", minimum=2)
        for component in components:
            if not _is_component(component):
                component.problem(None, "an object of name, version and digest", component.free())
    return reader.free()


def _is_component(component: FieldReader) -> bool:
    value = component.free()
    if set(value) != {"name", "version", "digest"} or not all(isinstance(v, str) for v in value.values()):
        return False
    try:
        validate_name(value["name"])
        validate_version(value["version"])
    except InvalidName:
        return False
    return is_digest(value["digest"])
