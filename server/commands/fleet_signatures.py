"""Holds a catalog with trusted keys to what every server will ask of it: each patch signed by one of them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from patches.errors import PatchError
from patches.signing.keys import load_trusted_keys
from patches.signing.signature import read_signature, signature_path, verify_signature
from server.fleet.changes import ChangeRefused
from server.fleet.document import Document
from server.fleet.publisher import Published, Publisher


def require_signed(
    publisher: Publisher, published: Published, document: Document, files: Mapping[str, bytes]
) -> None:
    """Check every version that servers would serve, where keys are trusted at all.

    Args:
        publisher: Reads what is in the store.
        published: What the document follows.
        document: What would be published.
        files: Target -> content, of what the store does not have yet.

    Raises:
        ChangeRefused: One is signed by none of the keys, or a key is one of the fleet's own.
        FleetError: The store is damaged.
        StoreError: It can't be read.
    """
    if not document.trusted_keys:
        return

    def content(target: str) -> bytes:
        return files[target] if target in files else publisher.content(published, target)

    with tempfile.TemporaryDirectory(prefix="policypatch-") as name:
        folder = Path(name)
        for target in document.trusted_keys:
            (folder / Path(target).name).write_bytes(content(target))
        keys = load_trusted_keys(folder)
        own = set(publisher.root().signed.keys)
        for key_id, key in keys.items():
            if key_id in own:
                raise ChangeRefused(
                    f"{key.signer}.pub: is a key of the fleet's own roles, which sign catalogs; sign patches "
                    "with another, which `policypatch keygen` makes"
                )
        path = folder / "patch.safetensors"
        for patch, entry in document.names.items():
            for version, file in entry.versions.items():
                if file.digest in document.revoked:
                    continue
                signature_path(path).unlink(missing_ok=True)
                if file.signature is not None:
                    signature_path(path).write_bytes(content(file.signature))
                try:
                    verify_signature(
                        read_signature(path), keys, name=patch, version=version, digest=file.digest
                    )
                except PatchError as error:
                    why = str(error) if file.signature is not None else "it has no signature"
                    raise ChangeRefused(
                        f"{patch}@{version}: no server would take it beside trusted keys: {why}; publish its "
                        "file with FILE.sig, which `policypatch sign` makes"
                    ) from error
