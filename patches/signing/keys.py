"""Keys that sign patches: made, read from PEM files, and gathered from a folder of those that are trusted.

A private key is a PKCS #8 PEM file ``WHO.key``; its public half is a SubjectPublicKeyInfo PEM file
``WHO.pub``. Both are what ``openssl`` reads and writes, so keys may also come from there. Ed25519, and ECDSA
on NIST's curves. *Who* a key belongs to is said by the name of the public key's file in the reader's own
folder, never by anything that a signature says.
"""

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from patches.durable import write_bytes_atomically
from patches.errors import KeyUnusable
from patches.fields import is_one_line
from patches.names import NAME_PATTERN
from patches.reading import read_regular_file

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

logger = logging.getLogger(__name__)

PRIVATE_SUFFIX = ".key"
PUBLIC_SUFFIX = ".pub"
MAX_KEY_BYTES = 16 * 1024
MAX_NUM_KEYS = 256
MAX_SIGNER_LENGTH = 64

_PublicKeyTypes = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
_PrivateKeyTypes = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_KINDS = "Ed25519, or ECDSA on P-256, P-384 or P-521"


@dataclass(frozen=True)
class TrustedKey:
    """A public key, and who signs with it."""

    #: The name of its file without the suffix.
    signer: str
    #: 64 hexadecimal digits: SHA-256 of the key's DER form.
    key_id: str
    key: "SSlibKey" = field(repr=False, compare=False)


#: Key id -> key.
TrustedKeys = Mapping[str, TrustedKey]


def generate_keys(folder: Path, name: str, *, password: bytes | None = None) -> tuple[Path, Path]:
    """Make an Ed25519 key pair in ``folder``, which is made where it does not exist.

    Args:
        folder: Where ``NAME.key`` (mode 0600) and ``NAME.pub`` go.
        name: Whose key it is.
        password: Encrypts the private key.

    Returns:
        The paths of the private and the public key.

    Raises:
        KeyUnusable: ``name`` makes no good file name.
        FileExistsError: One of the files is there; nothing was written.
        OSError: The folder can't be written.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise KeyUnusable(f"name: expected 1 to 64 of a-z, 0-9, '.', '_', '-', got {name[:80]!r}")
    private_path, public_path = folder / f"{name}{PRIVATE_SUFFIX}", folder / f"{name}{PUBLIC_SUFFIX}"
    for path in (private_path, public_path):
        if path.exists():
            raise FileExistsError(17, "exists, and a key is never overwritten", str(path))
    key = ed25519.Ed25519PrivateKey.generate()
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes_atomically(private_path, secret, mode=0o600, overwrite=False)
    write_bytes_atomically(public_path, public, overwrite=False)
    return private_path, public_path


def load_private_key(path: Path, *, password: bytes | None = None) -> "CryptoSigner":
    """Read a private key, ready to sign.

    Raises:
        KeyUnusable: The file can't be read, is not a private key of a known kind, or needs another password.
    """
    from securesystemslib.signer import CryptoSigner

    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, password)
    except TypeError:
        needed = "needs a password" if password is None else "is not encrypted, yet a password was given"
        raise KeyUnusable(f"{path}: the private key {needed}") from None
    except (ValueError, UnsupportedAlgorithm):
        tip = "; this is a public key" if b"PUBLIC KEY" in data else " that this password opens"
        raise KeyUnusable(f"{path}: expected a PKCS #8 PEM private key{tip}") from None
    if not isinstance(key, _PrivateKeyTypes):
        raise KeyUnusable(f"{path}: expected {_KINDS}, got another kind of key")
    return CryptoSigner(key, _with_id(path, key.public_key()))


def is_open_to_others(path: Path) -> bool:
    """Return whether anyone but the owner may read or write the file."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def load_public_key(path: Path) -> TrustedKey:
    """Read one public key; the name of the file says whose it is.

    Raises:
        KeyUnusable: The file can't be read, is not a public key, or is of another kind.
    """
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise KeyUnusable(f"{path}: this is a private key; whoever reads this folder could sign with it")
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable(f"{path}: expected a PEM public key") from None
    if not isinstance(key, _PublicKeyTypes):
        raise KeyUnusable(f"{path}: expected {_KINDS}, got another kind of key")
    signer = path.name.removesuffix(PUBLIC_SUFFIX)
    if not 0 < len(signer) <= MAX_SIGNER_LENGTH or not is_one_line(signer):
        raise KeyUnusable(f"{path}: expected a file name of 1 to {MAX_SIGNER_LENGTH} printable characters")
    trusted = _with_id(path, key)
    return TrustedKey(signer, trusted.keyid, trusted)


def load_trusted_keys(folder: Path) -> TrustedKeys:
    """Read every ``*.pub`` of a folder; hidden files are skipped.

    Raises:
        KeyUnusable: The folder can't be read, holds no public key, or one of its files is not one. One bad
            file spoils all, since a key that is silently missing looks like an unsigned patch.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix == PUBLIC_SUFFIX and p.name[0] != ".")
    except OSError as error:
        raise KeyUnusable(f"{folder}: expected a readable folder: {error.strerror}") from None
    if not 0 < len(paths) <= MAX_NUM_KEYS:
        raise KeyUnusable(
            f"{folder}: expected 1 to {MAX_NUM_KEYS} public keys (*{PUBLIC_SUFFIX}), got {len(paths)}"
        )
    keys: dict[str, TrustedKey] = {}
    for path in paths:
        trusted = load_public_key(path)
        first = keys.setdefault(trusted.key_id, trusted)
        if first is not trusted:
            raise KeyUnusable(f"{path}: the same key as {first.signer}{PUBLIC_SUFFIX}; remove one of them")
    return MappingProxyType(keys)


def key_id_of(key: _PublicKeyTypes) -> str:
    """Return the id of a public key: SHA-256, in hexadecimal, of its DER form, as openssl computes it too."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    state = hashes.Hash(hashes.SHA256())
    state.update(der)
    return state.finalize().hex()


def _with_id(path: Path, key: _PublicKeyTypes) -> "SSlibKey":
    from securesystemslib.signer import SSlibKey

    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in _CURVES:
        raise KeyUnusable(f"{path}: expected {_KINDS}, got the curve {key.curve.name}")
    return SSlibKey.from_crypto(key, keyid=key_id_of(key))


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, MAX_KEY_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KeyUnusable(f"{os.fspath(path)}: can't be read: {reason}") from None
