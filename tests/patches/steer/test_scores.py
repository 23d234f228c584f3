"""How well scores tell sides apart, and the probe that gives them: figures derived by hand."""

import math

import numpy as np
import pytest
import torch

from patches.steer.probe_fit import LinearProbe, calibration, calibration_error, fit_probe
from patches.steer.roc import (
    area,
    crossing,
    curve,
    early_area,
    measured_area,
    measured_threshold,
    share,
    threshold_at,
)


def test_the_area_counts_pairs_in_the_right_order() -> None:
    assert area(np.array([3.0, 1.0]), np.array([2.0, 0.0])) == 0.75
    assert area(np.array([1.0]), np.array([1.0, 0.0])) == 0.75


def test_the_early_area_looks_at_the_highest_negatives_alone() -> None:
    positives, negatives = np.array([5.0, 3.0, 1.0]), np.array([4.0, 2.0, 0.0, 0.0])
    assert early_area(positives, negatives, 0.5) == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert early_area(positives, negatives, 0.01) == pytest.approx(1 / 3)
    # A positive as high as the line is not above it.
    assert early_area(np.array([4.0]), negatives, 0.25) == 0


def test_a_threshold_lets_the_wanted_share_cross_and_no_more() -> None:
    negatives = np.array([4.0, 3.0, 2.0, 1.0])
    for rate, threshold, num_above in ((0.25, 3.0, 1), (0.2, 4.0, 0), (0.74, 2.0, 2), (0.99, 1.0, 3)):
        assert threshold_at(negatives, rate) == threshold
        assert crossing(negatives, threshold).value == num_above / 4


def test_a_share_has_wilsons_interval() -> None:
    half = share(5, 10)
    assert (half.value, round(half.low, 3), round(half.high, 3)) == (0.5, 0.237, 0.763)
    assert share(0, 10).low == 0
    assert share(10, 10).high == 1
    assert math.isnan(share(0, 0).value)


def test_a_curve_rises_from_none_to_all() -> None:
    assert curve(np.array([3.0, 1.0]), np.array([2.0, 0.0])) == [
        (0, 0),
        (0, 0.5),
        (0.5, 0.5),
        (0.5, 1),
        (1, 1),
    ]


def test_intervals_hold_their_value_and_shrink_with_more_scores() -> None:
    drawn = np.random.default_rng(0)
    few, many = ((drawn.normal(1, 1, n), drawn.normal(0, 1, n)) for n in (30, 3000))
    for measure in (measured_area, lambda p, n: measured_threshold(n, 0.1)):
        wide, narrow = measure(*few), measure(*many)
        assert wide.low <= wide.value <= wide.high
        assert narrow.high - narrow.low < (wide.high - wide.low) / 3


def sides(num: int, gap: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * num, 3, generator=generator)
    labels = torch.cat([torch.ones(num), torch.zeros(num)])
    features[:, 1] += gap * labels
    return features * torch.tensor([1.0, 10.0, 0.1]) + 5, labels


def test_a_probe_finds_the_direction_whatever_its_scale() -> None:
    features, labels = sides(2000, 2.0)
    probe = fit_probe(features, labels, torch.ones(4000), 1e-6)
    # Two normals of distance 2 and variance 1: the log-odds are 2 x - 2 of the unscaled feature.
    torch.testing.assert_close(probe.weights, torch.tensor([0.0, 0.2, 0.0]).double(), atol=0.3, rtol=0)
    assert float(probe.weights[1]) == pytest.approx(0.2, abs=0.02)
    assert probe.bias == pytest.approx(-2 - 5 * float(probe.weights.sum()), abs=0.3)


def test_a_row_that_weighs_more_pulls_the_probe() -> None:
    features, labels = torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0.0, 1.0, 0.0])
    light, heavy = (fit_probe(features, labels, torch.tensor([1.0, 1.0, w]), 1e-3) for w in (1.0, 9.0))
    assert float(heavy.scores(features[1:2])) < float(light.scores(features[1:2]))


def test_calibration_makes_log_odds_of_scores_that_are_too_sure() -> None:
    features, labels = sides(2000, 2.0)
    probe = LinearProbe(torch.tensor([0.0, 1.0, 0.0]).double(), -20.0)
    line = calibration(probe.scores(features), labels)
    calibrated = line.stretched(probe)
    torch.testing.assert_close(line.of(probe.scores(features)), calibrated.scores(features))
    assert calibration_error(probe.scores(features), labels) > 0.1
    assert calibration_error(calibrated.scores(features), labels) < 0.03
