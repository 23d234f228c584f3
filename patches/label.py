"""What the maker of a patch says about it: the part of a manifest that no computation gives."""

from collections.abc import Mapping
from dataclasses import dataclass

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.errors import PatchFormatError
from patches.fields import FieldReader
from patches.kinds.body import Body
from patches.manifest import Manifest, read_notes
from patches.names import validate_name, validate_version


@dataclass(frozen=True)
class Label:
    """Name, version and notes of a patch to be, checked when made, so that a bad one costs no computation."""

    name: str
    version: str
    license: str | None = None
    changelog: str | None = None
    supersedes: str | None = None
    evaluation: Mapping[str, JsonValue] | None = None

    def __post_init__(self) -> None:
        validate_name(self.name)
        validate_version(self.version)
        notes = {key: getattr(self, key) for key in ("license", "changelog", "supersedes")}
        reader = FieldReader("label", {key: value for key, value in notes.items() if value is not None})
        read_notes(reader)
        if reader.problems:
            raise PatchFormatError("bad_manifest", "; ".join(reader.problems))

    def manifest(self, base_model: BaseModel, body: Body, origin: Mapping[str, JsonValue]) -> Manifest:
        """Complete the label to a manifest."""
        return Manifest(
            name=self.name,
            version=self.version,
            base_model=base_model,
            body=body,
            origin=origin,
            evaluation=self.evaluation,
            license=self.license,
            changelog=self.changelog,
            supersedes=self.supersedes,
        )
