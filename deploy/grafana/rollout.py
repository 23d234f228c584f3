"""One canary, for the person who decides about it: its share, its two arms, how near its rules are."""

from dataclasses import replace

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.frame import Panels, Row
from deploy.grafana.panels import ARM_COLORS, ORANGE, RED, Look, Query, bars, lines, number, rows
from deploy.grafana.queries import (
    ARM_CONDITION,
    ARM_FIRST_TOKEN,
    ARM_REQUESTS,
    PATCH,
    increase,
    or_zero,
    quantile,
    rate,
    select,
)

TITLE = "Rollout"
ABOUT = "One canary, for the person who promotes or aborts it. Bands hold the true value 95 times of 100."
_WINDOW = "$window"
_CANARY = 'arm="canary"'
_NO_CANARY = "No canary runs"
#: Of the normal distribution, for 95 %.
_Z = 1.96
_Q = 0.9
#: What the rules judge: refusals and clients that went away are no fault of a version.
_JUDGED = 'outcome=~"ok|server_error"'
_SMALL = Look("", "", width=4, height=4, without_value=_NO_CANARY)
_WIDE = Look("", "", width=8, height=9, without_value=_NO_CANARY)


def dashboard_rows() -> list[Row]:
    """Return the rows of the dashboard."""
    return [
        Row("The canary of $patch", _glance()),
        Row("Its two arms over the last $window", [_errors(), _first_token(), _condition()]),
        Row("What the rules say", _rules()),
        Row("Share and orders", _orders()),
    ]


def _glance() -> Panels:
    wanted = select("policy_patch_canary_wanted_ratio", PATCH)
    given = select("policy_patch_canary_given_ratio", PATCH)
    look = replace(_SMALL, unit="percentunit", decimals=1)

    def judged(arm: str) -> Query:
        return Query(or_zero(increase(ARM_REQUESTS, PATCH, f'arm="{arm}"', _JUDGED, window=_WINDOW)))

    return [
        number(
            replace(_SMALL, title="Version on trial", about="What a share of the requests gets."),
            Query(f"max by (version) ({wanted})", "{{version}}"),
            trend=False,
            shows_name=True,
        ),
        number(
            replace(_SMALL, title="Stable version", about="What all others get.", without_value=""),
            Query(f"count by (version) ({select('policy_patch_active_info', PATCH)})", "{{version}}"),
            trend=False,
            shows_name=True,
        ),
        number(
            replace(look, title="Share wanted", about="As the order says."),
            Query(f"avg({wanted})"),
            trend=False,
        ),
        number(
            replace(look, title="Share given", about="Since the trial began; callers may keep their arm."),
            Query(f"avg({given})"),
            trend=False,
        ),
        number(
            replace(_SMALL, title="Canary's requests", about="Answered or failed, in $window.", decimals=0),
            judged("canary"),
        ),
        number(
            replace(_SMALL, title="Stable requests", about="Answered or failed, in $window.", decimals=0),
            judged("stable"),
        ),
    ]


def _share(metric: str, part: str, *whole: str) -> list[Query]:
    """Return for each arm the share and Wilson's interval, which holds for few requests too."""
    queries: list[Query] = []
    for arm in ARM_COLORS:
        matchers = (PATCH, f'arm="{arm}"')
        n = f"({increase(metric, *matchers, *whole, window=_WINDOW)} > 0)"
        k = f"(({increase(metric, *matchers, part, window=_WINDOW)}) or 0 * {n})"
        centre = f"({k} + {_Z**2 / 2:.2f})"
        spread = f"{_Z} * sqrt({k} * ({n} - {k}) / {n} + {_Z**2 / 4:.2f})"
        size = f"({n} + {_Z**2:.2f})"
        queries += [
            Query(f"{k} / {n}", arm),
            Query(f"clamp_min(({centre} - {spread}) / {size}, 0)", f"{arm} low"),
            Query(f"clamp_max(({centre} + {spread}) / {size}, 1)", f"{arm} high"),
        ]
    return queries


def _errors() -> Builder[models.Panel]:
    return _banded(
        replace(
            _WIDE,
            title="Server errors",
            about="Share of the judged requests. Where the bands overlap, the arms may be alike.",
            unit="percentunit",
        ),
        _share(ARM_REQUESTS, 'outcome="server_error"', _JUDGED),
    )


