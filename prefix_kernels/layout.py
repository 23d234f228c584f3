"""What a write needs to know about paged KV caches and about what goes into them.

A layer's cache is the view that vLLM gives its attention layers since 0.32: ``[B, h_kv, block, 2 * D]``, K in
the first half of the last axis and V in the second. The physical order of the axes ("NHD", "HND", layers
inside or outside of blocks) is all in the strides, so one description covers them. Not covered, and left to
the attention backend's own op: caches that are packed (CPU attention), and scales that are stored per token
and head.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)

#: Columns of ``PagedCaches.layer_table``.
LAYER_COLUMNS = ("address", "block_stride", "head_stride", "slot_stride", "k_scale", "v_scale", "row")


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's paged cache."""

    #: ``[B, h_kv, block, 2 * D]``, last axis contiguous, everything else strided as it likes. Written to.
    kv: torch.Tensor
    #: The KV-cache group: layers of one group share block tables.
    group: int = 0
    #: ``[]`` float32, on the cache's device: what K is divided by before it is stored as fp8. Read when
    #: writing.
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


@dataclass(frozen=True)
class PagedCaches:
    """The caches of all layers of one rank, in the order of the layers in a prefix.

    All layers have the same number of heads, head size, block size, dtype and device; ``checks.check_caches``
    says so where they have not.
    """

    layers: tuple[LayerCache, ...]

    @property
    def device(self) -> torch.device:
        """Where the caches lie."""
        return self.layers[0].kv.device

    @property
    def dtype(self) -> torch.dtype:
        """What the caches store."""
        return self.layers[0].kv.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether K and V are divided by scales and stored as fp8."""
        return self.dtype in FP8_DTYPES

    @property
    def num_kv_heads(self) -> int:
        """KV heads of this rank."""
        return self.layers[0].kv.shape[1]

    @property
    def block_size(self) -> int:
        """Tokens in a block of these views."""
        return self.layers[0].kv.shape[2]

    @property
    def head_size(self) -> int:
        """Length of a K, or of a V, of one head."""
        return self.layers[0].kv.shape[3] // 2

    @cached_property
    def is_aligned(self) -> bool:
        """Whether every row of D elements begins at a multiple of 16 bytes and of 16 elements."""
        return all(
            layer.kv.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in layer.kv.stride()[:3])
            for layer in self.layers
        )

    @cached_property
    def num_slots(self) -> int:
        """Slots that every layer has."""
        return min(layer.kv.shape[0] for layer in self.layers) * self.block_size

    @cached_property
    def group_layers(self) -> tuple[tuple[int, ...], ...]:
        """Rows of the layers of each group."""
        groups = range(max(layer.group for layer in self.layers) + 1)
        return tuple(tuple(i for i, layer in enumerate(self.layers) if layer.group == g) for g in groups)

    @cached_property
    def layer_table(self) -> torch.Tensor:
        """Addresses and strides for a kernel that visits all layers: built once, on the device.

        ``[groups, most layers of a group, len(LAYER_COLUMNS)]`` int64. Groups with fewer layers are filled up
        with rows whose address is 0.
        """
        longest = max(len(rows) for rows in self.group_layers)
        table = torch.zeros(len(self.group_layers), longest, len(LAYER_COLUMNS), dtype=torch.int64)
        for group, rows in enumerate(self.group_layers):
            for i, row in enumerate(rows):
                layer = self.layers[row]
                scales = [0 if s is None else s.data_ptr() for s in (layer.k_scale, layer.v_scale)]
                table[group, i] = torch.tensor(
                    [layer.kv.data_ptr(), *layer.kv.stride()[:3], *scales, row], dtype=torch.int64
                )
        return table.to(self.device)


@dataclass(frozen=True, slots=True)
class PrefixWrite:
    """One triple of patch, request and token range: what is written, and where to.

    Semantics: for every layer ``l`` of ``group`` and every ``i``, slot ``slots[i]`` of layer ``l`` gets
    ``kv[l, 0, first + i]``, rotated by ``shift`` positions, as its K, and ``kv[l, 1, first + i]`` as its V.
    """

    #: ``[L, 2, N, h_kv, D]``, K after RoPE at positions 0 to N - 1, on the caches' device. Not changed.
    kv: torch.Tensor
    #: First token of the range.
    first: int
    #: ``[tokens of the range]`` int64 on the CPU: ``block * block_size + offset``.
    slots: torch.Tensor = field(repr=False)
    group: int = 0
    #: Positions by which the prefix lies further back than where it was computed.
    shift: int = 0
