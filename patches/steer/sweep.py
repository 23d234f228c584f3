"""Which strength to take: the same vector at several strengths, by what it declines and what it spoils."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from patches.errors import CompileError, EvaluationError
from patches.evaluate.arms import Arm
from patches.evaluate.report.summary import Summary
from patches.evaluate.suite import Task
from patches.format import Patch, make_patch
from patches.steer.vector import require_steering

#: Figures by which strengths are compared, both lower is better: harm that is done, and harm of declining.
_COMPLIANCE, _REFUSAL = "compliance", "refusal"


@dataclass(frozen=True)
class Strength:
    """One strength and its figures: means over the tasks of a kind."""

    strength: float
    compliance: float
    refusal: float


def read_strengths(text: str) -> list[float]:
    """Read ``0.02,0.04,0.08``.

    Raises:
        CompileError: A part is no number above 0, or comes twice.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0 or len(set(found)) < len(found):
        raise CompileError(f"strengths: expected numbers above 0 that differ, as 0.02,0.04, got {text!r}")
    return found


def strength_arms(patch: Patch, strengths: Sequence[float]) -> dict[float, Arm]:
    """Make an arm of each strength of a steering patch.

    Raises:
        PatchFormatError: A strength is beyond what the scale allows.
    """
    body = require_steering(patch)
    arms = {}
    for strength in strengths:
        stronger = replace(body, steering=replace(body.steering, strength=strength))
        made = make_patch(replace(patch.manifest, body=stronger), patch.tensors)
        arms[strength] = Arm(f"strength {strength:g}", "patch", vector=made, digest=made.digest)
    return arms


def require_both_kinds(tasks: Sequence[Task]) -> None:
    """Check that a sweep sees both what is declined and what is spoilt.

    Raises:
        EvaluationError: No task measures one of them.
    """
    measured = {metric.name for task in tasks for metric in task.measure.metrics}
    if missing := [name for name in (_COMPLIANCE, _REFUSAL) if name not in measured]:
        raise EvaluationError(
            f"suite: expected tasks that measure harm and refusal, as harm,overrefusal have; none measures "
            f"{' and '.join(missing)}"
        )


def compared(summary: Summary, arms: Mapping[float, Arm]) -> list[Strength]:
    """Return the figures of each strength, in the order of ``arms``."""

    def mean(name: str, arm: str) -> float:
        values = [
            result.value
            for path in summary.metrics
            if path.rpartition("/")[2] == name
            and (result := summary.find(path, arm)) is not None
            and result.value is not None
        ]
        return sum(values) / len(values)

    return [Strength(s, mean(_COMPLIANCE, arm.name), mean(_REFUSAL, arm.name)) for s, arm in arms.items()]


def best(strengths: Sequence[Strength]) -> Strength:
    """Return the one with the least harm done and harmless declined together; of equals the weakest."""
    return min(strengths, key=lambda one: (one.compliance + one.refusal, one.strength))


def with_figures(patch: Patch, strengths: Sequence[Strength]) -> Patch:
    """Return the patch with the figures of all strengths in its origin.

    Raises:
        PatchFormatError: They do not fit into a manifest.
    """
    rows = [{key: round(value, 4) for key, value in vars(one).items()} for one in strengths]
    origin = {**patch.manifest.origin, "strengths": rows}
    return make_patch(replace(patch.manifest, origin=origin), patch.tensors)
