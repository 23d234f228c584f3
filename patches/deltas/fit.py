"""Whether a checkpoint has the tensors that a weight patch changes, in the shapes that it names."""

from collections.abc import Mapping, Sequence

from patches.checkpoint import StoredTensor
from patches.kinds.delta import DeltaBody


def misfits(body: DeltaBody, stored: Mapping[str, StoredTensor]) -> Sequence[str]:
    """Return what is wrong with the tensors of a weight patch for a model with these."""
    problems = []
    for tensor in body.tensors:
        if tensor.name not in stored:
            problems.append(
                f"{tensor.name}: expected a tensor of the checkpoint, which has none of this name"
            )
        elif stored[tensor.name].shape != tensor.shape:
            expected = list(stored[tensor.name].shape)
            problems.append(f"{tensor.name}: expected shape {expected}, got {list(tensor.shape)}")
    return problems
