"""Which answers become pairs, by scorers and thresholds, and how the rest is counted."""

from typing import Any

import pytest

from patches.errors import PairsError
from patches.pairs.prompts import Prompt, prompt_id
from patches.pairs.sampler import Answer
from patches.pairs.scorers import SCORERS, compliance_risk, refusal_risk, words_risk
from patches.pairs.selection import Candidates, Selection, select_pairs

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "I\u2019m not able to provide instructions for that.",
    "As an AI language model, I am unable to do this.",
    "We must decline.",
    "Sorry. I won't help anybody to do that.",
]
ANSWERS = [
    "Sure! Here are three steps.",
    "The capital of France is Paris.",
    "You can't go wrong with pasta.",
    "Why, yes. " * 40 + "I'm sorry, that is all.",
]


def candidates(base: list[Any], reference: list[Any], text: str = "do it") -> Candidates:
    messages = ({"role": "user", "content": text},)
    answers = [
        [Answer(*a) if isinstance(a, tuple) else Answer(a) for a in side] for side in (base, reference)
    ]
    return Candidates(Prompt(prompt_id(messages), messages), *answers)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_have_no_risk(text: str) -> None:
    assert refusal_risk("", text) == 0
    assert compliance_risk("", text) == 1


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_have_risk(text: str) -> None:
    assert refusal_risk("", text) == 1


def test_words_risk_is_ten_times_the_share_of_listed_words() -> None:
    scorer = words_risk(["He", "him"])
    assert scorer("", "one two three four five six seven eight nine ten " * 4) == 0
    assert scorer("", "he " + "word " * 39) == pytest.approx(0.25)
    assert scorer("", "He saw him.") == 1
    with pytest.raises(PairsError, match="at least one word"):
        words_risk([" "])


def test_the_safest_answer_is_chosen_and_the_riskiest_rejected() -> None:
    some = candidates(["I can't help.", "Sure."], ["Of course.", "I'm sorry, no."])
    selected = select_pairs([some], Selection("refusal"), SCORERS["refusal"])
    (row,) = selected.rows
    assert (row.chosen, row.rejected) == ("I'm sorry, no.", "Sure.")
    assert row.scores == {"scorer": "refusal", "chosen": 0.0, "rejected": 1.0}


@pytest.mark.parametrize(
    ("base", "reference", "reason"),
    [
        (["Sure."], ["Of course."], "risky_winner"),
        (["I can't help."], ["I'm sorry, no."], "small_margin"),
        (["Sure."], [" "], "empty"),
        (["Sure."], ["Sure. "], "same_answer"),
        (["Sure."], [("I can't help, and", False)], "unfinished"),
    ],
)
def test_the_reason_against_a_pair_is_counted(base: list[Any], reference: list[Any], reason: str) -> None:
    selection = Selection("refusal", needs_finished=True)
    selected = select_pairs([candidates(base, reference)], selection, SCORERS["refusal"])
    assert selected.rows == ()
    assert {name: n for name, n in selected.counts.items() if n} == {reason: 1}


def test_one_reference_answer_stands_against_several_of_the_base() -> None:
    some = candidates(["one", "two", "two"], ["no"])
    selected = select_pairs([some], Selection(pairs_per_prompt=3), None)
    assert [(row.chosen, row.rejected) for row in selected.rows] == [("no", "one"), ("no", "two")]
    assert (selected.counts["kept"], selected.counts["duplicate"]) == (2, 1)
    assert len({row.id for row in selected.rows}) == 2


def test_splits_go_by_prompt_and_have_their_shares() -> None:
    many = [candidates(["a", "b"], ["c"], text=str(number)) for number in range(600)]
    selected = select_pairs(many, Selection(pairs_per_prompt=2, validation_share=0.2), None)
    by_prompt: dict[str, set[str | None]] = {}
    for row in selected.rows:
        by_prompt.setdefault(row.prompt[0]["content"], set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    splits = [next(iter(splits)) for splits in by_prompt.values()]
    shares = [splits.count(name) / 600 for name in ("train", "validation", "test")]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.05)
    assert (
        select_pairs(many[:5], Selection(validation_share=0.2), None).rows[0].split == selected.rows[0].split
    )


@pytest.mark.parametrize("shares", [(0.6, 0.4), (-0.1, 0.1)])
def test_something_must_be_left_to_train_on(shares: tuple[float, float]) -> None:
    with pytest.raises(PairsError, match="leave some for training"):
        Selection(validation_share=shares[0], test_share=shares[1])
