"""Views for asking a policy without a server: of a folder's patches, or of all that could be."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from patches.base_model import BaseModel
from patches.errors import PatchError
from patches.format import read_patch
from patches.kinds.prefix import PrefixBody
from patches.manifest import Manifest
from server.catalog.folder import list_folder
from server.policy.rules import Policy
from server.versions.selection import PatchRef
from server.versions.view import CatalogView, ServedPatch

#: Stands for whatever version there would be.
UNKNOWN_VERSION = "0.0.0"


@dataclass(frozen=True, slots=True)
class FolderView:
    """What a server would serve from a folder, including what it would refuse because of its model."""

    view: CatalogView
    #: One line on each file that no server would take.
    refused: list[str] = field(default_factory=list)


def view_of_folder(folder: Path) -> FolderView:
    """Read every patch file of ``folder``.

    Raises:
        OSError: The folder can't be read.
    """
    result = FolderView(CatalogView())
    view = result.view
    for path in sorted(list_folder(folder).files):
        try:
            patch = read_patch(path)
        except (PatchError, OSError) as error:
            result.refused.append(f"{path.name}: {error}")
            continue
        manifest = patch.manifest
        named = view.names.get(manifest.name)
        rival = named.by_version.get(manifest.version) if named is not None else None
        if rival is not None and rival.digest != patch.digest:
            result.refused.append(f"{path.name}: {rival.reference} is in another file with other content")
            continue
        served = ServedPatch.of(manifest, patch.digest, patch.nbytes)
        view = view.with_changes(served, None)
    return replace(result, view=view)


class _EveryComposition(Mapping[tuple[str, ...], ServedPatch]):
    """As if every composition were prepared."""

    def __init__(self, patches: Mapping[str, ServedPatch]) -> None:
        self._patches = patches

    def __getitem__(self, digests: tuple[str, ...]) -> ServedPatch:
        parts = [self._patches[digest] for digest in digests]
        return _imagined(".".join(part.name for part in parts), UNKNOWN_VERSION)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(())

    def __len__(self) -> int:
        return 0


def view_of_names(policy: Policy, wished: Iterable[PatchRef]) -> CatalogView:
    """Return a view in which all that is named is loaded and every composition prepared.

    Args:
        policy: Whatever it names is there.
        wished: What is asked for is there too.
    """
    refs = {*wished, *(ref for _, refs in policy.references() for ref in refs)}
    refs |= {entry for rule in policy.rules() for entry in rule.allow.entries}
    pinned = {ref.name for ref in refs if ref.version is not None or ref.digest is not None}
    view = CatalogView()
    for ref in sorted(refs, key=str):
        if ref.digest is not None:
            version = f"{UNKNOWN_VERSION}+{ref.digest[7:19]}"
        elif ref.version is not None or ref.name not in pinned:
            version = ref.version or UNKNOWN_VERSION
        else:
            # The bare name means one of the versions that are named.
            continue
        view = view.with_changes(_imagined(ref.name, version, ref.digest), None)
    patches = {patch.digest: patch for named in view.names.values() for patch in named.versions}
    return replace(view, compositions=_EveryComposition(patches))


def _imagined(name: str, version: str, digest: str | None = None) -> ServedPatch:
    made_up = f"sha256:{hashlib.sha256(f'{name}@{version}'.encode()).hexdigest()}"
    if digest is not None:
        made_up = digest + made_up[len(digest) :]
    model = BaseModel("", 0, 0, 0, 0, {}, "", "", "")
    manifest = Manifest(name, version, model, PrefixBody(1), {"method": "text"})
    return ServedPatch(name, version, made_up, 1, manifest, 0)
