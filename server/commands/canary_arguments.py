"""The arguments of a canary, of one server and of a fleet."""

import argparse
from typing import Any

from patches.argument_values import finite
from server.versions import sticky


def add_rule_arguments(canary: argparse.ArgumentParser, default_key: str) -> None:
    """Declare who gets it, and what ends it."""
    rules = canary.add_argument_group("rules")
    rules.add_argument(
        "--share",
        type=finite,
        metavar="R",
        default=0.05,
        help="share of requests, up to 1 (default: 0.05)",
    )
    rules.add_argument(
        "--key",
        metavar="KEY",
        default=default_key,
        help=f"what keeps a caller on one version: {sticky.MEANING} (default: {default_key})",
    )
    rules.add_argument("--max-error-rate", type=finite, metavar="R", help="abort above this, 0 to 1")
    rules.add_argument(
        "--max-first-token",
        type=finite,
        metavar="S",
        help="abort where the 90th percentile of the time to the first token is above S seconds",
    )
    for rule, where in {
        "min-condition-met": "is met by a smaller share of requests, 0 to 1",
        "max-condition-met": "is met by a larger share of requests, 0 to 1",
        "max-condition-change": "is met by a share that is further than R from the stable version's",
    }.items():
        rules.add_argument(f"--{rule}", type=finite, metavar="R", help=f"abort where the condition {where}")
    rules.add_argument(
        "--promote-after", type=finite, metavar="S", help="promote after keeping the rules for S seconds"
    )
    rules.add_argument(
        "--min-requests", type=int, metavar="N", default=20, help="judge no fewer requests (default: 20)"
    )
    rules.add_argument(
        "--window",
        type=finite,
        default=300.0,
        metavar="S",
        help="judge the requests of the last S seconds (default: 300)",
    )


def canary_order(args: argparse.Namespace) -> dict[str, Any]:
    """Return the order that the arguments make, by the fields of ``server.routes.admin.CanaryOrder``."""
    return {
        "version": args.version,
        "share": args.share,
        "key": args.key,
        "max_error_rate": args.max_error_rate,
        "max_first_token_s": args.max_first_token,
        "min_condition_met": args.min_condition_met,
        "max_condition_met": args.max_condition_met,
        "max_condition_change": args.max_condition_change,
        "promote_after_s": args.promote_after,
        "min_requests": args.min_requests,
        "window_s": args.window,
    }
