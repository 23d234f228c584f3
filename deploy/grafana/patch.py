"""One patch: its golden signals, its canary beside the stable version, its memory, steering, its changes."""

from dataclasses import replace

from deploy.grafana.frame import Panels, Row
from deploy.grafana.panels import (
    ARM_COLORS,
    ORANGE,
    OUTCOME_COLORS,
    RED,
    Look,
    Query,
    lines,
    number,
    rows,
)
from deploy.grafana.queries import (
    ARM_FIRST_TOKEN,
    ARM_REQUESTS,
    FIRST_TOKEN,
    INTER_TOKEN,
    PATCH,
    REQUESTS,
    increase,
    or_zero,
    or_zero_named,
    quantile,
    rate,
    select,
    share,
    short_digests,
)

TITLE = "Patch"
ABOUT = "One patch: traffic, errors, latency, load, its canary, what it takes, what changed."
_VERSION = 'version=~"$version"'
_NO_CANARY = "No canary runs"
_NO_REQUEST = "No request was answered yet"
_SMALL = Look("", "", width=4, height=4)


def dashboard_rows() -> list[Row]:
    """Return the rows of the dashboard."""
    return [
        Row("$patch at a glance", _glance()),
        Row("Golden signals", _signals()),
        Row("Canary against stable", [*_arms(), *_differences()]),
        Row("Tokens and memory", _memory()),
        Row("Steering", _steering()),
        Row("Changes", _changes()),
    ]


def _glance() -> Panels:
    errors = share(rate(REQUESTS, PATCH, 'outcome="server_error"'), rate(REQUESTS, PATCH))
    since = f"max({select('policy_patch_active_since_timestamp_seconds', PATCH)}) * 1000"
    seconds = replace(_SMALL, unit="s", without_value="none yet")
    return [
        number(
            replace(_SMALL, title="Active version", about="Several where servers are out of step."),
            Query(
                f"count by (version) ({select('policy_patch_active_info', PATCH, _VERSION)})", "{{version}}"
            ),
            trend=False,
            shows_name=True,
        ),
        number(
            replace(_SMALL, title="Active", about="Since the latest change.", unit="dateTimeFromNow"),
            Query(since),
            trend=False,
        ),
        number(
            replace(_SMALL, title="Requests", about="Requests per second.", unit="reqps"),
            Query(or_zero(rate(REQUESTS, PATCH))),
        ),
        number(
            replace(
                _SMALL,
                title="Server errors",
                about="Share of its requests that ended with 5xx, or with an error after the first byte.",
                unit="percentunit",
                decimals=1,
                thresholds=((0.001, ORANGE), (0.01, RED)),
            ),
            Query(errors),
        ),
        number(
            replace(seconds, title="First token", about="95th percentile of the time to the first token."),
            Query(quantile(0.95, FIRST_TOKEN, PATCH)),
        ),
        number(
            replace(_SMALL, title="In flight", about="Requests that run now."),
            Query(or_zero(f"sum({select('policy_patch_requests_running', PATCH)})")),
        ),
    ]


