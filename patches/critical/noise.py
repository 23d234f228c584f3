"""The paper's test of scores: noise on critical weights should harm safety, on as many others it should not.

Each chosen weight gets Gaussian noise of ``scale`` standard deviations of its tensor. The same scale goes on
the weights of the largest scores, on those of the smallest and on as many at random, so that only the choice
differs.
"""

import hashlib
from collections.abc import Mapping

import torch

from patches.critical.gradient import linear_parameters
from patches.critical.scores import Scores, require_scores_of
from patches.critical.selection import Selection, select
from patches.deltas.collected import Collected
from patches.deltas.sides import SIDES
from patches.errors import ScoresError
from patches.format import Patch, make_patch
from patches.kinds.delta import Change, ChangedTensor
from patches.label import Label
from patches.model import LoadedModel

#: The paper's.
DEFAULT_SCALE = 0.38


@torch.no_grad()
def noise_changes(
    selection: Selection, weights: Mapping[str, torch.Tensor], scale: float, seed: int
) -> list[Change]:
    """Return what chosen weights become under noise.

    Args:
        selection: Which.
        weights: The model's, by name.
        scale: Standard deviations of a weight's tensor.
        seed: Of the noise; a tensor gets the same whatever else is chosen.

    Raises:
        ScoresError: The scale is out of range.
    """
    if not 0 < scale <= 100:
        raise ScoresError(f"noise: expected more than 0, at most 100, got {scale:g}; the paper takes 0.38")
    changes = []
    for name, places in selection.positions.items():
        weight = weights[name].detach()
        key = int.from_bytes(hashlib.sha256(f"noise:{seed}:{name}".encode()).digest()[:8], "big") >> 1
        drawn = torch.randn(len(places), generator=torch.Generator().manual_seed(key))
        noise = (drawn * scale * float(weight.float().std(unbiased=False))).to(weight.device)
        old = weight.reshape(-1)[places.to(weight.device)]
        shape = selection.shapes[name]
        changes.append(
            Change(ChangedTensor(name, shape, len(places)), places, (old.float() + noise).to(old.dtype))
        )
    return changes


def noise_patches(model: LoadedModel, scores: Scores, share: float, scale: float, seed: int) -> list[Patch]:
    """Make a weight patch of noise for each of ``SIDES``, to compare their answers.

    Raises:
        ScoresError: The scores are another model's, or a number is out of range.
        DeltaError: Too much of one tensor is chosen.
    """
    require_scores_of(scores, model.base_model)
    weights = linear_parameters(model.network)
    made = []
    for side in SIDES:
        collected = Collected(model.base_model.dtype, "share", "noise")
        for change in noise_changes(select(scores, share, side, seed), weights, scale, seed):
            collected.add(change.tensor.name, weights[change.tensor.name], change.positions, change.values)
        body, tensors = collected.finish("noise: expected changes that the dtype shows; take more noise")
        origin = {
            "method": "import",
            "noise": side,
            "scale": scale,
            "share": share,
            "seed": seed,
            "scores_digest": scores.digest,
        }
        label = Label(f"noise-{side}", "1.0.0")
        made.append(make_patch(label.manifest(model.base_model, body, origin), tensors))
    return made
