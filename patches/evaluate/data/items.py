"""Items: the prompts, texts and choices that measures work on, and which of them a run takes.

An item's id names its source and place, such as ``harmbench/17``. Reports and results carry ids, never the
text of a harmful prompt.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from patches.errors import EvaluationError
from patches.text import lines_of, parse_row

_KEYS = {"id", "category", "prompt", "choices", "answer"}


@dataclass(frozen=True)
class Item:
    """One prompt, text or question."""

    id: str
    #: Reports have a row for each category.
    category: str
    #: What the model is asked, or reads; empty where the choices are whole texts.
    prompt: str
    choices: tuple[str, ...] = ()
    #: The right, or the stereotyped, choice.
    answer: int | None = None
    #: The request inside a jailbreak wrapper: it is what training may have seen.
    wrapped: str | None = None


def parse_items(text: str, source: str) -> list[Item]:
    """Read items from JSON lines: ``prompt``, and optionally ``id``, ``category``, ``choices``, ``answer``.

    Raises:
        EvaluationError: A line is not such an object, or two items have one id; the message names the line.
    """
    items = []
    for number, line in enumerate(lines_of(text), start=1):
        if line.strip():
            items.append(_parse_line(line, f"{source}, line {number}", f"{source}/{number}"))
    ids = [item.id for item in items]
    if doubled := sorted({i for i in ids if ids.count(i) > 1})[:3]:
        raise EvaluationError(f"{source}: expected ids that differ, got twice: {', '.join(doubled)}")
    return items


def _parse_line(line: str, where: str, default_id: str) -> Item:
    try:
        fields = parse_row(line)
    except ValueError as error:
        raise EvaluationError(f"{where}: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise EvaluationError(f"{where}: expected an object with a text under 'prompt'")
    if unknown := sorted(set(fields) - _KEYS):
        raise EvaluationError(
            f"{where}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}"
        )
    choices, answer = fields.get("choices", []), fields.get("answer")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise EvaluationError(f"{where}: choices: expected a list of texts")
    if answer is not None and not (type(answer) is int and 0 <= answer < len(choices)):
        raise EvaluationError(f"{where}: answer: expected the index of a choice, got {answer!r}")
    return Item(
        str(fields.get("id", default_id)),
        str(fields.get("category", "all")),
        fields["prompt"],
        tuple(choices),
        answer,
    )


def select_items(
    items: Sequence[Item], *, limit: int | None, seed: int, excluded_prompts: Collection[str] = ()
) -> list[Item]:
    """Choose what a run takes: a seeded shuffle, then the first ``limit``.

    The order depends on seed and ids alone, so a longer run contains a shorter one, and adding an item moves
    no other.

    Args:
        items: All there are.
        limit: At most so many; all where ``None``.
        seed: Chooses the shuffle.
        excluded_prompts: Normalised prompts (``normalised``) that training saw.
    """
    kept = [item for item in items if not _is_excluded(item.wrapped or item.prompt, excluded_prompts)]
    kept.sort(key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
    return kept if limit is None else kept[:limit]


def _is_excluded(prompt: str, excluded_prompts: Collection[str]) -> bool:
    return bool(prompt) and normalised(prompt) in excluded_prompts


def normalised(prompt: str) -> str:
    """Return the form in which two prompts count as the same: lower case, words alone."""
    return " ".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())
