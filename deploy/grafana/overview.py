"""Everything at a glance: traffic, errors, what patches cost, what is served, what is wrong."""

from dataclasses import replace

from deploy.grafana.frame import Panels, Row
from deploy.grafana.panels import ORANGE, OUTCOME_COLORS, RED, Look, Query, lines, number, rows
from deploy.grafana.queries import (
    FIRST_TOKEN,
    INTER_TOKEN,
    REQUESTS,
    firing,
    mean,
    or_zero,
    or_zero_by_patch,
    or_zero_named,
    quantile,
    rate,
    select,
    share,
    short_digests,
)

TITLE = "Overview"
ABOUT = "Everything at a glance. The other dashboards show more of one patch, one server or one canary."
_PATCHED, _UNPATCHED = 'patch!="none"', 'patch="none"'
_SMALL = Look("", "", width=3, height=4)


def dashboard_rows() -> list[Row]:
    """Return the rows of the dashboard."""
    return [
        Row("At a glance", [*_load(), *_health()]),
        Row("Traffic", _traffic()),
        Row("Who asks", _callers()),
        Row("What patches cost", _latency()),
        Row("Tokens and memory", _memory()),
        Row("What is served, and what is wrong", _state()),
    ]


def _load() -> Panels:
    errors = share(rate(REQUESTS, 'outcome="server_error"'), rate(REQUESTS))
    denied = share(rate(REQUESTS, 'outcome="rejected"'), rate(REQUESTS))
    small = replace(_SMALL, unit="percentunit", decimals=1)
    return [
        number(
            replace(_SMALL, title="Servers", about="Servers whose metrics arrive."),
            Query(or_zero(f"count({select('policy_patch_folder_readable')})")),
        ),
        number(
            replace(_SMALL, title="Requests", about="Requests per second, patched or not.", unit="reqps"),
            Query(or_zero(rate(REQUESTS))),
        ),
        number(
            replace(
                small,
                title="Server errors",
                about="Share of requests that ended with 5xx, or with an error after the first byte.",
                thresholds=((0.001, ORANGE), (0.01, RED)),
            ),
            Query(errors),
        ),
        number(
            replace(
                small,
                title="Denied",
                about="Share of requests that were refused: by policy, or because the patch was not there.",
                thresholds=((0.05, ORANGE), (0.2, RED)),
            ),
            Query(denied),
        ),
    ]


def _health() -> Panels:
    served = f"count(count by (patch) ({select('policy_patch_active_info')}))"
    return [
        number(
            replace(
                _SMALL,
                title="Fullest KV cache",
                about="Share of its blocks in use.",
                unit="percentunit",
                maximum=1,
                thresholds=((0.8, ORANGE), (0.95, RED)),
            ),
            Query(or_zero(f"max({select('vllm:kv_cache_usage_perc')})")),
        ),
        number(
            replace(_SMALL, title="Patches served", about="Names that have an active version."),
            Query(or_zero(served)),
        ),
        number(
            replace(
                _SMALL,
                title="Refused files",
                about="Files in the patch folders that are not served; GET /v1/patches says why.",
                thresholds=((1, ORANGE),),
            ),
            Query(or_zero(f"sum({select('policy_patch_refused_files')})")),
        ),
        number(
            replace(
                _SMALL,
                title="Alerts",
                about="Alerts of this project; the table below names them.",
                thresholds=((1, RED),),
            ),
            Query(or_zero(f"count({firing()})")),
        ),
    ]


def _traffic() -> Panels:
    shares = [
        Query(share(rate(REQUESTS, f'outcome="{outcome}"'), rate(REQUESTS)), outcome)
        for outcome in ("server_error", "rejected", "client_error", "cancelled")
    ]
    denials = rate("policy_patch_denied_requests_total", by="reason")
    return [
        lines(
            Look(
                "Requests by patch",
                "Requests per second; `none` is the base model, `unknown` named what does not exist.",
                "reqps",
            ),
            Query(or_zero_by_patch(rate(REQUESTS, by="patch")), "{{patch}}"),
            stacked=True,
        ),
        lines(
            Look(
                "Requests that were not answered",
                "Share of all requests, by how they ended.",
                "percentunit",
                colors=OUTCOME_COLORS,
            ),
            *shares,
        ),
        lines(
            Look("Denials by reason", "Refused requests per second, by error code.", "reqps"),
            Query(or_zero_named(denials, "reason", "no denial"), "{{reason}}"),
        ),
    ]


