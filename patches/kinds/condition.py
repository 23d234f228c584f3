"""When a vector acts: linear probes of the prompt's hidden states, each with a threshold.

After CAST (arXiv 2409.05907), with learned probes in place of its projections. The score of a token is the
sum of one dot product at each of a probe's layers; the score of a request is the probe's bias and the mean
over the prompt's tokens, or the value at the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from patches.canonical import JsonValue
from patches.fields import FieldReader

POOLS = ("mean", "last")
COMBINATIONS = ("any", "all")
MAX_PROBES = 4
MAX_LAYERS = 64
_LIMIT = 1e6


@dataclass(frozen=True)
class Probe:
    """One score of a request, and the value above which it counts as met."""

    #: Decoder layers whose output is scored, from 0 on, rising.
    layers: tuple[int, ...]
    #: ``mean`` over the prompt's tokens, or ``last``: the last of them.
    pool: str
    bias: float
    threshold: float

    def document(self) -> dict[str, JsonValue]:
        """Return it as a manifest has it."""
        return {
            "layers": list(self.layers),
            "pool": self.pool,
            "bias": self.bias,
            "threshold": self.threshold,
        }


@dataclass(frozen=True)
class Condition:
    """Probes, and how they decide together."""

    #: 1 to ``MAX_PROBES``.
    probes: tuple[Probe, ...]
    #: Whether ``any`` probe that is met is enough, or ``all`` have to be.
    combine: str = "any"
    #: It is scored and counted, and nothing is steered.
    shadow: bool = False

    @property
    def last_layer(self) -> int:
        """The layer behind which the decision falls."""
        return max(layer for probe in self.probes for layer in probe.layers)

    @property
    def num_rows(self) -> int:
        """Rows of the tensor ``probes``: one for each layer of each probe, in their order."""
        return sum(len(probe.layers) for probe in self.probes)

    def document(self) -> dict[str, JsonValue]:
        """Return it as a manifest has it; ``read_condition`` is the inverse."""
        return {
            "probes": [probe.document() for probe in self.probes],
            "combine": self.combine,
            "shadow": self.shadow,
        }


def read_condition(reader: FieldReader, num_layers: int) -> Condition:
    """Read a condition on a model of ``num_layers``; ``reader`` collects what is wrong with it."""
    probes = tuple(_read_probe(one, num_layers) for one in reader.objects("probes", 1, MAX_PROBES))
    condition = Condition(probes, reader.one_of("combine", COMBINATIONS), reader.boolean("shadow"))
    reader.finish()
    return condition


def _read_probe(reader: FieldReader, num_layers: int) -> Probe:
    probe = Probe(
        _read_layers(reader, num_layers),
        reader.one_of("pool", POOLS),
        reader.number("bias", -_LIMIT, _LIMIT),
        reader.number("threshold", -_LIMIT, _LIMIT),
    )
    reader.finish()
    return probe


def _read_layers(reader: FieldReader, num_layers: int) -> tuple[int, ...]:
    layers: Sequence[int] = reader.integers("layers", 0, num_layers - 1)
    if reader.is_good("layers") and (
        not 0 < len(layers) <= MAX_LAYERS or any(a >= b for a, b in pairwise(layers))
    ):
        reader.problem("layers", f"1 to {MAX_LAYERS} rising layers", list(layers))
    return tuple(layers) or (0,)
