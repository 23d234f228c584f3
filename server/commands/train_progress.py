"""How a training run looks on a terminal: one bar a stage, with what it costs and how far it is.

Where standard error is no terminal, one line a validation takes its place.
"""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from server.commands.output import complain

_EVENTS = {
    "benign": "the unpatched model answers benign prompts: {done} of {total}",
    "reference": "log-probabilities of the pairs under the reference: {done} of {total}",
    "resumed": "continuing at step {step} of stage {stage_idx}",
}
#: Steps over which tokens per second are averaged.
_WINDOW = 20


class TrainProgress:
    """Draws the records of a run; use as a context."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._progress.stop()

    def tell(self, record: Mapping[str, Any]) -> None:
        """Draw one record."""
        if record.get("event") == "stage":
            self._task = self._progress.add_task(str(record["stage"]), total=None, figures="")
        elif record.get("event") in _EVENTS:
            self._say(_EVENTS[record["event"]].format(**record))
        elif record.get("is_validation"):
            self._say(f"{record['stage']} step {record['step']}, validation: {figures(record)}")
        elif "step" in record and self._task is not None:
            self._recent.append((record["num_tokens"], record["seconds"]))
            rate = sum(n for n, _ in self._recent) / max(1e-9, sum(s for _, s in self._recent))
            self._progress.update(
                self._task,
                total=record["total"],
                completed=record["step"],
                figures=f"{figures(record)} {rate:.0f} tokens/s",
            )

    def _say(self, text: str) -> None:
        if self._console.is_terminal:
            self._progress.console.print(text)
        else:
            complain(text)


def figures(record: Mapping[str, Any]) -> str:
    """Write the figures of a record in one line."""
    names = {"loss": "loss", "margin": "margin", "accuracy": "accuracy", "benign_kl": "benign KL"}
    return ", ".join(f"{shown} {record[name]:.3f}" for name, shown in names.items() if name in record)
