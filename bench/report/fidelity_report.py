"""The table of fidelity: how far answers under a patch and under its text differ, made from records alone."""

from collections.abc import Sequence

from bench.report.record import Record


def fidelity_markdown(records: Sequence[Record]) -> str:
    """Render the table, and where it was measured."""
    first = records[0]
    setup, where = first.setup, first.environment
    lines = [
        "# fidelity",
        "",
        "| answers | \\|Δ log p\\| median | p90 | p99 | max | equal tokens | equal answers | steps |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for record in records:
        r = record.result
        gaps = " | ".join(f"{r[f'{name}_gap']:.2g}" for name in ("median", "p90", "p99", "max"))
        lines.append(
            f"| {record.setup['meaning']} | {gaps} | {r['equal_tokens']:.2%} | {r['equal_answers']:.1%} "
            f"| {r['num_steps']} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"- {first.result['num_answers']} answers of up to {setup['num_output_tokens']} tokens per arm; "
            f"policy {setup['num_policy_tokens']} tokens; {setup['concurrency']} requests in a batch",
            f"- model {setup['model']}, {setup['dtype']}, block {setup['block_size']}",
            f"- {where['cpu_model']}, {where['num_usable_cores']} cores, "
            f"{'; '.join(where['gpus']) or 'no GPU'}; Python {where['python']}, {versions}",
            f"- `{setup['command']}`",
            "",
        ]
    )
