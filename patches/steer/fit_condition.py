"""From prompts on both sides to a condition: which layers, which pool, which line.

What is chosen, is chosen on prompts that the probe at hand did not learn from: layers and pool on one part,
then the penalty, calibration and threshold on scores of five folds, each by a probe that has not seen it. The
probe itself learns from all of them. A fifth of the prompts takes no part in that: the report is theirs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from patches.canonical import JsonValue
from patches.errors import CompileError
from patches.format import Patch, make_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import SteeringBody
from patches.label import Label
from patches.steer.condition_rows import NUM_FOLDS, ConditionRows
from patches.steer.probe_fit import LinearProbe, calibration, calibration_error
from patches.steer.prompt_sets import POOLS, TEST_SHARE, ReadSet
from patches.steer.roc import Measured, crossing, curve, measured_area, measured_threshold, share
from patches.steer.vector import require_steering

#: How many layers a probe reads together, of those that are looked at.
SPANS = (1, 2, 4)
PENALTIES = (0.001, 0.01, 0.1)
_FIRST_PENALTY = 0.01


@dataclass(frozen=True)
class Options:
    """What is asked of a condition."""

    false_positive_rate: float = 0.02
    #: How much more a hard negative counts than another prompt.
    hard_weight: float = 2.0
    #: Read these layers; chosen where ``None``.
    layers: tuple[int, ...] | None = None
    #: One of ``POOLS``; chosen where ``None``.
    pool: str | None = None
    shadow: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            CompileError: One is outside its range.
        """
        if not 0 < self.false_positive_rate < 1:
            raise CompileError(
                f"false_positive_rate: expected more than 0 and less than 1, got {self.false_positive_rate:g}"
            )
        if not 0 < self.hard_weight < 1e6:
            raise CompileError(f"hard_weight: expected more than 0, got {self.hard_weight:g}")


@dataclass(frozen=True)
class Candidate:
    """Layers and a pool, and how well a probe there tells the sides apart."""

    layers: tuple[int, ...]
    pool: str
    #: Areas under the ROC curve: of its beginning, as a mean share of positives, and of all of it.
    early: float = 0.0
    auc: float = 0.0


@dataclass(frozen=True)
class SetResult:
    """How often one set's held-back prompts meet the condition."""

    name: str
    role: str
    num_fitted: int
    num_tested: int
    met: Measured


@dataclass(frozen=True)
class Fitted:
    """A condition, and what is known of it."""

    condition: Condition
    #: ``[rows, d]`` float32.
    probes: torch.Tensor
    threshold: Measured
    #: Over held-back positives and ordinary negatives.
    auc: Measured
    curve: Sequence[tuple[float, float]]
    calibration_error: float
    sets: Sequence[SetResult]
    #: Scores of held-back prompts, by set.
    scores: Mapping[str, np.ndarray]
    #: What was tried, on prompts that the probe at hand had not seen.
    candidates: Sequence[Candidate] = ()
    penalty: float = 0.0
    #: The share of ordinary negatives that was to meet it at most, and that of the held-back ones that do.
    wanted_rate: float = 0.0
    num_negatives: int = 0
    false_positives: Measured = field(default_factory=lambda: share(0, 0))

    @property
    def warning(self) -> str | None:
        """What has to be known before the rate is relied on; None where the prompts can support it."""
        needed = math.ceil(round(1 / self.wanted_rate, 6))
        if self.num_negatives >= needed:
            return None
        found = self.false_positives
        return (
            f"false_positive_rate: expected at least {needed} held-back negatives for a rate of "
            f"{self.wanted_rate:g}, got {self.num_negatives}, which say no more than {found.low:.1%} to "
            f"{found.high:.1%}; give about {round(needed / TEST_SHARE)} negatives in all, or a higher rate"
        )

    def origin(self) -> dict[str, JsonValue]:
        """Return what the manifest says of it."""
        sets = [
            {"set": one.name, "role": one.role, "fitted": one.num_fitted, "tested": one.num_tested}
            | _numbers("met", one.met)
            for one in self.sets
        ]
        return {
            **_numbers("auc", self.auc),
            **_numbers("threshold", self.threshold),
            "penalty": self.penalty,
            "calibration_error": round(self.calibration_error, 4),
            "wanted_false_positive_rate": self.wanted_rate,
            **_numbers("false_positive_rate", self.false_positives),
            "negatives_tested": self.num_negatives,
            "sets": sets,
        }


