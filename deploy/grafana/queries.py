"""PromQL that several dashboards use. Every selector is limited to the chosen servers."""

#: The chosen servers; dashboards have the variable.
SERVERS = 'instance=~"$instance"'
#: Grafana makes this at least four scrapes, so that a rate has two samples to look at.
WINDOW = "$__rate_interval"
#: The one patch that a dashboard is about.
PATCH = 'patch="$patch"'

REQUESTS = "policy_patch_requests_total"
FIRST_TOKEN = "policy_patch_time_to_first_token_seconds"
INTER_TOKEN = "policy_patch_inter_token_latency_seconds"
ARM_REQUESTS = "policy_patch_arm_requests_total"
ARM_CONDITION = "policy_patch_arm_condition_total"
ARM_FIRST_TOKEN = "policy_patch_arm_first_token_seconds"


def select(metric: str, *matchers: str, window: str = "", offset: str = "") -> str:
    """Return a selector, over ``window`` if one is given."""
    duration = f"[{window}]" if window else ""
    shift = f" offset {offset}" if offset else ""
    return f"{metric}{{{', '.join([SERVERS, *matchers])}}}{duration}{shift}"


def rate(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Return the sum of rates per second."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({select(metric, *matchers, window=window)}))"


def increase(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Return the sum of increases over a window."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (increase({select(metric, *matchers, window=window)}))"


def quantile(share: float | str, histogram: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Return a quantile of a histogram; NaN where nothing was observed."""
    groups = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', *matchers, by=groups, window=window)})"


def mean(histogram: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Return the mean of a histogram's observations; NaN where nothing was observed."""
    total = rate(f"{histogram}_sum", *matchers, by=by, window=window)
    return f"{total} / {rate(f'{histogram}_count', *matchers, by=by, window=window)}"


def or_zero(expression: str) -> str:
    """Return the expression, or one 0 where nothing was counted yet."""
    return f"({expression}) or vector(0)"


def or_zero_named(expression: str, label: str, value: str) -> str:
    """Return the expression, or one 0 that carries a label where nothing was counted yet."""
    return f'({expression}) or on () label_replace(vector(0), "{label}", "{value}", "", "")'


def or_zero_by_patch(expression: str) -> str:
    """Return the expression, and 0 for each served patch that it lacks."""
    return f"({expression}) or on (patch) 0 * max by (patch) ({select('policy_patch_requests_running')})"


def share(part: str, whole: str) -> str:
    """Return a share that is 0 where there is nothing to divide."""
    return f"(({part}) / (({whole}) > 0)) or vector(0)"


def firing(matchers: str = "") -> str:
    """Return the alerts of this project that fire."""
    return f'ALERTS{{alertstate="firing", alertname=~"PolicyPatch.+"{matchers}}}'


def short_digests(expression: str) -> str:
    """Return the series with a digest that a person can compare: its first twelve digits."""
    return f'label_replace({expression}, "digest", "$1", "digest", "(sha256:.{{12}}).*")'
