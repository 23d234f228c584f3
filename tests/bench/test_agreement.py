"""What counts as agreement between two greedy answers."""

import pytest

from bench.load.agreement import Answer, compare, percentile


def answer(*steps: tuple[int, dict[int, float]]) -> Answer:
    return Answer(tuple(token for token, _ in steps), tuple(logprobs for _, logprobs in steps))


REFERENCE = answer((7, {7: -0.1, 8: -2.0}), (8, {8: -0.5, 9: -0.6}), (7, {7: -0.2}))


def test_equal_answers_agree_wholly() -> None:
    agreement = compare([REFERENCE], [REFERENCE])
    assert agreement.to_result() == {
        "num_answers": 1,
        "num_steps": 3,
        "num_unlisted_steps": 0,
        "equal_answers": 1.0,
        "equal_tokens": 1.0,
        "mean_gap": 0.0,
        "median_gap": 0.0,
        "p90_gap": 0.0,
        "p99_gap": 0.0,
        "max_gap": 0.0,
    }


def test_steps_behind_the_first_different_token_do_not_count() -> None:
    other = answer((7, {7: -0.4}), (9, {9: -0.3, 8: -0.6}), (7, {7: -99.0}))
    agreement = compare([other], [REFERENCE])
    assert (agreement.num_steps, agreement.num_equal_steps, agreement.num_equal_answers) == (2, 1, 0)
    assert agreement.gaps == pytest.approx((0.3, 0.1))


def test_a_reference_token_that_the_answer_does_not_list_is_counted_and_not_measured() -> None:
    other = answer((7, {7: -0.1}), (9, {9: -0.3}))
    agreement = compare([other], [REFERENCE])
    assert agreement.gaps == (0.0,)
    assert agreement.to_result()["num_unlisted_steps"] == 1


def test_an_answer_that_ends_earlier_is_not_equal() -> None:
    shorter = answer((7, {7: -0.1}), (8, {8: -0.5}))
    agreement = compare([shorter, REFERENCE], [REFERENCE, REFERENCE])
    assert (agreement.num_steps, agreement.num_equal_steps, agreement.num_equal_answers) == (5, 5, 1)


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50.0, 90.0, 99.0, 100.0]
    assert percentile([3.0], 0.01) == 3.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.5)])
def test_percentiles_of_nothing_are_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


def test_answers_without_a_token_or_its_log_probability_are_refused() -> None:
    with pytest.raises(ValueError, match="as many as tokens"):
        Answer((), ())
    with pytest.raises(ValueError, match="token 7 itself"):
        answer((7, {8: -1.0}))
    with pytest.raises(ValueError, match="at least one"):
        compare([], [])
