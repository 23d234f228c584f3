"""What a run learns, as the loop and the losses see it: values, and the model with them and without them.

Four implementations: a soft prefix (``soft_prefix``), vectors (``vectors``) and some of the model's own
weights (``weights``), which patches are made of, and an adapter of the weights (``baselines``), which patches
are compared with.
"""

from typing import Protocol

import torch

from patches.train.contexts import Context
from patches.train.forward import PrefixKv


class Learned(Protocol):
    """Values that are learned, at work in one frozen model.

    Call ``patched`` or ``unpatched`` right before each forward pass, and run it before the next such call: an
    implementation may switch something in the model on or off there.
    """

    #: What the optimizer steps on; float32, whatever the model computes in.
    values: torch.nn.Parameter

    @property
    def num_others(self) -> int:
        """How many patches the values may stand among."""

    def frozen(self, values: torch.Tensor) -> "Learned":
        """Return the same with other values, which don't learn."""

    def patched(self, context: Context) -> PrefixKv | None:
        """Return the K/V to run the model behind so that the values act; ``None`` for no prefix."""

    def unpatched(self, context: Context) -> PrefixKv | None:
        """Return the K/V of the context without the values; ``None`` where nothing is left."""


class Form(Protocol):
    """What kind of values a run learns: made once, from its inputs."""

    def start(self) -> torch.Tensor:
        """Return the values that the first step begins with."""

    def learned(self, values: torch.Tensor) -> Learned:
        """Return these values, at work."""
