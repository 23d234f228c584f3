"""``policypatch fleet``: one signed catalog for many servers."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from patches.argument_values import finite
from server.commands.errors import CommandError
from server.commands.fleet_report import described, entry_rows, moves
from server.commands.output import complain, say, say_json, say_lines
from server.commands.patches import version
from server.fleet import changes
from server.fleet.changes import ChangeRefused, Names
from server.fleet.document import CanaryEntry, Document, DocumentInvalid, moment_of
from server.fleet.publisher import Published, Publisher
from server.fleet.roles import LEASE_S, FleetError, FleetFolder, make_folder
from server.fleet.store import StoreError, open_store
from server.options import patch_name
from server.versions import sticky

DESCRIPTION = """\
Publish what many servers serve: patches, canaries, the policy, trusted keys and revocations, as one signed
catalog with one revision number. Servers follow it with `serve --catalog URL --catalog-root root.json`.
DIR is the publisher's folder, with its keys."""

EPILOG = """\
examples:
  policypatch fleet init fleet --store fleet/store      # then serve fleet/store by any web server
  policypatch fleet publish fleet tone-1.0.0.safetensors safety-1.3.0.safetensors --policy policy.yaml
  policypatch fleet publish fleet tone-1.1.0.safetensors --hold
  policypatch fleet canary fleet tone 1.1.0 --share 0.05 --key header:X-Session-Id
  policypatch fleet promote fleet tone
  policypatch fleet rollback fleet tone
  policypatch fleet rollback fleet --to 41 --dry-run
  policypatch fleet revoke fleet sha256:1f0c... --withdraw tone
  policypatch fleet stamp fleet --every 30
  policypatch fleet show fleet --json"""

