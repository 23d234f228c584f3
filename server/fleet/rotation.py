"""Replaces keys of a fleet, or signs with those there are for another year.

A new root names the keys that count from now on; it is signed as the root before it says, and as it says
itself, so that servers that were started with any earlier root follow. Writing it is the step that counts:
new keys lie in ``keys/coming/`` until then, and what is cut off in between, the next call brings to an end.
Replaced keys lie in ``keys/retired/`` afterwards: of a lost or stolen one nothing counts any more.
"""

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patches.durable import write_bytes_atomically
from patches.errors import KeyUnusable
from patches.signing.keys import (
    PRIVATE_SUFFIX,
    PUBLIC_SUFFIX,
    generate_keys,
    load_private_key,
    load_public_key,
)
from server.fleet.changes import Names
from server.fleet.document import Document
from server.fleet.orders import AHEAD_S, carry_out
from server.fleet.publisher import Overtaken, Published, Publisher
from server.fleet.roles import (
    LIFETIME,
    ONLINE_ROLES,
    ROOT_KEYS,
    FleetError,
    FleetFolder,
    expiry,
)
from server.fleet.store import Store

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Metadata, Root

#: How often what came in between is taken up.
_MAX_TRIES = 5

KEYS = (*ROOT_KEYS, *ONLINE_ROLES)


@dataclass(frozen=True, slots=True)
class Rotated:
    """What was done."""

    #: Version of the root that holds now.
    root_version: int
    replaced: tuple[str, ...]
    #: The revision that is signed anew; ``None`` where nothing was published yet.
    revision: int | None


def rotate(folder: FleetFolder, store: Store, names: Collection[str], others: Sequence[Path] = ()) -> Rotated:
    """Replace keys, and sign root and catalog anew.

    Args:
        folder: The publisher's folder.
        store: Its store.
        names: Of ``KEYS``; none to keep them all.
        others: Further folders in which keys of root lie, on a stick maybe.

    Raises:
        FleetError: Too few keys of root are here, or another call was faster.
        StoreError: The store can't be written.
    """
    with _alone(folder):
        return _rotated(folder, store, names, others)


@contextmanager
def _alone(folder: FleetFolder) -> Iterator[None]:
    """Keep other calls on this folder out: each would take the other's new keys for leftovers."""
    try:
        lock = os.open(folder.folder / ".rotating", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FleetError(f"{folder.folder}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise FleetError(f"{folder.folder}: another call replaces keys here; try again") from error
    finally:
        os.close(lock)


def _rotated(folder: FleetFolder, store: Store, names: Collection[str], others: Sequence[Path]) -> Rotated:
    publisher = Publisher(folder, store)
    root = publisher.root()
    _settle(folder, root)
    published = publisher.read(is_rotating=True)
    if published.document is not None and published.timestamp is None and "timestamp" not in names:
        raise FleetError(f"{folder.store}: its timestamp is lost or damaged; replace the key timestamp, too")
    _require_current(folder, root)
    coming = folder.folder / "keys" / "coming"
    try:
        for name in names:
            generate_keys(coming, name)
        following = _following(folder, root, names, others)
        path = f"metadata/{following.signed.version}.root.json"
        store.create(f"metadata/{root.signed.version}.root.json", folder.root)
        if not store.create(path, following.to_bytes()):
            raise Overtaken(f"{folder.store}: {path} is there already; look at it, and try again")
        _settle(folder, following)
    except (OSError, KeyUnusable) as error:
        raise FleetError(f"{folder.folder}: {error}") from error
    revision = _signed_anew(folder, store, published) if published.document is not None else None
    # Last: from the root that is here, what an earlier one vouched for can be found again.
    write_bytes_atomically(folder.folder / "root.json", following.to_bytes())
    return Rotated(following.signed.version, tuple(names), revision)


def _require_current(folder: FleetFolder, root: "Metadata[Root]") -> None:
    """Raise where a key here counts no more: the folder is an older copy."""
    for role in ONLINE_ROLES:
        key_id = load_public_key(folder.folder / "keys" / f"{role}{PUBLIC_SUFFIX}").key_id
        if key_id not in root.signed.roles[role].keyids:
            raise FleetError(
                f"{folder.folder}/keys/{role}.pub: was replaced; use the folder that has its successor"
            )


def _signed_anew(folder: FleetFolder, store: Store, published: Published) -> int:
    """Publish the same once more, by the keys that count now; return its revision."""
    for _ in range(_MAX_TRIES):
        try:
            publisher = Publisher(folder, store)
            # What is still to come holds no earlier for it.
            carried = carry_out(publisher, published, _unchanged, ahead_s=AHEAD_S, is_forced=True)
            return carried.after.revision
        except FleetError:
            # A stamp by the old key came in between, or another revision did.
            published = Publisher(folder, store).read(is_rotating=True)
    raise FleetError(f"{folder.store}: others write to it all the time; call this again")


def _unchanged(document: Document) -> tuple[Document, Names]:
    return document, document.names


def _following(
    folder: FleetFolder, root: "Metadata[Root]", names: Collection[str], others: Sequence[Path]
) -> "Metadata[Root]":
    """Return the next root, signed by enough of the keys that counted so far and of those to come."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata

    following: Metadata[Root] = Metadata.from_bytes(root.to_bytes())
    signed = following.signed
    signed.version += 1
    signed.expires = expiry(LIFETIME)
    keys = folder.folder / "keys"
    for name in names:
        role = "root" if name in ROOT_KEYS else name
        signed.revoke_key(load_public_key(keys / f"{name}{PUBLIC_SUFFIX}").key_id, role)
        signed.add_key(_signer(keys / "coming" / f"{name}{PRIVATE_SUFFIX}").public_key, role)
    following.signatures.clear()
    signers = [
        _signer(path)
        for place in (keys, keys / "coming", *others)
        for name in ROOT_KEYS
        if (path := place / f"{name}{PRIVATE_SUFFIX}").exists()
    ]
    for signer in signers:
        following.sign(signer, append=True)
    try:
        for judge in (root.signed, signed):
            judge.verify_delegate("root", following.signed_bytes, following.signatures)
    except RepositoryError as error:
        threshold = root.signed.roles["root"].threshold
        raise FleetError(
            f"{keys}: {threshold} keys of root have to sign, and too few are here ({error}); bring them "
            "back, or name the folders they are in with --keys"
        ) from error
    return following


def _settle(folder: FleetFolder, root: "Metadata[Root]") -> None:
    """Move keys that count by now to their places; forget others that an earlier call was cut off with."""
    keys = folder.folder / "keys"
    retired = keys / "retired"
    for public in sorted((keys / "coming").glob(f"*{PUBLIC_SUFFIX}")):
        name, private = public.stem, public.with_suffix(PRIVATE_SUFFIX)
        role = "root" if name in ROOT_KEYS else name
        key_id = load_public_key(public).key_id
        if key_id not in root.signed.roles[role].keyids:
            private.unlink(missing_ok=True)
            public.unlink()
            continue
        retired.mkdir(mode=0o700, exist_ok=True)
        # The private key first: where the public one is still here, this was cut off before its end.
        for path in (one for one in (private, public) if one.exists()):
            old = keys / path.name
            if old.exists():
                old.rename(retired / f"{root.signed.version - 1}.{path.name}")
            path.rename(old)


def _signer(path: Path) -> "Signer":
    try:
        return load_private_key(path)
    except KeyUnusable as error:
        raise FleetError(str(error)) from error
