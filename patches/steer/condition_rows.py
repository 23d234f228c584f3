"""All prompts of both sides, one below the other: what fits, what tests, and in which fold."""

from collections.abc import Sequence

import numpy as np
import torch

from patches.steer.probe_fit import LinearProbe, fit_probe
from patches.steer.prompt_sets import POOLS, ReadSet
from patches.steer.roc import area, early_area

NUM_FOLDS = 5
#: Probes are compared by the lines that up to this share of the negatives crosses. At the wanted rate itself
#: a few prompts of a fold would decide.
EARLY = 0.1


class ConditionRows:
    """The rows of several sets."""

    def __init__(self, sets: Sequence[ReadSet], layers: Sequence[int]) -> None:
        """Lay sets below each other; ``layers`` are those of their states."""
        self.sets = sets
        self._layers = layers
        lengths = torch.tensor([len(one.is_test) for one in sets])
        #: ``[n]``, the set of each row.
        self.set_of = torch.arange(len(sets)).repeat_interleave(lengths)
        roles = [one.role for one in sets]
        self.is_positive, self.is_plain, self.is_hard, self.is_text = (
            torch.tensor([one == role for one in roles])[self.set_of]
            for role in ("positive", "negative", "hard", "text")
        )
        is_test = torch.cat([one.is_test for one in sets])
        #: Indices of the rows that fit, and of those that only test.
        self.fits, self.tests = (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]
        #: Of each row that fits; every fold has its part of each set.
        self.fold = torch.arange(len(self.fits)) % NUM_FOLDS

    @property
    def labels(self) -> torch.Tensor:
        """``[n]`` float64, 1 for positives."""
        return self.is_positive.double()

    def features(self, layers: Sequence[int], pool: str) -> torch.Tensor:
        """Return ``[n, D]``: the states of some layers side by side."""
        places, pooled = [self._layers.index(layer) for layer in layers], [*POOLS].index(pool)
        return torch.cat([one.states[:, pooled, places].flatten(1) for one in self.sets])

    def probe(
        self, features: torch.Tensor, rows: torch.Tensor, hard_weight: float, penalty: float
    ) -> LinearProbe:
        """Fit a probe to some rows."""
        weights = 1 + (hard_weight - 1) * self.is_hard[rows].double()
        return fit_probe(features[rows], self.labels[rows], weights, penalty)

    def unseen_scores(
        self, features: torch.Tensor, hard_weight: float, penalty: float, folds: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of some folds, and scores by probes that have not seen the row."""
        rows, scores = [], []
        for fold in folds:
            own = self.fold == fold
            probe = self.probe(features, self.fits[~own], hard_weight, penalty)
            rows.append(self.fits[own])
            scores.append(probe.scores(features[self.fits[own]]))
        return torch.cat(rows), torch.cat(scores)

    def judged(self, rows: torch.Tensor, scores: torch.Tensor) -> tuple[float, float]:
        """Return the early area and the area under the ROC curve."""
        positives, negatives = self.sides(rows, scores)
        return early_area(positives, negatives, EARLY), area(positives, negatives)

    def sides(self, rows: torch.Tensor, scores: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of positives and of ordinary negatives."""
        return scores[self.is_positive[rows]].numpy(), scores[self.is_plain[rows]].numpy()
