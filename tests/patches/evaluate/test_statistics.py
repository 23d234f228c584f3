"""Figures over items, against values worked out by hand."""

import math

import pytest

from patches.evaluate.report.statistics import difference, figure, relative_change


def test_a_share_is_the_mean_and_its_interval_holds_it() -> None:
    found = figure([(1.0, 1.0)] * 3 + [(0.0, 1.0)] * 7, is_exponential=False)
    assert (found.value, found.n) == (0.3, 10)
    assert found.low is not None
    assert found.high is not None
    assert 0.0 <= found.low < 0.3 < found.high <= 0.7


def test_a_perplexity_weighs_texts_by_their_tokens() -> None:
    """Two texts of 1 and 3 tokens with 2.0 and 3.0 nats in all: exp(5 / 4)."""
    assert figure([(2.0, 1.0), (3.0, 3.0)], is_exponential=True).value == pytest.approx(math.exp(1.25))


def test_items_without_weight_do_not_count() -> None:
    found = figure([(0.0, 0.0), (4.0, 2.0)], is_exponential=False)
    assert (found.value, found.n, found.low) == (2.0, 1, None)
    assert figure([(0.0, 0.0)], is_exponential=False).value is None


def test_a_share_of_zero_has_wilsons_interval() -> None:
    """Resampling zeros gives zeros; of 10 tries without a hit up to 27.8 % is plausible."""
    none, every = (figure([(x, 1.0)] * 10, is_exponential=False) for x in (0.0, 1.0))
    assert (none.low, none.high) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert (every.low, every.high) == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_a_difference_is_over_the_items_that_both_have() -> None:
    base = {"1": (1.0, 1.0), "2": (1.0, 1.0), "3": (0.0, 1.0), "4": (1.0, 1.0)}
    arm = {"1": (0.0, 1.0), "2": (1.0, 1.0), "3": (0.0, 1.0), "9": (1.0, 1.0)}
    found = difference(arm, base, is_exponential=False)
    assert found.n == 3
    assert found.value == pytest.approx(-1 / 3)


def test_a_difference_is_judged_on_paired_items() -> None:
    """Items differ widely, the arms by one each: paired, there is no doubt."""
    base = {str(n): (float(n), 1.0) for n in range(20)}
    arm = {str(n): (float(n + 1), 1.0) for n in range(20)}
    found = difference(arm, base, is_exponential=False)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_equal_values_and_seed_give_equal_intervals() -> None:
    values = [(float(n % 3 == 0), 1.0) for n in range(30)]
    assert figure(values, is_exponential=False) == figure(values, is_exponential=False)


def test_a_relative_change_needs_a_base() -> None:
    assert relative_change(0.2, 0.8) == pytest.approx(-0.75)
    assert relative_change(0.2, 0.0) is None
    assert relative_change(None, 0.5) is None