#: Seconds from publishing to holding everywhere: servers look every two, and need a while to load.
_AHEAD_S = 6.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, help="what to do")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("directory", metavar="DIR", type=Path, help="the publisher's folder")
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--json", action="store_true", help="print the result as JSON")
    order = _order_arguments()

    def add(name: str, summary: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(
            name, parents=[folder, *parents], help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        return action

    _add_init(add("init", "make keys for all roles, root.json and the folder of a publisher"))
    _add_publish(add("publish", "publish patch files, and what else is to hold with them", order, shown))
    _add_canary(add("canary", "try a version on a share of the requests of the whole fleet", order, shown))
    for name, summary in {
        "promote": "make a canary the active version",
        "abort": "end a canary for good",
        "withdraw": "let a name mean nothing",
    }.items():
        _add_name(add(name, summary, order, shown))
    _add_rollback(add("rollback", "go back: one name, or everything", order, shown))
    _add_revoke(add("revoke", "never serve a content again", order, shown))
    stamp = add("stamp", "sign that the catalog still holds: the lease begins anew")
    stamp.add_argument("--every", type=finite, metavar="S", help="go on, and stamp every S seconds")
    add("show", "show what is published", shown)


def _order_arguments() -> argparse.ArgumentParser:
    order = argparse.ArgumentParser(add_help=False)
    moment = order.add_argument_group("when").add_mutually_exclusive_group()
    moment.add_argument(
        "--in",
        dest="ahead_s",
        type=finite,
        metavar="S",
        help=f"hold everywhere in S seconds, at one instant (default: {_AHEAD_S:g}; going back: at once)",
    )
    moment.add_argument("--at-once", action="store_true", help="hold on each server as soon as it hears")
    order.add_argument("--dry-run", action="store_true", help="only say what every server would do")
    order.add_argument(
        "--keep",
        type=int,
        default=changes.KEEP_REVISIONS,
        metavar="N",
        help="earlier revisions that conversations may go on in (default: %(default)s)",
    )
    return order


def _add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument(
        "--store",
        required=True,
        metavar="PLACE",
        help="where the catalog goes: a folder, or s3://BUCKET/PREFIX",
    )
    init.add_argument(
        "--lease",
        type=finite,
        default=LEASE_S,
        metavar="S",
        help="how long a server that is cut off may serve what it has (default: %(default)g)",
    )


def _add_name(action: argparse.ArgumentParser) -> None:
    action.add_argument("name", metavar="NAME", type=patch_name, help="the patch")


def _add_canary(canary: argparse.ArgumentParser) -> None:
    _add_name(canary)
    canary.add_argument("version", metavar="VERSION", type=version, help="a version in the catalog")
    canary.add_argument("--share", type=finite, metavar="R", default=0.05, help="of requests (default: 0.05)")
    canary.add_argument(
        "--key",
        metavar="KEY",
        default="header:X-Session-Id",
        help=f"what keeps a caller on one version: {sticky.MEANING} (default: %(default)s)",
    )


def _add_rollback(rollback: argparse.ArgumentParser) -> None:
    rollback.add_argument("name", metavar="NAME", nargs="?", type=patch_name, help="the patch")
    rollback.add_argument("version", metavar="VERSION", nargs="?", type=version, help="an older version")
    rollback.add_argument("--to", type=int, metavar="REVISION", help="all names as they were then")


def _add_revoke(revoke: argparse.ArgumentParser) -> None:
    revoke.add_argument("digests", metavar="DIGEST", nargs="+", help="sha256: and 64 hexadecimal digits")
    revoke.add_argument(
        "--withdraw",
        metavar="NAME",
        action="append",
        default=[],
        type=patch_name,
        help="a name that means it",
    )


def _add_publish(publish: argparse.ArgumentParser) -> None:
    publish.add_argument(
        "files", metavar="FILE", nargs="*", type=Path, help="patch files; FILE.sig goes along"
    )
    publish.add_argument("--hold", action="store_true", help="do not make them active")
    publish.add_argument("--policy", type=Path, metavar="FILE", help="the policy file of every server")
    publish.add_argument("--no-policy", action="store_true", help="have none any more")
    publish.add_argument(
        "--trusted-key",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="a public key whose signatures of patches count from now on",
    )
    publish.add_argument("--min-server", metavar="V", help="lowest version of policypatch that can serve it")


def run(args: argparse.Namespace) -> int:
    """Carry the action out.

    Returns:
        0 where it was done, 1 where the catalog, the store or another publisher was against it.
    """
    try:
        return _ACTIONS[args.action](args)
    except ChangeRefused as error:
        complain(f"policypatch fleet {args.action}: {error}; nothing was published")
    except DocumentInvalid as error:
        complain(f"policypatch fleet {args.action}: no server would take it: {error}; nothing was published")
    except (FleetError, StoreError) as error:
        complain(f"policypatch fleet {args.action}: {error}")
    return 1


def _init(args: argparse.Namespace) -> int:
    if not 5 <= args.lease <= 7 * 86_400:
        raise CommandError(f"--lease: expected 5 to 604800 seconds, got {args.lease:g}")
    store = args.store if "://" in args.store else str(Path(args.store).resolve())
    open_store(store)
    made = make_folder(args.directory, store, args.lease)
    say_lines(
        [
            f"{made.folder}/root.json: every server needs it: serve --catalog URL --catalog-root root.json",
            f"{made.folder}/keys/root-1.key, root-2.key, root-3.key: take them away, each to another place",
            f"{made.store}: what `fleet publish` writes; let a web server serve it as URL",
            f"then keep the lease of {args.lease:g} s alive: policypatch fleet stamp {made.folder} --every "
            f"{max(1, args.lease / 20):g}",
        ]
    )
    return 0


def _publish(args: argparse.Namespace) -> int:
    from server.commands.fleet_files import files_of

    if not (args.files or args.policy or args.no_policy or args.trusted_key or args.min_server):
        raise CommandError(
            "FILE: expected patch files, or --policy, --trusted-key or --min-server; got nothing"
        )
    files = files_of(args.files, args.policy, args.trusted_key)

    def change(before: Document) -> tuple[Document, Names]:
        if args.policy is not None or args.no_policy:
            before = replace(before, policy=files.policy)
        keys = tuple(sorted({*before.trusted_keys, *files.keys}))
        before = replace(before, trusted_keys=keys, min_server=args.min_server or before.min_server)
        return before, changes.with_versions(before.names, files.added, activate=not args.hold)

    return _order(args, change, files.contents)


def _canary(args: argparse.Namespace) -> int:
    try:
        sticky.StickyKey.parse(args.key).require_useful()
    except ValueError as error:
        raise CommandError(f"--key: {str(error).removeprefix('key: ')}") from None
    if not 0 < args.share <= 1:
        raise CommandError(f"--share: expected above 0 and at most 1, got {args.share:g}")
    canary = CanaryEntry(args.version, args.share, args.key, moment_of(time.time()))
    return _order(args, lambda d: (d, changes.with_canary(d.names, args.name, canary)))


def _end_canary(args: argparse.Namespace) -> int:
    is_promoted = args.action == "promote"
    return _order(
        args,
        lambda d: (d, changes.canary_ended(d.names, args.name, is_promoted=is_promoted)),
        ahead=is_promoted,
    )


def _withdraw(args: argparse.Namespace) -> int:
    return _order(args, lambda d: (d, changes.without(d.names, args.name)), ahead=False)


def _rollback(args: argparse.Namespace) -> int:
    if (args.name is None) == (args.to is None):
        raise CommandError("rollback: expected either NAME or --to REVISION")

    def change(before: Document) -> tuple[Document, Names]:
        if args.to is not None:
            return before, changes.as_of(before, args.to)
        older = args.version or changes.version_before(before, args.name)
        return before, changes.gone_back(before, args.name, older)

    return _order(args, change, ahead=False)


def _revoke(args: argparse.Namespace) -> int:
    def change(before: Document) -> tuple[Document, Names]:
        names: Names = before.names
        for name in args.withdraw:
            names = changes.without(names, name)
        return replace(before, revoked=tuple(sorted({*before.revoked, *args.digests}))), names

    return _order(args, change, ahead=False)


def _order(
    args: argparse.Namespace,
    change: Callable[[Document], tuple[Document, Names]],
    files: dict[str, bytes] | None = None,
    *,
    ahead: bool = True,
) -> int:
    """Publish what ``change`` makes of the revision that is in force."""
    if not 0 <= args.keep <= 64:
        raise CommandError(f"--keep: expected 0 to 64 revisions, got {args.keep}")
    publisher, published = _read(args.directory)
    now_s = time.time()
    first = published.document or changes.nothing(moment_of(now_s))
    before, names = change(first)
    ahead_s = args.ahead_s if args.ahead_s is not None else _AHEAD_S if ahead else 0.0
    effective_at = moment_of(now_s + ahead_s) if ahead_s > 0 and not args.at_once else None
    document = changes.next_revision(
        before, names, published_at=moment_of(now_s), effective_at=effective_at, keep=args.keep
    )
    moved = moves(first, document)
    if not args.dry_run:
        document = publisher.publish(published, document, files or {})
    if args.json:
        say_json({"revision": document.revision, "dry_run": args.dry_run, "changes": moved} | _when(document))
        return 0
    verb = "would publish" if args.dry_run else "published"
    when = f"at {document.effective_at}" if document.effective_at is not None else "as soon as it hears"
    say(f"{verb} revision {document.revision}; each server, {when}:")
    say_lines(f"  {line}" for line in moved or ["no name means anything else"])
    return 0


def _stamp(args: argparse.Namespace) -> int:
    folder = FleetFolder.read(args.directory)
    if args.every is not None and not 0 < args.every < folder.lease_s:
        raise CommandError(
            f"--every: expected less than the lease of {folder.lease_s:g} s, got {args.every:g}"
        )
    publisher = Publisher(folder, open_store(folder.store))
    while True:
        try:
            say(f"the catalog holds until {publisher.stamp():%Y-%m-%dT%H:%M:%SZ}")
        except (FleetError, StoreError) as error:
            if args.every is None:
                raise
            # The lease is longer than a bad moment of the store.
            complain(f"policypatch fleet stamp: {error}; trying again in {args.every:g} s")
        if args.every is None:
            return 0
        time.sleep(args.every)


def _show(args: argparse.Namespace) -> int:
    _, published = _read(args.directory)
    if published.document is None:
        raise FleetError("nothing is published yet")
    if args.json:
        say_json(described(published))
    else:
        say_lines(entry_rows(published))
    return 0


def _when(document: Document) -> dict[str, Any]:
    return {"published_at": document.published_at, "effective_at": document.effective_at}


def _read(directory: Path) -> tuple[Publisher, Published]:
    folder = FleetFolder.read(directory)
    publisher = Publisher(folder, open_store(folder.store))
    return publisher, publisher.read()


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": _init,
    "publish": _publish,
    "canary": _canary,
    "promote": _end_canary,
    "abort": _end_canary,
    "withdraw": _withdraw,
    "rollback": _rollback,
    "revoke": _revoke,
    "stamp": _stamp,
    "show": _show,
}
