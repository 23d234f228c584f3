"""``policypatch policy``: check a policy file, and ask it what would happen."""

import argparse
import hashlib
import sys
from pathlib import Path

from patches.headers import PATCH_HEADER
from server.commands.output import say
from server.commands.server_access import clean_key

DESCRIPTION = """\
Check a policy file, or ask it what a request would get and why. The file says who may choose which patch;
`policypatch serve --policy FILE` follows it. What it may hold: docs/policy.md."""

EPILOG = """\
examples:
  policypatch policy check policy.yaml --patches ./patches
  policypatch policy explain policy.yaml --key-name research --header 'pirate' --patches ./patches
  policypatch policy explain policy.yaml --tenant acme --model-alias none --json
  policypatch policy hash-key < key.txt"""

#: action -> one-line help.
ACTIONS = {
    "check": "check a policy file, and that what it names is there",
    "explain": "show what a request would get, and by which rule",
    "hash-key": "read a key from standard input, print its entry for the file",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, help="what to do")
    for name, summary in ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == "hash-key":
            continue
        action.add_argument("file", metavar="FILE", type=Path, help="a policy file")
        if name == "explain":
            _add_request_arguments(action)
        action.add_argument(
            "--patches",
            metavar="DIR",
            type=Path,
            help="hold the policy against this folder (default: all that is named is taken to be there)",
        )
        action.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key", metavar="K", help="the caller's key; - reads it from standard input")
    key.add_argument("--key-name", metavar="NAME", help="the name of the caller's key in the file")
    parser.add_argument("--tenant", metavar="T", help="what the gateway puts into the tenant header")
    parser.add_argument(
        "--peer",
        metavar="ADDRESS",
        help="where the connection comes from, or unix (default: an address that may name a tenant)",
    )
    parser.add_argument("--header", metavar="H", help=f"value of {PATCH_HEADER}")
    parser.add_argument(
        "--model-alias", metavar="A", help="what stands behind the model's name and its colon in `model`"
    )


def run(args: argparse.Namespace) -> int:
    """Run the action.

    Returns:
        0 where the file is good, or the request would be answered; 1 where not.
    """
    if args.action == "hash-key":
        return _hash_key()
    from server.commands.policy_report import check, explain

    return check(args) if args.action == "check" else explain(args)


def _hash_key() -> int:
    key = clean_key(sys.stdin.buffer.readline().decode("utf-8", "replace"), "standard input")
    say(hashlib.sha256(key.encode("ascii")).hexdigest())
    return 0
