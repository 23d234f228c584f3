"""A catalog that trusts alice, with everything that can change its mind."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from patches.format import read_patch
from patches.signing.keys import generate_keys, load_private_key
from patches.signing.signature import sign_statement, signature_path
from patches.signing.statement import make_statement
from server.trust.trust import Trust, TrustSources
from tests.server.stand import Stand


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Notary:
    """Signs with any key; holds what a server trusts."""

    folder: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def trusted(self) -> Path:
        return self.folder / "trusted"

    @property
    def revoked(self) -> Path:
        return self.folder / "revoked.txt"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def trust(self) -> Trust:
        """Start anew, as after a restart."""
        return Trust(TrustSources(self.trusted, self.revoked, self.state), now_s=self.clock)

    def trust_key(self, name: str) -> None:
        shutil.copy(self.folder / "keys" / f"{name}.pub", self.trusted)

    def distrust_key(self, name: str) -> None:
        (self.trusted / f"{name}.pub").unlink()

    def sign(self, path: Path, *, by: str = "alice", minimum_version: str | None = None) -> Path:
        """Write the signature of a patch file beside it."""
        patch = read_patch(path)
        statement = make_statement(
            patch.manifest.name,
            patch.manifest.version,
            patch.digest,
            minimum_version=minimum_version,
            signed_at=datetime(2026, 1, 31, 12, tzinfo=UTC),
        )
        data = sign_statement(statement, load_private_key(self.folder / "keys" / f"{by}.key"))
        temporary = path.with_name(".signature.tmp")
        temporary.write_bytes(data)
        return temporary.rename(signature_path(path))

    def revoke(self, *digests: str) -> None:
        self.revoked.write_text("".join(f"{digest}\n" for digest in digests))


@pytest.fixture(scope="session")
def some_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("alice", "bob", "mallory"):
        generate_keys(folder, name)
    return folder


@pytest.fixture
def notary(some_keys: Path, tmp_path: Path) -> Notary:
    notary = Notary(tmp_path / "notary")
    shutil.copytree(some_keys, notary.folder / "keys")
    notary.trusted.mkdir()
    notary.trust_key("alice")
    notary.revoke()
    return notary


@pytest.fixture
def strict(stand: Stand, notary: Notary) -> Any:
    """The stand, with a catalog that demands signatures."""
    stand.catalog.intake.trust = notary.trust()
    return stand


@pytest.fixture
def publish(stand: Stand, notary: Notary) -> Callable[..., Path]:
    """Put a patch and its signature into the folder, without loading it."""

    def put(
        name: str = "pirate",
        version: str = "1.0.0",
        *,
        by: str = "alice",
        minimum_version: str | None = None,
        **parts: Any,
    ) -> Path:
        path: Path = stand.put(name, version, **parts)
        notary.sign(path, by=by, minimum_version=minimum_version)
        return path

    return put
