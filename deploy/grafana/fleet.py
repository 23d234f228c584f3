"""Many servers: which versions each serves, who is out of step, how changes arrive, what room is left."""

from dataclasses import replace

from deploy.grafana.frame import Panels, Row
from deploy.grafana.panels import GREEN, ORANGE, RED, Look, Query, lines, number, rows, timeline
from deploy.grafana.queries import or_zero, or_zero_named, quantile, rate, select

TITLE = "Fleet"
ABOUT = "Many servers: who serves which version since when, who is out of step, how much room is left."
_PATCHES = 'patch=~"$patch"'
_ACTIVE = select("policy_patch_active_info", _PATCHES)
#: Names that not all servers resolve to the same content.
_SKEWED = f"count by (patch) (count by (patch, digest) ({_ACTIVE})) > 1"
_SMALL = Look("", "", width=4, height=4, decimals=0)


def dashboard_rows() -> list[Row]:
    """Return the rows of the dashboard."""
    return [
        Row("At a glance", _glance()),
        Row("Who serves what", _versions()),
        Row("The fleet's catalog", _catalog()),
        Row("How changes arrive", [*_changes(), *_files()]),
        Row("Room", [*_room(), *_memory()]),
        Row("Each server", _servers()),
    ]


def _glance() -> Panels:
    scan = f"time() - min({select('policy_patch_folder_scan_timestamp_seconds')})"
    out_of_step = select("policy_patch_front_ends", 'state="out_of_step"')
    restarts = f"sum(changes({select('policy_patch_start_timestamp_seconds', window='$__range')}))"
    return [
        number(
            replace(_SMALL, title="Servers", about="Servers whose metrics arrive."),
            Query(or_zero(f"count({select('policy_patch_folder_readable')})")),
        ),
        number(
            replace(
                _SMALL,
                title="Patches out of step",
                about="Names that mean different contents on different servers.",
                thresholds=((1, RED),),
            ),
            Query(or_zero(f"count({_SKEWED})")),
        ),
        number(
            replace(
                _SMALL,
                title="Front ends out of step",
                about="Processes that refuse every request since they missed a change.",
                thresholds=((1, RED),),
            ),
            Query(or_zero(f"sum({out_of_step})")),
        ),
        number(
            replace(_SMALL, title="Restarts", about="In the time shown.", thresholds=((1, ORANGE),)),
            Query(or_zero(restarts), ""),
            trend=False,
        ),
        number(
            replace(
                _SMALL,
                title="Oldest folder scan",
                about="Time since the server that is furthest behind could read its patch folder.",
                unit="s",
                thresholds=((30, ORANGE), (120, RED)),
            ),
            Query(scan),
        ),
        number(
            replace(
                _SMALL,
                title="Unreadable folders",
                about="Servers that cannot read their patch folder: changes have no effect there.",
                thresholds=((1, RED),),
            ),
            Query(or_zero(f"count({select('policy_patch_folder_readable')} == 0)")),
        ),
    ]


def _versions() -> Panels:
    differs = f"count by (instance) ({_ACTIVE} and on (patch) ({_SKEWED}))"
    in_step = f"({differs}) or on (instance) 0 * {select('policy_patch_folder_readable')}"
    return [
        timeline(
            Look(
                "Active versions",
                "A bar for each version while a server serves it: skew shows as bars that overlap.",
                width=14,
                height=10,
                texts={"1": ("active", GREEN)},
            ),
            Query(f"max by (patch, version, instance) ({_ACTIVE})", "{{patch}} {{version}} · {{instance}}"),
        ),
        timeline(
            Look(
                "In step",
                "Red while a name means something else on another server; the value says how many names.",
                width=10,
                height=10,
                texts={"0": ("in step", GREEN)},
                thresholds=((1, RED),),
            ),
            Query(in_step, "{{instance}}"),
        ),
    ]


def _catalog() -> Panels:
    look = Look("", "", width=8, height=8, without_value="No server follows a catalog")
    revision = f"{select('policy_patch_catalog_revision')} > 0"
    left = f"({select('policy_patch_catalog_lease_end_timestamp_seconds')} > 0) - time()"
    failures = rate("policy_patch_catalog_sync_failures_total", by="reason")
    return [
        timeline(
            replace(
                look,
                title="Revision by server",
                about="A bar for each revision while a server serves it: bars end together, but for servers "
                "that are behind.",
            ),
            Query(f"max by (instance) ({revision})", "{{instance}}"),
        ),
        lines(
            replace(
                look,
                title="Lease",
                about="Time until servers refuse what needs a required patch. A saw above two thirds of it "
                "is healthy; a slope down to 0 is a stamper that died.",
                unit="s",
            ),
            Query(f"min by (instance) ({left})", "{{instance}}"),
        ),
        lines(
            replace(
                look,
                title="Looks that brought nothing in",
                about="Per second, by reason. What serves stays, until its lease ends.",
                unit="ops",
                without_value="No look has failed",
            ),
            Query(f"{failures} > 0", "{{reason}}"),
        ),
    ]


