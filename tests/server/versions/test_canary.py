"""Who gets a canary, and what its rules make of the requests: pure."""

import pytest

from server.versions.activation import Canary, CanaryRules, Target
from server.versions.canary import MAX_SAMPLES, Progress, Sample, Window, is_chosen, judge, percentile_90

TARGET = Target("2.0.0", "sha256:" + "a" * 64)


def canary(share: float = 0.1, **rules: float) -> Canary:
    return Canary(TARGET, share, "user", CanaryRules(**rules), "alice", 0.0, was_pinned=False)


def samples(num: int, num_errors: int = 0, first_token_s: float | None = 0.1) -> list[Sample]:
    return [Sample(float(i), i < num_errors, first_token_s) for i in range(num)]


def decided(num: int, num_met: int) -> list[Sample]:
    return [Sample(float(i), is_error=False, is_met=i < num_met) for i in range(num)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
def test_the_share_of_users_is_what_was_asked_for(share: float) -> None:
    num = sum(is_chosen(canary(share), "pirate", f"user-{i}") for i in range(20_000))
    assert num / 20_000 == pytest.approx(share, abs=0.012)


def test_a_larger_share_only_adds_users() -> None:
    users = [f"user-{i}" for i in range(2000)]
    few = {user for user in users if is_chosen(canary(0.05), "pirate", user)}
    many = {user for user in users if is_chosen(canary(0.2), "pirate", user)}
    assert few < many


def test_two_names_choose_independently() -> None:
    both = sum(
        is_chosen(canary(0.5), "pirate", f"user-{i}") and is_chosen(canary(0.5), "sailor", f"user-{i}")
        for i in range(4000)
    )
    assert both / 4000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("rules", "seen", "verdict"),
    [
        ({"max_error_rate": 0.1}, samples(20, 2), None),
        ({"max_error_rate": 0.1}, samples(20, 3), "abort"),
        ({"max_error_rate": 0.1}, samples(19, 19), None),
        ({"max_error_rate": 0.1, "min_requests": 5}, samples(5, 5), "abort"),
        ({}, samples(100, 100), None),
        ({"max_first_token_s": 0.2}, samples(20), None),
        ({"max_first_token_s": 0.05}, samples(20), "abort"),
        ({"max_first_token_s": 0.05}, samples(20, 20, None), None),
        ({"promote_after_s": 60}, samples(20), None),
        ({"promote_after_s": 30}, samples(20), "promote"),
        ({"promote_after_s": 30, "max_error_rate": 0.1}, samples(20, 20), "abort"),
    ],
)
def test_the_rules_decide(rules: dict[str, float], seen: list[Sample], verdict: str | None) -> None:
    judged = judge(canary(**rules).rules, Progress.of(seen, age_s=40.0))
    assert (judged[0] if judged else None) == verdict


@pytest.mark.parametrize(
    ("rules", "seen", "stable", "verdict"),
    [
        ({"max_condition_met": 0.1}, decided(20, 2), [], None),
        ({"max_condition_met": 0.1}, decided(20, 3), [], "abort"),
        ({"max_condition_met": 0.1}, [*decided(19, 19), *samples(10)], [], None),
        ({"min_condition_met": 0.1}, decided(20, 2), [], None),
        ({"min_condition_met": 0.1}, decided(20, 1), [], "abort"),
        ({"max_condition_change": 0.2}, decided(20, 8), decided(20, 4), None),
        ({"max_condition_change": 0.2}, decided(20, 9), decided(20, 4), "abort"),
        ({"max_condition_change": 0.2}, decided(20, 4), decided(20, 9), "abort"),
        ({"max_condition_change": 0.2}, decided(20, 20), decided(19, 0), None),
        ({"max_condition_met": 0.5, "max_error_rate": 0.5}, decided(20, 20), [], "abort"),
        ({"max_condition_met": 0.5, "promote_after_s": 30}, decided(20, 2), [], "promote"),
        # What the rule is to judge was not seen yet, so that nothing is proved.
        ({"max_condition_met": 0.5, "promote_after_s": 30}, samples(100), [], None),
        ({"max_condition_change": 0.5, "promote_after_s": 30}, decided(20, 2), decided(19, 2), None),
        ({"max_condition_change": 0.5, "promote_after_s": 30}, decided(20, 2), decided(20, 2), "promote"),
    ],
)
def test_rules_about_the_condition_decide_once_enough_was_decided(
    rules: dict[str, float], seen: list[Sample], stable: list[Sample], verdict: str | None
) -> None:
    judged = judge(canary(**rules).rules, Progress.of(seen, age_s=40.0, stable=stable))
    assert (judged[0] if judged else None) == verdict


def test_the_window_is_bounded_in_time_and_number() -> None:
    window = Window()
    for sample in samples(MAX_SAMPLES + 500):
        window.add(sample)
    assert len(window.since(0.0)) == MAX_SAMPLES
    assert [s.at_s for s in window.since(MAX_SAMPLES + 497.0)] == [1497.0, 1498.0, 1499.0]


@pytest.mark.parametrize(("num", "expected"), [(0, None), (1, 1), (9, 9), (10, 9), (20, 18)])
def test_the_90th_percentile_is_a_value_that_was_seen(num: int, expected: float | None) -> None:
    assert percentile_90([float(i) for i in range(num, 0, -1)]) == expected
