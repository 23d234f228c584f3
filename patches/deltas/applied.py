"""A weight patch at work in a transformers model: what is computed there belongs to the weights under it."""

from dataclasses import replace

import torch

from patches.errors import DeltaError
from patches.fingerprint import require_fits
from patches.format import Patch
from patches.kinds.delta import DeltaBody, effective_weights_digest
from patches.manifest import require_kind
from patches.model import LoadedModel


@torch.no_grad()
def under_delta(model: LoadedModel, patch: Patch) -> LoadedModel:
    """Return a model with the weights under a patch, and the fingerprint of those; its own are changed.

    Raises:
        KindMismatch: It is no weight patch.
        BaseModelMismatch: It was made for another model.
        DeltaError: The model lacks a weight that it changes.
    """
    require_kind(patch.manifest, DeltaBody.kind, "name a weight patch")
    require_fits(model.base_model, patch.manifest.base_model)
    body = patch.manifest.body
    assert isinstance(body, DeltaBody)
    weights = dict(model.network.named_parameters())
    for change in body.changes(patch.tensors):
        weight = weights.get(change.tensor.name)
        if weight is None or tuple(weight.shape) != change.tensor.shape:
            raise DeltaError(
                f"{change.tensor.name}: expected {list(change.tensor.shape)}, the model has none"
            )
        place = weight.view(-1)
        place[change.positions.to(place.device)] = change.values.to(place)
    own = model.base_model
    digest = effective_weights_digest(own.weights_digest, patch.digest)
    return replace(model, base_model=replace(own, weights_digest=digest))
