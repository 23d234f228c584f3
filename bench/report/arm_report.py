"""Tables of arms, made from records alone.

Records of several runs may be joined: ratios are still taken within one round of one run.
"""

from collections.abc import Iterable, Sequence

from bench.load.arms import ARMS, PAIRS
from bench.report.figures import (
    METRICS,
    Metric,
    Spread,
    cells_of,
    concurrencies_of,
    judge_goals,
    ratios_of,
)
from bench.report.record import Record


def arm_markdown(records: Sequence[Record]) -> str:
    """Render tables: what was measured, ratios, goals, and where."""
    parts = [f"# {records[0].question}\n"]
    for concurrency in concurrencies_of(records):
        parts.append(f"## Concurrency {concurrency}\n")
        parts.append(_arm_table(records, concurrency))
        parts.append(_ratio_table(records, concurrency))
    parts.append(_goal_table(records))
    parts.append(_provenance(records))
    return "\n".join(parts)


def _arm_table(records: Sequence[Record], concurrency: int) -> str:
    rows = []
    for name, arm in ARMS.items():
        spreads = [cells_of(records, name, metric, concurrency).values() for metric in METRICS]
        if spreads[0]:
            figures = [_figure(Spread.of(v), m) if v else "-" for v, m in zip(spreads, METRICS, strict=True)]
            rows.append([f"`{name}`", arm.meaning, *figures])
    header = ["arm", "what it is", *(f"{metric.label}, {metric.unit}" for metric in METRICS)]
    return _table(header, rows, num_text_columns=2) + "\nMedian over the rounds (quartiles).\n"


def _ratio_table(records: Sequence[Record], concurrency: int) -> str:
    rows = []
    for arm, reference in PAIRS:
        ratios = [ratios_of(records, arm, reference, metric, concurrency).values() for metric in METRICS]
        if ratios[0]:
            rows.append([f"`{arm}` / `{reference}`", *(_ratio(v) for v in ratios)])
    better = [f"{m.label} ({'higher' if m.is_higher_better else 'lower'} is better)" for m in METRICS]
    note = "\nRatio within each round: median (least to greatest).\n"
    return _table(["ratio", *better], rows, num_text_columns=1) + note


def _goal_table(records: Sequence[Record]) -> str:
    rows = [
        [
            f"`{v['ratio']}`",
            str(v["concurrency"]),
            f"≥ {v['goal']}",
            f"{v['median']:.3f}",
            "met" if v["is_met"] else "missed",
        ]
        for v in judge_goals(records)
    ]
    header = ["throughput", "concurrency", "goal", "median", ""]
    return "## Goals\n\n" + (
        _table(header, rows, num_text_columns=1) if rows else "No arm with a goal was measured.\n"
    )


def _provenance(records: Sequence[Record]) -> str:
    lines = ["## Where\n"]
    first_of_run = {record.run_id: record for record in reversed(records)}
    for run_id, record in reversed(first_of_run.items()):
        where, setup = record.environment, record.setup
        versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
        commit = f"{where['git_commit'] or 'unknown'}{' with changes' if where['git_has_changes'] else ''}"
        num_measured = len(
            {r.setup["round"] for r in records if r.run_id == run_id and not r.setup["is_warmup"]}
        )
        lines += [
            f"- run `{run_id}`, {where['date']}, commit {commit}",
            f"- {where['cpu_model']}, {where['num_usable_cores']} cores, "
            f"{where['memory_bytes'] / 2**30:.0f} GiB, {'; '.join(where['gpus']) or 'no GPU'}; "
            f"{where['os']}; load {where['load_average_1m']:.2f} at the start",
            f"- Python {where['python']}, {versions}",
            f"- model {setup['model']}, {setup['dtype']}, policy {setup['num_policy_tokens']} tokens, "
            f"user prompt {setup['num_input_tokens']}, answer {setup['num_output_tokens']}, "
            f"block {setup['block_size']}, seed {setup['seed']}, {num_measured} rounds",
            f"- `{setup['command']}`",
            "",
        ]
    return "\n".join(lines)


def _figure(spread: Spread, metric: Metric) -> str:
    median, low, high = (_digits(v * metric.scale) for v in (spread.median, spread.p25, spread.p75))
    return f"{median} ({low} to {high})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(values: Iterable[float]) -> str:
    samples = list(values)
    if not samples:
        return "-"
    spread = Spread.of(samples)
    return f"{spread.median:.3f} ({spread.minimum:.3f} to {spread.maximum:.3f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int) -> str:
    rule = [":--" if i < num_text_columns else "--:" for i in range(len(header))]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))
