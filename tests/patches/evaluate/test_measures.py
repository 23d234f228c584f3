"""What each measure makes of answers and likelihoods that are known."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from patches.errors import EvaluationError
from patches.evaluate.data.items import Item
from patches.evaluate.judges.judges import Judges
from patches.evaluate.measures.fluency import trigram_overlap
from patches.evaluate.measures.measure import Context, check_items, load_measure

ITEMS = [Item("set/1", "a", "one"), Item("set/2", "b", "two"), Item("set/3", "b", "three")]
SECRET = "Sure: first you take the forbidden thing, and then you do it."
SCRIPT = {"one": "I'm sorry, but I can't help with that.", "two": SECRET, "three": ""}


@pytest.fixture
def context(judges: Judges, scripted: Callable[..., Any]) -> Context:
    return Context(judges, scripted("base", SCRIPT))


def values(scored: list[Any], name: str) -> list[tuple[float, float]]:
    return [s.values[name] for s in scored]


def test_harm_counts_answers_that_neither_refuse_nor_are_empty(context: Context) -> None:
    scored = load_measure("harm").run(context.base, ITEMS, context)
    assert values(scored, "compliance") == [(0.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
    assert [s.verdict for s in scored] == ["refused", "complied", "no answer"]


def test_harm_keeps_no_request_and_no_answer_that_complies(context: Context) -> None:
    scored = load_measure("harm").run(context.base, ITEMS, context)
    assert [s.prompt for s in scored] == [None, None, None]
    assert [s.answer for s in scored] == [SCRIPT["one"], None, None]


def test_harm_does_not_show_a_refusal_with_something_long_behind_it(
    judges: Judges, scripted: Callable[..., Any]
) -> None:
    base = scripted("base", {"one": SCRIPT["one"] + " But here it is anyway." * 20})
    (scored,) = load_measure("harm").run(base, ITEMS[:1], Context(judges, base))
    assert scored.verdict == "refused"
    assert scored.answer is None


def test_harm_keeps_everything_only_where_asked(judges: Judges, scripted: Callable[..., Any]) -> None:
    base = scripted("base", SCRIPT)
    scored = load_measure("harm").run(base, ITEMS, Context(judges, base, keeps_all=True))
    assert scored[1].prompt == "two"
    assert scored[1].answer == SECRET


def test_overrefusal_counts_refusals(context: Context) -> None:
    scored = load_measure("refusal").run(context.base, ITEMS[:2], context)
    assert values(scored, "refusal") == [(1.0, 1.0), (0.0, 1.0)]


def test_perplexity_scores_every_token_but_the_first(context: Context) -> None:
    item = Item("t", "a", "answer politely")
    num_tokens = len(context.base.renderer.ids(item.prompt))
    (scored,) = load_measure("perplexity").run(context.base, [item], context)
    assert scored.values["perplexity"] == (num_tokens - 1.0, num_tokens - 1.0)


def test_outputs_are_read_by_the_base_and_an_empty_answer_weighs_nothing(
    judges: Judges, scripted: Callable[..., Any]
) -> None:
    base = scripted("base", logprob=-2.0)
    arm = scripted("polite", {"one": "a b c a b c"}, logprob=-7.0)
    full, empty = load_measure("outputs").run(arm, ITEMS[:2], Context(judges, base))
    amount, weight = full.values["perplexity"]
    assert amount / weight == 2.0
    assert full.values["trigram_overlap"] == (0.25, 1.0)
    assert empty.values["perplexity"][1] == 0.0
    assert empty.values["trigram_overlap"] == (0.0, 0.0)


def test_trigram_overlap_counts_what_comes_again() -> None:
    assert trigram_overlap("a b c a b c") == (1, 4)
    assert trigram_overlap("A b c a B c") == (1, 4)
    assert trigram_overlap("a b") == (0, 0)


class FixedJudge:
    threshold = 0.7

    def __init__(self, scores: dict[str, float]) -> None:
        self._scores = scores

    def scores(self, requests: Any, answers: Any) -> list[float]:
        return [self._scores[answer] for answer in answers]


class FixedJudges:
    def __init__(self, scores: dict[str, float]) -> None:
        self._judge = FixedJudge(scores)

    def get(self, name: str) -> FixedJudge:
        return self._judge


def test_toxicity_is_the_greatest_over_the_samples_and_keeps_no_text(scripted: Callable[..., Any]) -> None:
    base = scripted("base", {"Go on: one": "mild", "Go on: two": "bad"})
    judges: Any = FixedJudges({"mild": 0.2, "bad": 0.9})
    context = Context(judges, base, options={"template": "Go on: {prompt}", "num_samples": 2})
    scored = load_measure("toxicity").run(base, ITEMS[:2], context)
    assert values(scored, "average_max_toxicity") == [(0.2, 1.0), (0.9, 1.0)]
    assert values(scored, "toxic_rate") == [(0.0, 1.0), (1.0, 1.0)]
    assert {s.answer for s in scored} == {None}
    assert {s.prompt for s in scored} == {None}


def test_gas_counts_answers_with_a_gendered_word(judges: Judges, scripted: Callable[..., Any]) -> None:
    base = scripted("base", {"one": "He went home.", "two": "They shelled the other heron."})
    scored = load_measure("gender").run(base, ITEMS[:2], Context(judges, base))
    assert values(scored, "gas") == [(1.0, 1.0), (0.0, 1.0)]


def test_gld_is_the_gap_of_the_pronouns(judges: Judges, scripted: Callable[..., Any]) -> None:
    """In the script a pronoun of n tokens has the likelihood exp(-n)."""
    base = scripted("base")
    (scored,) = load_measure("gender").run(base, ITEMS[:1], Context(judges, base))
    lengths = [len(base.renderer.ids(word)) for word in (" she", " her", " he", " his")]
    female, male = (sum(math.exp(-n) for n in part) for part in (lengths[:2], lengths[2:]))
    assert scored.values["gld"][0] == pytest.approx(abs(female - male) / (female + male))


def test_a_stereotype_is_counted_where_its_sentence_is_likelier(context: Context) -> None:
    """In the script the shorter sentence is the likelier one."""
    pairs = [
        Item("p/1", "a", "", ("a b", "a b c d e f"), 0),
        Item("p/2", "a", "", ("a b", "a b c d e f"), 1),
    ]
    scored = load_measure("stereotype").run(context.base, pairs, context)
    assert values(scored, "stereotyped") == [(1.0, 1.0), (0.0, 1.0)]


def test_a_choice_is_right_where_the_right_one_is_likeliest(context: Context) -> None:
    questions = [Item("q/1", "a", "Q", ("x", "x y z w"), 0), Item("q/2", "a", "Q", ("x", "x y z w"), 1)]
    scored = load_measure("choice").run(context.base, questions, context)
    assert values(scored, "accuracy") == [(1.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("measure", "choices", "answer", "says"),
    [
        ("choice", ("x", "y"), None, "has no answer; use the measure agreement"),
        ("choice", ("x",), 0, "expected two choices at least, got 1"),
        ("agreement", (), None, "expected two choices at least, got 0"),
        ("stereotype", ("x", "y", "z"), 0, "expected a pair as choices, got 3"),
    ],
)
def test_a_measure_refuses_what_it_cannot_take(
    measure: str, choices: tuple[str, ...], answer: int | None, says: str
) -> None:
    items = [Item("q/0", "a", "Q", ("x", "y"), 0), Item("q/1", "a", "Q", choices, answer)]
    check_items(load_measure(measure), items[:1])
    with pytest.raises(EvaluationError, match=f"q/1: {says}"):
        check_items(load_measure(measure), items)


def test_the_base_agrees_with_itself(context: Context) -> None:
    scored = load_measure("agreement").run(context.base, [Item("q/1", "a", "Q", ("x", "y z"))], context)
    assert values(scored, "agreement") == [(1.0, 1.0)]


def test_latency_splits_the_first_token_from_the_rest(context: Context) -> None:
    context = Context(context.judges, context.base, options={"num_tokens": 11})
    (scored,) = load_measure("latency").run(context.base, ITEMS[:1], context)
    assert scored.values == {"first_token_ms": (500.0, 1.0), "token_ms": (1000.0, 10.0)}


def test_an_unknown_measure_and_a_wrong_option_are_named(context: Context) -> None:
    with pytest.raises(EvaluationError, match="unknown 'harmm'; known are agreement"):
        load_measure("harmm")
    for name, value in (("normalise", "true"), ("normalise", 1), ("style", "Chat"), ("style", True)):
        odd = Context(context.judges, context.base, options={name: value})
        with pytest.raises(EvaluationError, match=rf"options\.{name}: expected"):
            odd.boolean(name, False) if name == "normalise" else odd.choice(name, ("raw", "chat"))
    wrong = Context(context.judges, context.base, options={"max_tokens": "many"})
    with pytest.raises(EvaluationError, match=r"options\.max_tokens: expected a positive whole number"):
        load_measure("harm").run(wrong.base, ITEMS, wrong)
