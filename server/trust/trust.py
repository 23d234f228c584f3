"""Which patch files this server accepts: who signed them, what was revoked, what would be a downgrade.

The catalog asks three things: ``check`` before a file is loaded, ``adopt`` once it is served, and
``refusal`` whenever keys, list or bounds may have changed under what is served. Without keys, list and bounds
everything is accepted. A bound binds files; an operator's order may go below it. Keys and list are read anew
while the server runs; what can't be read changes nothing, because a list that is suddenly empty is no order
to load what it forbade.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from patches.errors import KeyUnusable, PatchFormatError, RevocationsInvalid, SignatureRefused
from patches.format import Patch
from patches.manifest import Manifest
from patches.signing.keys import PUBLIC_SUFFIX, TrustedKeys, load_trusted_keys
from patches.signing.revocations import read_revocations, revoked_part
from patches.signing.signature import Signature, read_signature, verify_signature
from server.errors import (
    BelowMinimumVersion,
    FileRefused,
    InvalidPatchFile,
    PatchRevoked,
    PatchUnsigned,
    SignatureInvalid,
    SignerUntrusted,
)
from server.trust.minimum_versions import MinimumVersions, MinimumVersionsError
from server.versions.view import ServedPatch

logger = logging.getLogger(__name__)

STATE_FILE = "minimum-versions.json"

#: Reasons of refusals that may pass when keys, list or bounds change.
TRUST_REASONS = frozenset(
    {
        "unsigned",
        "bad_signature",
        "untrusted_signer",
        "signature_mismatch",
        "below_minimum_version",
        "revoked",
    }
)

#: Seconds that a list with fewer digests has to stay as it is before it counts: it may be half written.
SETTLE_S = 5.0

_ERRORS: Mapping[str, type[FileRefused]] = {
    "unsigned": PatchUnsigned,
    "untrusted_signer": SignerUntrusted,
    "bad_signature": SignatureInvalid,
    "signature_mismatch": SignatureInvalid,
}


class TrustError(Exception):
    """Keys, list or bounds can't be used at start-up."""


@dataclass(frozen=True, slots=True)
class TrustSources:
    """Where trust comes from. Each may be missing."""

    #: Folder of public keys; with it, every patch must be signed by one of them.
    keys: Path | None = None
    #: List of digests that never load.
    revoked: Path | None = None
    #: Folder that remembers signed minimum versions; without it a restart forgets them.
    state: Path | None = None


