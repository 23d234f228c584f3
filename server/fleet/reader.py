"""Reads a fleet's catalog as The Update Framework says: nothing is trusted that the root does not vouch for.

What goes wrong has one of ``SYNC_REASONS``, for the log, the metrics and ``GET /v1/patches``; none of it
changes what was read before. Every call blocks on the network and the disk, for a bounded time.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Targets, Timestamp
from tuf.ngclient import FetcherInterface, TargetFile, Updater, UpdaterConfig

from patches.durable import write_bytes_atomically
from patches.text import read_text
from server.fleet.document import (
    DOCUMENT_TARGET,
    MAX_BYTES,
    Document,
    DocumentInvalid,
    read_document,
    seconds_of,
)
from server.metrics.fleet import SYNC_REASONS

#: Seconds that a connection may take, that a pause of an answer may last, and one answer as a whole.
CONNECT_S, PAUSE_S, WHOLE_S = 3.0, 5.0, 120.0

#: Seconds by which a clock may be behind what was published, or apart from the store's.
MAX_SKEW_S = 60.0


class SyncFailed(Exception):
    """The catalog can't be followed further; what serves stays."""

    def __init__(self, reason: str, message: str) -> None:
        assert reason in SYNC_REASONS
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Heard:
    """What the store says now."""

    document: Document
    #: Unix time in seconds at which what it says ends.
    lease_ends_s: float
    #: How far the store's clock is ahead of this machine's, in seconds; ``None`` where it does not say.
    skew_s: float | None


class CatalogReader:
    """Reads one catalog into one folder, which keeps what it saw last."""

    def __init__(self, address: str, root: bytes, folder: Path) -> None:
        """Make one; nothing is read yet.

        Args:
            address: ``http(s)://...`` of the store, or a folder.
            root: The root that came with the server.
            folder: Keeps the metadata, against a store that goes back, and the document.
        """
        self._fetcher: _HttpFetcher | _FolderFetcher
        if address.startswith(("http://", "https://")):
            self._base = address.rstrip("/")
            self._fetcher = _HttpFetcher()
        else:
            self._base = str(Path(address).resolve())
            self._fetcher = _FolderFetcher()
        self._root = root
        self._metadata = folder / "metadata"
        self._document = folder / "catalog.json"
        self._lease = folder / "lease"
        #: The digest of the document that was read last, with what it says.
        self._read: tuple[str, Document] | None = None
        self._updater: Updater | None = None

    def hear(self) -> Heard:
        """Read what holds now.

        Raises:
            SyncFailed: It can't be read, or nothing vouches for it.
        """
        try:
            self._metadata.mkdir(mode=0o700, parents=True, exist_ok=True)
            updater = Updater(
                str(self._metadata),
                f"{self._base}/metadata/",
                target_base_url=f"{self._base}/targets/",
                fetcher=self._fetcher,
                config=UpdaterConfig(max_root_rotations=64, targets_max_length=16 << 20),
                bootstrap=self._root,
            )
            updater.refresh()
            self._updater = updater
            info = updater.get_targetinfo(DOCUMENT_TARGET)
            if info is None or info.length > MAX_BYTES:
                raise SyncFailed("invalid", f"the store has no {DOCUMENT_TARGET} of up to {MAX_BYTES} bytes")
            document = self._read_new(updater, info)
            lease_ends_s = self._timestamp_ends_s()
            self._remember(lease_ends_s)
        except SyncFailed:
            raise
        except DocumentInvalid as error:
            raise SyncFailed("invalid", f"{DOCUMENT_TARGET}: {error}") from error
        except (RepositoryError, DownloadError, ValueError, OSError) as error:
            raise _failed(error) from error
        self._require_clock(document)
        return Heard(document, lease_ends_s, self._fetcher.skew_s)

    def close(self) -> None:
        """Close connections to the store."""
        self._fetcher.close()

    def remembered(self) -> Heard | None:
        """Return what was read last, by an earlier process maybe; ``None`` where nothing was."""
        try:
            return Heard(read_document(self._document.read_bytes()), float(read_text(self._lease)), None)
        except (OSError, DocumentInvalid, ValueError):
            return None

    def fetch(self, target: str, path: Path) -> bool:
        """Bring a target of what was heard last to ``path``; it appears whole or not at all.

        Returns:
            Whether anything was downloaded.

        Raises:
            SyncFailed: It is unavailable, or not what was signed.
        """
        try:
            updater = self._updater
            info = updater.get_targetinfo(target) if updater else self._signed().targets.get(target)
            if info is None:
                raise SyncFailed("invalid", f"{target}: named by the catalog, and not among its files")
            if self._has(path, info.hashes["sha256"]):
                return False
            if updater is None:
                # Nothing was heard in this process: what an earlier one left here is all there is.
                raise SyncFailed("unreachable", f"{target}: not here, and the store was not heard")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Hidden, so that nobody takes half a file for a patch.
            temporary = path.parent / f".{path.name}"
            updater.download_target(info, str(temporary))
            temporary.replace(path)
        except (RepositoryError, DownloadError, ValueError, OSError) as error:
            raise _failed(error, target) from error
        return True

    def _read_new(self, updater: Updater, info: TargetFile) -> Document:
        digest = info.hashes["sha256"]
        if self._read is None or self._read[0] != digest:
            if not self._has(self._document, digest):
                updater.download_target(info, str(self._document))
            document = read_document(self._document.read_bytes())
            signed = self._signed()
            if signed.version != document.revision:
                raise SyncFailed("invalid", f"revision {document.revision} is signed as {signed.version}")
            self._read = digest, document
        return self._read[1]

    def _signed(self) -> Targets:
        """Return what was verified last: which files there are, with their lengths and hashes."""
        metadata: Metadata[Targets] = Metadata.from_file(str(self._metadata / "targets.json"))
        return metadata.signed

    def _remember(self, lease_ends_s: float) -> None:
        """Write down how long the document holds; a newer stamp beside an older document must not count."""
        text = repr(lease_ends_s)
        if not self._lease.exists() or read_text(self._lease) != text:
            write_bytes_atomically(self._lease, text.encode())

    def _timestamp_ends_s(self) -> float:
        timestamp: Metadata[Timestamp] = Metadata.from_file(str(self._metadata / "timestamp.json"))
        return timestamp.signed.expires.timestamp()

    @staticmethod
    def _has(path: Path, digest: str) -> bool:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return False

    def _require_clock(self, document: Document) -> None:
        """Raise where this machine's clock is behind: a lease would seem to last longer than it does."""
        behind_s = max(seconds_of(document.published_at) - time.time(), self._fetcher.skew_s or 0.0)
        if behind_s > MAX_SKEW_S:
            raise SyncFailed("clock", f"the clock of this machine is {behind_s:.0f} s behind; set it")


