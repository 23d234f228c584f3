"""A run's reports: ``results.json``, ``report.md`` and ``report.html``, all from one summary.

The pages hold figures, ids, refusals and harmless text. They are whole in themselves: plots are inline SVG,
nothing is loaded from anywhere. Text of a model is escaped.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from patches.evaluate.gate import Check
from patches.evaluate.report.plots import plot_figures
from patches.evaluate.report.summary import Summary, Transcript
from patches.evaluate.report.tables import (
    Table,
    category_tables,
    figure_tables,
    gate_table,
    judge_table,
    setup_rows,
)

JSON_FILE, MARKDOWN_FILE, HTML_FILE = "results.json", "report.md", "report.html"
MAX_SHOWN_CHARS = 500
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.25rem .6rem;"
    "text-align:left;vertical-align:top}th{background:#f4f4f4}td{white-space:pre-wrap}.note{color:#555}"
    ".fail{background:#fdd}figure{margin:1rem 0}svg{max-width:100%;height:auto}"
)


def write_reports(folder: Path, summary: Summary, checks: Sequence[Check] = ()) -> list[Path]:
    """Write all three; each replaces the one of an earlier run."""
    document = summary.to_document()
    if checks:
        document["gate"] = [
            {"figure": c.path, "arm": c.arm, "actual": c.actual, "passed": c.passed, "reason": c.reason}
            | {"condition": c.threshold.condition, "limit": c.threshold.limit}
            for c in checks
        ]
    texts = {
        JSON_FILE: json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        MARKDOWN_FILE: markdown(summary, checks),
        HTML_FILE: page(summary, checks),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def markdown(summary: Summary, checks: Sequence[Check] = ()) -> str:
    """Render the report as Markdown."""
    parts = ["# Evaluation", _markdown_table(Table("", ("what", "value"), tuple(setup_rows(summary.setup))))]
    if checks:
        parts += ["## Gate", _markdown_table(gate_table(checks))]
    parts.append("## Figures")
    for table in figure_tables(summary):
        parts += [f"### {table.title}", *(f"{note}." for note in table.notes), _markdown_table(table)]
    if summary.calibrations:
        parts += ["## Judges", _markdown_table(judge_table(summary.calibrations))]
    if categories := category_tables(summary):
        parts.append("## By category")
        for table in categories:
            parts += [f"### {table.title} by category", _markdown_table(table)]
    if summary.transcripts:
        parts.append("## Transcripts")
        parts.append("Sampled; text is shown only where it is harmless or a plain refusal.")
        for transcript in summary.transcripts:
            parts += [
                f"### {transcript.task}: {transcript.id}",
                _markdown_table(_transcript_table(transcript)),
            ]
    return "\n\n".join(parts) + "\n"


def page(summary: Summary, checks: Sequence[Check] = ()) -> str:
    """Render the report as one HTML page."""
    setup = Table("", ("what", "value"), tuple(setup_rows(summary.setup)))
    parts = ["<h1>Evaluation</h1>", _html_table(setup)]
    if checks:
        parts += ["<h2>Gate</h2>", _html_table(gate_table(checks))]
    parts.append("<h2>Figures</h2>")
    if (plot := plot_figures(summary)) is not None:
        parts.append(f"<figure>{plot}</figure>")
    for table in figure_tables(summary):
        parts.append(f"<h3>{html.escape(table.title)}</h3>")
        parts += [f'<p class="note">{html.escape(note)}.</p>' for note in table.notes]
        parts.append(_html_table(table))
    if summary.calibrations:
        parts += ["<h2>Judges</h2>", _html_table(judge_table(summary.calibrations))]
    if categories := category_tables(summary):
        parts.append("<h2>By category</h2>")
        parts += [f"<h3>{html.escape(t.title)}</h3>{_html_table(t)}" for t in categories]
    if summary.transcripts:
        parts.append("<h2>Transcripts</h2>")
        for transcript in summary.transcripts:
            title = html.escape(f"{transcript.task}: {transcript.id}")
            parts.append(f"<h3>{title}</h3>{_html_table(_transcript_table(transcript))}")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>policypatch evaluation</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _transcript_table(transcript: Transcript) -> Table:
    rows = [] if transcript.prompt is None else [("prompt", "", transcript.prompt[:MAX_SHOWN_CHARS])]
    for arm, (verdict, answer) in transcript.answers.items():
        text = "(not shown)" if answer is None else answer[:MAX_SHOWN_CHARS]
        rows.append((arm, verdict, text))
    return Table("", ("arm", "verdict", "text"), tuple(rows))


def _markdown_table(table: Table) -> str:
    lines = [_markdown_row(table.columns), _markdown_row(["---"] * len(table.columns))]
    return "\n".join([*lines, *(_markdown_row(row) for row in table.rows)])


def _markdown_row(cells: Sequence[str]) -> str:
    # Text of a model must not become markup: neither a new cell, nor HTML, nor a link.
    escaped = (html.escape(cell, quote=False).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return "| " + " | ".join(cell.replace("](", "]\\(") for cell in escaped) + " |"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = []
    for row in table.rows:
        mark = ' class="fail"' if row and row[0] == "FAIL" else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
