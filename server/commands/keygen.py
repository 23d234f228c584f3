"""``policypatch keygen``: a key pair that signs patches."""

import argparse
from pathlib import Path

from patches.signing.keys import generate_keys, load_public_key
from server.commands.errors import CommandError
from server.commands.output import say
from server.commands.patch_arguments import patch_errors, read_password, unwritable

DESCRIPTION = """\
Make an Ed25519 key pair for `policypatch sign`: WHO.key, the private key, readable by its owner only, and
WHO.pub, the public key, which goes into the folder that `serve --trusted-keys` names. A key is never
overwritten. Keys from openssl work too: Ed25519, or ECDSA on P-256, P-384 or P-521."""

EPILOG = """\
examples:
  policypatch keygen keys --name alice
  policypatch keygen keys --name release --password-file password.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder and the name."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder for the pair; made if need be")
    parser.add_argument(
        "--name",
        metavar="WHO",
        default="policypatch",
        help="whose key it is; the server calls the signer so (default: policypatch)",
    )
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        type=Path,
        help="encrypt the private key with the file's first line",
    )


def run(args: argparse.Namespace) -> int:
    """Make the pair and say where it is."""
    password = read_password(args.password_file)
    try:
        with patch_errors():
            private_path, public_path = generate_keys(args.folder, args.name, password=password)
            key_id = load_public_key(public_path).key_id
    except FileExistsError as error:
        if error.filename is None or Path(error.filename) == args.folder:
            raise unwritable(args.folder, error) from error
        raise CommandError(f"{error.filename}: {error.strerror}; choose another --name") from error
    except OSError as error:
        raise unwritable(args.folder, error) from error
    say(f"{private_path}: private key; whoever has it can sign")
    say(f"{public_path}: public key {key_id}")
    return 0
