"""Harm-direction removal (Safety Arithmetic, arXiv 2406.11801), and any other direction that tuning learned.

With theta_b a base model, theta_H the same tuned towards what is not wanted, and theta_t the model to mend::

    tau   = theta_H - theta_b                                (1)
    S_k   = the k weights of the largest |tau|, of all        (2)
    tau'  = tau where it is in S_k, 0 elsewhere              (3)
    theta = theta_t - scale tau'                             (4)

``keep`` is k as a share. Among equal magnitudes the first in order of name and position are taken, so that
there are exactly k; of a tensor in which more than a quarter is chosen, the largest quarter, since a weight
patch holds no more. Where theta_t is an *edited* model, tau counts only in layers in which theta_t differs
from theta_b, and in their neighbours (11-13); k is then a share of those layers' weights. The authors' code
elects a sign among several task vectors; of one vector the election changes nothing. Computed in float32,
rounded once.

One tensor of each model is in memory at a time, beside the result.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.deltas.collected import Collected
from patches.deltas.linear import LinearWeights, changed_layers, layer_of, require_alike
from patches.deltas.magnitude import Threshold, chosen, largest
from patches.errors import DeltaError
from patches.format import Patch, make_patch
from patches.kinds.delta import MAX_SHARE
from patches.label import Label
from patches.weights_digest import weights_digest

#: Told how many of how many tensors are done.
Tell = Callable[[int, int], None]

#: How often each tensor is looked at: twice for the threshold, once for its changes.
_PASSES = 3
_MAX_SCALE = 100.0


@dataclass(frozen=True)
class Removal:
    """How much of a direction is taken out."""

    #: Share of the weights whose change counts: the largest ones.
    keep: float = 0.10
    #: How often the change is subtracted; a negative one adds it.
    scale: float = 2.0
    #: The model to mend is an edited one.
    is_edited: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= MAX_SHARE:
            raise DeltaError(
                f"keep: expected a share above 0 and at most {MAX_SHARE:g}, got {self.keep:g}; "
                "the paper takes 0.1"
            )
        if not 0 < abs(self.scale) <= _MAX_SCALE:
            raise DeltaError(
                f"scale: expected -{_MAX_SCALE:g} to {_MAX_SCALE:g} but not 0, got {self.scale:g}"
            )


@dataclass(frozen=True)
class Checkpoints:
    """The three models of the equations; without a third one the base is mended."""

    base: LinearWeights
    tuned: LinearWeights
    target: LinearWeights

    def __post_init__(self) -> None:
        require_alike(self.base, self.tuned)
        require_alike(self.base, self.target)


def remove_direction(
    models: Checkpoints,
    base_model: BaseModel,
    removal: Removal,
    label: Label,
    tell: Tell = lambda done, total: None,
) -> Patch:
    """Make a weight patch that takes what tuning learned out of a model.

    Args:
        models: The checkpoints.
        base_model: The fingerprint of the model to mend, in the dtype that it runs in.
        removal: How much is taken out.
        label: Name, version and notes.
        tell: Told how far it is.

    Raises:
        DeltaError: The models don't differ where they should, or too much of a tensor would change.
        ModelUnusable: A file can't be read.
    """
    layers = edited_layers(models) if removal.is_edited else None
    names = [name for name in models.base.tensors if layers is None or layer_of(name) in layers]
    if not names:
        raise DeltaError(
            f"{models.target.word}: expected an edited model, got one without a change in its linear layers; "
            "leave out --edited"
        )
    num_weights = sum(models.base.tensors[name].size for name in names)
    k = max(1, round(removal.keep * num_weights))
    progress = _Progress(tell, _PASSES * len(names))
    threshold = largest(lambda: (progress.pass_on(tau) for _, tau in _directions(models, names)), k)
    collected = Collected(base_model.dtype)
    capped = _collect(models, names, removal.scale, threshold, collected, progress)
    body, tensors = collected.finish(
        "to: expected a model that differs, got one whose change rounds to nothing"
    )
    origin: dict[str, JsonValue] = {
        "method": "hdr",
        "from_weights_digest": weights_digest(models.base.folder),
        "to_weights_digest": weights_digest(models.tuned.folder),
        "keep": removal.keep,
        "scale": removal.scale,
        "threshold": threshold.value,
        "num_weights": num_weights,
    }
    if capped:
        origin["capped"] = capped
    if layers is not None:
        origin["edited_layers"] = sorted(layers)
    return make_patch(label.manifest(base_model, body, origin), tensors)


def edited_layers(models: Checkpoints) -> set[int]:
    """Return the layers in which the model to mend differs from the base, and their neighbours."""
    edited = set(changed_layers(models.base, models.target))
    near = {layer + step for layer in edited for step in (-1, 0, 1)}
    return near & {layer_of(name) for name in models.base.tensors}


def _directions(models: Checkpoints, names: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tau of each tensor, float32 and flat."""
    for name in names:
        tau = models.tuned.tensors[name].read().float()
        tau -= models.base.tensors[name].read().float()
        if not bool(torch.isfinite(tau).all()):
            raise DeltaError(
                f"{name}: expected finite weights, got NaN or infinite ones; copy the models anew"
            )
        yield name, tau.reshape(-1)


def _collect(
    models: Checkpoints,
    names: Collection[str],
    scale: float,
    threshold: Threshold,
    collected: Collected,
    progress: "_Progress",
) -> dict[str, JsonValue]:
    """Collect the changes; return the share that was chosen of each tensor that holds fewer."""
    capped: dict[str, JsonValue] = {}
    num_equal = threshold.num_equal
    for name, tau in _directions(models, names):
        positions, num_taken = chosen(tau.abs(), threshold, num_equal)
        num_equal -= num_taken
        limit = int(len(tau) * MAX_SHARE)
        if len(positions) > limit:
            capped[name] = round(len(positions) / len(tau), 4)
            # Of equal ones the first, as everywhere here.
            order = tau[positions].abs().argsort(descending=True, stable=True)[:limit]
            positions = positions[order].sort().values
        old = models.target.tensors[name].read()
        collected.add(name, old, positions, old.reshape(-1)[positions].float() - scale * tau[positions])
        progress.pass_on(tau)
    return capped


class _Progress:
    def __init__(self, tell: Tell, total: int) -> None:
        self._tell, self._done, self._total = tell, 0, total

    def pass_on(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor and return it as it is."""
        self._done += 1
        self._tell(self._done, self._total)
        return tensor
