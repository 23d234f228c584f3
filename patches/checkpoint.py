"""The safetensors files of a model: which tensors they hold, where, and one tensor at a time."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patches.errors import ModelUnusable

if TYPE_CHECKING:
    import torch

_LENGTH = struct.Struct("<Q")
# safetensors' own limit.
_MAX_HEADER_BYTES = 100_000_000
_INDEX = "model.safetensors.index.json"

#: Of safetensors -> as torch and manifests name it. What is stored otherwise is quantised.
FLOAT_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint; ``begin`` and ``end`` are byte offsets into its file."""

    path: Path
    #: As safetensors names it.
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def read(self) -> "torch.Tensor":
        """Read it, on the CPU.

        Raises:
            ModelUnusable: The file can't be read, or is shorter than it was; or the values are no floats.
        """
        import torch

        if self.dtype not in FLOAT_DTYPES:
            expected = " or ".join(FLOAT_DTYPES)
            raise ModelUnusable(f"model: {self.path}: expected {expected}, got {self.dtype}")
        tensor = torch.empty(self.size, dtype=getattr(torch, FLOAT_DTYPES[self.dtype]))
        try:
            with self.path.open("rb") as file:
                file.seek(self.begin)
                num_read = file.readinto(tensor.view(torch.uint8).numpy().data) if self.size else 0
        except OSError as error:
            raise ModelUnusable(f"model: {self.path} can't be read: {error.strerror or error}") from None
        if num_read != self.end - self.begin:
            raise ModelUnusable(f"model: {self.path} is cut off; copy the model anew")
        return tensor.reshape(self.shape)

    def values_at(self, positions: "torch.Tensor") -> "torch.Tensor":
        """Read some values only.

        Args:
            positions: int64, rising: places in the flattened tensor.

        Raises:
            ModelUnusable: As ``read``.
        """
        import numpy as np
        import torch

        dtype = getattr(torch, FLOAT_DTYPES[self.dtype])
        stored = np.memmap(self.path, np.uint8, "r", self.begin, (self.size, dtype.itemsize))
        return torch.from_numpy(np.ascontiguousarray(stored[positions.numpy()])).view(dtype).flatten()


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a model's safetensors files by name; only headers are read.

    Raises:
        ModelUnusable: A file is missing or damaged, or two hold the same tensor.
        OSError: A file can't be read.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in safetensors_files(folder):
        for name, tensor in _read_entries(path):
            if name in tensors:
                raise ModelUnusable(
                    f"model: both {tensors[name].path.name} and {path.name} hold the tensor {name!r}"
                )
            tensors[name] = tensor
    return tensors


def safetensors_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights: those of its index, else what there is.

    Raises:
        ModelUnusable: The index is damaged, or names a file that is not there.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelUnusable(f"model: {index} is not a safetensors index: {error!r}") from None
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ModelUnusable(f"model: {index} names {name!r}, which is not a file beside it")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _read_entries(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH.size)
        length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else size
        if length > min(size - _LENGTH.size, _MAX_HEADER_BYTES):
            raise ModelUnusable(f"model: {path} is cut off, or no safetensors file")
        header = file.read(length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            begin, end = (_LENGTH.size + length + int(offset) for offset in entry["data_offsets"])
            if not begin <= end <= size:
                raise ModelUnusable(f"model: {path} is cut off within the tensor {name!r}")
            shape = tuple(int(n) for n in entry["shape"])
            yield name, StoredTensor(path, str(entry["dtype"]), shape, begin, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ModelUnusable):
            raise
        raise ModelUnusable(f"model: the header of {path} is damaged: {error!r}") from None
