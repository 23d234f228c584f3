"""``policypatch patches``: orders to a running server."""

import argparse
import base64
from pathlib import Path
from typing import Any

from patches.errors import PatchError
from patches.format import read_patch_bytes
from patches.headers import SIGNATURE_HEADER
from patches.signing.signature import read_signature, signature_path
from server.commands.canary_arguments import add_rule_arguments, canary_order
from server.commands.errors import CommandError
from server.commands.output import complain, say_json, say_lines
from server.commands.patch_arguments import of_file
from server.commands.patches_client import KEY_VARIABLE, AdminClient, Refused
from server.commands.patches_report import describe_list, describe_preview, describe_record, describe_removal
from server.commands.server_access import add_api_key_argument, key_of_file, key_of_variable
from server.errors import MalformedPatchName
from server.options import patch_name
from server.versions import sticky
from server.versions.selection import PatchRef, parse_wish

DESCRIPTION = """\
Ask a running server about its patches, and order it: load a file, activate a version, roll back, remove.
Every order needs an admin key (serve --admin-key-file), and is in the server's audit log under the key's
name."""

EPILOG = f"""\
The admin key is the first line of --key-file, else ${KEY_VARIABLE}.

examples:
  policypatch patches list --url http://localhost:8000
  policypatch patches load safety-1.3.0.safetensors --hold --url http://localhost:8000 --key-file key
  policypatch patches activate safety 1.3.0 --url unix:/run/policypatch/admin.sock
  policypatch patches canary safety 1.3.0 --share 0.05 --key header:X-User-Id --max-error-rate 0.02 --url $URL
  policypatch patches canary safety --promote --url $URL
  policypatch patches rollback safety --expect 1.3.0 --url http://localhost:8000
  policypatch patches rm safety@1.2.0 --force --url http://localhost:8000 --json"""

_OCTETS = "application/octet-stream"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions, each with the same flags."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--url", required=True, help="the server, http://HOST:PORT or unix:PATH of --admin-listen"
    )
    common.add_argument(
        "--key-file", type=Path, metavar="FILE", help=f"holds the admin key (default: ${KEY_VARIABLE})"
    )
    add_api_key_argument(common)
    common.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, help="what to do")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        action: argparse.ArgumentParser = actions.add_parser(
            name, parents=[common], help=summary, description=description
        )
        return action

    add("list", "list what is loaded, what drains, and what was refused")
    show = add("show", "show what is active, and who did what")
    show.add_argument("name", metavar="NAME", type=patch_name, help="the patch")
    load = add("load", "upload a patch file, with its signature")
    load.add_argument("file", metavar="FILE", type=Path, help="the patch file; FILE.sig is sent with it")
    load.add_argument("--hold", action="store_true", help="load it, but never make it active by itself")
    activate = add("activate", "choose the active version, and pin it")
    activate.add_argument("name", metavar="NAME", type=patch_name, help="the patch")
    activate.add_argument(
        "version", metavar="VERSION", nargs="?", type=version, help="a version, or sha256:..."
    )
    activate.add_argument("--follow", action="store_true", help="take the pin away: the files decide again")
    activate.add_argument(
        "--dry-run", action="store_true", help="only say what would be active, and what would stop to serve"
    )
    _add_canary_arguments(add("canary", "try a version on a share of the requests"))
    rollback = add("rollback", "go back to what was active before")
    rollback.add_argument("name", metavar="NAME", type=patch_name, help="the patch")
    rollback.add_argument(
        "--expect", metavar="VERSION", type=version, help="refuse where another version is active"
    )
    remove = add("rm", "remove a version, or all of a patch, with their files")
    remove.add_argument("patch", metavar="NAME[@VERSION]", type=reference, help="what to remove")
    remove.add_argument("--force", action="store_true", help="end the requests that use it with an error")


