"""What is learned: vectors of a steering patch, at work in the frozen model.

One row for each layer that it acts on, relative, on the tokens of the answer alone: from the last token of
the prompt on. Those are the tokens that predict an answer's, which the loop names when it runs the model. A
row is at most 1 long; what the optimizer makes longer counts as its direction. Values are float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.errors import TrainingError
from patches.format import Patch
from patches.kinds.steering import Steering
from patches.model import LoadedModel
from patches.steer.arithmetic import steer
from patches.steer.layer_list import last_third, read_layers, written_layers
from patches.steer.network import hook, layers_of
from patches.steer.vector import acting_layers, require_steering
from patches.train.config import TrainConfig
from patches.train.contexts import Context


def bounded(values: torch.Tensor) -> torch.Tensor:
    """Cut rows to length 1, differentiably: ``[k, d]``."""
    lengths: torch.Tensor = values.norm(dim=1, keepdim=True)
    return values / lengths.clamp_min(1.0)


def layers_to_learn(config: TrainConfig, num_layers: int) -> list[int]:
    """Return the layers that a configuration learns vectors for.

    Raises:
        CompileError: The model has no such layers.
    """
    if config.layers is None:
        return last_third(num_layers)
    return read_layers(config.layers, num_layers)


def vector_of_values(values: torch.Tensor, layers: Sequence[int], num_layers: int) -> torch.Tensor:
    """Lay learned rows out as a patch has them: ``[L, d]``, zeros elsewhere."""
    vector = torch.zeros(num_layers, values.shape[1])
    vector[list(layers)] = bounded(values.detach().float().cpu())
    return vector


def rows_of_patch(patch: Patch, model: LoadedModel, layers: Sequence[int]) -> torch.Tensor:
    """Return the start values of a run that continues from a steering patch, learned or computed.

    Raises:
        CompileError: The patch is of another kind.
        TrainingError: It acts on other layers.
    """
    require_steering(patch)
    own = sorted(acting_layers(patch.tensors["vector"]))
    if not set(own) <= set(layers) or len(patch.tensors["vector"]) != model.base_model.num_layers:
        raise TrainingError(
            f"init_patch: acts on layers {written_layers(own)}, expected some of "
            f"{written_layers(list(layers))}; name them with layers"
        )
    return patch.tensors["vector"][list(layers)].clone()


class _Answers:
    """Steers the tokens of the pass at hand that predict an answer's."""

    def __init__(self, network: Any, layers: Sequence[int], steering: Steering) -> None:
        self.row_of = {layer: row for row, layer in enumerate(layers)}
        self.steering = steering
        #: The rows that act; ``None`` leaves the model as it is.
        self.current: torch.Tensor | None = None
        self._predicting: torch.Tensor | None = None
        network.register_forward_pre_hook(self._learn_tokens, with_kwargs=True)
        hook(network, self)

    def before_pass(self, positions: torch.Tensor, is_real: torch.Tensor) -> None:
        """See ``Acting``; which tokens, is known already."""

    def after_layer(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """See ``Acting``."""
        return self._steered("residual", layer, states)

    def after_mlp(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """See ``Acting``."""
        return self._steered("mlp", layer, states)

    def _steered(self, site: str, layer: int, states: torch.Tensor) -> torch.Tensor:
        if self.current is None or site != self.steering.site or layer not in self.row_of:
            return states
        assert self._predicting is not None
        row = bounded(self.current[self.row_of[layer]][None])[0]
        changed = steer(states[:, self._predicting], row, self.steering)
        return states.index_copy(1, self._predicting, changed)

    def _learn_tokens(self, module: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep = kwargs.get("logits_to_keep")
        self._predicting = torch.unique(keep) if isinstance(keep, torch.Tensor) else None


class LearnedVectors:
    """Rows as the loop takes them; there is no K/V, and no patch to stand among."""

    num_others = 0

    def __init__(self, answers: _Answers, network: Any, values: torch.Tensor) -> None:
        device = network.get_input_embeddings().weight.device
        self.values = torch.nn.Parameter(values.detach().to(device, torch.float32, copy=True))
        self._answers = answers
        self._network = network
        answers.current = None

    def frozen(self, values: torch.Tensor) -> "LearnedVectors":
        """Return other rows, which don't learn."""
        other = LearnedVectors(self._answers, self._network, values)
        other.values.requires_grad_(False)
        return other

    def patched(self, context: Context) -> None:
        """Switch the rows on."""
        self._answers.current = self.values

    def unpatched(self, context: Context) -> None:
        """Switch the rows off."""
        self._answers.current = None


@dataclass(frozen=True)
class VectorForm:
    """Vectors of one run: what they have in common."""

    network: Any
    answers: _Answers
    #: Makes the start values; a run that is resumed needs none.
    make_start: Callable[[], torch.Tensor]

    def start(self) -> torch.Tensor:
        """Return the values that the first step begins with."""
        return self.make_start()

    def learned(self, values: torch.Tensor) -> LearnedVectors:
        """Return these rows, at work: the model is as it was until ``patched`` is called."""
        return LearnedVectors(self.answers, self.network, values)


def vector_form(model: LoadedModel, config: TrainConfig, first: Patch | None) -> VectorForm:
    """Prepare the vectors of a run.

    Args:
        model: The frozen model.
        config: Layers, site and strength.
        first: The patch to continue from.

    Raises:
        ModelUnusable: The model's architecture can't be steered.
        CompileError: It has no such layers.
    """
    layers_of(model.network)
    layers = layers_to_learn(config, model.base_model.num_layers)

    def start() -> torch.Tensor:
        if first is not None:
            return rows_of_patch(first, model, layers)
        return torch.zeros(len(layers), model.base_model.hidden_size)

    return VectorForm(model.network, _Answers(model.network, layers, config.steering), start)
