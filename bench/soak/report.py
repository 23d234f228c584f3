"""What a soak found: one row for each thing that had to hold, as records, as a table and as one JSON line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report.record import Record, append_record
from bench.run.rounds import progress

QUESTION = "soak"


@dataclass(frozen=True)
class Check:
    """One thing that had to hold."""

    part: str
    #: What was done.
    what: str
    #: What was seen.
    seen: str
    is_ok: bool
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Findings:
    """Everything that a run found, written down as it comes."""

    records_path: Path
    run_id: str
    setup: Mapping[str, Any]
    environment: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)

    def note(self, part: str, what: str, seen: str, is_ok: bool, **facts: Any) -> None:
        """Record one finding."""
        check = Check(part, what, seen, is_ok, facts)
        self.checks.append(check)
        setup = {**self.setup, "part": part, "what": what, "is_warmup": False}
        result = {"ok": is_ok, "seen": seen, **facts}
        append_record(self.records_path, Record(QUESTION, self.run_id, setup, result, self.environment))
        progress(f"{'ok  ' if is_ok else 'BAD '} {part}: {what}: {seen}")

    @property
    def is_ok(self) -> bool:
        """Whether everything held."""
        return all(check.is_ok for check in self.checks)


def checks_of(records: Sequence[Record]) -> list[Check]:
    """Read findings back from records."""
    return [
        Check(r.setup["part"], r.setup["what"], r.result["seen"], bool(r.result["ok"]), r.result)
        for r in records
    ]


def soak_table(checks: Sequence[Check]) -> str:
    """Render findings for people."""
    lines = ["| part | what was done | what was seen | |", "| :-- | :-- | :-- | :-- |"]
    lines += [
        f"| {check.part} | {check.what} | {check.seen} | {'ok' if check.is_ok else '**failed**'} |"
        for check in checks
    ]
    return "\n".join(lines) + "\n"


def soak_markdown(records: Sequence[Record]) -> str:
    """Render the whole report."""
    parts = ["# soak\n", soak_table(checks_of(records))]
    first_of_run = {record.run_id: record for record in reversed(records)}
    for run_id, record in reversed(first_of_run.items()):
        where, setup = record.environment, record.setup
        versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
        parts += [
            f"- run `{run_id}`, {where['date']}, commit {where['git_commit'] or 'unknown'}"
            f"{' with changes' if where['git_has_changes'] else ''}",
            f"- {where['cpu_model']}, {where['num_usable_cores']} cores, "
            f"{where['memory_bytes'] / 2**30:.0f} GiB, {'; '.join(where['gpus']) or 'no GPU'}; "
            f"load {where['load_average_1m']:.2f} at the start",
            f"- Python {where['python']}, {versions}; model {setup['model']}",
            f"- `{setup['command']}`",
        ]
    return "\n".join(parts) + "\n"


def soak_summary(records: Sequence[Record]) -> dict[str, Any]:
    """Return what the last line of stdout says of what was found."""
    checks = checks_of(records)
    failed = [f"{check.part}: {check.what}: {check.seen}" for check in checks if not check.is_ok]
    return {"ok": not failed, "num_checks": len(checks), "failed": failed}
