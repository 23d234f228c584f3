"""The kind ``delta``: new values for some weights of the base model, for a whole server.

A delta says what weights *become*, not what is added to them: writing it twice changes nothing more, nothing
is rounded where it is applied, and whoever keeps the old values takes it back to the last bit.

The manifest lists the tensors of the checkpoint that change, the three tensors of the file hold all of their
positions and values one after the other, in that order. A tensor of which more than one weight in 32 changes
has its positions as a bit for each weight, any other as an index for each changed one; that is the shorter
form in both cases.
"""

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from patches.base_model import BaseModel
from patches.canonical import JsonValue
from patches.fields import FieldReader
from patches.kinds.body import DTYPE_NAMES, TensorRule

if TYPE_CHECKING:
    import torch

#: Largest share of a tensor's weights that may change: what changes more is another model.
MAX_SHARE = 0.25
MAX_NUM_TENSORS = 2048
#: Of one tensor, so that its positions are 32-bit numbers.
MAX_NUM_WEIGHTS = 2**31 - 1

_MAX_DIMENSION = 2**24
_MAX_NAME_LENGTH = 200
_SUFFIX = ".weight"

#: Above one changed weight in so many, a bit for each weight is shorter than an index for each changed one.
_INDEX_BITS = 32


@dataclass(frozen=True)
class ChangedTensor:
    """How much of one tensor of the checkpoint changes."""

    #: In the checkpoint, such as ``model.layers.0.mlp.up_proj.weight``.
    name: str
    #: Of a linear layer's weight in the checkpoint: outputs, inputs.
    shape: tuple[int, int]
    #: Weights that change: at least 1, at most ``MAX_SHARE`` of them.
    num_changed: int

    @property
    def size(self) -> int:
        """Weights of the whole tensor."""
        return math.prod(self.shape)

    @property
    def is_masked(self) -> bool:
        """Whether its positions are bits of ``mask``; else they are numbers of ``indices``."""
        return self.num_changed * _INDEX_BITS > self.size

    @property
    def num_mask_bytes(self) -> int:
        """Bytes of ``mask`` that are its own."""
        return -(-self.size // 8) if self.is_masked else 0

    @property
    def num_indices(self) -> int:
        """Numbers of ``indices`` that are its own."""
        return 0 if self.is_masked else self.num_changed

    def document(self) -> dict[str, JsonValue]:
        """Return it as a manifest has it."""
        return {"name": self.name, "shape": list(self.shape), "num_changed": self.num_changed}


@dataclass(frozen=True)
class Change:
    """What becomes of one tensor of the checkpoint."""

    tensor: ChangedTensor
    #: int64 ``[num_changed]``, rising: positions in the flattened tensor, row after row.
    positions: "torch.Tensor"
    #: ``[num_changed]``: what stands there afterwards.
    values: "torch.Tensor"


@dataclass(frozen=True)
class DeltaBody:
    """Which tensors change, and how much of each."""

    kind: ClassVar[str] = "delta"
    format_version: ClassVar[int] = 2
    methods: ClassVar[tuple[str, ...]] = ("hdr", "set", "trained", "import")
    max_file_bytes: ClassVar[int] = 1024**3
    is_dtype_bound: ClassVar[bool] = True
    payload: ClassVar[tuple[str, ...]] = ("values", "indices", "mask")

    #: By name, rising.
    tensors: tuple[ChangedTensor, ...]

    @property
    def num_tokens(self) -> int:
        """See ``Body.num_tokens``."""
        return 0

    @cached_property
    def num_changed(self) -> int:
        """How many weights change in all."""
        return sum(tensor.num_changed for tensor in self.tensors)

    @classmethod
    def read(cls, reader: FieldReader, model: BaseModel) -> Self:
        """See ``Body.read``."""
        delta = reader.object("delta")
        entries = delta.objects("tensors", 1, MAX_NUM_TENSORS)
        tensors = tuple(_read_tensor(entry) for entry in entries)
        names = [tensor.name for tensor in tensors]
        if names != sorted(set(names)):
            delta.problem("tensors", "each tensor once, in order of its name", names)
        delta.finish()
        return cls(tensors)

    def document(self) -> dict[str, JsonValue]:
        """See ``Body.document``."""
        return {"delta": {"tensors": [tensor.document() for tensor in self.tensors]}}

    def tensor_rules(self, model: BaseModel) -> Mapping[str, TensorRule]:
        """See ``Body.tensor_rules``."""
        dtype = frozenset({DTYPE_NAMES[model.dtype]})
        rules = {
            "values": TensorRule((self.num_changed,), dtype),
            "indices": TensorRule((sum(t.num_indices for t in self.tensors),), frozenset({"I32"})),
            "mask": TensorRule((sum(t.num_mask_bytes for t in self.tensors),), frozenset({"U8"})),
        }
        return {name: rule for name, rule in rules.items() if rule.shape[0]}

    def missing(self, names: Collection[str]) -> str | None:
        """See ``Body.missing``."""
        needed = ["values"]
        if any(not tensor.is_masked for tensor in self.tensors):
            needed.append("indices")
        if any(tensor.is_masked for tensor in self.tensors):
            needed.append("mask")
        return " and ".join(name for name in needed if name not in names) or None

    def value_problems(self, tensors: Mapping[str, np.ndarray]) -> Sequence[str]:
        """See ``Body.value_problems``."""
        problems: list[str] = []
        for of, positions in self._positions(tensors):
            if of.is_masked:
                if len(positions) != of.num_changed or bool((positions >= of.size).any()):
                    problems.append(
                        f"tensor mask: expected {of.num_changed} bits for the {of.size} weights of {of.name} "
                        f"and zeros behind them, got {len(positions)} bits"
                    )
            elif bool((positions < 0).any()) or bool((positions >= of.size).any()):
                problems.append(f"tensor indices: expected 0 to {of.size - 1} for {of.name}, got others")
            elif bool((positions[1:] <= positions[:-1]).any()):
                problems.append(f"tensor indices: expected rising ones for {of.name}, got others")
        return problems

    def changes(self, tensors: Mapping[str, "torch.Tensor"]) -> Iterator[Change]:
        """Yield what becomes of each tensor of the checkpoint, one at a time.

        Args:
            tensors: The file's; of the right shapes.
        """
        import torch

        of_positions = {name: tensors[name].numpy() for name in ("indices", "mask") if name in tensors}
        num_values = 0
        for tensor, positions in self._positions(of_positions):
            values = tensors["values"][num_values : num_values + tensor.num_changed]
            num_values += tensor.num_changed
            yield Change(tensor, torch.from_numpy(positions), values)

    def _positions(self, tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[ChangedTensor, np.ndarray]]:
        """Yield the positions of each tensor, int64 ``[num_changed]`` where the file is a valid one."""
        num_indices = num_bytes = 0
        for tensor in self.tensors:
            if tensor.is_masked:
                packed = tensors["mask"][num_bytes : num_bytes + tensor.num_mask_bytes]
                num_bytes += tensor.num_mask_bytes
                yield tensor, np.flatnonzero(np.unpackbits(packed, bitorder="little"))
            else:
                chosen = tensors["indices"][num_indices : num_indices + tensor.num_changed]
                num_indices += tensor.num_changed
                yield tensor, chosen.astype(np.int64)

    def facts(self) -> Sequence[tuple[str, str]]:
        """See ``Body.facts``."""
        total = sum(tensor.size for tensor in self.tensors)
        most = max(self.tensors, key=lambda tensor: tensor.num_changed / tensor.size)
        share = most.num_changed / most.size
        changed = f"{self.num_changed} of {total} weights ({self.num_changed / total:.2%})"
        return [
            ("changes", f"{changed} in {len(self.tensors)} tensors"),
            ("  most in", f"{most.name}, {share:.2%}"),
        ]


def effective_weights_digest(own: str, delta: str) -> str:
    """Return the weights digest of a model under a delta, which patches for it have in their fingerprint.

    SHA-256 of ``policypatch-dlt``, a zero byte and both digests as text.

    Args:
        own: The weights digest of the model itself.
        delta: The digest of the delta.
    """
    return "sha256:" + hashlib.sha256(b"policypatch-dlt\0" + (own + delta).encode("ascii")).hexdigest()


def packed_positions(tensor: ChangedTensor, positions: "torch.Tensor") -> "torch.Tensor":
    """Return the positions of a tensor's changed weights as the file has them; ``changes`` is the inverse.

    Args:
        tensor: The tensor.
        positions: int64 ``[num_changed]``, rising.

    Returns:
        uint8 ``[num_mask_bytes]`` where it is masked, else int32 ``[num_indices]``.
    """
    import torch

    if not tensor.is_masked:
        return positions.to(torch.int32)
    bits = np.zeros(tensor.num_mask_bytes * 8, dtype=np.uint8)
    bits[positions.numpy()] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def _read_tensor(reader: FieldReader) -> ChangedTensor:
    name = reader.line("name", _MAX_NAME_LENGTH)
    if reader.is_good("name") and not name.endswith(_SUFFIX):
        reader.problem("name", f"the weight of a linear layer, which ends with {_SUFFIX}", name)
    shape = reader.integers("shape", 1, _MAX_DIMENSION)
    if reader.is_good("shape") and (len(shape) != 2 or math.prod(shape) > MAX_NUM_WEIGHTS):
        reader.problem("shape", f"two sizes with a product of at most {MAX_NUM_WEIGHTS}", shape)
    num_changed = reader.integer("num_changed", 1, MAX_NUM_WEIGHTS)
    if reader.is_good("shape") and reader.is_good("num_changed"):
        limit = int(math.prod(shape) * MAX_SHARE)
        if num_changed > limit:
            reader.problem("num_changed", f"at most {limit}, a quarter of the tensor's weights", num_changed)
    reader.finish()
    return ChangedTensor(name, (shape[0], shape[1]) if len(shape) == 2 else (1, 1), num_changed)
