"""Which weights of a checkpoint count: those of the linear layers of its decoder layers.

Embeddings, norms, biases, the output layer and routers of experts do not. The papers' code trims embeddings
and norms, too: a stated difference. A server changes linear layers only, and these hold nearly all weights.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from patches.checkpoint import FLOAT_DTYPES, StoredTensor, read_checkpoint
from patches.errors import DeltaError, ModelUnusable
from patches.model_files import model_folder

_OF_A_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\..*\.weight")
_OF_A_ROUTER = re.compile(r".*\.(?:gate|router)\.weight")
_MOST_NAMED = 3


@dataclass(frozen=True)
class LinearWeights:
    """The weights of one model that count."""

    #: What the caller calls the model, for errors.
    word: str
    folder: Path
    #: By name, rising.
    tensors: Mapping[str, StoredTensor]

    @property
    def dtype(self) -> str:
        """The dtype of most of the weights, as manifests name it."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return FLOAT_DTYPES[max(sizes, key=sizes.__getitem__)]


def layer_of(name: str) -> int:
    """Return the decoder layer of a tensor that counts."""
    match = _OF_A_LAYER.fullmatch(name)
    assert match is not None
    return int(match[1])


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of this name and shape counts."""
    return len(shape) == 2 and bool(_OF_A_LAYER.fullmatch(name)) and not _OF_A_ROUTER.fullmatch(name)


def linear_weights(model: str, word: str) -> LinearWeights:
    """Find the weights of a model that count.

    Args:
        model: A folder, or the id of a hub model in the local cache.
        word: What the caller calls it, such as its option.

    Raises:
        ModelUnusable: There are none, a file is damaged, or they are quantised.
    """
    folder = model_folder(model)
    try:
        stored = read_checkpoint(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ModelUnusable(f"{word}: {error.filename or folder} can't be read: {reason}") from None
    tensors = {name: tensor for name, tensor in sorted(stored.items()) if is_linear(name, tensor.shape)}
    if not tensors:
        raise ModelUnusable(
            f"{word}: {folder}: expected *.safetensors files with weights of linear layers, got none"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise ModelUnusable(
                f"{word}: {name}: expected {' or '.join(FLOAT_DTYPES)}, got {tensor.dtype}; name the model "
                "that is not quantised"
            )
    return LinearWeights(word, folder, tensors)


def require_alike(first: LinearWeights, second: LinearWeights) -> None:
    """Check that two models have the same weights to compare.

    Raises:
        DeltaError: They don't; what is missing, extra and different is named.
    """
    ours, theirs = first.tensors, second.tensors
    problems = [
        f"{what}: {_named(names)}"
        for what, names in (
            ("missing", [name for name in ours if name not in theirs]),
            ("extra", [name for name in theirs if name not in ours]),
            ("of another shape", [n for n in ours if n in theirs and ours[n].shape != theirs[n].shape]),
        )
        if names
    ]
    if problems:
        raise DeltaError(
            f"{second.word}: expected the linear layers of {first.word}, got others ({'; '.join(problems)}); "
            "name two models of the same architecture"
        )


def changed_layers(first: LinearWeights, second: LinearWeights) -> Iterator[int]:
    """Yield the layer of each tensor in which two models differ."""
    import torch

    for name, tensor in first.tensors.items():
        if not torch.equal(tensor.read().float(), second.tensors[name].read().float()):
            yield layer_of(name)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"
