"""Statistics of a cell, and ratios within a round."""

import math

import pytest

from bench.load.timing import RequestTrace, measure_cell, paired_ratios, quantile, summarise


def trace(sent_s: float, *token_times_s: float, num_tokens: int | None = None) -> RequestTrace:
    return RequestTrace(sent_s, token_times_s, token_times_s[-1] + 0.5, num_tokens or len(token_times_s))


@pytest.mark.parametrize(
    ("q", "expected"), [(0, 1.0), (0.25, 1.75), (0.5, 2.5), (0.99, 3.97), (1, 4.0)], ids=str
)
def test_quantile_interpolates_between_neighbours_in_any_order(q: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(expected)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_quantile_outside_the_unit_interval_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match=r"q: expected a number in \[0, 1\]"):
        quantile([1.0], q)


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        summarise([])


def test_summary_of_one_sample_is_that_sample() -> None:
    summary = summarise([2.0])
    assert (summary.count, summary.minimum, summary.p50, summary.p99, summary.maximum) == (1, 2, 2, 2, 2)


def test_cell_measures_first_token_gaps_and_throughput() -> None:
    result = measure_cell([trace(0.0, 1.0, 1.5, 2.0), trace(1.0, 3.0, 3.5, 4.5)])
    assert result.ttft_s.p50 == pytest.approx(1.5)
    assert result.itl_s is not None
    assert (result.itl_s.count, result.itl_s.p50, result.itl_s.maximum) == (4, 0.5, 1.0)
    assert result.duration_s == pytest.approx(5.0)
    assert result.output_tokens_per_s == pytest.approx(6 / 5)
    assert result.requests_per_s == pytest.approx(2 / 5)


def test_cell_counts_tokens_not_events_where_the_server_bundles_them() -> None:
    result = measure_cell([trace(0.0, 1.0, 2.0, num_tokens=5)])
    assert result.num_output_tokens == 5
    assert result.tokens_per_event == 2.5
    assert result.tpot_s is not None
    assert result.tpot_s.p50 == pytest.approx(1 / 4)


def test_cell_of_single_tokens_has_no_gaps() -> None:
    result = measure_cell([trace(0.0, 1.0)])
    assert result.itl_s is None
    assert result.tpot_s is None


def test_cell_with_an_empty_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="empty answer"):
        measure_cell([RequestTrace(0.0, (), 1.0, 0)])


def test_ratio_to_a_reference_of_zero_does_not_exist() -> None:
    assert paired_ratios({("r", 1, 8): 1.0}, {("r", 1, 8): 0.0}) == {}


def test_ratios_pair_cells_of_one_round_only() -> None:
    arm = {("r", 1, 8): 90.0, ("r", 2, 8): 50.0, ("r", 3, 8): 1.0}
    reference = {("r", 1, 8): 100.0, ("r", 2, 8): 40.0, ("other", 3, 8): 1.0}
    assert paired_ratios(arm, reference) == {("r", 1, 8): 0.9, ("r", 2, 8): 1.25}
