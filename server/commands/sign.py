"""``policypatch sign``: a signature beside a patch file."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from patches.content import PatchContent
from patches.durable import write_bytes_atomically
from patches.errors import InvalidName
from patches.signing.keys import is_open_to_others, load_private_key
from patches.signing.signature import sign_statement, signature_path
from patches.signing.statement import Statement, make_statement
from server.commands.errors import CommandError
from server.commands.output import say
from server.commands.patch_arguments import patch_errors, read_content, read_password, unwritable, warn

DESCRIPTION = """\
Sign patch files: FILE.sig, beside each, states content digest, name, version, the time and, where given, the
lowest version of this name that may be used from then on. A server with --trusted-keys loads no other files.
Every file is checked in full before the first signature is written.

Sign outside the served folder, and move the signature there before its patch: a patch that arrives first is
refused until its signature is there."""

EPILOG = """\
examples:
  policypatch sign out/safety-1.2.0.safetensors --key keys/alice.key
  policypatch sign out/safety-1.2.0.safetensors --key keys/alice.key --minimum-version 1.2.0
  policypatch sign out/*.safetensors --key keys/release.key --password-file password.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the files, the key and the bound."""
    parser.add_argument("patches", metavar="FILE", type=Path, nargs="+", help="patch files")
    parser.add_argument(
        "--key", metavar="K", type=Path, required=True, help="private key, as `policypatch keygen` makes it"
    )
    parser.add_argument(
        "--password-file", metavar="FILE", type=Path, help="the first line opens an encrypted key"
    )
    parser.add_argument(
        "--minimum-version",
        metavar="V",
        help="servers that loaded this patch refuse lower versions of its name from then on",
    )
    parser.add_argument("--force", action="store_true", help="replace a signature that is there")


def run(args: argparse.Namespace) -> int:
    """Sign every file, or none where one is bad."""
    with patch_errors():
        signer = load_private_key(args.key, password=read_password(args.password_file))
    if is_open_to_others(args.key):
        warn(f"{args.key}: others can read this private key; chmod 600 it")
    now = datetime.now(UTC)
    statements = {
        path: _statement(path, read_content(path), args.minimum_version, now) for path in args.patches
    }
    for path in statements:
        if signature_path(path).exists() and not args.force:
            raise CommandError(f"{signature_path(path)}: exists; --force replaces it")
    for path, statement in statements.items():
        file = signature_path(path)
        try:
            write_bytes_atomically(file, sign_statement(statement, signer))
        except OSError as error:
            raise unwritable(file, error) from error
        bound = f", nothing below {args.minimum_version}" if args.minimum_version else ""
        say(f"{file}: {statement.name}@{statement.version} {statement.digest}{bound}")
    return 0


def _statement(path: Path, patch: PatchContent, minimum_version: str | None, now: datetime) -> Statement:
    manifest = patch.manifest
    try:
        return make_statement(
            manifest.name, manifest.version, patch.digest, minimum_version=minimum_version, signed_at=now
        )
    except InvalidName as error:
        raise CommandError(f"{path}: {error}") from error
