"""What the operations demand of their arguments; an error says what was expected and what came."""

from collections.abc import Sequence

import torch

from prefix_kernels.layout import PagedCaches, PrefixWrite
from prefix_kernels.rotary import Rotary

#: Head sizes are multiples of it, so rows of every dtype keep the alignment that wide loads need.
HEAD_SIZE_STEP = 16

SOURCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_caches(caches: PagedCaches) -> None:
    """Check that one description fits all layers.

    Raises:
        ValueError: no layer, an unfit shape, layers that differ, or scales missing or too many.
    """
    if not caches.layers:
        raise ValueError("caches: expected at least one layer, got none")
    first = caches.layers[0].kv
    for row, layer in enumerate(caches.layers):
        kv = layer.kv
        if kv.ndim != 4 or kv.shape[3] % (2 * HEAD_SIZE_STEP) or kv.stride(3) != 1:
            raise ValueError(
                f"caches: expected [B, h_kv, block, 2 * D] with D a multiple of {HEAD_SIZE_STEP} and the "
                f"last axis contiguous, layer {row} has {list(kv.shape)} with strides {list(kv.stride())}"
            )
        if (kv.shape[1:], kv.dtype, kv.device) != (first.shape[1:], first.dtype, first.device):
            raise ValueError(
                f"caches: expected layers alike, layer 0 is {list(first.shape[1:])} {first.dtype} on "
                f"{first.device}, layer {row} is {list(kv.shape[1:])} {kv.dtype} on {kv.device}"
            )
        if layer.group < 0:
            raise ValueError(f"caches: expected groups from 0 on, layer {row} has {layer.group}")
        if caches.is_quantized and (layer.k_scale is None or layer.v_scale is None):
            raise ValueError(f"caches: {kv.dtype} needs k_scale and v_scale, layer {row} lacks one")


def check_writes(caches: PagedCaches, writes: Sequence[PrefixWrite], rotary: Rotary | None) -> None:
    """Check what is to be written against the caches.

    Raises:
        ValueError: a shape, dtype, device, range, slot or group that does not fit, or a shift without a
        rotary.
    """
    num_layers, shape = len(caches.layers), (caches.num_kv_heads, caches.head_size)
    for i, write in enumerate(writes):
        kv = write.kv
        if kv.ndim != 5 or kv.shape[:2] != (num_layers, 2) or kv.shape[3:] != shape:
            raise ValueError(
                f"writes[{i}].kv: expected [{num_layers}, 2, N, {shape[0]}, {shape[1]}], got {list(kv.shape)}"
            )
        if kv.dtype not in SOURCE_DTYPES or kv.dtype != writes[0].kv.dtype or kv.device != caches.device:
            raise ValueError(
                f"writes[{i}].kv: expected {writes[0].kv.dtype} on {caches.device}, one of {SOURCE_DTYPES}, "
                f"got {kv.dtype} on {kv.device}"
            )
        if not 0 <= write.first <= write.first + len(write.slots) <= kv.shape[2]:
            raise ValueError(
                f"writes[{i}]: expected a range within {kv.shape[2]} tokens, "
                f"got {len(write.slots)} from {write.first}"
            )
        if not 0 <= write.group < len(caches.group_layers):
            raise ValueError(
                f"writes[{i}].group: expected one of {len(caches.group_layers)} groups, got {write.group}"
            )
        _check_slots(f"writes[{i}].slots", write.slots, caches.num_slots)
        if write.shift:
            _check_rotary(f"writes[{i}].shift", write.shift, rotary, caches.head_size)


def _check_slots(name: str, slots: torch.Tensor, num_slots: int) -> None:
    if slots.dtype != torch.int64 or slots.ndim != 1 or slots.device.type != "cpu":
        raise ValueError(
            f"{name}: expected one axis of int64 on the CPU, got {slots.dtype} {list(slots.shape)}"
        )
    if len(slots):
        low, high = (int(x) for x in slots.aminmax())
        if low < 0 or high >= num_slots:
            raise ValueError(f"{name}: expected 0 to {num_slots - 1}, got {low} to {high}")


def _check_rotary(name: str, shift: int, rotary: Rotary | None, head_size: int) -> None:
    if rotary is None:
        raise ValueError(f"{name}: expected 0 where no rotary is given, got {shift}")
    if rotary.rotary_dim > head_size:
        raise ValueError(f"rotary: expected a rotary_dim of at most {head_size}, got {rotary.rotary_dim}")