def _callers() -> Panels:
    look = Look("", "", "reqps")
    callers = rate("policy_patch_caller_requests_total", by="caller")
    unpatched = rate("policy_patch_unpatched_answers_total", by="caller")
    return [
        lines(
            replace(
                look, title="Requests by caller", about="By the rule of the policy that fits the caller."
            ),
            Query(or_zero_named(callers, "caller", "no caller"), "{{caller}}"),
            stacked=True,
        ),
        lines(
            replace(
                look,
                title="Unpatched answers",
                about="Answers of the base model to callers that may choose a patch that was served.",
            ),
            Query(or_zero_named(unpatched, "caller", "no caller"), "{{caller}}"),
        ),
        lines(
            replace(
                look, title="Compositions", about="Requests under several patches at once, by their form."
            ),
            Query(rate("policy_patch_compositions_total", by="form"), "{{form}}"),
        ),
    ]


def _latency() -> Panels:
    def quantiles(histogram: str) -> list[Query]:
        return [
            Query(quantile(q, histogram, matcher), f"{name} p{round(q * 100)}")
            for name, matcher in (("patched", _PATCHED), ("unpatched", _UNPATCHED))
            for q in (0.5, 0.95)
        ]

    def ratio(histogram: str) -> str:
        return f"({mean(histogram, _PATCHED)}) / ({mean(histogram, _UNPATCHED)})"

    look = Look("", "", "s", without_value="No request was answered yet")
    return [
        lines(
            replace(look, title="Time to first token", about="Median and 95th percentile."),
            *quantiles(FIRST_TOKEN),
        ),
        lines(
            replace(look, title="Time between tokens", about="Median and 95th percentile."),
            *quantiles(INTER_TOKEN),
        ),
        lines(
            replace(
                look,
                title="Patched against unpatched",
                about="Mean with a patch, divided by the mean without: 1 means that patches cost nothing. "
                "It compares whatever was asked; prompts of different length differ too.",
                unit="suffix:x",
                decimals=2,
                thresholds=((1.25, ORANGE),),
                without_value="Needs requests of both kinds",
            ),
            Query(ratio(FIRST_TOKEN), "first token"),
            Query(ratio(INTER_TOKEN), "between tokens"),
        ),
    ]


def _memory() -> Panels:
    look = Look("", "", "short", width=6)
    return [
        lines(
            replace(look, title="Tokens", about="Tokens per second over all requests, prefixes left out."),
            Query(or_zero(rate("policy_patch_prompt_tokens_total")), "prompt"),
            Query(or_zero(rate("policy_patch_generation_tokens_total")), "generated"),
        ),
        lines(
            replace(
                look,
                title="KV cache used",
                about="Share of the blocks in use, by server.",
                unit="percentunit",
                maximum=1,
            ),
            Query(f"max by (instance) ({select('vllm:kv_cache_usage_perc')})", "{{instance}}"),
        ),
        lines(
            replace(
                look,
                title="Prefix tokens",
                about="Tokens of prefixes per second: written into the KV cache, or found there already.",
            ),
            Query(or_zero(rate("policy_patch_injected_tokens_total")), "injected"),
            Query(or_zero(rate("policy_patch_shared_tokens_total")), "shared"),
        ),
        lines(
            replace(
                look, title="Memory of patches", about="Bytes by tier, and what is allowed.", unit="bytes"
            ),
            Query(f"sum by (tier) ({select('policy_patch_tier_bytes')})", "{{tier}}"),
            Query(f"sum by (tier) ({select('policy_patch_tier_limit_bytes')})", "{{tier}} limit"),
        ),
    ]


def _state() -> Panels:
    since = f"max by (patch, version) ({select('policy_patch_active_since_timestamp_seconds')}) * 1000"
    failures = (
        f"sum by (reason) (increase({select('policy_patch_load_failures_total', window='$__range')})) > 0"
    )
    return [
        rows(
            Look("Active versions", "What a bare name means, and on how many servers.", width=11),
            Query(short_digests(f"count by (patch, version, digest) ({select('policy_patch_active_info')})")),
            Query(since),
            columns={
                "patch": "Patch",
                "version": "Version",
                "digest": "Digest",
                "Value #A": "Servers",
                "Value #B": "Active",
            },
            units={"Active": "dateTimeFromNow"},
            order="Patch",
        ),
        rows(
            Look(
                "Alerts firing", "docs/runbooks.md says what to do.", width=9, without_value="No alert fires"
            ),
            Query(firing()),
            columns={"alertname": "Alert", "severity": "Severity", "patch": "Patch", "instance": "Server"},
        ),
        rows(
            Look(
                "Refusals by reason",
                "Refusals of files in the time shown, each attempt counted.",
                decimals=0,
                width=4,
                without_value="No file was refused",
            ),
            Query(failures),
            columns={"reason": "Reason", "Value": "Refusals"},
            order="Refusals",
            descending=True,
        ),
    ]