def _changes() -> Panels:
    look = Look("", "", without_value="Nothing was changed yet")
    swaps = rate("policy_patch_swap_seconds_count", by="cause")
    held = quantile(0.95, "policy_patch_weight_hold_seconds")
    others = rate("policy_patch_swaps_total", _PATCHES, 'outcome!="ok"', by="outcome")
    starts = select("policy_patch_start_timestamp_seconds", window="1h")
    return [
        lines(
            replace(
                look,
                title="Swap latency",
                about="95th percentile, by cause: until every worker and process holds what serves. And how "
                "long requests waited while weights changed.",
                unit="s",
            ),
            Query(quantile(0.95, "policy_patch_swap_seconds", by="cause"), "{{cause}}"),
            Query(or_zero(f"{held} >= 0"), "requests wait for weights"),
        ),
        lines(
            replace(
                look,
                title="Swaps",
                about="Changes per second: those that took effect by cause, and those that were refused or "
                "failed.",
                unit="ops",
            ),
            Query(swaps, "{{cause}}"),
            Query(or_zero_named(others, "outcome", "refused"), "{{outcome}}"),
            stacked=True,
        ),
        lines(
            replace(look, title="Restarts by server", about="In the hour before.", decimals=0),
            Query(f"sum by (instance) (changes({starts}))", "{{instance}}"),
        ),
    ]


def _files() -> Panels:
    reloads = rate("policy_patch_policy_reloads_total", by="outcome")
    return [
        lines(
            Look(
                "From file to serving",
                "From reading a patch file to its being served.",
                "s",
                width=12,
                without_value="No file was loaded yet",
            ),
            *[Query(quantile(q, "policy_patch_load_seconds"), f"p{round(q * 100)}") for q in (0.5, 0.95)],
        ),
        lines(
            Look(
                "Changes of the policy file",
                "Changes per second that came into force, and that were refused.",
                "ops",
                width=12,
                colors={"ok": GREEN, "refused": RED},
            ),
            Query(reloads, "{{outcome}}"),
        ),
    ]


def _memory() -> Panels:
    look = Look("", "", width=6)
    return [
        lines(
            replace(look, title="Patches by tier", about="Patches in host memory, and those only on disk."),
            Query(f"sum by (tier) ({select('policy_patch_tier_patches')})", "{{tier}}"),
        ),
        lines(
            replace(
                look,
                title="Waiting for a prefix",
                about="95th percentile, by server: from the first request that waited to the prefix in host "
                "memory.",
                unit="s",
                without_value="No request had to wait",
            ),
            Query(quantile(0.95, "policy_patch_tier_wait_seconds", by="instance"), "{{instance}}"),
        ),
        lines(
            replace(
                look,
                title="Writing prefixes",
                about="99th percentile, by server: time of one worker in one engine step.",
                unit="s",
                thresholds=((0.05, ORANGE),),
                without_value="No prefix was written yet",
            ),
            Query(quantile(0.99, "policy_patch_injection_seconds", by="instance"), "{{instance}}"),
        ),
        lines(
            replace(
                look, title="Pinned blocks", about="Blocks that `--pin-blocks` keeps, and how many may be."
            ),
            Query(f"sum({select('policy_patch_pinned_blocks')})", "pinned"),
            Query(f"sum({select('policy_patch_pinned_blocks_limit')})", "limit"),
        ),
    ]


def _room() -> Panels:
    used = select("policy_patch_tier_bytes")
    limit = select("policy_patch_tier_limit_bytes")
    look = Look("", "", width=6)
    return [
        lines(
            replace(look, title="Requests", about="In flight, by server; and those that wait."),
            Query(f"sum by (instance) ({select('policy_patch_requests_running')})", "{{instance}}"),
            Query(f"sum by (instance) ({select('vllm:num_requests_waiting')})", "{{instance}} waiting"),
        ),
        lines(
            replace(look, title="KV cache used", about="Share of the blocks.", unit="percentunit", maximum=1),
            Query(f"max by (instance) ({select('vllm:kv_cache_usage_perc')})", "{{instance}}"),
        ),
        lines(
            replace(
                look,
                title="Memory of patches",
                about="Share of what each tier may take.",
                unit="percentunit",
                thresholds=((0.9, ORANGE),),
            ),
            Query(
                f"sum by (instance, tier) ({used}) / (sum by (instance, tier) ({limit}) > 0)",
                "{{instance}} {{tier}}",
            ),
        ),
        lines(
            replace(
                look,
                title="Loads and evictions",
                about="Prefixes per second that were brought into a tier, or evicted from it.",
                unit="ops",
            ),
            Query(rate("policy_patch_tier_loads_total", by="tier"), "{{tier}} loads"),
            Query(rate("policy_patch_tier_evictions_total", by="tier"), "{{tier}} evictions"),
        ),
    ]


def _servers() -> Panels:
    build = select("policy_patch_build_info")
    started = f"max by (instance) ({select('policy_patch_start_timestamp_seconds')}) * 1000"
    served = f"count by (instance) ({select('policy_patch_active_info')})"
    refused = f"max by (instance) ({select('policy_patch_refused_files')})"
    return [
        rows(
            Look("What each server runs", "Versions, model, and since when.", width=24),
            Query(f"max by (instance, version, vllm, model) ({build})"),
            Query(started),
            Query(served),
            Query(refused),
            Query(f"max by (instance, writer) ({select('policy_patch_writer_info')})"),
            columns={
                "instance": "Server",
                "version": "policypatch",
                "vllm": "vLLM",
                "model": "Model",
                "writer": "Written by",
                "Value #B": "Started",
                "Value #C": "Patches",
                "Value #D": "Refused files",
            },
            units={"Started": "dateTimeFromNow"},
            order="Server",
        )
    ]
