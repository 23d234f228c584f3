"""How answers are drawn: the ranges, and seeds that a name decides."""

from typing import Any

import pytest

from patches.errors import SamplingInvalid
from patches.sampling import Sampling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"temperature": -1.0}, "temperature: expected 0 to 2, got -1.0"),
        ({"top_p": 0.0}, "top_p: expected more than 0, at most 1, got 0.0"),
        ({"num_samples": 0}, "num_samples: expected at least 1, got 0"),
    ],
)
def test_what_is_out_of_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingInvalid, match=message):
        Sampling(**changes)


def test_a_greedy_answer_is_worth_drawing_once() -> None:
    assert Sampling(num_samples=4).num_distinct == 1
    assert Sampling(num_samples=4, temperature=0.5).num_distinct == 4


def test_a_name_has_one_seed_and_other_runs_have_others() -> None:
    assert Sampling().seed_of("a") == Sampling(max_tokens=3).seed_of("a")
    assert len({Sampling().seed_of("a"), Sampling().seed_of("b"), Sampling(seed=1).seed_of("a")}) == 3
