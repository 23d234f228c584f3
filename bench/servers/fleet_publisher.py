"""The publisher of a fleet, for ``bench.fleet``: random patches, and orders to a catalog in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers.patch_set import PatchFile, make_patch_set
from server.fleet import changes
from server.fleet.changes import Added
from server.fleet.document import Document, VersionEntry
from server.fleet.orders import AHEAD_S, Change, carry_out
from server.fleet.publisher import Publisher
from server.fleet.roles import make_folder
from server.fleet.store import open_store


@dataclass(frozen=True)
class Ordered:
    """A revision that was published.

    Attributes:
        revision: its number.
        effective_s: Unix time in seconds from which on it is to hold; ``None`` for at once.
    """

    revision: int
    effective_s: float | None


class Fleet:
    """A publisher with a catalog of patches, and orders to it."""

    def __init__(self, model: str, num_patches: int, num_tokens: int, folder: Path) -> None:
        """Make keys; nothing is published yet.

        Args:
            model: its folder.
            num_patches: names in the catalog.
            num_tokens: of each patch.
            folder: takes keys, patch files and the store.
        """
        made = make_folder(folder / "fleet", str((folder / "store").resolve()), 600.0)
        self._publisher = Publisher(made, open_store(made.store))
        #: What replicas follow, and what they are started with.
        self.store, self.root = Path(made.store), made.folder / "root.json"
        self._model = model
        self._num_patches = num_patches
        self._num_tokens = num_tokens
        self._made = folder / "made"
        self._num_versions = 0

    def make(self) -> Sequence[PatchFile]:
        """Write another version of the first name; the first time, one of every name."""
        count = self._num_patches if self._num_versions == 0 else 1
        self._num_versions += 1
        return make_patch_set(
            self._model,
            self._made / self._version,
            count=count,
            num_tokens=self._num_tokens,
            dtype="bfloat16",
            seed=self._num_versions,
            version=self._version,
        )

    def publish(self, files: Sequence[PatchFile], *, is_for_instant: bool = False) -> Ordered:
        """Publish what ``make`` wrote last."""
        paths = {f"patches/{one.path.name}": one.path for one in files}
        added = [
            Added(one.name, self._version, VersionEntry(one.digest, target))
            for one, target in zip(files, paths, strict=True)
        ]
        contents = {target: path.read_bytes() for target, path in paths.items()}
        ahead_s = AHEAD_S if is_for_instant else 0.0
        return self._order(lambda d: (d, changes.with_versions(d.names, added)), ahead_s, contents)

    def roll_back(self) -> Ordered:
        """Publish that the first name means what it meant before."""

        def change(before: Document) -> tuple[Document, changes.Names]:
            name = next(iter(before.names))
            return before, changes.gone_back(before, name, changes.version_before(before, name))

        return self._order(change, 0.0, {})

    @property
    def _version(self) -> str:
        return f"1.{self._num_versions}.0"

    def _order(self, change: Change, ahead_s: float, files: Mapping[str, bytes]) -> Ordered:
        published = self._publisher.read()
        document = carry_out(self._publisher, published, change, ahead_s=ahead_s, files=files).after
        return Ordered(document.revision, document.effective_s)
