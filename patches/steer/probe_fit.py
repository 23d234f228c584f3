"""A linear probe: logistic regression with an L2 penalty, fitted by L-BFGS, and its calibration.

The problem is convex, so that equal data gives an equal probe up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_MAX_STEPS = 200
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class LinearProbe:
    """A score: the log-odds that a prompt is one of those that a condition is for."""

    #: ``[D]`` float64.
    weights: torch.Tensor
    bias: float

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``[n]`` float64 of features ``[n, D]``."""
        return features.double() @ self.weights + self.bias


def fit_probe(
    features: torch.Tensor, labels: torch.Tensor, row_weights: torch.Tensor, l2: float
) -> LinearProbe:
    """Fit a probe.

    Args:
        features: ``[n, D]``.
        labels: ``[n]``, 1 where the condition is to be met and 0 elsewhere; both occur.
        row_weights: ``[n]``, how much each row counts.
        l2: Weight of ``|w|² / 2`` beside the mean loss, for features of variance 1.
    """
    rows = features.double()
    mean, scale = rows.mean(0), rows.std(0).clamp_min(1e-6)
    rows = (rows - mean) / scale
    shares = row_weights.double() / row_weights.sum()
    weights = torch.zeros(rows.shape[1], dtype=torch.float64)
    bias = torch.zeros((), dtype=torch.float64)

    def loss(weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = rows @ weights + bias
        each = F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
        return (each * shares).sum() + l2 / 2 * weights.square().sum()

    weights, bias = _minimised(loss, weights, bias)
    return LinearProbe(weights / scale, float(bias - (weights / scale) @ mean))


@dataclass(frozen=True)
class Line:
    """Scores stretched and shifted to log-odds; their order stays."""

    #: More than 0.
    factor: float
    shift: float

    def of(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of scores."""
        return scores * self.factor + self.shift

    def stretched(self, probe: LinearProbe) -> LinearProbe:
        """Return a probe whose scores are log-odds."""
        return LinearProbe(probe.weights * self.factor, probe.bias * self.factor + self.shift)


def calibration(scores: torch.Tensor, labels: torch.Tensor) -> Line:
    """Fit the line that makes log-odds of scores that no probe had learned from (Platt).

    Args:
        scores: ``[n]``.
        labels: ``[n]``.
    """
    # Sides that are told apart without a mistake would have infinite odds; so Platt's targets.
    num_positive = float(labels.sum())
    high, low = (num_positive + 1) / (num_positive + 2), 1 / (len(labels) - num_positive + 2)
    targets = labels.double() * (high - low) + low

    def loss(stretch: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        # exp keeps the order of scores.
        return F.binary_cross_entropy_with_logits(scores.double() * stretch.exp() + shift, targets)

    zero = torch.zeros((), dtype=torch.float64)
    stretch, shift = _minimised(loss, zero, zero)
    return Line(float(stretch.exp()), float(shift))


def calibration_error(scores: torch.Tensor, labels: torch.Tensor, num_bins: int = 10) -> float:
    """Return how far probabilities are from the shares that they stand for, on average over equal bins."""
    order = scores.argsort()
    chances, found = scores.sigmoid()[order], labels.double()[order]
    parts = zip(chances.tensor_split(num_bins), found.tensor_split(num_bins), strict=True)
    gaps = [float((a.mean() - b.mean()).abs()) * len(a) for a, b in parts if len(a)]
    return sum(gaps) / max(1, len(scores))


def _minimised(loss: Callable[..., torch.Tensor], *start: torch.Tensor) -> tuple[torch.Tensor, ...]:
    values = [one.clone().requires_grad_(True) for one in start]
    optimizer = torch.optim.LBFGS(
        values,
        max_iter=_MAX_STEPS,
        history_size=20,
        tolerance_grad=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        cost = loss(*values)
        torch.autograd.backward(cost)
        return cost

    optimizer.step(step)  # type: ignore[no-untyped-call]
    return tuple(one.detach() for one in values)
