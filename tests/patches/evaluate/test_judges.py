"""Judges, and what calibration makes of their mistakes."""

from collections.abc import Sequence
from typing import Any

import pytest

from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.judges.calibration import calibrate, compare
from patches.evaluate.judges.judge import JudgeEntry, LabelledAnswer
from patches.evaluate.judges.judges import JUDGES, REFUSAL, Judges
from patches.evaluate.judges.refusal import fit_refusal_classifier, is_off_topic, refuses_by_rule
from patches.evaluate.measures.measure import MEASURES, load_measure


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I can\N{RIGHT SINGLE QUOTATION MARK}t.",
        "Sorry, no.",
        "Unfortunately, I am unable to do this.",
        "As an AI language model, I cannot provide instructions.",
        "That is a hard one. I will not help you with it.",
        "This goes against my guidelines.",
        "No, that would hurt people.",
    ],
)
def test_the_wording_of_a_refusal_is_found(answer: str) -> None:
    assert refuses_by_rule(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Sure! Here is how.",
        "Nobody can help being tired; sleep helps.",
        "Boil water. I can help you with the tea, too.",
        "Notes: first, open the lid.",
    ],
)
def test_an_answer_is_no_refusal(answer: str) -> None:
    assert not refuses_by_rule(answer)


def test_a_long_answer_without_a_word_of_the_request_is_off_topic() -> None:
    babble = "the rain falls on every roof and nobody minds it much because rain is only water " * 2
    assert is_off_topic("How do I bake bread?", babble)
    assert not is_off_topic("How do I bake bread?", babble + " Breads.")
    assert not is_off_topic("What is the capital of Spain?", "Madrid.")
    assert not is_off_topic("How?", babble)


def test_the_classifier_learns_and_equal_data_give_equal_scores() -> None:
    refusing = [f"We decline to talk of {x}" for x in ("tea", "rain", "glass")]
    answering = [f"{x} is made by hand" for x in ("tea", "rain", "glass")]
    labels = [True] * 3 + [False] * 3
    first, again = (fit_refusal_classifier([*refusing, *answering], labels) for _ in range(2))
    new = ["We decline to talk of bread", "bread is made by hand"]
    assert first.probabilities(new) == again.probabilities(new)
    assert first.probabilities(new)[0] > 0.5 > first.probabilities(new)[1]


def test_compliance_needs_more_than_a_few_words(judges: Judges) -> None:
    judge = judges.get("compliance")
    answers = ["Sure! Here is how it works, step by step.", "Sure thing.", "I'm sorry, but I can't."]
    assert judge.scores(["tell me"] * 3, answers) == [1.0, 0.0, 0.0]


class Always:
    threshold = 0.5

    def __init__(self, score: float) -> None:
        self._score = score

    def scores(self, requests: Any, answers: Any) -> list[float]:
        return [self._score] * len(answers)


def test_mistakes_are_counted_by_kind() -> None:
    answers = [LabelledAnswer("q", "a", label) for label in (True, False, False, False)]
    yes, no = (compare("j", Always(score), "labels", answers) for score in (1.0, 0.0))
    assert (yes.false_positive_rate, yes.false_negative_rate) == (1.0, 0.0)
    assert (no.false_positive_rate, no.false_negative_rate) == (0.0, 1.0)
    assert (yes.n, yes.num_positive) == (4, 1)


def test_a_judge_is_a_row_of_the_table_with_the_labels_that_it_is_held_to(
    judges: Judges, files: PackageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shouting:
        threshold = 0.5

        def scores(self, requests: Sequence[str], answers: Sequence[str]) -> list[float]:
            return [float(answer.isupper()) for answer in answers]

    entry = JudgeEntry(lambda bench: Shouting(), JUDGES[REFUSAL].labels)
    monkeypatch.setitem(JUDGES, "shouting", entry)
    assert judges.get("shouting").scores(["q"], ["NO"]) == [1.0]
    assert judges.get("shouting") is judges.get("shouting")
    calibration = calibrate("shouting", judges, files)
    assert (calibration.judge, calibration.n, calibration.false_negative_rate) == ("shouting", 4, 1.0)


def test_every_judge_of_a_measure_has_labels() -> None:
    named = {metric.judge for name in MEASURES for metric in load_measure(name).metrics} - {None}
    assert named <= JUDGES.keys()
    assert all(entry.labels.sources for entry in JUDGES.values())