def _condition() -> Builder[models.Panel]:
    return _banded(
        replace(
            _WIDE,
            title="Condition met",
            about="Share of the requests for which the condition of the vector was met, in shadow mode too.",
            unit="percentunit",
            without_value="Neither version has a condition",
        ),
        _share(ARM_CONDITION, 'outcome="met"'),
    )


def _first_token() -> Builder[models.Panel]:
    def bounds(arm: str) -> list[Query]:
        """Return the quantile, and the quantiles that hold the true one: their ranks are binomial."""
        matchers = (PATCH, f'arm="{arm}"')
        n = increase(f"{ARM_FIRST_TOKEN}_count", *matchers, window=_WINDOW)
        spread = f"{_Z * (_Q * (1 - _Q)) ** 0.5:.3f} / sqrt({n})"
        low, high = f"scalar(clamp_min({_Q} - {spread}, 0))", f"scalar(clamp_max({_Q} + {spread}, 1))"
        return [
            Query(quantile(q, ARM_FIRST_TOKEN, *matchers, window=_WINDOW), name)
            for q, name in ((_Q, arm), (low, f"{arm} low"), (high, f"{arm} high"))
        ]

    return _banded(
        replace(
            _WIDE,
            title="Time to first token",
            about=f"{_Q:.0%} of the requests were faster. Where the bands overlap, the arms may be alike.",
            unit="s",
        ),
        [query for arm in ARM_COLORS for query in bounds(arm)],
    )


def _banded(look: Look, queries: list[Query]) -> Builder[models.Panel]:
    colors = {f"{arm}{edge}": color for arm, color in ARM_COLORS.items() for edge in ("", " low", " high")}
    bands = [(f"{arm} high", f"{arm} low") for arm in ARM_COLORS]
    return lines(replace(look, colors=colors), *queries, bands=bands)


def _rules() -> Panels:
    def progress(rule: str, part: str = "value", whole: str = "limit") -> str:
        parts = [select(f"policy_patch_canary_rule_{column}", PATCH, rule) for column in (part, whole)]
        return f"max by (rule) ({parts[0]} / {parts[1]})"

    at_most, at_least = 'rule=~"max_.+"', 'rule="min_condition_met"'
    progress_made = 'rule=~"min_requests|promote_after_s"'
    look = Look("", "", "percentunit", width=8, height=7, without_value=_NO_CANARY)
    values = [
        f"max by (rule) ({select(f'policy_patch_canary_rule_{column}', PATCH)})"
        for column in ("value", "limit")
    ]
    return [
        bars(
            replace(
                look,
                title="How far rules are from firing",
                about="Value divided by limit, of the smallest share the other way: at 100 % it is aborted.",
                maximum=1,
                thresholds=((0.7, ORANGE), (1, RED)),
                without_value="No rule is set",
            ),
            Query(progress(at_most), "{{rule}}"),
            Query(progress(at_least, "limit", "value"), "{{rule}}"),
        ),
        bars(
            replace(
                look,
                title="How far the trial has come",
                about="At 100 % there are enough requests to judge, and the time to promote is over.",
                maximum=1,
            ),
            Query(progress(progress_made), "{{rule}}"),
        ),
        rows(
            replace(look, title="Rules", about="What each rule looks at now, and its limit.", unit="short"),
            *[Query(value) for value in values],
            columns={"rule": "Rule", "Value #A": "Now", "Value #B": "Limit"},
            order="Rule",
        ),
    ]


def _orders() -> Panels:
    wanted = select("policy_patch_canary_wanted_ratio", PATCH)
    orders = select("policy_patch_order_timestamp_seconds")
    return [
        lines(
            Look(
                "Share of the requests",
                "What the canary got in each moment, and what the order says.",
                "percentunit",
                width=12,
                without_value=_NO_CANARY,
            ),
            Query(f"avg({wanted})", "wanted"),
            Query(
                f"{rate(ARM_REQUESTS, PATCH, _CANARY)} / {rate(ARM_REQUESTS, PATCH)}",
                "given",
            ),
        ),
        rows(
            Look(
                "Last ten orders",
                "Of all patches, the newest first. Rules that abort or promote are orders too.",
                width=12,
                without_value="No order was given",
            ),
            Query(f"max by (patch, action, version, by, outcome) ({orders}) * 1000"),
            columns={
                "Value": "When",
                "patch": "Patch",
                "action": "Order",
                "version": "Active then",
                "by": "By",
                "outcome": "Outcome",
            },
            units={"When": "dateTimeAsIso"},
            order="When",
            descending=True,
            limit=10,
        ),
    ]
