"""What ``policypatch fleet`` sees: what is published, what each server makes of it, how canaries go."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from server.commands.errors import CommandError
from server.commands.fleet_orders import opened
from server.commands.fleet_report import described, entry_rows, standing_rows
from server.commands.output import complain, say, say_json, say_lines
from server.commands.server_access import key_of_variable, server_url
from server.fleet.prometheus import Prometheus, PrometheusError
from server.fleet.roles import FleetError
from server.fleet.standing import Standing, ask_prometheus, ask_server
from server.fleet.store import StoreError

#: Seconds by which the clock of a server may be behind without its noticing: its lease ends so much later.
_SKEW_S = 60.0


def show(args: argparse.Namespace) -> int:
    """Show what is published."""
    _, published = opened(args.directory)
    if published.document is None:
        raise FleetError("nothing is published yet")
    if args.json:
        say_json(described(published))
    else:
        say_lines(entry_rows(published))
    return 0


def status(args: argparse.Namespace) -> int:
    """Show where every server stands; 1 where one is not at the newest revision."""
    _, published = opened(args.directory)
    if published.document is None:
        raise FleetError("nothing is published yet")
    newest = published.document.revision
    standings = _standings(args)
    if args.json:
        servers = [one.described() for one in standings]
        say_json({"published": newest, "lease_ends_s": published.lease_ends_s, "servers": servers})
    else:
        say_lines(standing_rows(standings, newest))
    return 0 if standings and all(one.is_at(newest) for one in standings) else 1


def fence(args: argparse.Namespace) -> int:
    """Return once nothing older than what is published can be served any more."""
    _, published = opened(args.directory)
    if published.document is None or published.lease_ends_s is None:
        raise FleetError("nothing is published yet")
    newest = published.document.revision
    # Whatever was stamped before this revision ends no later than what stamps it.
    over_s = published.lease_ends_s + _SKEW_S
    has_servers = bool(args.servers or args.prometheus)
    ends_s = time.monotonic() + (args.timeout if args.timeout is not None else float("inf"))
    seen = None
    while True:
        standings = _standings(args) if has_servers else []
        there = sum(one.is_at(newest) for one in standings)
        left_s = over_s - time.time()
        if standings and there == len(standings):
            say(f"revision {newest} is in force on all {there} servers")
            return 0
        if left_s <= 0:
            say(f"every lease from before revision {newest} has run out")
            return 0
        if there != seen:
            seen = there
            away = ", ".join(one.server for one in standings if not one.is_at(newest))
            known = f"not at revision {newest} yet: {away}; " if has_servers else ""
            complain(f"{known}at the latest, leases from before it end in {left_s:.0f} s")
        if time.monotonic() >= ends_s:
            complain(f"policypatch fleet fence: not fenced after {args.timeout:g} s")
            return 1
        time.sleep(min(1.0, left_s))


def verify(args: argparse.Namespace) -> int:
    """Check a store as a server does; 1 where no server would take it."""
    from server.fleet.verification import verify_store

    try:
        root = args.root.read_bytes()
    except OSError as error:
        raise CommandError(f"--root: {args.root}: {error.strerror or error}") from error
    num_bad = num = 0
    with tempfile.TemporaryDirectory(prefix="policypatch-") as folder:
        for one in verify_store(args.catalog, root, Path(folder)):
            num += 1
            if one.problem is not None:
                num_bad += 1
                say(f"refused  {one.what}: {one.problem}")
            elif one.warning is not None:
                say(f"warning  {one.what}: {one.warning}")
            else:
                say(f"ok       {one.what}")
    if num_bad:
        complain(f"policypatch fleet verify: a server would refuse {num_bad} of {num}")
    return 1 if num_bad else 0


def judge(args: argparse.Namespace) -> int:
    """Judge the canaries of the catalog, again and again."""
    from server.fleet.judge import FleetJudge

    if not 1 <= args.every <= 3600:
        raise CommandError(f"--every: expected 1 to 3600 seconds, got {args.every:g}")
    prometheus = Prometheus(server_url(args.prometheus, "--prometheus"), args.match)
    publisher, _ = opened(args.directory)
    judging = FleetJudge(publisher, prometheus, is_dry=args.dry_run)
    said: dict[str, str] | None = None
    while True:
        try:
            now = {}
            for one in judging.look():
                now[one.name] = one.line(is_dry=args.dry_run)
                if (said or {}).get(one.name) != now[one.name]:
                    say(now[one.name])
            if not now and said != now:
                say("no canary runs")
            said = now
        except (PrometheusError, FleetError, StoreError) as error:
            if args.once:
                raise
            # A canary that is not judged stays at its share.
            complain(f"policypatch fleet judge: {error}; trying again in {args.every:g} s")
        if args.once:
            return 0
        time.sleep(args.every)


def _standings(args: argparse.Namespace) -> Sequence[Standing]:
    if not (args.servers or args.prometheus):
        raise CommandError("expected servers to ask: --server URL for each, or --prometheus URL")
    key = key_of_variable(args.api_key_env)
    found = [ask_server(server_url(url, "--server"), key) for url in args.servers]
    if args.prometheus:
        found += ask_prometheus(Prometheus(server_url(args.prometheus, "--prometheus"), args.match))
    return found
