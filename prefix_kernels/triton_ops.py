"""The write as one Triton launch: all layers, any number of prefixes, requests and ranges.

The kernel finds everything by address: caches and prefixes are separate allocations, and their number differs
from step to step. So a launch is preceded by one small copy of tables to the device and by nothing else.
Imports triton, hence to be imported lazily (``dispatch`` does).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl

from prefix_kernels.checks import check_caches, check_writes
from prefix_kernels.layout import LAYER_COLUMNS, PagedCaches, PrefixWrite
from prefix_kernels.rotary import Rotary

#: K elements that one program moves, and as many of V: two rows of 16 bytes a thread for a Llama of 8 heads.
TILE_ELEMENTS = 1024

#: Columns of the table of tokens: which write, which token of its prefix, which slot.
_TOKEN_COLUMNS = tl.constexpr(3)
#: Columns of the table of writes: address and strides of the prefix (layer, side, token, head), group,
#: rotation.
_WRITE_COLUMNS = tl.constexpr(7)
#: Columns of ``PagedCaches.layer_table``.
_LAYER_COLUMNS = tl.constexpr(len(LAYER_COLUMNS))

_TRITON_DTYPES = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}


@triton.jit
def _stored(x, scale_address, CACHE: tl.constexpr, FP8_MAX: tl.constexpr):
    # Zero stands for "not quantized".
    if FP8_MAX == 0:
        return x.to(CACHE)
    scale = tl.load(scale_address.to(tl.pointer_type(tl.float32)))
    return tl.minimum(tl.maximum(x.to(tl.float32) / scale, -FP8_MAX), FP8_MAX).to(CACHE)


@triton.jit
def _turned(key, rows, dims, mask, angles, HALF: tl.constexpr, IS_INTERLEAVED: tl.constexpr):
    if IS_INTERLEAVED:
        is_first = (dims & 1) == 0
        partner, pair = dims ^ 1, dims // 2
    else:
        is_first = dims < HALF
        partner = tl.where(is_first, dims + HALF, dims - HALF)
        pair = tl.where(is_first, dims, dims - HALF)
    is_turned = dims < 2 * HALF
    cos = tl.load(angles + pair, mask=is_turned, other=1.0)
    sin = tl.load(angles + HALF + pair, mask=is_turned, other=0.0)
    # The partner's row is in the L1 cache: it was loaded as a part of the key.
    other = tl.load(rows + partner, mask=mask & is_turned, other=0.0)
    return key.to(tl.float32) * cos + other.to(tl.float32) * tl.where(is_first, -sin, sin)


@triton.jit
def _write_prefix_kv_kernel(
    tokens_ptr,  # [T, 3] int64
    writes_ptr,  # [W, 7] int64
    layers_ptr,  # [groups, max_layers, 7] int64
    cos_sin_ptr,  # [rotations, 2, HALF] float32
    max_layers,
    num_heads,
    block_size,
    HEAD_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HAS_SHIFTS: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_DIM: tl.constexpr,
    SOURCE: tl.constexpr,
    CACHE: tl.constexpr,
    FP8_MAX: tl.constexpr,
):
    token_ptr = tokens_ptr + tl.program_id(0) * _TOKEN_COLUMNS
    write_ptr = writes_ptr + tl.load(token_ptr) * _WRITE_COLUMNS
    token, slot = tl.load(token_ptr + 1), tl.load(token_ptr + 2)
    group = tl.load(write_ptr + 5)
    layer_ptr = layers_ptr + (group * max_layers + tl.program_id(1)) * _LAYER_COLUMNS
    cache_address = tl.load(layer_ptr)
    if cache_address == 0:
        return
    row = tl.load(layer_ptr + 6)

    heads = tl.program_id(2) * TILE_HEADS + tl.arange(0, TILE_HEADS)[:, None]
    dims = tl.arange(0, TILE_DIM)[None, :]
    mask = (heads < num_heads) & (dims < HEAD_SIZE)

    # Addresses and strides come out of tables, so the compiler has to be told that rows are aligned.
    layer_stride = tl.multiple_of(tl.load(write_ptr + 1), 16)
    side_stride = tl.multiple_of(tl.load(write_ptr + 2), 16)
    token_stride = tl.multiple_of(tl.load(write_ptr + 3), 16)
    head_stride = tl.multiple_of(tl.load(write_ptr + 4), 16)
    source = tl.multiple_of(tl.load(write_ptr).to(tl.pointer_type(SOURCE)), 16)
    source += row * layer_stride + token * token_stride
    key = tl.load(source + heads * head_stride + dims, mask=mask)
    value = tl.load(source + side_stride + heads * head_stride + dims, mask=mask)

    if HAS_SHIFTS:
        # Rotation 0 is the one of a shift by 0.
        rotation = tl.load(write_ptr + 6)
        if rotation != 0:
            angles = cos_sin_ptr + rotation * 2 * HALF
            rows = source + heads * head_stride
            key = _turned(key, rows, dims, mask, angles, HALF, IS_INTERLEAVED).to(SOURCE)

    cache_block_stride = tl.multiple_of(tl.load(layer_ptr + 1), 16)
    cache_head_stride = tl.multiple_of(tl.load(layer_ptr + 2), 16)
    cache_slot_stride = tl.multiple_of(tl.load(layer_ptr + 3), 16)
    cache = tl.multiple_of(cache_address.to(tl.pointer_type(CACHE)), 16)
    cache += (slot // block_size) * cache_block_stride + (slot % block_size) * cache_slot_stride
    target = cache + heads * cache_head_stride + dims
    tl.store(target, _stored(key, tl.load(layer_ptr + 4), CACHE, FP8_MAX), mask=mask)
    tl.store(target + HEAD_SIZE, _stored(value, tl.load(layer_ptr + 5), CACHE, FP8_MAX), mask=mask)


def write_prefix_kv_triton(
    caches: PagedCaches, writes: Sequence[PrefixWrite], rotary: Rotary | None = None
) -> None:
    """See ``write_prefix_kv``."""
    check_caches(caches)
    check_writes(caches, writes, rotary)
    writes = [_aligned(write) for write in writes if len(write.slots)]
    if not writes:
        return
    shifts = sorted({write.shift for write in writes} - {0})
    rotations = {shift: i for i, shift in enumerate((0, *shifts))}
    tokens, table, cos_sin = _tables(writes, rotations, _cos_sin(shifts, rotary), caches.device)
    layers = caches.layer_table
    tile_dim = triton.next_power_of_2(caches.head_size)
    tile_heads = min(triton.next_power_of_2(caches.num_kv_heads), max(1, TILE_ELEMENTS // tile_dim))
    grid = (len(tokens), layers.shape[1], triton.cdiv(caches.num_kv_heads, tile_heads))
    _write_prefix_kv_kernel[grid](
        tokens,
        table,
        layers,
        cos_sin,
        layers.shape[1],
        caches.num_kv_heads,
        caches.block_size,
        HEAD_SIZE=caches.head_size,
        HALF=rotary.rotary_dim // 2 if shifts and rotary is not None else 0,
        IS_INTERLEAVED=rotary.is_interleaved if rotary is not None else False,
        HAS_SHIFTS=bool(shifts),
        TILE_HEADS=tile_heads,
        TILE_DIM=tile_dim,
        SOURCE=_TRITON_DTYPES[writes[0].kv.dtype],
        CACHE=_TRITON_DTYPES[caches.dtype],
        FP8_MAX=torch.finfo(caches.dtype).max if caches.is_quantized else 0,
        num_warps=max(1, min(8, tile_heads * tile_dim // 256)),
    )


def _aligned(write: PrefixWrite) -> PrefixWrite:
    """Copy a prefix whose rows are not aligned as the kernel is told; a resident one always is."""
    kv = write.kv
    if kv.data_ptr() % 16 == 0 and kv.stride(4) == 1 and all(stride % 16 == 0 for stride in kv.stride()[:4]):
        return write
    return replace(write, kv=kv.clone(memory_format=torch.contiguous_format))


def _tables(
    writes: Sequence[PrefixWrite], rotations: dict[int, int], cos_sin: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bring the tables of tokens and of writes, and the rotations, to the device in one copy."""
    lengths = torch.tensor([len(write.slots) for write in writes])
    index = torch.repeat_interleave(torch.arange(len(writes)), lengths)
    starts = lengths.cumsum(0) - lengths - torch.tensor([write.first for write in writes])
    source_tokens = torch.arange(len(index)) - starts[index]
    tokens = torch.stack([index, source_tokens, torch.cat([write.slots for write in writes])], dim=1)
    table = torch.tensor(
        [[w.kv.data_ptr(), *w.kv.stride()[:4], w.group, rotations[w.shift]] for w in writes],
        dtype=torch.int64,
    )
    parts = [tokens, table, cos_sin.flatten().view(torch.int64)]
    packed = torch.cat([part.flatten() for part in parts])
    if device.type == "cuda":
        packed = packed.pin_memory()
    pieces = packed.to(device, non_blocking=True).split([part.numel() for part in parts])
    return pieces[0].view(tokens.shape), pieces[1].view(table.shape), pieces[2].view(torch.float32)


def _cos_sin(shifts: Sequence[int], rotary: Rotary | None) -> torch.Tensor:
    """Return ``[1 + shifts, 2, rotary_dim / 2]`` float32; the first is no rotation and is never read."""
    if not shifts:
        return torch.zeros(1, 2, 1)
    assert rotary is not None
    return torch.stack([rotary.cos_sin(shift) for shift in (0, *shifts)])
