"""Writes revisions of a catalog into a store, as a repository of The Update Framework.

Everything goes under a name that says its content or its number, and is never written over; the swap of
``timestamp.json`` comes last and makes the revision hold. So a reader sees the old revision or the new one,
wherever a publisher is cut off, and of two publishers at once one is refused.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from server.fleet.document import DOCUMENT_TARGET, Document, DocumentInvalid, read_document, write_document
from server.fleet.roles import LIFETIME, FleetError, FleetFolder, expiry
from server.fleet.store import TIMESTAMP, Store, Stored

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

#: Numbers that publishers which were cut off may have taken, one after the other.
_MAX_LEFTOVERS = 100

#: How often a stamp that came in between is taken up.
_MAX_TRIES = 5


class Overtaken(FleetError):
    """Another publisher was faster; nothing of this one's holds."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the store holds now, verified."""

    #: ``None`` before the first revision.
    document: Document | None = None
    stamped: Stored | None = None
    timestamp: "Metadata[Timestamp] | None" = None
    #: Target -> length and hash.
    targets: "Mapping[str, TargetFile] | None" = None

    @property
    def lease_ends_s(self) -> float | None:
        """Unix time until which what is published is served everywhere."""
        return self.timestamp.signed.expires.timestamp() if self.timestamp is not None else None


