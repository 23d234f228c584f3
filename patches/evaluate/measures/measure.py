"""What a measure is: it runs items through a subject and gives each item its values.

A value is a pair, amount and weight: a metric over many items is the sum of the amounts over the sum of
the weights, through ``exp`` where the metric is a perplexity. So shares, means and perplexities are one
thing, and all of them can be bootstrapped over items.
"""

import importlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from patches.errors import EvaluationError
from patches.evaluate.data.items import Item
from patches.evaluate.judges.judges import Judges
from patches.evaluate.subjects.subject import Subject

#: (amount, weight)
Value = tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """One figure that a measure gives."""

    name: str
    meaning: str
    #: ``lower``, ``higher`` or ``none``.
    better: str
    #: How reports print it: ``share``, ``number`` or ``ms``.
    unit: str = "share"
    #: The figure is ``exp`` of the mean.
    is_exponential: bool = False
    #: The judge whose mistakes are in it.
    judge: str | None = None


@dataclass(frozen=True)
class Scored:
    """One item, measured."""

    id: str
    category: str
    values: Mapping[str, Value]
    #: What the judge said, for the transcripts.
    verdict: str = ""
    #: Text that may be shown: harmless, or a refusal. Never anything else.
    prompt: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class Context:
    """What a measure needs beside items and subject."""

    judges: Judges
    #: The base arm, for what an arm's answers are worth to the unpatched model.
    base: Subject
    seed: int = 0
    #: The task's options from the suite file.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Keep every answer, harmful ones too: asked for on the command line.
    keeps_all: bool = False

    def integer(self, name: str, default: int) -> int:
        """Read a whole-number option.

        Raises:
            EvaluationError: It is not a positive whole number.
        """
        value = self.options.get(name, default)
        if type(value) is not int or value < 1:
            raise EvaluationError(f"options.{name}: expected a positive whole number, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """Read a number option.

        Raises:
            EvaluationError: It is not a number.
        """
        value = self.options.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise EvaluationError(f"options.{name}: expected a number, got {value!r}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """Read an option that is true or false.

        Raises:
            EvaluationError: It is neither.
        """
        value = self.options.get(name, default)
        if not isinstance(value, bool):
            raise EvaluationError(f"options.{name}: expected true or false, got {value!r}")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Read an option that is one of ``choices``, the first of which is the default.

        Raises:
            EvaluationError: It is none of them.
        """
        value = self.text(name, choices[0])
        if value not in choices:
            raise EvaluationError(f"options.{name}: expected {' or '.join(choices)}, got {value!r}")
        return value

    def text(self, name: str, default: str) -> str:
        """Read a text option.

        Raises:
            EvaluationError: It is not a text.
        """
        value = self.options.get(name, default)
        if not isinstance(value, str):
            raise EvaluationError(f"options.{name}: expected a text, got {value!r}")
        return value


class Measure(Protocol):
    """Runs items through one subject.

    A measure that can't take every item has ``check(item)`` as well, which raises EvaluationError. It is
    asked about all items before the first step, so that a run of hours does not end at its last task.
    """

    metrics: tuple[Metric, ...]

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Measure each item, in order."""
        ...


#: name -> where it is. Packages add their own through the entry-point group.
MEASURES = {
    "harm": "patches.evaluate.measures.harm:HarmMeasure",
    "refusal": "patches.evaluate.measures.overrefusal:RefusalMeasure",
    "perplexity": "patches.evaluate.measures.fluency:PerplexityMeasure",
    "outputs": "patches.evaluate.measures.fluency:OutputsMeasure",
    "toxicity": "patches.evaluate.measures.toxicity:ToxicityMeasure",
    "gender": "patches.evaluate.measures.bias:GenderMeasure",
    "stereotype": "patches.evaluate.measures.bias:StereotypeMeasure",
    "choice": "patches.evaluate.measures.capability:ChoiceMeasure",
    "agreement": "patches.evaluate.measures.capability:AgreementMeasure",
    "latency": "patches.evaluate.measures.latency:LatencyMeasure",
}
ENTRY_POINTS = "policypatch.measures"


def load_measure(name: str) -> Measure:
    """Make a measure by name.

    Raises:
        EvaluationError: No measure has this name.
    """
    if name in MEASURES:
        module, _, attribute = MEASURES[name].partition(":")
        measure: Measure = getattr(importlib.import_module(module), attribute)()
        return measure
    for entry_point in entry_points(group=ENTRY_POINTS, name=name):
        added: Measure = entry_point.load()()
        return added
    raise EvaluationError(f"measure: unknown {name!r}; known are {', '.join(sorted(MEASURES))}")


def check_items(measure: Measure, items: Sequence[Item]) -> None:
    """Ask a measure whether it can take these items.

    Raises:
        EvaluationError: One it can't.
    """
    check = getattr(measure, "check", None)
    if check is not None:
        for item in items:
            check(item)


def sampling_seed(seed: int, items: Sequence[Item]) -> int:
    """Derive the seed of a chunk of items, the same in every arm and in a resumed run."""
    return zlib.crc32(f"{seed}:{items[0].id if items else ''}".encode()) & 0x7FFFFFFF
