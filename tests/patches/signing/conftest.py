"""Key pairs, and signed statements about content that need not exist."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from patches.signing.keys import TrustedKeys, generate_keys, load_private_key, load_trusted_keys
from patches.signing.signature import sign_statement
from patches.signing.statement import make_statement

DIGEST = "sha256:" + "5" * 64


@pytest.fixture(scope="session")
def keys_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the pairs of alice and mallory."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("alice", "mallory"):
        generate_keys(folder, name)
    return folder


@pytest.fixture(scope="session")
def alice(keys_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrustedKeys:
    """Trusts alice, and nobody else."""
    folder = tmp_path_factory.mktemp("trusted")
    (folder / "alice.pub").write_bytes((keys_folder / "alice.pub").read_bytes())
    return load_trusted_keys(folder)


@pytest.fixture
def sign(keys_folder: Path) -> Callable[..., bytes]:
    """Make the content of a signature file."""

    def sign_one(
        name: str = "pirate",
        version: str = "1.0.0",
        digest: str = DIGEST,
        *,
        by: str = "alice",
        minimum_version: str | None = None,
    ) -> bytes:
        statement = make_statement(
            name,
            version,
            digest,
            minimum_version=minimum_version,
            signed_at=datetime(2026, 1, 31, tzinfo=UTC),
        )
        return sign_statement(statement, load_private_key(keys_folder / f"{by}.key"))

    return sign_one
