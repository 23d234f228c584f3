"""Who may say what a fleet serves: the keys and roles of The Update Framework (https://theupdateframework.io).

=============  =========================================  ===========================
role           says                                       its key lies
=============  =========================================  ===========================
``root``       which keys count; two of three sign        offline, in three places
``targets``    which files there are, the catalog too     where revisions are published
``snapshot``   which ``targets`` is the newest            there too
``timestamp``  that this is still so; expires soon        where ``stamp`` runs
=============  =========================================  ===========================

The lifetime of ``timestamp`` is the *lease*: how long a server that is cut off serves what was taken back.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from patches.durable import write_bytes_atomically, write_json_atomically
from patches.errors import KeyUnusable
from patches.signing.keys import generate_keys, load_private_key
from patches.text import lines_of

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Metadata, Root

#: Of ``root``, ``targets`` and ``snapshot``; what is not signed anew by then ends the fleet's trust.
LIFETIME = timedelta(days=365)

#: Lifetime of ``timestamp`` where nothing else is asked for.
LEASE_S = 600.0

ROOT_KEYS = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
ONLINE_ROLES = ("targets", "snapshot", "timestamp")

_CONFIG = "fleet.json"


class FleetError(Exception):
    """The fleet's folder, its keys or its repository can't be used; the message says what to do."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class _Config:
    """The content of ``fleet.json``."""

    format: int
    store: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class FleetFolder:
    """The publisher's folder: ``fleet.json``, ``root.json`` for every server, and ``keys/``."""

    folder: Path
    #: Address of the store.
    store: str
    lease_s: float

    @classmethod
    def read(cls, folder: Path) -> "FleetFolder":
        """Read ``fleet.json``.

        Raises:
            FleetError: There is none, or it is damaged.
        """
        path = folder / _CONFIG
        try:
            config = TypeAdapter(_Config).validate_json(path.read_bytes())
        except FileNotFoundError:
            raise FleetError(f"{folder}: no fleet here; `policypatch fleet init` makes one") from None
        except (OSError, ValidationError) as error:
            raise FleetError(f"{path}: {lines_of(str(error))[0]}") from None
        store = config.store if "://" in config.store else str(folder / config.store)
        return cls(folder, store, config.lease_s)

    @property
    def root(self) -> bytes:
        """``root.json``, which every server is started with.

        Raises:
            FleetError: It can't be read.
        """
        path = self.folder / "root.json"
        try:
            return path.read_bytes()
        except OSError as error:
            raise FleetError(f"{path}: {error.strerror}") from error

    def signer(self, role: str) -> "Signer":
        """Return a role's key, ready to sign.

        Raises:
            FleetError: It is not here.
        """
        path = self.folder / "keys" / f"{role}.key"
        try:
            return load_private_key(path)
        except KeyUnusable as error:
            raise FleetError(f"{error}; this step needs the key of {role}") from error


def make_folder(folder: Path, store: str, lease_s: float) -> FleetFolder:
    """Make keys for all roles, ``root.json`` and ``fleet.json``.

    Raises:
        FleetError: Something of it is there already, or the folder can't be written.
    """
    if (folder / _CONFIG).exists():
        raise FleetError(f"{folder}: a fleet is here already; choose another folder")
    try:
        for name in (*ROOT_KEYS, *ONLINE_ROLES):
            generate_keys(folder / "keys", name)
        made = FleetFolder(folder, store if "://" in store else str(folder / store), lease_s)
        root = _first_root(made)
        write_bytes_atomically(folder / "root.json", root.to_bytes())
        write_json_atomically(folder / _CONFIG, {"format": 1, "store": store, "lease_s": lease_s})
    except FileExistsError as error:
        raise FleetError(f"{error.filename}: {error.strerror}") from error
    except OSError as error:
        raise FleetError(f"{folder}: {error.strerror or error}") from error
    return made


def expiry(after: timedelta, now: datetime | None = None) -> datetime:
    """Return when something that is signed now ends, in whole seconds as the format has it."""
    return ((now or datetime.now(UTC)) + after).replace(microsecond=0)


def _first_root(folder: FleetFolder) -> "Metadata[Root]":
    from tuf.api.metadata import Metadata, Root

    root = Root(expires=expiry(LIFETIME))
    signers = [folder.signer(name) for name in ROOT_KEYS]
    for signer in signers:
        root.add_key(signer.public_key, "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role in ONLINE_ROLES:
        root.add_key(folder.signer(role).public_key, role)
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata
