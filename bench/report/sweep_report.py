"""Tables and a plot of a sweep, made from records alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.report.figures import Metric, Spread
from bench.report.quiet import QUIET, quiet_ratio
from bench.report.record import Record
from bench.report.sweep_axes import SWEEPS

#: (series, position on the axis) of a cell.
Place = tuple[str, int]


def measured(records: Sequence[Record], metric: Metric) -> dict[Place, dict[tuple[str, int], float]]:
    """Return place -> (run, round) -> value, without the rounds that warm up."""
    found: dict[Place, dict[tuple[str, int], float]] = {}
    for record in records:
        setup = record.setup
        value = None if setup["is_warmup"] else metric.value(record)
        if value is not None:
            place = (str(setup["series"]), int(setup["x_idx"]))
            found.setdefault(place, {})[record.run_id, int(setup["round"])] = value
    return dict(sorted(found.items()))


def ratios_to_first(records: Sequence[Record], metric: Metric) -> dict[Place, list[float]]:
    """Return place -> ratios to the first cell of its series in the same round; the first has none."""
    cells = measured(records, metric)
    ratios = {}
    for (series, x_idx), by_round in cells.items():
        first = cells.get((series, 0), {})
        pairs = [value / first[key] for key, value in by_round.items() if x_idx and first.get(key)]
        if pairs:
            ratios[series, x_idx] = pairs
    return ratios


def quiet_ratios(records: Sequence[Record], metric: Metric) -> dict[Place, tuple[float, float, float]]:
    """Return place -> ratio to the first cell of its series in the quietest rounds, and its interval."""
    cells = measured(records, metric)
    found = {
        place: quiet_ratio(by_round, cells.get((place[0], 0), {}))
        for place, by_round in cells.items()
        if place[1]
    }
    return {place: ratio for place, ratio in found.items() if ratio is not None}


def labels_of(records: Sequence[Record]) -> dict[int, int | str]:
    """Return position on the axis -> value there."""
    return dict(sorted({int(r.setup["x_idx"]): r.setup["x"] for r in records}.items()))


def summarise_sweep(records: Sequence[Record]) -> dict[str, Any]:
    """Return "series x" -> metric -> spread, and the spread of its ratio to the first cell."""
    labels = labels_of(records)
    summary: dict[str, Any] = {}
    for metric in SWEEPS[records[0].question].metrics:
        ratios = ratios_to_first(records, metric)
        for place, by_round in measured(records, metric).items():
            cell = summary.setdefault(f"{place[0]} {labels[place[1]]}".strip(), {})
            cell[metric.name] = Spread.of(by_round.values()).as_dict()
            if place in ratios:
                cell[f"{metric.name}_ratio"] = Spread.of(ratios[place]).as_dict()
        for place, ratio in _quiet(records, metric).items():
            cell = summary[f"{place[0]} {labels[place[1]]}".strip()]
            cell[f"{metric.name}_quiet_ratio"] = [round(value, 5) for value in ratio]
    return summary


def sweep_tables(records: Sequence[Record]) -> str:
    """Render medians with quartiles, then ratios to the first cell of each series."""
    sweep = SWEEPS[records[0].question]
    labels = labels_of(records)
    metrics = [metric for metric in sweep.metrics if measured(records, metric)]
    places = sorted({place for metric in metrics for place in measured(records, metric)})
    head = [sweep.axis, *([""] if any(series for series, _ in places) else [])]
    rows = [[*_place(place, labels, len(head)), *_medians(records, metrics, place)] for place in places]
    ratio_rows = [
        [*_place(place, labels, len(head)), *_ratios(records, metrics, place)] for place in places if place[1]
    ]
    columns = [f"{metric.label}, {metric.unit}" for metric in metrics]
    better = [f"{m.label} ({'higher' if m.is_higher_better else 'lower'} is better)" for m in metrics]
    parts = [f"## {sweep.title.capitalize()}\n", _table([*head, *columns], rows, len(head))]
    parts.append(f"Median over the rounds (quartiles). {sweep.note}\n")
    if ratio_rows:
        parts += [_table([*head, *better], ratio_rows, len(head))]
        parts += [f"Ratio to {labels[0]} within each round: median (least to greatest).\n"]
    if sweep.quiet:
        parts += [_quiet_table(records, metrics, places, head)]
        parts += [
            f"Ratio to {labels[0]} of the quantile {QUIET:g} over the rounds, where other work disturbs "
            "least (90 % interval).\n"
        ]
    return "\n".join(parts)


def _quiet(records: Sequence[Record], metric: Metric) -> dict[Place, tuple[float, float, float]]:
    return quiet_ratios(records, metric) if metric.name in SWEEPS[records[0].question].quiet else {}


def _quiet_table(
    records: Sequence[Record], metrics: Sequence[Metric], places: Sequence[Place], head: Sequence[str]
) -> str:
    found = {metric.label: ratios for metric in metrics if (ratios := _quiet(records, metric))}
    labels = labels_of(records)
    rows = [
        [*_place(place, labels, len(head)), *(_interval(ratios.get(place)) for ratios in found.values())]
        for place in places
        if any(place in ratios for ratios in found.values())
    ]
    return _table([*head, *found], rows, len(head))


def _interval(ratio: tuple[float, float, float] | None) -> str:
    return "-" if ratio is None else f"{ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f})"


def _place(place: Place, labels: dict[int, int | str], num_columns: int) -> list[str]:
    return [str(labels[place[1]]), place[0]][:num_columns]


def _medians(records: Sequence[Record], metrics: Sequence[Metric], place: Place) -> list[str]:
    texts = []
    for metric in metrics:
        values = measured(records, metric).get(place, {}).values()
        spread = Spread.of(values) if values else None
        texts.append(
            "-"
            if spread is None
            else f"{_digits(spread.median * metric.scale)} "
            f"({_digits(spread.p25 * metric.scale)} to {_digits(spread.p75 * metric.scale)})"
        )
    return texts


def _ratios(records: Sequence[Record], metrics: Sequence[Metric], place: Place) -> list[str]:
    spreads = [ratios_to_first(records, metric).get(place) for metric in metrics]
    return [
        "-" if not values else f"{s.median:.3f} ({s.minimum:.3f} to {s.maximum:.3f})"
        for values in spreads
        for s in (Spread.of(values or [0.0]),)
    ]


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int) -> str:
    rule = [":--" if i < num_text_columns else "--:" for i in range(len(header))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def sweep_provenance(record: Record, num_rounds: int) -> str:
    """Return where and with what the records of a run were made."""
    where, setup = record.environment, record.setup
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    commit = f"{where['git_commit'] or 'unknown'}{' with changes' if where['git_has_changes'] else ''}"
    return "\n".join(
        [
            "## Where\n",
            f"- run `{record.run_id}`, {where['date']}, commit {commit}",
            f"- {where['cpu_model']}, {where['num_usable_cores']} cores, "
            f"{where['memory_bytes'] / 2**30:.0f} GiB, {'; '.join(where['gpus']) or 'no GPU'}; "
            f"{where['os']}; load {where['load_average_1m']:.2f} at the start",
            f"- Python {where['python']}, {versions}",
            f"- model {setup['model']}, patches of {setup['num_virtual_tokens']} tokens, "
            f"seed {setup['seed']}, {num_rounds} rounds",
            f"- `{setup['command']}`",
            "",
        ]
    )


def sweep_markdown(records: Sequence[Record]) -> str:
    """Render the whole report."""
    parts = [f"# {records[0].question}\n", sweep_tables(records)]
    first_of_run = {record.run_id: record for record in reversed(records)}
    for run_id, record in reversed(first_of_run.items()):
        turns = {r.setup["round"] for r in records if r.run_id == run_id and not r.setup["is_warmup"]}
        parts.append(sweep_provenance(record, len(turns)))
    return "\n".join(parts)


def draw_sweep(records: Sequence[Record], paths: Sequence[Path]) -> None:
    """Draw one panel per metric: every round as a dot, medians joined, a colour per series.

    Raises:
        OSError: a path cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from bench.report.plot import COLOURS

    sweep, labels = SWEEPS[records[0].question], labels_of(records)
    metrics = [metric for metric in sweep.metrics if measured(records, metric)]
    num_rows = -(-len(metrics) // 4)
    figure = Figure(figsize=(3.2 * min(4, len(metrics)) + 0.6, 2.9 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, min(4, len(metrics)), squeeze=False).flat
    for panel, metric in zip(panels, metrics, strict=False):
        cells = measured(records, metric)
        for index, series in enumerate(dict.fromkeys(name for name, _ in cells)):
            line = {x: list(v.values()) for (name, x), v in cells.items() if name == series}
            colour = COLOURS[index % len(COLOURS)]
            for x, values in line.items():
                panel.plot(
                    [x] * len(values), [v * metric.scale for v in values], "o", color=colour, alpha=0.4, ms=3
                )
            medians = [Spread.of(values).median * metric.scale for values in line.values()]
            panel.plot(list(line), medians, "-", color=colour, label=series or None)
        panel.set_xticks(list(labels), [str(label) for label in labels.values()])
        panel.set_ylim(bottom=0)
        panel.set_title(f"{metric.label}, {metric.unit}", fontsize="medium")
        panel.set_xlabel(sweep.axis)
        panel.grid(alpha=0.3)
    for panel in list(figure.axes)[len(metrics) :]:
        panel.set_axis_off()
    if any(record.setup["series"] for record in records):
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.suptitle(f"{records[0].question}: {sweep.title}, {records[0].setup['model']}", fontsize="medium")
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else {})
