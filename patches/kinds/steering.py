"""The kind ``steering``: a direction for each layer that is added to hidden states, always or on a condition.

With x the hidden state of one token, v the layer's row, and ``strength`` s, which is ``a`` where the scale is
absolute and ``r`` where it is relative::

    u = x + (a + r |x|) (1 + g max(0, -cos(x, v))) v        x' = u |x| / |u| where renormalised, else u

The paper's form (Safety Arithmetic, arXiv 2406.11801, equations 9 and 10) is absolute at the residual stream,
renormalised, with g = 0; its authors' code is relative at the output of the MLP, with g = 1.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.fields import FieldReader
from patches.kinds.body import TensorRule
from patches.kinds.condition import Condition, Probe, read_condition

SITES = ("residual", "mlp")
SCALES = ("absolute", "relative")
TOKENS = ("all", "answer")

#: Longest step of an absolute vector, gain included; hidden states are some hundreds to thousands long.
MAX_STEP = 1e4
#: Largest share by which a state may grow in one layer, where it is not renormalised.
MAX_GROWTH = 0.5
#: Longest row of a probe, so that no score of a finite state overflows.
MAX_PROBE = 1e6

#: In the relative form no row is longer than 1, so that ``strength`` bounds the step. For rounding:
_NORM_SLACK = 1e-3


@dataclass(frozen=True)
class Steering:
    """How the vector is added; see the module's text for the arithmetic."""

    #: ``residual``: the output of a decoder layer; ``mlp``: the output of its MLP.
    site: str
    #: ``relative``: the step is a share of the hidden state's own length.
    scale: str
    strength: float
    #: g: how much more is added to a state that points away from the vector.
    opposed_gain: float = 0.0
    #: The state keeps its length.
    renormalise: bool = True
    #: ``all`` tokens of prompt and answer, or the ``answer``: the last prompt token and all that follow.
    tokens: str = "all"

    def document(self) -> dict[str, JsonValue]:
        """Return it as a manifest has it."""
        return dict(vars(self))


