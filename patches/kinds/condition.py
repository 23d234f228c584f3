"""When a vector acts: linear probes of the prompt's hidden states, each with a threshold.

After CAST (arXiv 2409.05907), with learned probes in place of its projections. The score of a token is the
sum of one dot product at each of a probe's layers; the score of a request is the probe's bias and the mean
over the prompt's tokens, or over the last few of them.
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
MAX_LAST_TOKENS = 4096
_LIMIT = 1e6


@dataclass(frozen=True)
class Probe:
    """One score of a request, and the value above which it counts as met."""

    #: Decoder layers whose output is scored, from 0 on, rising.
    layers: tuple[int, ...]
    #: ``mean`` over the prompt's tokens, or ``last``: over the last ``num_tokens``.
    pool: str
    bias: float
    threshold: float
    #: Of ``last``; a shorter prompt has them all averaged.
    num_tokens: int = 1

    def document(self) -> dict[str, JsonValue]:
        """Return it as a manifest has it; a single last token is not written down."""
        document: dict[str, JsonValue] = {
            "layers": list(self.layers),
            "pool": self.pool,
            "bias": self.bias,
            "threshold": self.threshold,
        }
        return document if self.num_tokens == 1 else {**document, "num_tokens": self.num_tokens}

    def first_token(self, first: int, stop: int) -> int:
        """Return where the tokens begin that it averages, of a prompt at ``first`` to ``stop``."""
        return max(first, stop - self.num_tokens) if self.pool == "last" else first


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
    layers, pool = _read_layers(reader, num_layers), reader.one_of("pool", POOLS)
    bias, threshold = (reader.number(key, -_LIMIT, _LIMIT) for key in ("bias", "threshold"))
    probe = Probe(
        layers, pool, bias, threshold, reader.optional_integer("num_tokens", 2, MAX_LAST_TOKENS) or 1
    )
    if pool == "mean" and probe.num_tokens > 1:
        reader.problem("num_tokens", "none beside the pool mean", probe.num_tokens)
    reader.finish()
    return probe


def _read_layers(reader: FieldReader, num_layers: int) -> tuple[int, ...]:
    layers: Sequence[int] = reader.integers("layers", 0, num_layers - 1)
    if reader.is_good("layers") and (
        not 0 < len(layers) <= MAX_LAYERS or any(a >= b for a, b in pairwise(layers))
    ):
        reader.problem("layers", f"1 to {MAX_LAYERS} rising layers", list(layers))
    return tuple(layers) or (0,)
