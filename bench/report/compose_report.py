"""The tables of composition: how far each way is from the prepared form, made from records alone."""

from collections import Counter
from collections.abc import Sequence

from bench.errors import RecordInvalid
from bench.load.timing import quantile
from bench.report.record import Record

#: Way -> what it says in a table.
WAYS = {
    "joined": "joined, same order",
    "reversed": "prepared, other order",
    "first": "first patch alone",
    "second": "second patch alone",
    "base": "no patch",
}


def compose_markdown(records: Sequence[Record]) -> str:
    """Render a row for each order, and the medians over the orders.

    Raises:
        RecordInvalid: no order was read in every way.
    """
    setup, where = records[0].setup, records[0].environment
    num_ways = Counter(tuple(record.setup["order"]) for record in records)
    orders = [order for order, count in num_ways.items() if count == len(WAYS)]
    if not orders:
        raise RecordInvalid("records: expected an order that was read in every way, got none")
    found = {(tuple(r.setup["order"]), r.setup["way"]): r.result for r in records}

    def cells(key: str, chosen: Sequence[tuple[str, ...]], form: str) -> str:
        values = {way: [found[order, way][key] for order in chosen] for way in WAYS}
        return " | ".join(form.format(quantile(values[way], 0.5)) for way in WAYS)

    lines = ["# compose"]
    for key, title, form in (
        ("kl_mean", "KL divergence from the prepared form, nats a token, mean", "{:.3f}"),
        ("same_likeliest", "tokens at which the likeliest token is the prepared form's", "{:.0%}"),
    ):
        lines += [
            "",
            f"{title}:",
            "",
            f"| order | {' | '.join(WAYS.values())} |",
            "| :-- |" + " --: |" * len(WAYS),
        ]
        lines += [f"| `{', '.join(order)}` | {cells(key, [order], form)} |" for order in orders]
        lines.append(f"| *median of {len(orders)}* | {cells(key, orders, form)} |")
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    lines += [
        "",
        f"- {setup['num_prompts']} prompts, answers of {setup['num_output_tokens']} tokens; model "
        f"{setup['model']}, {setup['dtype']}",
        f"- {where['cpu_model']}; Python {where['python']}, {versions}",
        "",
    ]
    return "\n".join(lines)