def candidate_layers(first_acting: int, num_layers: int) -> list[int]:
    """Return the layers that are looked at: every tenth part of the model, all of them before it acts.

    Raises:
        CompileError: There is none.
    """
    stride = max(1, num_layers // 10)
    layers = list(range(stride, first_acting, stride)) or [*range(first_acting)]
    if not layers:
        raise CompileError(
            "vector: acts from layer 0 on, so that no layer is left to decide in; make one that begins "
            "later, with --layers"
        )
    return layers


def fit_condition(
    sets: Sequence[ReadSet], layers: Sequence[int], options: Options, tell: Callable[[int, int], None]
) -> Fitted:
    """Fit, choose, calibrate, draw the line, and report.

    Args:
        sets: Positives and negatives among them.
        layers: Of the states.
        options: What is asked.
        tell: Told of progress.

    Raises:
        CompileError: A side has no prompts to fit to, or none that are held back.
    """
    rows, rate = ConditionRows(sets, layers), options.false_positive_rate
    _require_both_sides(rows)
    wanted, tried = _candidates(layers, options), []
    total = len(wanted) + len(PENALTIES) + 1
    for number, one in enumerate(wanted):
        features = rows.features(one.layers, one.pool)
        judged = rows.judged(*rows.unseen_scores(features, options.hard_weight, _FIRST_PENALTY, [0]))
        tried.append(Candidate(one.layers, one.pool, *judged))
        tell(number + 1, total)
    best = max(tried, key=lambda one: (one.early, one.auc))
    features, held_out = rows.features(best.layers, best.pool), {}
    for number, penalty in enumerate(PENALTIES):
        held_out[penalty] = rows.unseen_scores(features, options.hard_weight, penalty, range(NUM_FOLDS))
        tell(len(wanted) + number + 1, total)
    penalty = max(PENALTIES, key=lambda one: rows.judged(*held_out[one]))
    unseen, scores = held_out[penalty]
    probe = rows.probe(features, rows.fits, options.hard_weight, penalty)
    # A text without a chat is no prompt whose odds are asked for, and as many more as it has beginnings.
    is_chat = ~rows.is_text[unseen]
    line = calibration(scores[is_chat], rows.labels[unseen][is_chat])
    _, negatives = rows.sides(unseen, line.of(scores))
    threshold = measured_threshold(negatives, rate)
    fitted = _report(rows, line.stretched(probe), threshold, best, features, options)
    tell(total, total)
    return replace(fitted, candidates=tried, penalty=penalty)


def _require_both_sides(rows: ConditionRows) -> None:
    for side, is_own in (("positive", rows.is_positive), ("negative", rows.is_plain)):
        num_fitted, num_tested = int(is_own[rows.fits].sum()), int(is_own[rows.tests].sum())
        if num_fitted < NUM_FOLDS or not num_tested:
            raise CompileError(
                f"prompts: expected {side} ones to fit to, {NUM_FOLDS} at least, and to hold back, got "
                f"{num_fitted} and {num_tested} that differ; add more"
            )


def _candidates(layers: Sequence[int], options: Options) -> list[Candidate]:
    """List runs of neighbouring layers, in each pool, apart from what is asked for."""
    runs = [tuple(layers[i : i + span]) for span in SPANS for i in range(len(layers) - span + 1)]
    asked = [options.layers] if options.layers is not None else runs
    return [Candidate(run, pool) for pool in POOLS if options.pool in (None, pool) for run in asked]


def _report(
    rows: ConditionRows,
    probe: LinearProbe,
    threshold: Measured,
    chosen: Candidate,
    features: torch.Tensor,
    options: Options,
) -> Fitted:
    """Judge a probe on held-back prompts."""
    scores = probe.scores(features[rows.tests])
    positives, negatives = rows.sides(rows.tests, scores)
    results, by_set = [], {}
    for index, one in enumerate(rows.sets):
        own = by_set[one.name] = scores[rows.set_of[rows.tests] == index].numpy()
        num_fitted = len(one.is_test) - len(own)
        results.append(SetResult(one.name, one.role, num_fitted, len(own), crossing(own, threshold.value)))
    is_judged = (rows.is_positive | rows.is_plain)[rows.tests]
    # ``last-16``: the mean of the last 16.
    pool, _, num_tokens = chosen.pool.partition("-")
    reads = Probe(chosen.layers, pool, probe.bias, threshold.value, int(num_tokens or 1))
    return Fitted(
        Condition((reads,), "any", options.shadow),
        probe.weights.reshape(len(chosen.layers), -1).float(),
        threshold,
        measured_area(positives, negatives),
        curve(positives, negatives),
        calibration_error(scores[is_judged], rows.labels[rows.tests][is_judged]),
        results,
        by_set,
        wanted_rate=options.false_positive_rate,
        num_negatives=len(negatives),
        false_positives=crossing(negatives, threshold.value),
    )


def _numbers(name: str, measured: Measured) -> dict[str, JsonValue]:
    value = None if math.isnan(measured.value) else round(measured.value, 4)
    return {name: value, f"{name}_interval": [round(measured.low, 4), round(measured.high, 4)]}


def patch_with_condition(patch: Patch, fitted: Fitted, label: Label) -> Patch:
    """Return a steering patch with a condition: a new one, whose origin names the first.

    It acts on the answer alone from then on, as the decision falls at the last token of the prompt.

    Raises:
        CompileError: The patch is of another kind.
        PatchFormatError: It acts on a layer that the condition reads, or above.
    """
    body = require_steering(patch)
    steering = replace(body.steering, tokens="answer")
    origin = {**patch.manifest.origin, "condition": {"added_to": patch.digest, **fitted.origin()}}
    manifest = label.manifest(patch.manifest.base_model, SteeringBody(steering, fitted.condition), origin)
    return make_patch(manifest, {"vector": patch.tensors["vector"], "probes": fitted.probes})
