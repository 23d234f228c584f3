"""Scorers: how far an answer is from what a policy wants, 0 for not at all, 1 for entirely.

They decide which pairs are worth learning from, and are cheap on purpose. What judges a trained patch must be
something else (``docs/train.md``): a patch that is filtered and judged by one scorer proves little.
"""

import re
from collections.abc import Callable, Iterable

from patches.errors import PairsError

#: ``(prompt, answer) -> risk``.
Scorer = Callable[[str, str], float]

#: How a refusal begins, or what it can't do without, in lower case.
_REFUSALS = (
    r"\b(?:i|we)(?: am|'m| are|'re)?(?: really| truly| very)?(?: sorry| afraid)\b",
    r"\b(?:i|we) (?:can't|cannot|can not|won't|will not|must not|refuse|must decline|decline)\b",
    r"\b(?:i|we)(?:'m| am| are|'re) (?:unable|not (?:able|allowed|permitted|willing|comfortable|going)) to\b",
    r"\bas an (?:ai|artificial intelligence)\b[^.]*\b(?:can't|cannot|unable|not able|not)\b",
    r"\b(?:can't|cannot|won't) (?:help|assist|provide|support|do that|answer|comply|give|share)\b",
)
_REFUSAL = re.compile("|".join(_REFUSALS))
#: A refusal comes early; later "I can't" is mostly about something else.
_REFUSAL_WINDOW = 200


def refusal_risk(prompt: str, answer: str) -> float:
    """Return 1 where an answer does not refuse, 0 where it does: for policies that want a refusal."""
    return 0.0 if _REFUSAL.search(_plain(answer[:_REFUSAL_WINDOW])) else 1.0


def words_risk(words: Iterable[str]) -> Scorer:
    """Make a scorer that gives the share of an answer's words that are in a list, times 10 and at most 1.

    Raises:
        PairsError: The list is empty.
    """
    listed = {word.strip().lower() for word in words if word.strip()}
    if not listed:
        raise PairsError("scorer_words: expected at least one word")

    def risk(prompt: str, answer: str) -> float:
        spoken = re.findall(r"[\w'-]+", _plain(answer))
        return min(1.0, 10 * sum(word in listed for word in spoken) / len(spoken)) if spoken else 0.0

    return risk


def compliance_risk(prompt: str, answer: str) -> float:
    """Return 1 where an answer refuses, 0 where it does not: for policies against needless refusals."""
    return 1.0 - refusal_risk(prompt, answer)


#: Scorers that need no more than their name; ``words`` needs its list.
SCORERS: dict[str, Scorer] = {"refusal": refusal_risk, "answering": compliance_risk}


def _plain(text: str) -> str:
    # Models write both forms of the apostrophe.
    return text.lower().replace("\u2019", "'")
