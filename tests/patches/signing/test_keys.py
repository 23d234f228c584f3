"""Key files: what is made, what is taken, what is refused."""

import hashlib
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from patches.errors import KeyUnusable
from patches.signing.keys import (
    MAX_KEY_BYTES,
    generate_keys,
    is_open_to_others,
    load_private_key,
    load_public_key,
    load_trusted_keys,
)

PEM = serialization.Encoding.PEM


def write_private(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    path.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return path


def test_a_private_key_is_for_its_owner_only(tmp_path: Path) -> None:
    private_path, public_path = generate_keys(tmp_path / "keys", "alice")
    assert stat.S_IMODE(private_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(public_path.stat().st_mode) == 0o644
    assert not is_open_to_others(private_path)
    assert is_open_to_others(public_path)


@pytest.mark.parametrize("suffix", ["key", "pub"])
def test_a_key_is_never_overwritten(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"alice.{suffix}").write_text("precious")
    with pytest.raises(FileExistsError):
        generate_keys(tmp_path, "alice")
    assert [path.name for path in tmp_path.iterdir()] == [f"alice.{suffix}"]
    assert (tmp_path / f"alice.{suffix}").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "../alice", ".alice", "a b", "Alice"])
def test_a_name_that_is_no_good_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="name: expected"):
        generate_keys(tmp_path, name)


def test_the_key_id_is_what_openssl_computes(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    _, public_path = generate_keys(tmp_path, "alice")
    command = ["openssl", "pkey", "-pubin", "-in", str(public_path), "-outform", "der"]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    assert load_public_key(public_path).key_id == hashlib.sha256(der).hexdigest()


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    private_path, _ = generate_keys(tmp_path, "alice", password=b"secret")
    load_private_key(private_path, password=b"secret")
    with pytest.raises(KeyUnusable, match="needs a password"):
        load_private_key(private_path)
    with pytest.raises(KeyUnusable, match="that this password opens"):
        load_private_key(private_path, password=b"wrong")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda c: c.name)
def test_keys_on_the_usual_curves_sign(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    key = ec.generate_private_key(curve)
    signer = load_private_key(write_private(tmp_path / "bob.key", key))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "bob.pub").write_bytes(public)
    trusted = load_public_key(tmp_path / "bob.pub")
    trusted.key.verify_signature(signer.sign(b"text"), b"text")
    assert trusted.signer == "bob"


@pytest.mark.parametrize("kind", ["rsa", "curve"])
def test_other_kinds_of_keys_are_refused(kind: str, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(KeyUnusable, match="expected Ed25519"):
        load_private_key(write_private(tmp_path / "bob.key", key))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "bob.pub").write_bytes(public)
    with pytest.raises(KeyUnusable, match="expected Ed25519"):
        load_public_key(tmp_path / "bob.pub")


def test_what_is_no_key_is_refused_with_a_reason(keys_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="this is a public key"):
        load_private_key(keys_folder / "alice.pub")
    with pytest.raises(KeyUnusable, match="No such file"):
        load_private_key(tmp_path / "gone.key")
    (tmp_path / "huge.pub").write_bytes(b"-" * (MAX_KEY_BYTES + 1))
    with pytest.raises(KeyUnusable, match="expected at most"):
        load_public_key(tmp_path / "huge.pub")


def test_a_private_key_among_the_trusted_ones_is_refused(keys_folder: Path, tmp_path: Path) -> None:
    shutil.copy(keys_folder / "alice.key", tmp_path / "alice.pub")
    with pytest.raises(KeyUnusable, match="this is a private key"):
        load_trusted_keys(tmp_path)


def test_a_folder_gives_every_public_key_by_its_id(keys_folder: Path) -> None:
    keys = load_trusted_keys(keys_folder)
    assert sorted(trusted.signer for trusted in keys.values()) == ["alice", "mallory"]
    assert all(key_id == trusted.key_id == trusted.key.keyid for key_id, trusted in keys.items())


def test_one_bad_key_spoils_the_folder(keys_folder: Path, tmp_path: Path) -> None:
    shutil.copy(keys_folder / "alice.pub", tmp_path)
    (tmp_path / "bob.pub").write_text("nothing like it")
    with pytest.raises(KeyUnusable, match=r"bob\.pub: expected a PEM public key"):
        load_trusted_keys(tmp_path)


def test_a_folder_without_keys_is_no_folder_that_trusts_all(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match="expected 1 to 256 public keys"):
        load_trusted_keys(tmp_path)
    with pytest.raises(KeyUnusable, match="expected a readable folder"):
        load_trusted_keys(tmp_path / "gone")


def test_one_key_under_two_names_is_refused(keys_folder: Path, tmp_path: Path) -> None:
    shutil.copy(keys_folder / "alice.pub", tmp_path / "a.pub")
    shutil.copy(keys_folder / "alice.pub", tmp_path / "b.pub")
    with pytest.raises(KeyUnusable, match=r"the same key as a\.pub"):
        load_trusted_keys(tmp_path)
