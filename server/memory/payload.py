"""What the workers hold of a patch: the tensors that its kind names, and what they have to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from patches.canonical import JsonValue
from patches.format import Patch

#: Name -> shape and dtype of each tensor, as it travels to the workers and back.
Layout = Mapping[str, tuple[list[int], str]]


@dataclass(frozen=True, slots=True)
class Payload:
    """The part of a patch that is sent to every worker, whole."""

    #: Of the patch: ``sha256:`` and 64 hexadecimal digits.
    digest: str
    #: Which of a worker's stores takes it.
    kind: str
    #: On the CPU; not mutated.
    tensors: Mapping[str, torch.Tensor]
    #: What the manifest says for its kind.
    facts: Mapping[str, JsonValue]

    @classmethod
    def of(cls, patch: Patch) -> "Payload":
        """Return what workers hold of ``patch``, which can be served."""
        body = patch.manifest.body
        tensors = {name: patch.tensors[name] for name in body.payload if name in patch.tensors}
        return cls(patch.digest, body.kind, tensors, body.document())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def is_hollow(self) -> bool:
        """Whether its tensors have no values, since the file was checked and not kept."""
        return any(tensor.is_meta for tensor in self.tensors.values())

    @property
    def layout(self) -> dict[str, tuple[list[int], str]]:
        """Shape and dtype of each tensor, by which every worker confirms what it took."""
        return {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in self.tensors.items()
        }
