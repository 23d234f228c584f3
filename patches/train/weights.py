"""What is learned: some of the model's own weights, at work in it (SET, arXiv 2604.08297).

Which ones is decided before: those of the largest scores. Their values are one flat float32 vector, tensor
after tensor, so that optimizer, checkpoint and resume are those of a prefix: Adam on the vector is AdamW on
the whole model with its update multiplied by the mask and without decay, and holds moments for the chosen
weights alone. The norm that gradients are clipped to is theirs, too.

A tensor's gradient exists while it is handed on: its chosen part is added to the vector's, and it is let go.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.critical.gradient import linear_parameters
from patches.critical.selection import Selection
from patches.deltas.collected import Collected
from patches.errors import TrainingError
from patches.format import Patch, make_patch
from patches.kinds.delta import MAX_SHARE
from patches.label import Label
from patches.train.contexts import Context


@dataclass(frozen=True)
class _Part:
    """The chosen weights of one tensor."""

    name: str
    weight: torch.nn.Parameter
    #: int64, rising, on the weight's device.
    places: torch.Tensor
    #: Where they are in the vector.
    span: slice


class WeightForm:
    """The chosen weights of one network: where they are, and what they were."""

    def __init__(self, network: Any, selection: Selection) -> None:
        """Hook into the network; it computes as before until values are at work.

        Raises:
            TrainingError: Too much of one tensor is chosen for a weight patch.
        """
        weights, start = linear_parameters(network), 0
        self._parts: list[_Part] = []
        #: Whose gradients are taken; ``None`` before any values are at work.
        self.current: LearnedWeights | None = None
        for name, places in selection.positions.items():
            if (share := selection.share_of(name)) > MAX_SHARE:
                raise TrainingError(
                    f"share: expected at most {MAX_SHARE:.0%} of each tensor to be chosen, got {share:.1%} "
                    f"of {name}; choose a smaller one"
                )
            weight, end = weights[name], start + len(places)
            part = _Part(name, weight, places.to(weight.device), slice(start, end))
            self._parts.append(part)
            # It stays where gradients are switched off and on again, and can't be made while they are off.
            weight.requires_grad_(True)
            weight.register_post_accumulate_grad_hook(self._taker(part))  # type: ignore[no-untyped-call]
            start = end
        self.want_gradients(None)
        self._own = torch.cat([_flat(part.weight)[part.places].float().cpu() for part in self._parts])

    def start(self) -> torch.Tensor:
        """Return the weights as they are in the model."""
        return self._own.clone()

    def learned(self, values: torch.Tensor) -> "LearnedWeights":
        """Return these values, at work: the model is as it was until ``patched`` is called."""
        self.write(self._own)
        return LearnedWeights(self, values, self._parts[0].weight.device)

    @torch.no_grad()
    def write(self, values: torch.Tensor) -> None:
        """Put values into the network."""
        for part in self._parts:
            _flat(part.weight)[part.places] = values[part.span].to(part.weight)

    def want_gradients(self, learned: "LearnedWeights | None") -> None:
        """Have backward passes end in these values; in none where it is ``None``."""
        self.current = learned
        for part in self._parts:
            part.weight.requires_grad_(learned is not None)

    def patch(
        self, values: torch.Tensor, base_model: BaseModel, label: Label, origin: Mapping[str, JsonValue]
    ) -> Patch:
        """Make the weight patch of a finished run; the network is left as it was loaded.

        Args:
            values: What was learned.
            base_model: The model's fingerprint, in the dtype that the server runs it in.
            label: Name, version and notes.
            origin: How the values were learned.

        Raises:
            DeltaError: A value is not finite in the model's dtype, or nothing has changed.
        """
        self.want_gradients(None)
        self.write(self._own)
        collected = Collected(base_model.dtype, "share", "learning rate")
        for part in self._parts:
            collected.add(part.name, part.weight.detach().cpu(), part.places.cpu(), values[part.span])
        body, tensors = collected.finish(
            "learning rate: expected one that changes weights, got one whose changes round to nothing"
        )
        return make_patch(label.manifest(base_model, body, origin), tensors)

    def _taker(self, part: _Part) -> Any:
        def take(weight: torch.Tensor) -> None:
            gradient, weight.grad = weight.grad, None
            if self.current is None or gradient is None:
                return
            values = self.current.values
            if values.grad is None:
                values.grad = torch.zeros_like(values)
            values.grad[part.span] += gradient.reshape(-1)[part.places].to(values)

        return take


class LearnedWeights:
    """Weights as the loop takes them; there is no K/V, and no patch to stand among."""

    num_others = 0

    def __init__(self, form: WeightForm, values: torch.Tensor, device: torch.device) -> None:
        self.values = torch.nn.Parameter(values.detach().to(device, torch.float32, copy=True))
        self._form = form

    def frozen(self, values: torch.Tensor) -> "LearnedWeights":
        """Return other values, which don't learn."""
        other = LearnedWeights(self._form, values, self.values.device)
        other.values.requires_grad_(False)
        return other

    def patched(self, context: Context) -> None:
        """Put the values into the network."""
        self._form.write(self.values)
        self._form.want_gradients(self if self.values.requires_grad else None)

    def unpatched(self, context: Context) -> None:
        """Put the network's own weights in their place."""
        self._form.want_gradients(None)
        self._form.write(self._form.start())


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().view(-1)
