"""What workers tell the scheduler side about steered requests, beside the tokens of a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

#: Key of the outcome inside ``kv_transfer_params``.
OUTCOME_KEY = "policy_patch_condition"


class Outcome(NamedTuple):
    """What the condition of a vector decided for one request."""

    is_met: bool
    #: It is met, and the condition is no shadow.
    acts: bool
    #: By how much the score of the probe that decides is above its threshold.
    margin: float
    #: One a probe, bias included.
    scores: tuple[float, ...]

    def to_params(self) -> dict[str, Any]:
        """Return the ``kv_transfer_params`` of a finished answer; ``from_params`` is its inverse."""
        return {OUTCOME_KEY: [self.is_met, self.acts, self.margin, list(self.scores)]}

    @classmethod
    def from_params(cls, params: Mapping[str, Any] | None) -> "Outcome | None":
        """Read the outcome out of ``RequestOutput.kv_transfer_params``."""
        if not params or OUTCOME_KEY not in params:
            return None
        is_met, acts, margin, scores = params[OUTCOME_KEY]
        return cls(bool(is_met), bool(acts), float(margin), tuple(map(float, scores)))


@dataclass(slots=True)
class SteeringReport(KVConnectorWorkerMetadata):
    """Of one step, by request id."""

    #: Requests that must not get an answer -> the first block of theirs that is wrong, all where it is None.
    failed: dict[str, int | None] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "SteeringReport":
        """Return what two workers say together. Ranks of one stage decide alike."""
        assert isinstance(other, SteeringReport)
        return SteeringReport(self.failed | other.failed, self.outcomes | other.outcomes)

    def __bool__(self) -> bool:
        return bool(self.failed or self.outcomes)