class _HttpFetcher(FetcherInterface):
    """Downloads over HTTP, piece by piece, with a bound on each pause and on the whole; no redirects."""

    def __init__(self) -> None:
        self._client = httpx.Client(
            timeout=httpx.Timeout(PAUSE_S, connect=CONNECT_S), headers={"Accept-Encoding": "identity"}
        )
        self.skew_s: float | None = None

    def close(self) -> None:
        self._client.close()

    def _fetch(self, url: str) -> Iterator[bytes]:
        ends_s = time.monotonic() + WHOLE_S
        try:
            with self._client.stream("GET", url) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise DownloadHTTPError(f"{url}: HTTP {answer.status_code}", answer.status_code)
                self._note_clock(answer.headers.get("date"))
                for chunk in answer.iter_raw(1 << 20):
                    if time.monotonic() > ends_s:
                        raise SlowRetrievalError(f"{url}: not complete after {WHOLE_S:.0f} s")
                    yield chunk
        except httpx.TimeoutException as error:
            raise SlowRetrievalError(f"{url}: no answer in time") from error
        except httpx.HTTPError as error:
            raise DownloadError(f"{url}: {error or type(error).__name__}") from error

    def _note_clock(self, date: str | None) -> None:
        try:
            self.skew_s = parsedate_to_datetime(date or "").timestamp() - time.time()
        except ValueError:
            self.skew_s = None


class _FolderFetcher(FetcherInterface):
    """Reads a folder of this machine, or one that is mounted."""

    #: It is the same clock.
    skew_s: float | None = None

    def close(self) -> None:
        pass

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            with Path(url).open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"{url}: not there", httpx.codes.NOT_FOUND) from error
        except OSError as error:
            raise DownloadError(f"{url}: {error.strerror or error}") from error


def _failed(error: Exception, target: str | None = None) -> SyncFailed:
    """Return the failure that stands for an error of the framework, the network or the disk."""
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (ExpiredMetadataError, "expired"),
        (BadVersionNumberError, "rolled_back"),
        (UnsignedMetadataError, "unsigned"),
        (LengthOrHashMismatchError, "altered"),
        (DownloadLengthMismatchError, "too_long"),
        (SlowRetrievalError, "slow"),
        (DownloadHTTPError, "http_error"),
        (DownloadError, "unreachable"),
        (RepositoryError, "malformed"),
        (OSError, "state"),
    )
    reason = next((reason for kind, reason in reasons if isinstance(error, kind)), "malformed")
    cause = error.__cause__
    while isinstance(error, DownloadError) and isinstance(cause, DownloadError):
        error, cause = cause, cause.__cause__
    where = f"{target}: " if target is not None else ""
    return SyncFailed(reason, f"{where}{str(error)[:300]}")
