"""What `inspect` and `verify` say about the signature beside a patch file."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patches.content import PatchContent
from patches.errors import PatchFormatError, SignatureRefused
from patches.signing.keys import TrustedKeys, load_trusted_keys
from patches.signing.signature import read_claim, read_signature, verify_signature
from patches.signing.statement import Statement, format_time
from server.commands.patch_arguments import patch_errors


@dataclass(frozen=True)
class SignatureReport:
    """The state of one signature file."""

    #: ``trusted``: by a trusted key. ``unchecked``: there is one, and no keys were given to check it with.
    #: ``refused``: there is one that does not pass. ``unsigned``: there is none.
    state: Literal["trusted", "unchecked", "refused", "unsigned"]
    #: One line for people.
    text: str
    #: A reason, where it is refused or missing.
    reason: str | None = None
    signer: str | None = None
    #: Of the keys that signed, or claim to have signed.
    key_ids: tuple[str, ...] = ()
    #: What is signed, or claimed to be.
    statement: Statement | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON object; what no trusted key vouches for is left out."""
        document: dict[str, Any] = {"state": self.state, "reason": self.reason, "signer": self.signer}
        if self.state == "trusted" and self.statement is not None:
            document |= {
                "key_id": self.key_ids[0],
                "signed_at": format_time(self.statement.signed_at),
                "minimum_version": self.statement.minimum_version,
            }
        return document


def add_trusted_keys_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the folder of keys."""
    parser.add_argument(
        "--trusted-keys",
        metavar="DIR",
        type=Path,
        help="folder of public keys (*.pub); the signature must be by one of them",
    )


def trusted_keys(args: argparse.Namespace) -> TrustedKeys | None:
    """Read the keys, where a folder was given."""
    if args.trusted_keys is None:
        return None
    with patch_errors():
        return load_trusted_keys(args.trusted_keys)


def report_signature(path: Path, patch: PatchContent, keys: TrustedKeys | None) -> SignatureReport:
    """Look at the signature beside ``path``; with ``keys``, check it."""
    manifest = patch.manifest
    try:
        data = read_signature(path)
        if keys is None:
            claim = read_claim(data)
            ids = ", ".join(key_id[:16] for key_id in claim.key_ids)
            text = f"by {ids}, not checked: --trusted-keys DIR does{_terms(claim.statement)}"
            return SignatureReport("unchecked", text, None, None, tuple(claim.key_ids), claim.statement)
        good = verify_signature(data, keys, name=manifest.name, version=manifest.version, digest=patch.digest)
    except SignatureRefused as error:
        state: Literal["unsigned", "refused"] = "unsigned" if error.reason == "unsigned" else "refused"
        return SignatureReport(state, str(error), error.reason)
    except PatchFormatError as error:
        return SignatureReport("refused", str(error), error.reason)
    text = f"by {good.key.signer} ({good.key.key_id[:16]}){_terms(good.statement)}"
    return SignatureReport("trusted", text, None, good.key.signer, (good.key.key_id,), good.statement)


def _terms(statement: Statement) -> str:
    bound = f", nothing below {statement.minimum_version}" if statement.minimum_version is not None else ""
    return f"; signed at {format_time(statement.signed_at)}{bound}"