class Trust:
    """Accepts or refuses patches. ``check``, ``refresh`` and ``save`` block on the disk."""

    def __init__(
        self, sources: TrustSources | None = None, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Read keys, list and bounds.

        Raises:
            TrustError: One of them can't be read. A server starts only where it knows which signers count.
        """
        self._sources = sources = sources or TrustSources()
        self._now_s = now_s
        self._keys: TrustedKeys | None = None
        self._revoked: frozenset[str] = frozenset()
        #: When the list became shorter, and what it holds since.
        self._shorter: tuple[float, frozenset[str]] | None = None
        #: Digest -> key id -> what was signed; for everything that passed since the start.
        self._signatures: dict[str, dict[str, Signature]] = {}
        #: What could not be read at the last look, in words, without folders.
        self.problems: tuple[str, ...] = ()
        try:
            self._keys = load_trusted_keys(sources.keys) if sources.keys is not None else None
            self._revoked = read_revocations(sources.revoked) if sources.revoked is not None else frozenset()
            if sources.state is not None:
                sources.state.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._minimums = MinimumVersions(sources.state / STATE_FILE)
            else:
                self._minimums = MinimumVersions()
        except KeyUnusable as error:
            raise TrustError(f"--trusted-keys: {error}") from error
        except RevocationsInvalid as error:
            raise TrustError(f"--revoked: {error}") from error
        except (MinimumVersionsError, OSError) as error:
            raise TrustError(f"--state: {error}") from error
        self._warn_of_private_keys()

    @property
    def is_signature_required(self) -> bool:
        """Whether a patch must be signed to be loaded."""
        return self._keys is not None

    @property
    def signers(self) -> list[str]:
        """The names of those whose signature counts."""
        return sorted(key.signer for key in (self._keys or {}).values())

    @property
    def num_revoked(self) -> int:
        """How many digests are revoked."""
        return len(self._revoked)

    @property
    def minimum_versions(self) -> Mapping[str, str]:
        """The lowest version of each name that has a bound."""
        return {name: bound.minimum for name, bound in self._minimums.bounds.items()}

    def check(self, path: Path, patch: Patch, *, is_ordered: bool = False) -> Signature | None:
        """Decide about a file before it is loaded. Blocks.

        Args:
            path: The file; its signature lies beside it.
            patch: What it holds.
            is_ordered: It is loaded because an operator's order needs it, which may be a downgrade.

        Returns:
            Who vouches for it; ``None`` where no signature is required.

        Raises:
            FileRefused: With one of ``TRUST_REASONS``, or ``unreadable``.
        """
        manifest = patch.manifest
        self._refuse_revoked(patch.digest, manifest)
        signature = None
        if self._keys is not None:
            try:
                signature = verify_signature(
                    read_signature(path),
                    self._keys,
                    name=manifest.name,
                    version=manifest.version,
                    digest=patch.digest,
                )
            except SignatureRefused as error:
                raise _ERRORS[error.reason](str(error), reason=error.reason) from error
            except PatchFormatError as error:
                raise InvalidPatchFile(str(error), reason=error.reason) from error
        if not is_ordered:
            self._refuse_downgrade(manifest)
        if signature is not None:
            before = self._signatures.get(patch.digest, {})
            self._signatures[patch.digest] = {**before, signature.key.key_id: signature}
        return signature

    def adopt(self, patch: ServedPatch, signature: Signature | None) -> bool:
        """Hold to the bound that was signed with what is served now. Blocks.

        Returns:
            Whether that is news: what serves may be below the bound.
        """
        minimum = signature.statement.minimum_version if signature is not None else None
        if minimum is not None and self._minimums.raise_to(patch.name, minimum):
            logger.info("patch %s: no file below %s is used from now on", patch.name, minimum)
            self.save()
            return True
        return False

    def refusal(self, patch: ServedPatch) -> FileRefused | None:
        """Return why what is served may not be served any more, if so."""
        try:
            self._refuse_revoked(patch.digest, patch.manifest)
            if self._keys is not None and self.signature_of(patch.digest) is None:
                raise SignerUntrusted(f"{patch.reference}: no key that vouched for it is trusted any more")
            self._refuse_downgrade(patch.manifest)
        except FileRefused as refusal:
            return refusal
        return None

    def signature_of(self, digest: str) -> Signature | None:
        """Return who vouches for content that passed ``check``."""
        keys = self._keys or {}
        vouched = self._signatures.get(digest, {})
        return next((signature for key_id, signature in vouched.items() if key_id in keys), None)

    def permit(self, name: str, version: str) -> None:
        """Allow one version below the signed minimum of its name, at an operator's call only. Blocks.

        Raises:
            OSError: It can't be saved; nothing was changed.
        """
        self._minimums.permit(name, version)
        logger.warning("patch %s: version %s is permitted, whatever the signed minimum", name, version)

    def forbid(self, name: str, version: str) -> None:
        """Take ``permit`` back. Blocks.

        Raises:
            OSError: It can't be saved; nothing was changed.
        """
        self._minimums.forbid(name, version)

    def save(self) -> bool:
        """Write signed bounds to disk; return whether they are there, and call it again if not. Blocks."""
        try:
            self._minimums.save()
        except OSError as error:
            logger.error("%s can't be written, it will be tried again: %s", STATE_FILE, error)
            return False
        return True

    def follow(self, sources: TrustSources) -> bool:
        """Look for keys and list elsewhere from now on, and read them; returns as ``refresh``. Blocks.

        ``problems`` says what could not be read; where keys are wanted and none can be, none is trusted.
        """
        if (self._sources.keys is None) != (sources.keys is None):
            self._keys = {} if sources.keys is not None else None
        self._sources = replace(self._sources, keys=sources.keys, revoked=sources.revoked)
        return self.refresh()

    def refresh(self) -> bool:
        """Read keys and list again, and return whether what is accepted may have changed. Blocks."""
        before = (self._keys, self._revoked)
        problems = [*self._refresh_keys(), *self._refresh_revoked()]
        for problem in problems:
            if problem not in self.problems:
                logger.error("trust is unchanged: %s", problem)
        if self.problems and not problems:
            logger.warning("keys and revocations can be read again")
        self.problems = tuple(problems)
        return before != (self._keys, self._revoked)

    def _refresh_keys(self) -> Iterator[str]:
        folder = self._sources.keys
        if folder is None:
            return
        try:
            keys = load_trusted_keys(folder)
        except KeyUnusable as error:
            yield _without_folder(str(error), folder)
            return
        if self._keys != keys:
            self._keys = keys
            logger.warning("trusted signers: %s", ", ".join(self.signers))

    def _refresh_revoked(self) -> Iterator[str]:
        file = self._sources.revoked
        if file is None:
            return
        try:
            listed = read_revocations(file)
        except RevocationsInvalid as error:
            self._shorter = None
            yield _without_folder(str(error), file.parent)
            return
        revoked = self._settled(listed)
        if revoked != self._revoked:
            logger.warning("revoked patches: %d, before %d", len(revoked), len(self._revoked))
            self._revoked = revoked

    def _settled(self, listed: frozenset[str]) -> frozenset[str]:
        """Add what is new at once, and take off what is gone only when it has been gone for a while."""
        if listed >= self._revoked:
            self._shorter = None
            return listed
        if self._shorter is None or self._shorter[1] != listed:
            self._shorter = (self._now_s(), listed)
        return listed if self._now_s() - self._shorter[0] >= SETTLE_S else listed | self._revoked

    def _refuse_revoked(self, digest: str, manifest: Manifest) -> None:
        part = revoked_part(self._revoked, digest, manifest)
        if part is not None:
            whose = "" if part == digest else f"its part {part} "
            raise PatchRevoked(
                f"{manifest.name}@{manifest.version}: {whose}is on the list of revoked patches"
            )

    def _refuse_downgrade(self, manifest: Manifest) -> None:
        parts = ((component.name, component.version) for component in manifest.components)
        for name, version in ((manifest.name, manifest.version), *parts):
            if not self._minimums.allows(name, version):
                raise BelowMinimumVersion(
                    f"{name}@{version}: a signature asked for {self.minimum_versions[name]} or higher; "
                    "going back takes an admin call"
                )

    def _warn_of_private_keys(self) -> None:
        folder = self._sources.keys
        if folder is not None and any(folder.glob("*.key")):
            logger.warning("--trusted-keys: private keys lie beside the *%s files; move them", PUBLIC_SUFFIX)


def _without_folder(message: str, folder: Path) -> str:
    # Where the files lie is not told over HTTP.
    return message.replace(f"{folder}/", "").replace(str(folder), folder.name)
