"""What acts on a request: the values of a steering patch, its form and its condition, on one device."""

from dataclasses import dataclass

import torch

from patches.errors import CompileError
from patches.format import Patch
from patches.kinds.condition import Condition
from patches.kinds.steering import Steering, SteeringBody


@dataclass(frozen=True, eq=False)
class Vector:
    """A direction for each layer, and how and when it is added."""

    steering: Steering
    #: ``[L, d]`` float32; gradients flow into it where it has them.
    values: torch.Tensor
    #: The layers that it acts on.
    layers: frozenset[int]
    condition: Condition | None = None
    #: ``[rows, d]`` float32, as the format lays them; None without a condition.
    probes: torch.Tensor | None = None


def vector_of(patch: Patch, device: torch.device | str = "cpu") -> Vector:
    """Return what a steering patch does.

    Raises:
        CompileError: The patch is of another kind.
    """
    body = require_steering(patch)
    values = patch.tensors["vector"].to(device)
    probes = patch.tensors.get("probes")
    return Vector(
        body.steering,
        values,
        acting_layers(values),
        body.condition,
        None if probes is None else probes.to(device),
    )


def require_steering(patch: Patch) -> SteeringBody:
    """Return the body of a steering patch.

    Raises:
        CompileError: The patch is of another kind.
    """
    body = patch.manifest.body
    if not isinstance(body, SteeringBody):
        name = f"{patch.manifest.name}@{patch.manifest.version}"
        raise CompileError(f"{name}: expected a patch of the kind steering, got {patch.manifest.kind}")
    return body


def acting_layers(values: torch.Tensor) -> frozenset[int]:
    """Return the layers whose row is not zero."""
    rows: list[int] = values.detach().abs().amax(1).nonzero().flatten().tolist()
    return frozenset(rows)
