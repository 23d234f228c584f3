"""What all dashboards have: variables, links to each other, marks at every change of what is served."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from deploy.grafana.panels import BLUE, ORANGE, PROMETHEUS, RED
from deploy.grafana.queries import SERVERS

TAG = "policypatch"
Panels = Sequence[Builder[models.Panel]]
#: Actions of orders that take something back.
_BACKWARDS = "rollback|abort"


@dataclass(frozen=True)
class Row:
    """A heading, and the panels below it."""

    title: str
    panels: Panels


@dataclass(frozen=True)
class Mark:
    """A line through all panels of a dashboard, where something changed."""

    name: str
    #: Its values are times, in seconds.
    expression: str
    title: str
    color: str


def marks(patch: str) -> list[Mark]:
    """Return the marks for what happens to patches that the matcher chooses."""
    selector = f"{SERVERS}, {patch}"
    orders = f"policy_patch_order_timestamp_seconds{{{selector}, "
    return [
        Mark(
            "Activations",
            f"max by (patch, version) (policy_patch_active_since_timestamp_seconds{{{selector}}})",
            "{{patch}} {{version}} became active",
            BLUE,
        ),
        Mark(
            "Rollbacks and aborts",
            f'max by (patch, action, version, by) ({orders}action=~"{_BACKWARDS}"}})',
            "{{patch}}: {{action}} by {{by}}, now {{version}}",
            RED,
        ),
        Mark(
            "Other orders",
            f'max by (patch, action, version, by) ({orders}action!~"{_BACKWARDS}"}})',
            "{{patch}}: {{action}} by {{by}}, now {{version}}",
            ORANGE,
        ),
    ]


def variable(name: str, label: str, query: str, *, several: bool) -> dashboard.QueryVariable:
    """Return a variable whose values are those of a label; ``several`` may be chosen, all at first."""
    built = dashboard.QueryVariable(name).label(label).query({"query": query, "refId": name, "qryType": 1})
    built.datasource(PROMETHEUS).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    built.sort(models.VariableSort.ALPHABETICAL_ASC)
    if several:
        every = models.VariableOption(text="All", value="$__all", selected=True)
        built.multi(True).include_all(True).all_value(".*").current(every)
    return built


def patch_variable(*, several: bool) -> dashboard.QueryVariable:
    """Return the variable with the names of served patches."""
    query = f"label_values(policy_patch_active_info{{{SERVERS}}}, patch)"
    return variable("patch", "Patch", query, several=several)


def window_variable() -> dashboard.CustomVariable:
    """Return the variable for how far back figures with few requests look."""
    values = ("5m", "15m", "1h", "6h", "1d")
    options = [models.VariableOption(text=v, value=v, selected=v == "15m") for v in values]
    built = dashboard.CustomVariable("window").label("Look back").values(",".join(values))
    return built.options(options).current(options[1])


def write(
    name: str,
    title: str,
    about: str,
    rows: Sequence[Row],
    *,
    variables: Sequence[Builder[models.VariableModel]] = (),
    patch: str = 'patch=~".*"',
) -> str:
    """Return a dashboard as the JSON that Grafana loads.

    Args:
        name: Of the file; the dashboard's own id is made of it.
        title: Shown in Grafana, behind the name of the project.
        about: What the dashboard is for.
        rows: Its panels.
        variables: Beside data source and servers.
        patch: Matcher for the patches whose changes are marked.
    """
    board = dashboard.Dashboard(f"policypatch / {title}").uid(f"{TAG}-{name}").description(about)
    board.tags([TAG]).editable().timezone("browser").time("now-1h", "now").refresh("30s")
    board.tooltip(models.DashboardCursorSync.CROSSHAIR)
    board.link(
        dashboard.DashboardLink("policypatch")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    servers = "label_values(policy_patch_folder_readable, instance)"
    board.with_variable(variable("instance", "Server", servers, several=True))
    for more in variables:
        board.with_variable(more)
    for row in rows:
        board.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            board.with_panel(panel)
    document = json.loads(JSONEncoder().encode(board.build()))
    for number, panel in enumerate(document["panels"], 1):
        panel["id"] = number
        # Newer Grafana has another footer, and none is wanted.
        panel.get("options", {}).pop("footer", None)
    for built in document["templating"]["list"]:
        # The SDK writes what only variables of intervals have.
        for name in ("auto", "auto_min", "auto_count"):
            built.pop(name, None)
    document["annotations"] = {"list": [_annotation(mark) for mark in marks(patch)]}
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _annotation(mark: Mark) -> dict[str, Any]:
    # The SDK's class lacks the fields of Prometheus' annotations. Times of Grafana are milliseconds.
    return {
        "name": mark.name,
        "datasource": {"type": PROMETHEUS.type_val, "uid": PROMETHEUS.uid},
        "enable": True,
        "hide": False,
        "iconColor": mark.color,
        "expr": f"{mark.expression} * 1000",
        "titleFormat": mark.title,
        "useValueForTime": True,
        "step": "10s",
    }
