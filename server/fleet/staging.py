"""Brings a revision's files to this machine and its contents onto the workers, before anything of it holds.

Layout of the folder::

    metadata/       what the reader has seen, against a store that goes back
    catalog.json    the newest revision that was verified
    patches/        the patch files of that revision, watched as ``--patches`` is elsewhere
    keys/           the public keys whose signatures count
    revoked.txt     the digests that are never served
    policy.yaml     the policy

Whatever goes wrong ends in ``SyncFailed`` and leaves what serves as it was.
"""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patches.durable import write_bytes_atomically
from patches.errors import KeyUnusable, PatchError
from patches.format import SUFFIX
from patches.names import version_key
from patches.signing.keys import load_trusted_keys
from patches.signing.signature import read_signature, signature_path, verify_signature
from server import __version__
from server.catalog.catalog import Catalog
from server.catalog.folder import PatchFolder
from server.catalog.weights import WEIGHTS_KIND
from server.fleet.document import Document, VersionEntry
from server.fleet.reader import CatalogReader, SyncFailed
from server.policy.errors import PolicyFileError
from server.policy.file import parse_policy
from server.policy.rules import Policy
from server.trust.trust import TrustSources
from server.versions.activation import Cause, adopted
from server.versions.view import FileFailure


@dataclass(frozen=True, slots=True)
class Staged:
    """A revision whose contents the workers hold."""

    document: Document
    #: The policy file; empty where the flags say what holds.
    policy_data: bytes
    #: ``None`` where the flags do.
    policy: Policy | None


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    name: str
    version: str
    entry: VersionEntry

    @property
    def digest(self) -> str:
        return self.entry.digest

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


class Stage:
    """Prepares revisions in one folder for one catalog."""

    def __init__(self, reader: CatalogReader, folder: Path, watched: PatchFolder, catalog: Catalog) -> None:
        self._reader = reader
        self._folder = folder
        self._watched = watched
        self._catalog = catalog

    async def prepare(self, document: Document, cause: Cause) -> Staged:
        """Load everything that a revision names.

        Raises:
            SyncFailed: Something is unavailable, or refused.
        """
        _require_server(document)
        staged = await asyncio.to_thread(self._fetch_policy, document)
        files = await asyncio.to_thread(self._fetch_patches, document)
        await asyncio.to_thread(self._fetch_trust, document, files)
        for name in document.names:
            if not self._catalog.record(name).is_pinned:
                # So that no file becomes active by itself, whatever its version.
                await self._catalog.change(
                    name, lambda s: adopted(s.record, s.record.active, s.record.canary, cause)
                )
        await self._watched.look()
        for file in files:
            self._require_loaded(file)
        return staged

    async def clear(self, document: Document) -> None:
        """Remove the files that a revision, which holds by now, does not name; drop what is revoked."""
        await self._catalog.recheck()
        await asyncio.to_thread(self._remove_others, document)
        await self._watched.look()

    def _fetch_policy(self, document: Document) -> Staged:
        if document.policy is None:
            return Staged(document, b"", None)
        path = self._folder / "policy.yaml"
        self._reader.fetch(document.policy, path)
        data = path.read_bytes()
        try:
            return Staged(document, data, parse_policy(data))
        except PolicyFileError as error:
            raise SyncFailed("policy_refused", f"{document.policy}: {error}") from error

    def _fetch_trust(self, document: Document, files: Sequence[_File]) -> None:
        """Trust whom the revision trusts, once everything in it stands up to that."""
        keys, revoked = self._folder / "keys", self._folder / "revoked.txt"
        names = {Path(target).name: target for target in document.trusted_keys}
        if len(names) < len(document.trusted_keys):
            raise SyncFailed("invalid", "two trusted keys have one file name")
        coming = self._folder / "coming-keys"
        shutil.rmtree(coming, ignore_errors=True)
        for name, target in names.items():
            self._reader.fetch(target, coming / name)
        if names:
            _require_signed(coming, files)
        shutil.rmtree(keys, ignore_errors=True)
        if names:
            coming.rename(keys)
        write_bytes_atomically(revoked, "".join(f"{digest}\n" for digest in document.revoked).encode())
        trust = self._catalog.trust
        trust.follow(TrustSources(keys if names else None, revoked))
        if trust.problems:
            raise SyncFailed("invalid", f"keys and revocations: {'; '.join(trust.problems)}")

    def _fetch_patches(self, document: Document) -> list[_File]:
        files = list(self._files_of(document))
        for file in files:
            if file.entry.signature is not None:
                # First, so that the patch never lies there unsigned.
                self._reader.fetch(file.entry.signature, signature_path(file.path))
            self._reader.fetch(file.entry.target, file.path)
        return files

    def _files_of(self, document: Document) -> Iterator[_File]:
        """Yield every file that a revision has served, those of a name by version."""
        for name, entry in document.names.items():
            for version in sorted(entry.versions, key=version_key):
                if entry.versions[version].digest not in document.revoked:
                    path = self._folder / "patches" / f"{name}-{version}{SUFFIX}"
                    yield _File(path, name, version, entry.versions[version])

    def _require_loaded(self, file: _File) -> None:
        outcome = self._catalog.outcome(file.path)
        if outcome is None:
            raise SyncFailed("file_refused", f"{file.reference}: the file is gone")
        if isinstance(outcome, FileFailure):
            raise SyncFailed("file_refused", f"{file.reference}: {outcome.message}")
        if outcome.reference != file.reference or outcome.digest != file.digest:
            held = f"{outcome.reference}, {outcome.digest}"
            raise SyncFailed("file_refused", f"{file.reference}: the file holds {held}")
        if outcome.kind == WEIGHTS_KIND:
            raise SyncFailed("file_refused", f"{file.reference}: a catalog can carry no weight patches")

    def _remove_others(self, document: Document) -> None:
        kept = {file.path for file in self._files_of(document)}
        kept |= {signature_path(path) for path in kept}
        for path in (self._folder / "patches").iterdir():
            if path not in kept:
                path.unlink(missing_ok=True)


def _require_signed(folder: Path, files: Sequence[_File]) -> None:
    """Raise where one of the files is signed by none of the keys in ``folder``."""
    try:
        keys = load_trusted_keys(folder)
    except KeyUnusable as error:
        raise SyncFailed("invalid", f"trusted keys: {str(error).replace(str(folder), 'keys')}") from error
    for file in files:
        try:
            verify_signature(
                read_signature(file.path), keys, name=file.name, version=file.version, digest=file.digest
            )
        except PatchError as error:
            raise SyncFailed("file_refused", f"{file.reference}: {error}") from error


def _require_server(document: Document) -> None:
    if document.min_server is not None and version_key(__version__) < version_key(document.min_server):
        raise SyncFailed(
            "invalid", f"the catalog needs policypatch {document.min_server}, this is {__version__}"
        )
