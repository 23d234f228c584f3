"""The manifest: what a patch says about itself.

Frozen dataclasses with a typed, strict decode. Unknown keys, missing keys and wrong types are all named.

Law: ``decode_manifest(encode_manifest(m)) == m`` for every valid manifest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patches.canonical import JsonValue, canonical_json, parse_json
from patches.errors import InvalidName, PatchFormatError
from patches.fields import FieldReader
from patches.names import is_digest, validate_name, validate_version

FORMAT_VERSION = 1
KIND = "prefix"
DTYPES = ("bfloat16", "float16", "float32")
METHODS = ("text", "peft", "compose", "trained")
MAX_NUM_VIRTUAL_TOKENS = 4096
MAX_MANIFEST_BYTES = 256 * 1024
MAX_LINE_LENGTH = 1000
MAX_DIMENSION = 2**20


@dataclass(frozen=True)
class BaseModel:
    """The fingerprint of the model that a patch belongs to; ``patches.fingerprint`` makes it."""

    #: Class name in the model's configuration, such as ``LlamaForCausalLM``.
    architecture: str
    num_layers: int
    #: Before any split over tensor-parallel ranks.
    num_kv_heads: int
    head_size: int
    hidden_size: int
    #: Canonical rotary parameters. Flat, or one object per kind of attention layer (Gemma 3).
    rope: Mapping[str, JsonValue]
    #: The dtype the model runs in, one of ``DTYPES``; not necessarily the one its weights are stored in.
    dtype: str
    tokenizer_digest: str
    weights_digest: str


@dataclass(frozen=True)
class Component:
    """One part of a composition, in its place."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Manifest:
    """Everything about a patch but its tensors."""

    format_version: int
    kind: str
    name: str
    version: str
    base_model: BaseModel
    num_virtual_tokens: int
    #: How the patch was made. ``method`` is one of ``METHODS``; the other keys depend on it.
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
    def components(self) -> tuple[Component, ...]:
        """The parts of a composition in order; empty for every other patch."""
        if self.origin.get("method") != "compose":
            return ()
        return tuple(Component(**component) for component in self.origin["components"])


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
        "num_virtual_tokens": manifest.num_virtual_tokens,
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
        if type(version) is int and version != FORMAT_VERSION:
            message = (
                f"manifest.format_version: expected {FORMAT_VERSION}, got {str(version)[:20]}; "
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
    manifest = Manifest(
        format_version=reader.integer("format_version", FORMAT_VERSION, FORMAT_VERSION),
        kind=reader.one_of("kind", (KIND,)),
        name=reader.text("name"),
        version=reader.text("version"),
        base_model=_decode_base_model(reader.object("base_model")),
        num_virtual_tokens=reader.integer("num_virtual_tokens", 1, MAX_NUM_VIRTUAL_TOKENS),
        origin=_check_origin(reader.object("origin")),
        evaluation=reader.object("evaluation").free() if "evaluation" in document else None,
        license=license_,
        changelog=changelog,
        supersedes=supersedes,
    )
    reader.finish()
    _check_names(reader, manifest, name_problems)
    problems = name_problems + [PatchFormatError("bad_manifest", text) for text in reader.problems]
    return (None, problems) if problems else (manifest, [])


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


def _decode_base_model(reader: FieldReader) -> BaseModel:
    base_model = BaseModel(
        architecture=reader.line("architecture", 200),
        num_layers=reader.integer("num_layers", 1, MAX_DIMENSION),
        num_kv_heads=reader.integer("num_kv_heads", 1, MAX_DIMENSION),
        head_size=reader.integer("head_size", 1, MAX_DIMENSION),
        hidden_size=reader.integer("hidden_size", 1, MAX_DIMENSION),
        rope=reader.object("rope").free(),
        dtype=reader.one_of("dtype", DTYPES),
        tokenizer_digest=reader.digest("tokenizer_digest"),
        weights_digest=reader.digest("weights_digest"),
    )
    reader.finish()
    return base_model


def _check_origin(reader: FieldReader) -> Mapping[str, JsonValue]:
    method = reader.one_of("method", METHODS)
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
