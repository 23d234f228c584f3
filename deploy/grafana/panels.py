"""The kinds of panels that the dashboards are made of, each with its common options.

A panel says what it shows in a sentence, has a unit, and shows text of its own where there can be no value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

#: Chosen in the variable of the same name.
PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "#8e8e8e"
#: How a request ended, the same colour everywhere.
OUTCOME_COLORS = {
    "ok": GREEN,
    "rejected": YELLOW,
    "client_error": ORANGE,
    "server_error": RED,
    "cancelled": GREY,
}
ARM_COLORS = {"stable": BLUE, "canary": ORANGE}
#: Unit -> how far an axis goes at least; Grafana draws an axis up to 100 where everything is 0.
_SMALLEST_TOP = {"percentunit": 0.1, "reqps": 1, "ops": 1, "short": 1}
#: Label -> the pixels of its column in a table, so that nothing of it is cut off.
_WIDTHS = {"alertname": 230, "severity": 80, "digest": 165}
Transformations = Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Query:
    """One query of a panel, with the name that its series get."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Look:
    """What a panel says and how its values are shown."""

    title: str
    #: A sentence or two; Grafana shows it at the corner of the panel.
    about: str
    unit: str = "short"
    width: int = 8
    height: int = 8
    decimals: int | None = None
    minimum: float | None = 0
    maximum: float | None = None
    #: ``(from this value on, colour)``; below the first one everything is green.
    thresholds: Sequence[tuple[float, str]] = ()
    #: Shown where there is no value, and 0 would be untrue.
    without_value: str = ""
    #: Name of a series -> its colour.
    colors: Mapping[str, str] = field(default_factory=dict)
    #: Value -> text and colour.
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class _Panel(Protocol):
    """What the builders of all panels can do."""

    def title(self, title: str) -> Any: ...
    def description(self, description: str) -> Any: ...
    def datasource(self, datasource: models.DataSourceRef) -> Any: ...
    def span(self, w: int) -> Any: ...
    def height(self, h: int) -> Any: ...
    def unit(self, unit: str) -> Any: ...
    def decimals(self, decimals: float) -> Any: ...
    def min(self, min_val: float) -> Any: ...
    def max(self, max_val: float) -> Any: ...
    def no_value(self, no_value: str) -> Any: ...
    def mappings(self, mappings: list[models.ValueMapping]) -> Any: ...
    def thresholds(self, thresholds: Builder[models.ThresholdsConfig]) -> Any: ...
    def color_scheme(self, color: Builder[models.FieldColor]) -> Any: ...
    def override_by_name(self, name: str, properties: list[models.DynamicConfigValue]) -> Any: ...
    def with_target(self, target: Builder[Any]) -> Any: ...


PanelT = TypeVar("PanelT", bound=_Panel)


