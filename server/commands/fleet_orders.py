"""What ``policypatch fleet`` does with the publisher's folder: keys, revisions, stamps."""

import argparse
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from patches.format import decode_patch
from patches.names import is_digest
from server.commands.canary_arguments import canary_order
from server.commands.errors import CommandError
from server.commands.fleet_report import moves
from server.commands.fleet_signatures import require_signed
from server.commands.output import complain, say, say_json, say_lines
from server.fleet import changes
from server.fleet.changes import ChangeRefused, Names
from server.fleet.document import CanaryEntry, Document, moment_of
from server.fleet.orders import AHEAD_S, Carried, Change, carry_out
from server.fleet.publisher import Published, Publisher
from server.fleet.roles import FleetError, FleetFolder, make_folder
from server.fleet.store import StoreError, open_store

#: Told of each object that is written: its path, and its size in bytes.
Wrote = Callable[[str, int], None]

#: Looks at contents before an order is carried out: the publisher, what it follows, what it would publish.
Check = Callable[[Publisher, Published, Document], None]


def init(args: argparse.Namespace) -> int:
    """Make keys and the folder of a publisher."""
    if not 5 <= args.lease <= 7 * 86_400:
        raise CommandError(f"--lease: expected 5 to 604800 seconds, got {args.lease:g}")
    store = args.store if "://" in args.store else str(Path(args.store).resolve())
    try:
        open_store(store)
    except StoreError as error:
        raise CommandError(str(error)) from None
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


def publish(args: argparse.Namespace) -> int:
    """Publish files, and what else is to hold with them."""
    from server.commands.fleet_files import files_of

    others = (args.policy, args.no_policy, args.trusted_key, args.distrust, args.min_server)
    if not (args.files or any(others)):
        raise CommandError("FILE: expected patch files, or --policy, --trusted-key or --min-server; got none")
    files = files_of(args.files, args.policy, args.trusted_key)

    def change(before: Document) -> tuple[Document, Names]:
        if args.policy is not None or args.no_policy:
            before = replace(before, policy=files.policy)
        keys = changes.with_keys(before.trusted_keys, files.keys, args.distrust)
        before = replace(before, trusted_keys=keys, min_server=args.min_server or before.min_server)
        changes.require_new(files.added, before.revoked)
        return before, changes.with_versions(before.names, files.added, activate=not args.hold)

    def check(publisher: Publisher, published: Published, after: Document) -> None:
        require_signed(publisher, published, after, files.contents)

    return _order(args, change, files.contents, check=check)


def canary(args: argparse.Namespace) -> int:
    """Try a version on a share of the requests."""
    # Here, since it brings FastAPI along, which no other order needs.
    from server.routes.admin import CanaryOrder

    try:
        order = CanaryOrder.model_validate(canary_order(args))
    except ValidationError as error:
        raise CommandError(_mistake(error)) from None
    entry = CanaryEntry(args.version, order.share, order.key, moment_of(time.time()), order.rules())

    def change(before: Document) -> tuple[Document, Names]:
        return before, changes.with_canary(before.names, args.name, entry)

    def check(publisher: Publisher, published: Published, after: Document) -> None:
        versions = after.names[args.name].versions
        both = after.names[args.name].meaning
        assert both is not None, "it has a canary"
        for rule in entry.rules.about_condition:
            for version in both.versions if rule == "max_condition_change" else (args.version,):
                patch = decode_patch(publisher.content(published, versions[version].target))
                if getattr(patch.manifest.body, "condition", None) is None:
                    raise ChangeRefused(
                        f"{args.name}@{version} has no condition for --{rule.replace('_', '-')} to look at"
                    )

    return _order(args, change, check=check)


