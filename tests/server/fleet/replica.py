"""A server without an engine that follows a fleet's store, and ways to publish real patch files for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patches.format import decode_patch
from server.audit import NullAudit
from server.catalog.folder import PatchFolder
from server.fleet import changes
from server.fleet.changes import Added, Names
from server.fleet.document import Document, VersionEntry, moment_of
from server.fleet.reader import CatalogReader
from server.fleet.staging import Stage
from server.fleet.syncer import CatalogSync
from tests.server.fleet.conftest import Fleet
from tests.server.stand import Stand, patch_bytes

Change = Callable[[Document, Names], tuple[Document, Names]]


@dataclass
class Replica:
    """One server and what it follows with."""

    stand: Stand
    reader: CatalogReader
    sync: CatalogSync
    folder: Path

    @property
    def active(self) -> dict[str, str | None]:
        """What each bare name means."""
        names = self.stand.catalog.view.names
        return {n: named.active.version if named.active else None for n, named in names.items()}

    @property
    def revision(self) -> int:
        fleet = self.stand.catalog.view.fleet
        assert fleet is not None
        return fleet.number

    def failures(self, reason: str) -> float:
        name = "policy_patch_catalog_sync_failures_total"
        return self.stand.registry.get_sample_value(name, {"reason": reason}) or 0.0


def replica_of(
    stand: Stand, root: bytes, address: str, folder: Path, *, may_be_stale: bool = True
) -> Replica:
    """Make a server that looks when it is told to."""
    (folder / "patches").mkdir(parents=True, exist_ok=True)
    reader = CatalogReader(address, root, folder)
    stage = Stage(reader, folder, PatchFolder(folder / "patches", stand.catalog), stand.catalog)
    stand.decider.follows_fleet = True
    sync = CatalogSync(
        reader,
        stage,
        stand.catalog,
        stand.decider,
        stand.metrics.fleet,
        NullAudit(),
        every_s=60.0,
        may_be_stale=may_be_stale,
    )
    return Replica(stand, reader, sync, folder)


def ship(
    fleet: Fleet,
    *patches: tuple[str, str],
    policy: bytes | None = None,
    effective_at: str | None = None,
    change: Change | None = None,
    files: Mapping[str, bytes] | None = None,
    **parts: Any,
) -> Document:
    """Publish versions of real patches, each with a content of its own, or what ``change`` makes."""
    publisher = fleet.publisher()
    published = publisher.read()
    before = published.document or changes.nothing(moment_of(fleet.at_s))
    contents: dict[str, bytes] = dict(files or {})
    added = []
    for name, version in patches:
        data = patch_bytes(name, version, fill=sum(map(ord, name + version)) / 1024, **parts)
        target = f"patches/{name}-{version}.safetensors"
        contents[target] = data
        added.append(Added(name, version, VersionEntry(decode_patch(data).digest, target)))
    if policy is not None:
        target = f"policies/{before.revision + 1}.yaml"
        contents[target] = policy
        before = replace(before, policy=target)
    names = changes.with_versions(before.names, added)
    if change is not None:
        before, names = change(before, names)
    document = changes.next_revision(
        before, names, published_at=moment_of(fleet.at_s), effective_at=effective_at
    )
    return publisher.publish(published, document, contents)