def lines(
    look: Look, *queries: Query, stacked: bool = False, bands: Sequence[tuple[str, str]] = ()
) -> timeseries.Panel:
    """Return lines over time.

    Args:
        look: What it says.
        queries: What it shows.
        stacked: Whether the areas stand on each other.
        bands: ``(upper, lower)`` names of series between which the area is filled.
    """
    panel = _with(timeseries.Panel(), look, queries)
    # A line along a stack would show the colour of the last series where that is 0.
    panel.line_width(0 if stacked else 2).fill_opacity(60 if stacked else 0).span_nulls(False)
    panel.show_points(common_models.VisibilityMode.NEVER)
    if look.maximum is None and look.unit in _SMALLEST_TOP:
        panel.axis_soft_max(_SMALLEST_TOP[look.unit])
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if look.thresholds:
        panel.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    for upper, lower in bands:
        edge = [
            models.DynamicConfigValue("custom.lineWidth", 0),
            models.DynamicConfigValue("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False}),
        ]
        panel.override_by_name(
            upper,
            [
                *edge,
                models.DynamicConfigValue("custom.fillBelowTo", lower),
                models.DynamicConfigValue("custom.fillOpacity", 20),
            ],
        )
        panel.override_by_name(lower, edge)
    panel.tooltip(
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )
    return panel.legend(_legend())


def number(look: Look, query: Query, *, trend: bool = True, shows_name: bool = False) -> stat.Panel:
    """Return one number in large type, coloured by its thresholds, with its course behind it.

    Args:
        look: What it says.
        query: What it shows.
        trend: Whether the course is drawn.
        shows_name: Whether the name of each series is shown in place of its value.
    """
    panel = _with(stat.Panel(), look, [query], instant=not trend)
    panel.color_mode(common_models.BigValueColorMode.VALUE)
    mode = common_models.BigValueTextMode.NAME if shows_name else common_models.BigValueTextMode.VALUE
    panel.text_mode(mode)
    graph = common_models.BigValueGraphMode.AREA if trend else common_models.BigValueGraphMode.NONE
    return panel.graph_mode(graph).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def bars(look: Look, *queries: Query) -> bargauge.Panel:
    """Return a bar for each series, filled as far as its last value goes."""
    panel = _with(bargauge.Panel(), look, queries, instant=True)
    panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    panel.name_placement(common_models.BarGaugeNamePlacement.TOP)
    return panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def timeline(look: Look, *queries: Query, legend: bool = False) -> statetimeline.Panel:
    """Return a row for each series that shows in which state it was when."""
    panel = _with(statetimeline.Panel(), look, queries)
    panel.merge_values(True).show_value(common_models.VisibilityMode.NEVER)
    panel.row_height(0.8).fill_opacity(80)
    return panel.legend(_legend() if legend else common.VizLegendOptions().show_legend(False))


def rows(
    look: Look,
    *queries: Query,
    columns: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    order: str = "",
    descending: bool = False,
    limit: int | None = None,
) -> table.Panel:
    """Return a table of what holds now.

    Args:
        look: What it says.
        queries: Each one's labels and value become columns; several are joined by the labels they share.
        columns: Label, or ``Value #A`` for a query's value -> heading. What is not named is left out.
        units: Heading -> unit.
        order: Heading that the rows are ordered by.
        descending: Whether the largest comes first.
        limit: How many rows there are at most.
    """
    panel = _with(table.Panel(), look, queries, instant=True, as_table=True)
    names = list(columns)
    # Without their times, which would keep rows of several queries apart.
    steps: list[tuple[str, Mapping[str, Any]]] = [("filterFieldsByName", {"include": {"names": names}})]
    steps.append(("merge", {}))
    steps.append(
        (
            "organize",
            {"indexByName": {name: i for i, name in enumerate(names)}, "renameByName": dict(columns)},
        )
    )
    if order:
        steps.append(("sortBy", {"sort": [{"field": order, "desc": descending}]}))
    if limit is not None:
        steps.append(("limit", {"limitField": str(limit)}))
    for name, options in steps:
        panel.with_transformation(models.DataTransformerConfig(id_val=name, options=dict(options)))
    for heading, unit in (units or {}).items():
        properties = [models.DynamicConfigValue("unit", unit)]
        if unit == "dateTimeAsIso":
            properties.append(models.DynamicConfigValue("custom.width", 165))
        panel.override_by_name(heading, properties)
    for name, pixels in _WIDTHS.items():
        if name in columns:
            panel.override_by_name(columns[name], [models.DynamicConfigValue("custom.width", pixels)])
    # Below Grafana's own 150 pixels, so that six columns stand side by side in half a row.
    return panel.cell_height(common_models.TableCellHeight.SM).min_width(70)


def _with(
    panel: PanelT, look: Look, queries: Sequence[Query], *, instant: bool = False, as_table: bool = False
) -> PanelT:
    panel.title(look.title)
    panel.description(look.about)
    panel.datasource(PROMETHEUS)
    panel.span(look.width)
    panel.height(look.height)
    panel.unit(look.unit)
    if look.decimals is not None:
        panel.decimals(look.decimals)
    if look.minimum is not None and not as_table:
        panel.min(look.minimum)
    if look.maximum is not None:
        panel.max(look.maximum)
    if look.without_value:
        panel.no_value(look.without_value)
    panel.mappings([_text(value, *shown) for value, shown in look.texts.items()])
    steps = [models.Threshold(value=None, color=GREEN)]
    steps += [models.Threshold(value=value, color=color) for value, color in look.thresholds]
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    is_lines = isinstance(panel, timeseries.Panel)
    mode = models.FieldColorModeId.PALETTE_CLASSIC if is_lines else models.FieldColorModeId.THRESHOLDS
    panel.color_scheme(dashboard.FieldColor().mode(mode))
    for name, color in look.colors.items():
        value = {"mode": "fixed", "fixedColor": color}
        panel.override_by_name(name, [models.DynamicConfigValue("color", value)])
    for i, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + i), instant=instant, as_table=as_table))
    return panel


def _target(query: Query, ref_id: str, *, instant: bool, as_table: bool) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expression).ref_id(ref_id).datasource(PROMETHEUS)
    target.editor_mode(prometheus_models.QueryEditorMode.CODE)
    target.legend_format(query.legend or "__auto")
    if as_table:
        target.format(prometheus_models.PromQueryFormat.TABLE)
    return target.instant() if instant else target.range()


def _text(value: str, text: str, color: str) -> models.ValueMapping:
    result = models.ValueMappingResult(text=text, color=color)
    return models.ValueMap(options={value: result})


def _legend() -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True)
    return legend.display_mode(common_models.LegendDisplayMode.LIST).placement(
        common_models.LegendPlacement.BOTTOM
    )
