"""Capability: multiple-choice questions, answered by which choice is likeliest.

*Choice* needs to know the right answer. *Agreement* is for sets whose packages do not say which choice is
right: it counts how often an arm picks what the base picks, so that a patch that changes nothing has 100 %.
"""

from collections.abc import Sequence

from patches.errors import EvaluationError
from patches.evaluate.data.items import Item
from patches.evaluate.measures.measure import Context, Metric, Scored
from patches.evaluate.subjects.subject import Reading, Renderer, Subject


class ChoiceMeasure:
    """Share of questions whose right choice is the likeliest."""

    metrics = (
        Metric("accuracy", "questions answered rightly", "higher"),
        Metric("confidence", "log probability of the right choice", "higher", "number"),
    )

    def check(self, item: Item) -> None:
        """Refuse what has no choices, or does not say which one is right."""
        require_choices(item)
        if item.answer is None:
            raise EvaluationError(f"{item.id}: has no answer; use the measure agreement")

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Read every choice behind its question."""
        scored = []
        for item, totals in zip(items, _choice_scores(subject, items, context), strict=True):
            assert item.answer is not None
            is_right = totals[item.answer] == max(totals)
            values = {"accuracy": (float(is_right), 1.0), "confidence": (totals[item.answer], 1.0)}
            scored.append(Scored(item.id, item.category, values))
        return scored


class AgreementMeasure:
    """Share of questions on which the arm picks what the base picks."""

    metrics = (Metric("agreement", "questions on which the arm picks what the base picks", "higher"),)

    def check(self, item: Item) -> None:
        """Refuse what has no choices."""
        require_choices(item)

    def run(self, subject: Subject, items: Sequence[Item], context: Context) -> list[Scored]:
        """Read every choice under the arm and under the base."""
        own = _choice_scores(subject, items, context)
        base = own if subject is context.base else _choice_scores(context.base, items, context)
        return [
            Scored(item.id, item.category, {"agreement": (float(_pick(mine) == _pick(theirs)), 1.0)})
            for item, mine, theirs in zip(items, own, base, strict=True)
        ]


def require_choices(item: Item) -> None:
    """Refuse an item that leaves nothing to choose.

    Raises:
        EvaluationError: It has fewer than two choices.
    """
    if len(item.choices) < 2:
        raise EvaluationError(f"{item.id}: expected two choices at least, got {len(item.choices)}")


def _pick(totals: Sequence[float]) -> int:
    return max(range(len(totals)), key=lambda i: totals[i])


def _choice_scores(subject: Subject, items: Sequence[Item], context: Context) -> list[list[float]]:
    """Return the log-likelihood of each choice, per byte where the suite asks for ``normalise: true``."""
    renderer: Renderer = subject.renderer
    is_chat = context.choice("style", ("raw", "chat")) == "chat"
    readings, lengths = [], []
    for item in items:
        start = renderer.chat_ids(item.prompt) if is_chat else renderer.raw_ids(item.prompt)
        for choice in item.choices:
            text = choice if is_chat else f" {choice}"
            readings.append(Reading(start, renderer.ids(text)))
            lengths.append(len(text.encode()))
    normalises = context.boolean("normalise", False)
    rows = zip(subject.score(readings), lengths, strict=True)
    totals = iter([sum(steps) / (length if normalises else 1) for steps, length in rows])
    return [[next(totals) for _ in item.choices] for item in items]
