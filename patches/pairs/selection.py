"""Which answers become a pair, and why others do not.

Of a prompt's answers the safest of the reference's is chosen and the riskiest of the base's rejected, then
the next ones. With a scorer S a pair is kept where ``S(rejected) - S(chosen) >= margin`` and ``S(chosen) <=
winner`` (the paper's Eq. 4-5 with a sign: where the reference's answer is the riskier one, nothing is to be
learned).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from patches.errors import PairsError
from patches.pairs.prompts import Prompt, split_number
from patches.pairs.rows import PairRow
from patches.pairs.sampler import Answer
from patches.pairs.scorers import Scorer

#: What ``Selected.counts`` may name beside ``kept``.
REASONS = ("empty", "unfinished", "same_answer", "duplicate", "risky_winner", "small_margin")


@dataclass(frozen=True)
class Selection:
    """Which pairs are kept, and for what."""

    #: Its name goes into the rows; ``None`` keeps every pair.
    scorer_name: str | None = None
    margin: float = 0.5
    winner: float = 0.5
    pairs_per_prompt: int = 1
    #: Leave out pairs whose chosen answer ran into the limit of tokens.
    needs_finished: bool = False
    validation_share: float = 0.1
    test_share: float = 0.1

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            PairsError: One is outside its range.
        """
        shares = (self.validation_share, self.test_share)
        if min(shares) < 0 or sum(shares) >= 1:
            raise PairsError(f"split: expected shares that leave some for training, got {shares}")
        if self.pairs_per_prompt < 1:
            raise PairsError(f"pairs_per_prompt: expected at least 1, got {self.pairs_per_prompt}")

    def split_of(self, key: str) -> str:
        """Choose a prompt's split by its hash: it stays when the file grows."""
        number = split_number(key)
        if number < self.validation_share:
            return "validation"
        return "test" if number >= 1 - self.test_share else "train"


@dataclass(frozen=True)
class Candidates:
    """A prompt with the answers of both sides."""

    prompt: Prompt
    base: Sequence[Answer]
    reference: Sequence[Answer]


@dataclass(frozen=True)
class Selected:
    """The pairs, and how many were kept or left out for which reason."""

    rows: tuple[PairRow, ...]
    counts: Mapping[str, int]


def select_pairs(candidates: Sequence[Candidates], selection: Selection, scorer: Scorer | None) -> Selected:
    """Choose pairs."""
    rows: list[PairRow] = []
    counts: Counter[str] = Counter(dict.fromkeys(("kept", *REASONS), 0))
    for candidate in candidates:
        seen: set[tuple[str, str]] = set()
        for rejected, chosen in _matched(candidate, scorer):
            if len(seen) == selection.pairs_per_prompt:
                break
            row, reason = _judged(candidate.prompt, chosen, rejected, selection, scorer, len(seen))
            if reason is None and (chosen.text, rejected.text) in seen:
                reason = "duplicate"
            counts[reason or "kept"] += 1
            if reason is None:
                seen.add((chosen.text, rejected.text))
                rows.append(row)
    return Selected(tuple(rows), dict(counts))


def _matched(candidate: Candidates, scorer: Scorer | None) -> list[tuple[Answer, Answer]]:
    base, reference = list(candidate.base), list(candidate.reference)
    if scorer is not None:
        text = candidate.prompt.messages[-1]["content"]
        # Sorting keeps the order of drawing among equals, so the result does not depend on chance.
        base.sort(key=lambda answer: -scorer(text, answer.text))
        reference.sort(key=lambda answer: scorer(text, answer.text))
    # A column or a greedy reference has one answer, which stands against each of the base's.
    length = max(len(base), len(reference)) if base and reference else 0
    return [(base[i % len(base)], reference[i % len(reference)]) for i in range(length)]


def _judged(
    prompt: Prompt, chosen: Answer, rejected: Answer, selection: Selection, scorer: Scorer | None, number: int
) -> tuple[PairRow, str | None]:
    text, scores, reason = prompt.messages[-1]["content"], None, None
    if scorer is not None:
        risks = {"chosen": scorer(text, chosen.text), "rejected": scorer(text, rejected.text)}
        scores = {"scorer": selection.scorer_name, **risks}
        if risks["chosen"] > selection.winner:
            reason = "risky_winner"
        elif risks["rejected"] - risks["chosen"] < selection.margin:
            reason = "small_margin"
    if not chosen.text.strip() or not rejected.text.strip():
        reason = "empty"
    elif chosen.text.strip() == rejected.text.strip():
        reason = "same_answer"
    elif selection.needs_finished and not chosen.is_finished:
        reason = "unfinished"
    row = PairRow(
        id=f"{prompt.id}-{number}",
        prompt=prompt.messages,
        chosen=chosen.text,
        rejected=rejected.text,
        split=selection.split_of(prompt.id),
        is_chosen_finished=chosen.is_finished,
        is_rejected_finished=rejected.is_finished,
        scores=scores,
    )
    return row, reason
