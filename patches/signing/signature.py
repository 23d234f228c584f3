"""The signature file: a DSSE envelope around one statement, beside its patch as ``FILE.sig``.

The cryptography is securesystemslib's, the library under TUF and in-toto; this module decides only what is
signed, how large a file may be, and what a refusal is called. Nothing that a file claims is used before a
trusted key vouches for it, save to say why it was refused.
"""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patches.canonical import canonical_json, parse_json
from patches.errors import PatchFormatError, SignatureRefused
from patches.fields import FieldReader
from patches.reading import FileTooLarge, read_regular_file
from patches.signing.keys import TrustedKey, TrustedKeys
from patches.signing.statement import Statement, decode_statement, encode_statement

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

SUFFIX = ".sig"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_SIGNATURE_BYTES = 64 * 1024
MAX_NUM_SIGNATURES = 8


@dataclass(frozen=True)
class Signature:
    """A statement that a trusted key vouches for."""

    statement: Statement
    key: TrustedKey


@dataclass(frozen=True)
class Claim:
    """What a signature file says, unchecked."""

    statement: Statement
    key_ids: Sequence[str]


def signature_path(path: Path) -> Path:
    """Return where the signature of a patch file lies."""
    return path.with_name(path.name + SUFFIX)


def sign_statement(statement: Statement, signer: "CryptoSigner") -> bytes:
    """Return the content of the signature file."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(encode_statement(statement), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return f"{canonical_json(envelope.to_dict())}\n".encode()


def read_signature(path: Path) -> bytes:
    """Read the signature file beside the patch file ``path``, never more than a signature takes.

    Raises:
        SignatureRefused: There is none, or it is too large.
        PatchFormatError: With reason ``unreadable``, which may pass.
    """
    file = signature_path(path)
    try:
        return read_regular_file(file, MAX_SIGNATURE_BYTES)
    except FileNotFoundError:
        raise SignatureRefused("unsigned", f"not signed: there is no {file.name}") from None
    except FileTooLarge as error:
        raise SignatureRefused("bad_signature", f"{file.name}: {error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PatchFormatError("unreadable", f"{file.name}: {reason}") from None


def read_claim(data: bytes) -> Claim:
    """Read what a signature file says without asking whether it is true.

    Raises:
        SignatureRefused: It is malformed.
    """
    envelope = _read_envelope(data)
    return Claim(decode_statement(envelope.payload), tuple(envelope.signatures))


def verify_signature(data: bytes, keys: TrustedKeys, *, name: str, version: str, digest: str) -> Signature:
    """Check that a trusted key vouches for a patch with this name, version and content.

    Raises:
        SignatureRefused: ``untrusted_signer``: by none of ``keys``. ``bad_signature``: malformed, or forged
            in the name of one of them. ``signature_mismatch``: it is good, but for something else.
    """
    envelope = _read_envelope(data)
    key = _vouching_key(envelope, keys)
    statement = decode_statement(envelope.payload)
    signed, actual = (statement.name, statement.version), (name, version)
    if statement.digest != digest or signed != actual:
        what = "other content" if signed == actual else "another patch"
        raise SignatureRefused(
            "signature_mismatch",
            f"signature: expected {name}@{version} {digest}, got one by {key.signer} for {what}: "
            f"{statement.name}@{statement.version} {statement.digest}",
        )
    return Signature(statement, key)


def _vouching_key(envelope: "Envelope", keys: TrustedKeys) -> TrustedKey:
    from securesystemslib.exceptions import VerificationError

    known = [keys[key_id] for key_id in envelope.signatures if key_id in keys]
    if not known:
        ids = ", ".join(key_id[:16] for key_id in envelope.signatures)
        raise SignatureRefused("untrusted_signer", f"signature: by no trusted key, but by {ids}")
    try:
        accepted = envelope.verify([trusted.key for trusted in known], threshold=1)
    except VerificationError:
        names = ", ".join(trusted.signer for trusted in known)
        raise SignatureRefused(
            "bad_signature", f"signature: names the key of {names}, which did not make it"
        ) from None
    return next(trusted for trusted in known if trusted.key_id in accepted)


def _read_envelope(data: bytes) -> "Envelope":
    from securesystemslib.dsse import Envelope

    if len(data) > MAX_SIGNATURE_BYTES:
        raise _refusal(f"expected at most {MAX_SIGNATURE_BYTES} bytes, got {len(data)}")
    try:
        document = parse_json(data.decode("utf-8"))
    except ValueError as error:
        raise _refusal(f"not readable as JSON: {str(error)[:200]}") from None
    reader = FieldReader("envelope", document)
    reader.text("payload")
    reader.one_of("payloadType", [PAYLOAD_TYPE])
    for signature in (signatures := reader.objects("signatures", 1)):
        signature.line("keyid", 128)
        signature.text("sig")
        signature.finish()
    if len(signatures) > MAX_NUM_SIGNATURES:
        reader.problem("signatures", f"at most {MAX_NUM_SIGNATURES}", len(signatures))
    reader.finish()
    if reader.problems:
        raise _refusal(reader.problems[0])
    try:
        return Envelope.from_dict(document)
    except (ValueError, binascii.Error) as error:
        raise _refusal(str(error)[:200]) from None


def _refusal(message: str) -> SignatureRefused:
    return SignatureRefused("bad_signature", f"the signature is malformed: {message}")
