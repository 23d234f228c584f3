"""``policypatch fleet``: one signed catalog for many servers."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from patches.argument_values import finite
from server.commands import fleet_look, fleet_orders
from server.commands.canary_arguments import add_rule_arguments
from server.commands.output import complain
from server.commands.patches import version
from server.commands.server_access import add_api_key_argument
from server.fleet import changes
from server.fleet.changes import ChangeRefused
from server.fleet.document import DocumentInvalid
from server.fleet.orders import AHEAD_S
from server.fleet.prometheus import PrometheusError
from server.fleet.roles import LEASE_S, ONLINE_ROLES, ROOT_KEYS, FleetError
from server.fleet.store import StoreError
from server.options import patch_name

DESCRIPTION = """\
Publish what many servers serve: patches, canaries, the policy, trusted keys and revocations, as one signed
catalog with one revision number. Servers follow it with `serve --catalog URL --catalog-root root.json`.
DIR is the publisher's folder, with its keys."""

EPILOG = """\
examples:
  policypatch fleet init fleet --store fleet/store      # then serve fleet/store by any web server
  policypatch fleet publish fleet tone-1.0.0.safetensors safety-1.3.0.safetensors --policy policy.yaml
  policypatch fleet publish fleet tone-1.1.0.safetensors --hold
  policypatch fleet canary fleet tone 1.1.0 --share 0.05 --max-error-rate 0.02 --promote-after 3600
  policypatch fleet promote fleet tone
  policypatch fleet rollback fleet tone
  policypatch fleet rollback fleet --to 41 --dry-run
  policypatch fleet revoke fleet sha256:1f0c... --withdraw tone
  policypatch fleet stamp fleet --every 30
  policypatch fleet status fleet --server http://one:8000 --server http://two:8000
  policypatch fleet fence fleet --prometheus http://prometheus:9090
  policypatch fleet judge fleet --prometheus http://prometheus:9090
  policypatch fleet rotate fleet timestamp --keys /media/stick-1 --keys /media/stick-2
  policypatch fleet verify https://store.example --root fleet/root.json
  policypatch fleet show fleet --json"""


_KEY_NAMES = ", ".join((*ROOT_KEYS, *ONLINE_ROLES))


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
    _add_rotate(add("rotate", "replace keys, or sign with those there are for another year"))
    add("show", "show what is published", shown)
    servers = _server_arguments()
    add("status", "show where every server stands", servers, shown)
    fence = add("fence", "wait until nothing older than what is published can be served", servers)
    fence.add_argument("--timeout", type=finite, metavar="S", help="give up after S seconds, with 1")
    _add_judge(add("judge", "judge the canaries by what all servers count together"))
    _add_verify(actions)


def _server_arguments() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(add_help=False)
    servers = arguments.add_argument_group("servers")
    servers.add_argument(
        "--server",
        dest="servers",
        metavar="URL",
        action="append",
        default=[],
        help="one server, not a gateway; once for each",
    )
    servers.add_argument("--prometheus", metavar="URL", help="a Prometheus that scrapes all of them")
    _add_match(servers)
    add_api_key_argument(servers)
    return arguments


def _order_arguments() -> argparse.ArgumentParser:
    order = argparse.ArgumentParser(add_help=False)
    moment = order.add_argument_group("when").add_mutually_exclusive_group()
    moment.add_argument(
        "--in",
        dest="ahead_s",
        type=finite,
        metavar="S",
        help=f"hold everywhere in S seconds, at one instant (default: {AHEAD_S:g}; going back: at once)",
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
    add_rule_arguments(canary, "header:X-Session-Id")


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
    publish.add_argument(
        "--distrust",
        metavar="NAME",
        action="append",
        default=[],
        help="a key that no longer counts: NAME.pub",
    )
    publish.add_argument("--min-server", metavar="V", help="lowest version of policypatch that can serve it")


def _add_match(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--match",
        type=_matcher,
        metavar="MATCHER",
        action="append",
        default=[],
        help="a label by which Prometheus knows the servers of this fleet from others, as 'job=\"chat\"'",
    )


def _matcher(text: str) -> str:
    if not re.fullmatch(r'[A-Za-z_]\w*(=|!=|=~|!~)"[^"\\]*"', text):
        raise argparse.ArgumentTypeError(f'expected one as job="chat", got {text[:80]!r}')
    return text


def _key_name(text: str) -> str:
    # `choices` would refuse none at all.
    if text not in (*ROOT_KEYS, *ONLINE_ROLES):
        raise argparse.ArgumentTypeError(f"expected one of {_KEY_NAMES}, got {text[:80]!r}")
    return text


def _add_rotate(rotate: argparse.ArgumentParser) -> None:
    rotate.add_argument(
        "names",
        metavar="KEY",
        nargs="*",
        type=_key_name,
        help=f"{_KEY_NAMES}; none: only sign anew",
    )
    rotate.add_argument(
        "--keys",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="a further folder with keys of root, two of which have to sign",
    )


def _add_judge(judge: argparse.ArgumentParser) -> None:
    judge.add_argument(
        "--prometheus", metavar="URL", required=True, help="a Prometheus that scrapes all servers"
    )
    _add_match(judge)
    judge.add_argument(
        "--every", type=finite, metavar="S", default=15.0, help="seconds between looks (default: 15)"
    )
    judge.add_argument("--once", action="store_true", help="look once")
    judge.add_argument("--dry-run", action="store_true", help="only say what would be published")


def _add_verify(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "check a whole store as a server does, without serving it"
    verify = actions.add_parser("verify", help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    verify.add_argument("catalog", metavar="CATALOG", help="as serve --catalog takes it: a URL, or a folder")
    verify.add_argument("--root", type=Path, metavar="FILE", required=True, help="as serve --catalog-root")


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
    except (FleetError, StoreError, PrometheusError) as error:
        complain(f"policypatch fleet {args.action}: {error}")
    return 1


_ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": fleet_orders.init,
    "publish": fleet_orders.publish,
    "canary": fleet_orders.canary,
    "promote": fleet_orders.end_canary,
    "abort": fleet_orders.end_canary,
    "withdraw": fleet_orders.withdraw,
    "rollback": fleet_orders.rollback,
    "revoke": fleet_orders.revoke,
    "stamp": fleet_orders.stamp,
    "rotate": fleet_orders.rotate,
    "show": fleet_look.show,
    "status": fleet_look.status,
    "fence": fleet_look.fence,
    "judge": fleet_look.judge,
    "verify": fleet_look.verify,
}
