"""How an evaluation looks on a terminal: a bar over its prompts, and its figures as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.commands.patch_arguments import note
from server.commands.tables import print_tables

if TYPE_CHECKING:
    from patches.evaluate.gate import Check
    from patches.evaluate.report.summary import Summary
    from patches.evaluate.run import Step


def print_figures(summary: "Summary", checks: "Sequence[Check]" = ()) -> None:
    """Show the overall figures, and the gate, as tables."""
    from patches.evaluate.report.tables import figure_tables, gate_table

    print_tables([*figure_tables(summary), *([gate_table(checks)] if checks else [])])


class EvalProgress:
    """The progress bar of a run; where there is no terminal, a line for each task."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._is_terminal = console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not self._is_terminal)
        self._bar = self._progress.add_task("", total=None)
        self._task_name = ""

    def __enter__(self) -> "EvalProgress":
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def start(self, steps: "Sequence[Step]") -> None:
        """Learn how much there is to do."""
        self._progress.update(self._bar, total=sum(len(step.items) for step in steps))

    def advance(self, step: "Step") -> None:
        """Show that a step is done."""
        if step.task.name != self._task_name and not self._is_terminal:
            note(f"measuring {step.task.name}")
        self._task_name = step.task.name
        self._progress.update(self._bar, advance=len(step.items), description=f"{step.task.name} {step.arm}")