def _add_canary_arguments(canary: argparse.ArgumentParser) -> None:
    canary.add_argument("name", metavar="NAME", type=patch_name, help="the patch")
    canary.add_argument(
        "version", metavar="VERSION", nargs="?", type=version, help="a loaded version, or sha256:..."
    )
    add_rule_arguments(canary, sticky.DEFAULT)
    end = canary.add_argument_group("end").add_mutually_exclusive_group()
    end.add_argument("--promote", action="store_const", dest="end", const="promote", help="make it active")
    end.add_argument("--abort", action="store_const", dest="end", const="abort", help="end it for good")


def reference(text: str) -> PatchRef:
    """Read ``NAME`` or ``NAME@VERSION``, where a digest may stand for the version: parts of URLs as they are.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    try:
        wish = parse_wish(text, "NAME[@VERSION]")
    except MalformedPatchName as error:
        raise argparse.ArgumentTypeError(error.message) from None
    if not isinstance(wish, tuple) or len(wish) != 1:
        raise argparse.ArgumentTypeError(f"expected one patch, got {text!r}")
    return wish[0]


def version(text: str) -> str:
    """Read a version, or a digest that stands for one.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    try:
        reference(f"any@{text}")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a version such as 1.2.0, or sha256: and 12 to 64 of 0-9, a-f, got {text!r}"
        ) from None
    return text


def run(args: argparse.Namespace) -> int:
    """Make the call and print what came of it.

    Returns:
        0 where it was done, 1 where the server refused, or would refuse.
    """
    key = key_of_file(args.key_file, "--key-file") if args.key_file else key_of_variable(KEY_VARIABLE)
    try:
        with AdminClient(args.url, key, key_of_variable(args.api_key_env)) as client:
            document, lines = _ACTIONS[args.action](client, args)
    except Refused as refusal:
        complain(f"policypatch patches {args.action}: {refusal}")
        return 1
    if args.json:
        say_json(document)
    else:
        say_lines(lines)
    # Of a dry run: what forbids the activation.
    return 1 if document.get("refused_for") else 0


def _list(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    document = client.call("GET")
    return document, describe_list(document)


def _show(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    document = client.call("GET", f"/{args.name}/history")
    return document, describe_record(document)


def _load(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    from patches.format import decode_patch

    try:
        data = read_patch_bytes(args.file)
        manifest = decode_patch(data).manifest
        signature = read_signature(args.file) if signature_path(args.file).exists() else None
    except PatchError as error:
        raise CommandError(of_file(args.file, error)) from error
    headers = {"Content-Type": _OCTETS}
    if signature is not None:
        headers[SIGNATURE_HEADER] = base64.b64encode(signature).decode("ascii")
    card = client.call(
        "PUT",
        f"/{manifest.name}/{manifest.version}",
        content=data,
        headers=headers,
        query={"hold": "true"} if args.hold else None,
    )
    return card, describe_list({"data": [card], "failures": []})


def _activate(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    if (args.version is None) != args.follow:
        raise CommandError("activate: expected either VERSION or --follow")
    body = {"follow": True} if args.follow else {"version": args.version}
    if args.dry_run:
        document = client.call("POST", f"/{args.name}/activate", body={**body, "dry_run": True})
        return document, describe_preview(document)
    document = client.call("POST", f"/{args.name}/activate", body=body)
    return document, describe_record(document)


def _canary(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    if (args.version is None) == (args.end is None):
        raise CommandError("canary: expected either VERSION, --promote or --abort")
    body: dict[str, Any] = {"end": args.end}
    if args.end is None:
        body = canary_order(args)
    document = client.call("POST", f"/{args.name}/canary", body=body)
    return document, describe_record(document)


def _rollback(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    body = {"from": args.expect} if args.expect is not None else {}
    document = client.call("POST", f"/{args.name}/rollback", body=body)
    return document, describe_record(document)


def _remove(client: AdminClient, args: argparse.Namespace) -> tuple[Any, list[str]]:
    pin = args.patch.version or args.patch.digest
    path = f"/{args.patch.name}" + (f"/{pin}" if pin is not None else "")
    document = client.call("DELETE", path, query={"force": "true"} if args.force else None)
    return document, describe_removal(document)


_ACTIONS = {
    "list": _list,
    "show": _show,
    "load": _load,
    "activate": _activate,
    "canary": _canary,
    "rollback": _rollback,
    "rm": _remove,
}