@dataclass(frozen=True)
class SteeringBody:
    """How a vector acts, and when."""

    kind: ClassVar[str] = "steering"
    format_version: ClassVar[int] = 2
    methods: ClassVar[tuple[str, ...]] = ("icv", "trained", "import")
    max_file_bytes: ClassVar[int] = 16 * 1024**2
    is_dtype_bound: ClassVar[bool] = False
    payload: ClassVar[tuple[str, ...]] = ("vector", "probes")

    steering: Steering
    condition: Condition | None = None

    @property
    def num_tokens(self) -> int:
        """See ``Body.num_tokens``."""
        return 0

    @classmethod
    def read(cls, reader: FieldReader, model: BaseModel) -> Self:
        """See ``Body.read``."""
        steering = _read_steering(reader.object("steering"))
        condition = None
        if (of_condition := reader.optional_object("condition")) is not None:
            condition = read_condition(of_condition, model.num_layers)
            if steering.tokens != "answer":
                reader.problem("steering.tokens", "'answer' beside a condition", steering.tokens)
        return cls(steering, condition)

    def document(self) -> dict[str, JsonValue]:
        """See ``Body.document``."""
        steering = {"steering": self.steering.document()}
        return steering if self.condition is None else steering | {"condition": self.condition.document()}

    def tensor_rules(self, model: BaseModel) -> Mapping[str, TensorRule]:
        """See ``Body.tensor_rules``."""
        rules = {"vector": TensorRule((model.num_layers, model.hidden_size), frozenset({"F32"}))}
        if self.condition is not None:
            shape = (self.condition.num_rows, model.hidden_size)
            rules["probes"] = TensorRule(shape, frozenset({"F32"}))
        return rules

    def missing(self, names: Collection[str]) -> str | None:
        """See ``Body.missing``."""
        needed = ["vector"] if self.condition is None else ["vector", "probes"]
        return " and ".join(name for name in needed if name not in names) or None

    def value_problems(self, tensors: Mapping[str, np.ndarray]) -> Sequence[str]:
        """See ``Body.value_problems``."""
        norms = _lengths(tensors["vector"])
        longest = float(norms.max())
        problems = []
        if longest == 0:
            problems.append("tensor vector: expected a row that is not zero, got none")
        problems += self._step_problems(longest)
        if self.condition is not None:
            early = np.flatnonzero(norms[: self.condition.last_layer + 1])
            if early.size:
                problems.append(
                    f"tensor vector: expected zero rows up to layer {self.condition.last_layer}, "
                    f"behind which the condition decides, got others at {', '.join(map(str, early[:8]))}"
                )
            largest = float(_lengths(tensors["probes"]).max())
            if largest > MAX_PROBE:
                problems.append(
                    f"tensor probes: expected rows of at most length {MAX_PROBE:g}, got {largest:g}"
                )
        return problems

    def _step_problems(self, longest: float) -> Sequence[str]:
        """Return why a vector whose longest row has this length could make states that no dtype holds.

        What is not finite would stay in the KV cache's memory, where a later request could read it.
        """
        steering = self.steering
        step = steering.strength * (1 + steering.opposed_gain)
        if steering.scale == "absolute":
            if step * longest > MAX_STEP:
                return [
                    "tensor vector: expected strength, gain and longest row to make steps of at most "
                    f"{MAX_STEP:g}, got {step * longest:g}"
                ]
            return ()
        problems = []
        if longest > 1 + _NORM_SLACK:
            problems.append(
                "tensor vector: expected rows of at most length 1 where the scale is relative, "
                f"got {longest:.6g}"
            )
        if not steering.renormalise and step * longest > MAX_GROWTH:
            problems.append(
                "tensor vector: expected relative steps that are not renormalised to be at most "
                f"{MAX_GROWTH:g}, since each layer adds to those before it, got {step * longest:.6g}"
            )
        return problems

    def facts(self) -> Sequence[tuple[str, str]]:
        """See ``Body.facts``."""
        steering, condition = self.steering, self.condition
        form = [f"{steering.scale}, strength {steering.strength:g}", f"at the {steering.site} site"]
        if steering.opposed_gain:
            form.append(f"opposed gain {steering.opposed_gain:g}")
        form.append("renormalised" if steering.renormalise else "not renormalised")
        acts = "on all tokens" if steering.tokens == "all" else "from the last prompt token on"
        rows = [("steering", ", ".join(form)), ("acts", acts)]
        if condition is not None:
            shadow = "; it only counts, nothing is steered" if condition.shadow else ""
            rows.append(("condition", f"{condition.combine} of {len(condition.probes)}{shadow}"))
            rows += [(f"  probe {i + 1}", _shown(probe)) for i, probe in enumerate(condition.probes)]
        return rows


def _lengths(rows: np.ndarray) -> np.ndarray:
    # In float64, where the square of no float32 overflows.
    lengths: np.ndarray = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    return lengths


def _shown(probe: Probe) -> str:
    layers = ", ".join(map(str, probe.layers))
    pool = probe.pool if probe.num_tokens == 1 else f"mean of the last {probe.num_tokens} tokens"
    return f"{pool} of layers {layers}; met above {probe.threshold:g}, bias {probe.bias:g}"


def _read_steering(reader: FieldReader) -> Steering:
    scale = reader.one_of("scale", SCALES)
    steering = Steering(
        site=reader.one_of("site", SITES),
        scale=scale,
        strength=reader.number("strength", 0, 1 if scale == "relative" else 1e6),
        opposed_gain=reader.number("opposed_gain", 0, 100),
        renormalise=reader.boolean("renormalise"),
        tokens=reader.one_of("tokens", TOKENS),
    )
    if reader.is_good("strength") and steering.strength == 0:
        reader.problem("strength", "more than 0", 0)
    reader.finish()
    return steering
