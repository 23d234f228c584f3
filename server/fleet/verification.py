"""Checks a whole store as a server does, file by file, without serving anything."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuf.api.metadata import Metadata

from patches.errors import KeyUnusable, PatchError
from patches.format import SUFFIX, read_patch
from patches.signing.keys import TrustedKeys, load_trusted_keys
from patches.signing.signature import read_signature, signature_path, verify_signature
from server.fleet.document import Document, VersionEntry
from server.fleet.reader import CatalogReader, SyncFailed
from server.policy.errors import PolicyFileError
from server.policy.file import parse_policy

#: What is signed for less than this should be signed anew.
SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at."""

    what: str
    #: Why no server would take it; ``None`` where it would.
    problem: str | None = None
    #: What should be done before long.
    warning: str | None = None


def verify_store(address: str, root: bytes, folder: Path) -> Iterator[Checked]:
    """Check everything that a store's newest revision names; yields each thing once it is checked.

    Args:
        address: As ``serve --catalog`` takes it.
        root: The root that servers are started with.
        folder: Takes the downloads; empty, and not needed afterwards.
    """
    with closing(CatalogReader(address, root, folder)) as reader:
        yield from _checked(reader, folder)


def _checked(reader: CatalogReader, folder: Path) -> Iterator[Checked]:
    try:
        document = reader.hear().document
    except SyncFailed as error:
        yield Checked("catalog", f"{error.reason}: {error}")
        return
    yield Checked(f"revision {document.revision}")
    yield from (_lifetime(folder, role) for role in ("root", "targets", "snapshot"))
    yield _policy(reader, document, folder)
    keys: TrustedKeys | None = None
    if document.trusted_keys:
        try:
            for target in document.trusted_keys:
                reader.fetch(target, folder / "keys" / Path(target).name)
            keys = load_trusted_keys(folder / "keys")
            yield Checked(f"{len(keys)} trusted keys")
        except (SyncFailed, KeyUnusable) as error:
            yield Checked("trusted keys", str(error))
            keys = {}
    for name, entry in document.names.items():
        for version, file in entry.versions.items():
            if file.digest in document.revoked:
                yield Checked(f"{name}@{version}, which is revoked and never served")
                continue
            yield _patch(reader, folder, f"{name}@{version}", file, keys)


def _lifetime(folder: Path, role: str) -> Checked:
    metadata = Metadata.from_file(str(folder / "metadata" / f"{role}.json"))
    expires: datetime = metadata.signed.expires
    what = f"{role}, version {metadata.signed.version}, until {expires:%Y-%m-%d}"
    if expires - datetime.now(UTC) > SOON:
        return Checked(what)
    return Checked(what, warning="ends soon: sign it anew with `policypatch fleet rotate`")


def _policy(reader: CatalogReader, document: Document, folder: Path) -> Checked:
    if document.policy is None:
        return Checked("no policy")
    path = folder / "policy.yaml"
    try:
        reader.fetch(document.policy, path)
        parse_policy(path.read_bytes())
    except (SyncFailed, PolicyFileError) as error:
        return Checked(document.policy, str(error))
    return Checked(document.policy)


def _patch(
    reader: CatalogReader, folder: Path, reference: str, file: VersionEntry, keys: TrustedKeys | None
) -> Checked:
    name, _, version = reference.partition("@")
    path = folder / "patches" / f"{name}-{version}{SUFFIX}"
    try:
        reader.fetch(file.target, path)
        patch = read_patch(path)
        if (patch.manifest.name, patch.manifest.version, patch.digest) != (name, version, file.digest):
            held = f"{patch.manifest.name}@{patch.manifest.version}, {patch.digest}"
            return Checked(reference, f"the file holds {held}")
        if file.signature is not None:
            reader.fetch(file.signature, signature_path(path))
        if keys is not None:
            signature = read_signature(path)
            verify_signature(signature, keys, name=name, version=version, digest=file.digest)
    except (SyncFailed, PatchError) as error:
        return Checked(reference, str(error))
    finally:
        # One at a time: a catalog may be larger than the disk of whoever checks it.
        path.unlink(missing_ok=True)
    return Checked(reference)