def _mistake(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    message = problem["msg"].removeprefix("Value error, ").removeprefix("key: ")
    field = "".join(map(str, problem["loc"]))
    if not field:
        # About two of them.
        return re.sub(r"\w+_met", lambda rule: f"--{rule[0].replace('_', '-')}", message)
    flag = field.removesuffix("_s").replace("_", "-")
    if message.startswith("Input should be "):
        message = f"expected a value {message.removeprefix('Input should be ')}, got {problem['input']}"
    return f"--{flag}: {message}"


def end_canary(args: argparse.Namespace) -> int:
    """End a canary, for or against it."""
    is_promoted = args.action == "promote"
    return _order(
        args,
        lambda d: (d, changes.canary_ended(d.names, args.name, is_promoted=is_promoted)),
        ahead=is_promoted,
    )


def withdraw(args: argparse.Namespace) -> int:
    """Take a name out of use."""
    return _order(args, lambda d: (d, changes.without(d.names, args.name)), ahead=False)


def rollback(args: argparse.Namespace) -> int:
    """Go back."""
    if (args.name is None) == (args.to is None):
        raise CommandError("rollback: expected either NAME or --to REVISION")

    def change(before: Document) -> tuple[Document, Names]:
        if args.to is not None:
            return before, changes.as_of(before, args.to)
        older = args.version or changes.version_before(before, args.name)
        return before, changes.gone_back(before, args.name, older)

    return _order(args, change, ahead=False)


def revoke(args: argparse.Namespace) -> int:
    """Never serve a content again."""
    for digest in args.digests:
        if not is_digest(digest):
            raise CommandError(
                f"DIGEST: expected sha256: and 64 hexadecimal digits, as `policypatch inspect` has them, got "
                f"{digest[:80]!r}"
            )

    def change(before: Document) -> tuple[Document, Names]:
        names: Names = before.names
        for name in args.withdraw:
            names = changes.without(names, name)
        return replace(before, revoked=tuple(sorted({*before.revoked, *args.digests}))), names

    return _order(args, change, ahead=False)


def _order(
    args: argparse.Namespace,
    change: Change,
    files: dict[str, bytes] | None = None,
    *,
    ahead: bool = True,
    check: Check | None = None,
) -> int:
    """Publish what ``change`` makes of the revision that is in force.

    Args:
        args: Of the order.
        change: The order.
        files: Target -> content, of what is new.
        ahead: Whether it holds at an instant, where the order does not say when.
        check: Raises where the contents that it concerns are against it.
    """
    if not 0 <= args.keep <= 64:
        raise CommandError(f"--keep: expected 0 to 64 revisions, got {args.keep}")
    ahead_s = args.ahead_s if args.ahead_s is not None else AHEAD_S if ahead and not args.at_once else 0.0
    with _progress(files or {}) as wrote:
        publisher, published = opened(args.directory, wrote)

        def order(is_dry: bool) -> Carried:
            return carry_out(
                publisher,
                published,
                change,
                ahead_s=ahead_s,
                keep=args.keep,
                files=files,
                is_dry=is_dry,
            )

        if check is not None:
            check(publisher, published, order(is_dry=True).after)
        carried = order(is_dry=args.dry_run)
    document, moved = carried.after, moves(carried.before, carried.after)
    if carried.hastened_from is not None:
        complain(
            f"policypatch fleet {args.action}: revision {carried.before.revision}, which was to hold at "
            f"{carried.hastened_from}, holds with this one"
        )
    if carried.is_nothing and not args.json:
        say(f"nothing changes: revision {document.revision} stays")
        return 0
    if args.json:
        say_json({"revision": document.revision, "dry_run": args.dry_run, "changes": moved} | _when(document))
        return 0
    verb = "would publish" if args.dry_run else "published"
    when = f"at {document.effective_at}" if document.effective_at is not None else "as soon as it hears"
    say(f"{verb} revision {document.revision}; each server, {when}:")
    say_lines(f"  {line}" for line in moved or ["no name means anything else"])
    return 0


def stamp(args: argparse.Namespace) -> int:
    """Sign that what is published still holds."""
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


def _when(document: Document) -> dict[str, Any]:
    return {"published_at": document.published_at, "effective_at": document.effective_at}


def opened(directory: Path, wrote: Wrote = lambda path, size: None) -> tuple[Publisher, Published]:
    """Return the publisher of a folder, and what is published.

    Args:
        directory: The folder.
        wrote: Called after each object that is written, with its path and its size in bytes.
    """
    folder = FleetFolder.read(directory)
    publisher = Publisher(folder, open_store(folder.store), wrote=wrote)
    return publisher, publisher.read()


@contextmanager
def _progress(files: Mapping[str, bytes]) -> Iterator[Wrote]:
    """Show how much of the files is written; nothing where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(map(len, files.values())))
        yield lambda path, size: bar.advance(task, size)


def rotate(args: argparse.Namespace) -> int:
    """Replace keys, or sign with those there are for another year."""
    from server.fleet.rotation import rotate as rotated

    folder = FleetFolder.read(args.directory)
    done = rotated(folder, open_store(folder.store), dict.fromkeys(args.names), args.keys)
    say(f"{folder.folder}/root.json: version {done.root_version}; servers that have an earlier one follow")
    if done.replaced:
        say(f"replaced: {', '.join(done.replaced)}; the old keys are in {folder.folder}/keys/retired")
    if done.revision is not None:
        say(f"published revision {done.revision}, in which no name means anything else")
    return 0
