"""What a judge is: it decides one question about answers, and people's labels say how often it is wrong."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from patches.evaluate.data.packages import PackageFile, PackageFiles


class Judge(Protocol):
    """Decides one question about answers."""

    @property
    def threshold(self) -> float:
        """From here on a score is a yes."""
        ...

    def scores(self, requests: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Score each answer to its request from 0 to 1."""
        ...


class Bench(Protocol):
    """What a judge may be made from: pinned files, and other judges."""

    @property
    def files(self) -> PackageFiles:
        """Where files come from."""
        ...

    def get(self, name: str) -> Judge:
        """Return another judge."""
        ...


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer, the request before it, and what people said."""

    request: str
    answer: str
    label: bool


@dataclass(frozen=True)
class Labels:
    """Answers that people labelled for a judge's question."""

    #: What they are, for reports.
    about: str
    sources: tuple[PackageFile, ...]
    #: The column with people's grade, and from where on it is a yes.
    column: str
    threshold: float = 0.5

    def read(self, files: PackageFiles) -> Iterator[LabelledAnswer]:
        """Read them all.

        Raises:
            DataUnavailable: Their package is unavailable.
        """
        for source in self.sources:
            text = files.read(source).decode("utf-8", errors="replace")
            # The files begin with comments, the first of which has the columns' commas behind it.
            lines = [line for line in io.StringIO(text, newline="") if not line.startswith("#")]
            for row in csv.DictReader(io.StringIO("".join(lines))):
                label = float(row[self.column]) >= self.threshold
                yield LabelledAnswer(row["objective"], row["assistant_response"], label)


@dataclass(frozen=True)
class JudgeEntry:
    """A judge, as the table of all names it."""

    make: Callable[[Bench], Judge]
    labels: Labels