class Publisher:
    """Writes to one store with the keys of one folder."""

    def __init__(
        self,
        folder: FleetFolder,
        store: Store,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wrote: Callable[[str, int], None] = lambda path, size: None,
    ) -> None:
        """Make one.

        Args:
            folder: Its keys.
            store: Where revisions go.
            now: The time.
            wrote: Called after each object with its path and its size in bytes.
        """
        self._folder = folder
        self._store = store
        self._now = now
        self._wrote = wrote
        #: Says which keys count, as of the last look.
        self._newest: Metadata[Root] | None = None

    def read(self, *, is_rotating: bool = False) -> Published:
        """Return what is published, whether its lease has run out or not.

        Args:
            is_rotating: Where it is not signed as the newest root says, take what an earlier one says.

        Raises:
            FleetError: It is not signed as the root says, or parts are missing.
            StoreError: The store can't be read.
        """
        roots = self._roots()
        self._newest = roots[-1]
        stamped = self._store.read(TIMESTAMP)
        if stamped is not None and not is_rotating:
            return self._read(self._newest, stamped)
        # What an earlier call was cut off with after its root, the next one signs anew.
        if stamped is not None:
            for root in reversed(roots):
                try:
                    return self._read(root, stamped)
                except FleetError:
                    continue
        return self._newest_left(roots if is_rotating else roots[-1:], stamped)

    def _newest_left(self, roots: "Sequence[Metadata[Root]]", stamped: Stored | None) -> Published:
        """Return the newest revision that is signed, whatever became of the timestamp that named it.

        So nothing that was revoked is forgotten where that one is lost, and a key can be replaced whose thief
        has signed what is not there.
        """
        from tuf.api.metadata import Metadata

        numbers: list[Stored | None] = []
        missing = 0
        while missing < _MAX_LEFTOVERS:
            number = len(numbers) + 1
            data = self._store.read(f"metadata/{number}.snapshot.json")
            missing = 0 if data is not None else missing + 1
            numbers.append(data)
        for data in reversed(numbers):
            for root in reversed(roots if data is not None else []):
                try:
                    assert data is not None
                    snapshot: Metadata[Snapshot] = _verified(root, "snapshot", data.data)
                    return replace(self._of_snapshot(root, snapshot), stamped=stamped)
                except FleetError:
                    continue
        return Published(stamped=stamped)

    def root(self) -> "Metadata[Root]":
        """Return the root that holds now.

        Raises:
            FleetError: One of those from the folder's on is not signed as the one before says.
            StoreError: The store can't be read.
        """
        return self._roots()[-1]

    def _read(self, root: "Metadata[Root]", stamped: Stored) -> Published:
        from tuf.api.metadata import Metadata

        timestamp: Metadata[Timestamp] = _verified(root, "timestamp", stamped.data)
        meta = timestamp.signed.snapshot_meta
        snapshot: Metadata[Snapshot] = _verified(
            root, "snapshot", self._required(f"metadata/{meta.version}.snapshot.json", meta.hashes)
        )
        return replace(self._of_snapshot(root, snapshot), stamped=stamped, timestamp=timestamp)

    def _of_snapshot(self, root: "Metadata[Root]", snapshot: "Metadata[Snapshot]") -> Published:
        from tuf.api.metadata import Metadata

        meta = snapshot.signed.meta["targets.json"]
        targets: Metadata[Targets] = _verified(
            root, "targets", self._required(f"metadata/{meta.version}.targets.json", meta.hashes)
        )
        files = targets.signed.targets
        catalog = files.get(DOCUMENT_TARGET)
        if catalog is None:
            raise FleetError(f"{self._folder.store}: no {DOCUMENT_TARGET} among its targets")
        path = _path_of(DOCUMENT_TARGET, catalog.hashes["sha256"])
        try:
            document = read_document(self._required(path, catalog.hashes))
        except DocumentInvalid as error:
            raise FleetError(f"{self._folder.store}: {DOCUMENT_TARGET}: {error}") from error
        return Published(document, targets=files)

    def publish(self, before: Published, document: Document, files: Mapping[str, bytes]) -> Document:
        """Make ``document`` the newest revision.

        Args:
            before: What it follows.
            document: Its revision may be raised, where a publisher that was cut off took the number.
            files: Target -> content, of those that the store does not have yet.

        Returns:
            The document as it holds from now on.

        Raises:
            Overtaken: Another revision came first.
            FleetError: A target is missing, or has another content in the store, or a key is not here.
            StoreError: The store can't be written; the revision before it holds.
        """
        from tuf.api.metadata import TargetFile

        known = dict(before.targets or {})
        for target, data in files.items():
            made = TargetFile.from_data(target, data, ["sha256"])
            if target in known and known[target].hashes != made.hashes:
                raise FleetError(f"{target}: published with another content; give the file a new version")
            known[target] = made
            self._create(_path_of(target, made.hashes["sha256"]), data)
        if missing := sorted({*document.targets()} - {*known}):
            raise FleetError(f"{missing[0]}: named by the catalog, and not in the store")
        if before.stamped is None:
            self._create(f"metadata/{self._roots()[0].signed.version}.root.json", self._folder.root)
        named = {target: known[target] for target in document.targets()}
        document, snapshot = self._write_targets(document, named)
        self._write_timestamp(before, snapshot)
        return document

    def content(self, published: Published, target: str) -> bytes:
        """Return the content of a target.

        Raises:
            FleetError: It is missing, or has been altered.
            StoreError: The store can't be read.
        """
        hashes = (published.targets or {})[target].hashes
        return self._required(_path_of(target, hashes["sha256"]), hashes)

    def stamp(self) -> datetime:
        """Sign that what is published still holds; the lease begins anew.

        Returns:
            When the lease ends.

        Raises:
            FleetError: Nothing is published, or the key is not here.
            StoreError: The store can't be written.
        """
        for _ in range(_MAX_TRIES):
            published = self.read()
            if published.timestamp is None:
                why = "nothing is published yet; publish a patch first"
                if published.document is not None:
                    why = f"{TIMESTAMP} is lost; `policypatch fleet rotate` with the key timestamp mends that"
                raise FleetError(f"{self._folder.store}: {why}")
            timestamp = published.timestamp.signed
            timestamp.version += 1
            if self._swap_timestamp(timestamp, published.stamped):
                return timestamp.expires
        raise FleetError(f"{self._folder.store}: others write to it all the time; try again")

    def _write_targets(
        self, document: Document, files: "Mapping[str, TargetFile]"
    ) -> "tuple[Document, MetaFile]":
        """Write document, targets and snapshot under the first free number; return what names the last."""
        from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets

        for revision in range(document.revision, document.revision + _MAX_LEFTOVERS):
            document = replace(document, revision=revision)
            data = write_document(document)
            catalog = TargetFile.from_data(DOCUMENT_TARGET, data, ["sha256"])
            signed = Targets(
                revision,
                expires=expiry(LIFETIME, self._now()),
                targets={**files, DOCUMENT_TARGET: catalog},
            )
            targets = self._signed(Metadata(signed), "targets")
            self._create(_path_of(DOCUMENT_TARGET, catalog.hashes["sha256"]), data)
            if self._create(f"metadata/{revision}.targets.json", targets):
                break
        else:
            raise FleetError(f"{self._folder.store}: {_MAX_LEFTOVERS} numbers are taken; is it another's?")
        meta = {"targets.json": _named(revision, targets)}
        signed_snapshot = Snapshot(revision, expires=expiry(LIFETIME, self._now()), meta=meta)
        snapshot = self._signed(Metadata(signed_snapshot), "snapshot")
        path = f"metadata/{revision}.snapshot.json"
        if not self._create(path, snapshot):
            raise Overtaken(f"{self._folder.store}: {path} is another publisher's; nothing was published")
        return document, _named(revision, snapshot)

    def _write_timestamp(self, before: Published, snapshot: "MetaFile") -> None:
        from tuf.api.metadata import Timestamp

        stamped, current = before.stamped, before.timestamp
        for _ in range(_MAX_TRIES):
            version = current.signed.version + 1 if current is not None else 1
            if self._swap_timestamp(Timestamp(version, snapshot_meta=snapshot), stamped):
                return
            # A stamp in between changes nothing about what is published; another revision does.
            now = self.read()
            if now.document != before.document:
                break
            stamped, current = now.stamped, now.timestamp
        raise Overtaken(
            f"{self._folder.store}: another revision was published meanwhile; look at it with `policypatch "
            "fleet show`, then publish again"
        )

    def _swap_timestamp(self, timestamp: "Timestamp", before: Stored | None) -> bool:
        from tuf.api.metadata import Metadata

        timestamp.expires = expiry(timedelta(seconds=self._folder.lease_s), self._now())
        data = self._signed(Metadata(timestamp), "timestamp")
        is_swapped = self._store.swap(TIMESTAMP, data, before)
        if is_swapped:
            self._wrote(TIMESTAMP, len(data))
        return is_swapped

    def _roots(self) -> "list[Metadata[Root]]":
        """Return the roots from the folder's to the newest, each signed as the one before it says."""
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata, Root

        try:
            root: Metadata[Root] = Metadata.from_bytes(self._folder.root)
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except (RepositoryError, AttributeError, ValueError) as error:
            raise FleetError(f"{self._folder.folder / 'root.json'}: is no root: {error}") from error
        roots = [root]
        while (stored := self._store.read(f"metadata/{root.signed.version + 1}.root.json")) is not None:
            following: Metadata[Root] = _verified(root, "root", stored.data)
            following.signed.verify_delegate("root", following.signed_bytes, following.signatures)
            root = following
            roots.append(root)
        return roots

    def _required(self, path: str, hashes: Mapping[str, str] | None) -> bytes:
        stored = self._store.read(path)
        if stored is None:
            raise FleetError(f"{self._folder.store}: {path} is missing")
        if hashes is not None and hashlib.sha256(stored.data).hexdigest() != hashes.get("sha256"):
            raise FleetError(f"{self._folder.store}: {path} has been altered")
        return stored.data

    def _signed(self, metadata: "Metadata[Any]", role: str) -> bytes:
        metadata.sign(self._folder.signer(role))
        self._require_counting(metadata, role)
        return metadata.to_bytes()

    def _require_counting(self, metadata: "Metadata[Any]", role: str) -> None:
        """Raise before a key that was replaced signs what no server would take."""
        self._newest = self._newest or self.root()
        _verified(self._newest, role, metadata.to_bytes())

    def _create(self, path: str, data: bytes) -> bool:
        is_new = self._store.create(path, data)
        if is_new:
            self._wrote(path, len(data))
        return is_new


def _verified(root: "Metadata[Root]", role: str, data: bytes) -> "Metadata[Any]":
    """Return metadata of a role that enough of its keys have signed."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata

    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
        root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise FleetError(f"{role}: not signed as the root says: {error}") from error
    return metadata


def _named(version: int, data: bytes) -> "MetaFile":
    """Return what one piece of metadata says of another."""
    from tuf.api.metadata import MetaFile

    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _path_of(target: str, digest: str) -> str:
    """Return where a target lies, as readers of consistent snapshots look for it."""
    folder, _, name = target.rpartition("/")
    return f"targets/{folder}/{digest}.{name}" if folder else f"targets/{digest}.{name}"