def _signals() -> Panels:
    def quantiles(histogram: str) -> list[Query]:
        return [Query(quantile(q, histogram, PATCH), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]

    look = Look("", "", "s", width=6, without_value=_NO_REQUEST)
    return [
        lines(
            Look("Requests by outcome", "Requests per second.", "reqps", 6, colors=OUTCOME_COLORS),
            Query(or_zero_named(rate(REQUESTS, PATCH, by="outcome"), "outcome", "ok"), "{{outcome}}"),
            stacked=True,
        ),
        lines(
            replace(look, title="Time to first token", about="From admission; by percentile."),
            *quantiles(FIRST_TOKEN),
        ),
        lines(
            replace(look, title="Time between tokens", about="Of all its streams; by percentile."),
            *quantiles(INTER_TOKEN),
        ),
        lines(
            Look(
                "Denials by reason",
                "Refused requests per second that named it; and those that it answered under other weights.",
                "reqps",
                6,
            ),
            Query(
                or_zero_named(
                    rate("policy_patch_denied_requests_total", PATCH, by="reason"), "reason", "no denial"
                ),
                "{{reason}}",
            ),
            Query(or_zero(rate("policy_patch_mismatched_requests_total", PATCH)), "under other weights"),
        ),
    ]


def _arms() -> Panels:
    look = Look("", "", width=8, colors=ARM_COLORS, without_value=_NO_CANARY)
    errors = " / ".join(
        (rate(ARM_REQUESTS, PATCH, 'outcome="server_error"', by="arm"), rate(ARM_REQUESTS, PATCH, by="arm"))
    )
    return [
        lines(
            replace(look, title="Requests by arm", about="Requests per second.", unit="reqps"),
            Query(rate(ARM_REQUESTS, PATCH, by="arm"), "{{arm}}"),
        ),
        lines(
            replace(look, title="Server errors by arm", about="Share of its requests.", unit="percentunit"),
            Query(f"({errors}) or 0 * {rate(ARM_REQUESTS, PATCH, by='arm')}", "{{arm}}"),
        ),
        lines(
            replace(look, title="First token by arm", about="95th percentile.", unit="s"),
            Query(quantile(0.95, ARM_FIRST_TOKEN, PATCH, by="arm"), "{{arm}}"),
        ),
    ]


def _differences() -> Panels:
    def errors(arm: str) -> str:
        matchers = (PATCH, f'arm="{arm}"')
        part = or_zero(rate(ARM_REQUESTS, *matchers, 'outcome="server_error"'))
        return f"({part}) / {rate(ARM_REQUESTS, *matchers)}"

    def first_token(arm: str, q: float) -> str:
        return quantile(q, ARM_FIRST_TOKEN, PATCH, f'arm="{arm}"')

    look = Look("", "", width=12, height=6, minimum=None, without_value=_NO_CANARY)
    return [
        lines(
            replace(
                look,
                title="Difference in server errors",
                about="Canary less stable: above 0 the canary is worse.",
                unit="percentunit",
            ),
            Query(f"({errors('canary')}) - ({errors('stable')})", "canary less stable"),
        ),
        lines(
            replace(
                look,
                title="Difference in time to first token",
                about="Canary less stable: above 0 the canary is slower.",
                unit="s",
            ),
            *[
                Query(f"{first_token('canary', q)} - {first_token('stable', q)}", f"p{round(q * 100)}")
                for q in (0.5, 0.95)
            ],
        ),
    ]


def _memory() -> Panels:
    look = Look("", "", width=6)
    resident = select("policy_patch_resident_bytes", PATCH, _VERSION)
    return [
        lines(
            replace(look, title="Tokens", about="Tokens per second, its own prefix left out."),
            Query(or_zero(rate("policy_patch_prompt_tokens_total", PATCH)), "prompt"),
            Query(or_zero(rate("policy_patch_generation_tokens_total", PATCH)), "generated"),
        ),
        number(
            replace(
                look, title="Tokens in the time shown", about="Prompt and generated tokens, for the bill."
            ),
            Query(
                " + ".join(
                    f"({or_zero(increase(f'policy_patch_{kind}_tokens_total', PATCH, window='$__range'))})"
                    for kind in ("prompt", "generation")
                )
            ),
            trend=False,
        ),
        lines(
            replace(
                look,
                title="Prefix tokens",
                about="Tokens of its prefix per second: written into the KV cache, or found there already.",
            ),
            Query(or_zero(rate("policy_patch_injected_tokens_total", PATCH)), "injected"),
            Query(or_zero(rate("policy_patch_shared_tokens_total", PATCH)), "shared"),
        ),
        lines(
            replace(look, title="Memory", about="Bytes of its K/V over all workers.", unit="bytes"),
            Query(f"sum by (version) ({resident})", "{{version}}"),
            Query(f"sum({select('policy_patch_previous_bytes', PATCH)})", "kept for a rollback"),
        ),
    ]


def _steering() -> Panels:
    def decided(outcome: str) -> str:
        return or_zero(rate("policy_patch_condition_total", PATCH, f'outcome="{outcome}"'))

    return [
        lines(
            Look("Steered tokens", "Tokens of prompts and answers per second that its vector acted on."),
            Query(or_zero(rate("policy_patch_steered_tokens_total", PATCH)), "steered"),
        ),
        lines(
            Look("Condition", "Requests per second by whether its condition was met.", "reqps"),
            Query(decided("met"), "met"),
            Query(decided("not_met"), "not met"),
        ),
        lines(
            Look(
                "Margin of the condition",
                "By how much the deciding score is above its threshold: the median. Near 0 it is unsure.",
                minimum=None,
                without_value="No condition was decided yet",
            ),
            Query(quantile(0.5, "policy_patch_condition_margin", PATCH), "median"),
        ),
    ]


def _changes() -> Panels:
    # An increase would miss the first change of each kind, which makes its series.
    swaps = f"sum by (cause, outcome) ({select('policy_patch_swaps_total', PATCH)})"
    orders = (
        f"max by (version, action, by, outcome) ({select('policy_patch_order_timestamp_seconds', PATCH)})"
    )
    return [
        rows(
            Look(
                "Swaps",
                "Changes of what the name means since the servers started, by cause and outcome.",
                decimals=0,
                width=7,
                without_value="Nothing was changed since the start",
            ),
            Query(swaps),
            columns={"cause": "Cause", "outcome": "Outcome", "Value": "Swaps"},
            order="Swaps",
            descending=True,
        ),
        rows(
            Look(
                "Orders", "The latest orders, and who gave them.", width=9, without_value="No order was given"
            ),
            Query(f"{orders} * 1000"),
            columns={
                "Value": "When",
                "action": "Order",
                "version": "Active then",
                "by": "By",
                "outcome": "Outcome",
            },
            units={"When": "dateTimeAsIso"},
            order="When",
            descending=True,
        ),
        rows(
            Look("Versions", "All versions that workers hold."),
            Query(f"sum by (version) ({select('policy_patch_resident_bytes', PATCH)})"),
            Query(short_digests(f"count by (version, digest) ({select('policy_patch_active_info', PATCH)})")),
            columns={
                "version": "Version",
                "Value #A": "Bytes",
                "Value #B": "Active on",
                "digest": "Digest",
            },
            units={"Bytes": "bytes"},
            order="Version",
        ),
    ]
