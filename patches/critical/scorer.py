"""The seam of what is called safe: S, a number that gradients flow from.

S is a sum of parts, one for each prompt for example: a part is computed and its gradient added before the
next, so that memory does not grow with the prompts. A package brings a scorer of its own, a guard model for
example, as an entry point of the group ``policypatch.safety_scorers``::

    [project.entry-points."policypatch.safety_scorers"]
    my-guard = "my_package.guard:make_scorer"

which is a ``MakeScorer``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from patches.canonical import JsonValue
from patches.model import LoadedModel
from patches.pairs.prompts import Messages

GROUP = "policypatch.safety_scorers"


class Scorer(Protocol):
    """S of one model on some prompts."""

    def __len__(self) -> int:
        """Count the parts of S."""

    def part(self, network: Any, index: int) -> torch.Tensor:
        """Return a part of S: a scalar, from which gradients flow into the network's weights."""

    def setup(self) -> Mapping[str, JsonValue]:
        """Return what it is made of, for whoever reads the scores."""


@dataclass(frozen=True)
class Questions:
    """What the model is asked."""

    #: Those that it should decline.
    harmful: Sequence[Messages]
    #: Those that it should answer; may be none.
    benign: Sequence[Messages]


MakeScorer = Callable[[LoadedModel, Questions], Scorer]
