"""What a patch file holds, as its bytes have it: no tensor library is needed to check and describe it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from patches.container import TensorEntry
from patches.manifest import Manifest

#: safetensors' name of a dtype -> torch's, which manifests and people use.
DTYPE_WORDS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I32": "int32", "U8": "uint8"}

#: numpy has no bfloat16: such values stand there as their bits.
_NUMPY_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I32": "<i4", "U8": "u1"}

#: The exponent of floats that are not finite, shifted to the left by one: above it are they and no other.
_NOT_FINITE = {"BF16": ("<u2", 0xFF00), "F16": ("<u2", 0xF800), "F32": ("<u4", 0xFF000000)}

#: Values looked at together: they fit into a processor's cache.
_PIECE = 2**17


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """One tensor, and its bytes, which are the file's."""

    #: Of safetensors: a key of ``DTYPE_WORDS``.
    dtype: str
    shape: tuple[int, ...]
    #: Row-major, little-endian.
    data: memoryview

    @classmethod
    def of(cls, entry: TensorEntry, file: memoryview) -> "StoredTensor":
        """Return the tensor that ``entry`` places in ``file``."""
        return cls(entry.dtype, entry.shape, file[entry.begin : entry.end])

    @property
    def word(self) -> str:
        """Its dtype as manifests name it."""
        return DTYPE_WORDS[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return self.data.nbytes

    @property
    def values(self) -> np.ndarray:
        """Its values; those of bfloat16 as uint16, their bits."""
        return np.frombuffer(self.data, _NUMPY_DTYPES[self.dtype]).reshape(self.shape)

    def is_finite(self) -> bool:
        """Return whether no value is NaN or infinite."""
        if self.dtype not in _NOT_FINITE or not math.prod(self.shape):
            return True
        bits, limit = _NOT_FINITE[self.dtype]
        flat = np.frombuffer(self.data, bits)
        pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
        # The shift drops the sign.
        return all(int(np.left_shift(piece, 1).max()) < limit for piece in pieces)


@dataclass(frozen=True, slots=True, eq=False)
class PatchContent:
    """A patch file that keeps the specification."""

    manifest: Manifest
    #: ``sha256:`` and 64 hexadecimal digits.
    digest: str
    #: By name.
    tensors: Mapping[str, StoredTensor]
