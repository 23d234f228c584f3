"""A weight patch at work in a transformers model: what is computed there belongs to the weights under it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from patches.errors import DeltaError
from patches.fingerprint import require_fits
from patches.format import Patch
from patches.kinds.delta import Change, DeltaBody, effective_weights_digest
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
    changes = changes_of(patch)
    require_fits(model.base_model, patch.manifest.base_model)
    weights = dict(model.network.named_parameters())
    for change in changes:
        place = _place_of(weights, change)
        place[change.positions.to(place.device)] = change.values.to(place)
    own = model.base_model
    digest = effective_weights_digest(own.weights_digest, patch.digest)
    return replace(model, base_model=replace(own, weights_digest=digest))


def changes_of(patch: Patch) -> list[Change]:
    """Return what becomes of each tensor under a weight patch.

    Raises:
        KindMismatch: It is no weight patch.
    """
    require_kind(patch.manifest, DeltaBody.kind, "name a weight patch")
    body = patch.manifest.body
    assert isinstance(body, DeltaBody)
    return list(body.changes(patch.tensors))


@contextmanager
def at_work(network: Any, changes: Sequence[Change]) -> Iterator[None]:
    """Have a network compute under changed weights for a while; afterwards it has its own, bit for bit.

    Args:
        network: A transformers model that has the tensors.
        changes: What becomes of them.

    Raises:
        DeltaError: The model lacks a weight that changes.
    """
    weights = dict(network.named_parameters())
    places = [_place_of(weights, change) for change in changes]
    positions = [change.positions.to(place.device) for change, place in zip(changes, places, strict=True)]
    own = [place[chosen] for place, chosen in zip(places, positions, strict=True)]
    try:
        for place, chosen, change in zip(places, positions, changes, strict=True):
            place[chosen] = change.values.to(place)
        yield
    finally:
        for place, chosen, values in zip(places, positions, own, strict=True):
            place[chosen] = values


def _place_of(weights: Mapping[str, torch.Tensor], change: Change) -> torch.Tensor:
    weight = weights.get(change.tensor.name)
    if weight is None or tuple(weight.shape) != change.tensor.shape:
        raise DeltaError(f"{change.tensor.name}: expected {list(change.tensor.shape)}, the model has none")
    return weight.detach().view(-1)
