"""A fleet's folder and store, of which every test of the package has its own."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.fleet import changes
from server.fleet.changes import Added
from server.fleet.document import Document, VersionEntry, moment_of
from server.fleet.publisher import Publisher
from server.fleet.roles import FleetFolder, make_folder
from server.fleet.store import FolderStore, Store
from tests.web import serving


@dataclass
class Fleet:
    """A fleet, and short ways to publish for it."""

    folder: FleetFolder
    store: Store
    at_s: float = 1_790_000_000.0
    wrote: list[str] = field(default_factory=list)

    def publisher(self) -> Publisher:
        return Publisher(self.folder, self.store, wrote=lambda path, size: self.wrote.append(path))

    def publish(self, **versions: str) -> Document:
        """Publish a version of each name, with bytes of its own."""
        publisher = self.publisher()
        before = publisher.read()
        first = before.document or changes.nothing(moment_of(self.at_s))
        added, files = [], {}
        for name, version in versions.items():
            target = f"patches/{name}-{version}.safetensors"
            files[target] = f"{name} {version}".encode()
            added.append(Added(name, version, VersionEntry(digest(name, version), target)))
        names = changes.with_versions(first.names, added)
        document = changes.next_revision(first, names, published_at=moment_of(self.at_s))
        return publisher.publish(before, document, files)


def digest(name: str, version: str) -> str:
    """Return a digest of the right form."""
    return "sha256:" + f"{name}{version}".encode().hex().ljust(64, "0")[:64]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A fleet that has published nothing."""
    folder = make_folder(tmp_path / "fleet", str(tmp_path / "store"), 600.0)
    return Fleet(folder, FolderStore(tmp_path / "store"))


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The store behind a web server."""
    with serving(tmp_path / "store") as address:
        yield address
