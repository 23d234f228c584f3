"""Poisoned caches in every layout, prefixes to write, and Triton: on the GPU, or in its interpreter."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from prefix_kernels import LayerCache, PagedCaches, PrefixWrite, Rotary, rotary_of_parameters

BLOCK = 4
NUM_BLOCKS = 9

#: How far a fast path may be from the reference, by the dtype of the prefix or of the cache: the one table.
#: Copies and casts are exact; a rotation is one rounding, which may fall to the other side.
TOLERANCES = {
    torch.float32: {"rtol": 1e-6, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6},
    torch.float8_e4m3fn: {"rtol": 2**-3, "atol": 2**-9},
    torch.float8_e5m2: {"rtol": 2**-2, "atol": 2**-16},
}


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def triton_ops(device: torch.device) -> Iterator[ModuleType]:
    """``prefix_kernels.triton_ops``, made for the interpreter where there is no GPU."""
    pytest.importorskip("triton", exc_type=ImportError)
    if device.type == "cuda":
        yield importlib.import_module("prefix_kernels.triton_ops")
        return
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")
        # Nothing else in this process may have made the kernels for real.
        patched.delitem(importlib.import_module("sys").modules, "prefix_kernels.triton_ops", raising=False)
        yield importlib.import_module("prefix_kernels.triton_ops")


class Lab:
    """What every test of this folder does, as one fixture: test modules import nothing of each other."""

    TOLERANCES = TOLERANCES

    @staticmethod
    def caches(
        *,
        num_layers: int = 3,
        num_heads: int = 2,
        head_size: int = 16,
        dtype: torch.dtype = torch.float32,
        layout: str = "LBNHC",
        groups: tuple[int, ...] | None = None,
        device: torch.device | None = None,
    ) -> PagedCaches:
        """Caches in which every element is NaN, so that whatever was not written shows."""
        sizes = {"L": num_layers, "B": NUM_BLOCKS, "H": num_heads, "N": BLOCK, "C": 2 * head_size}
        flat = torch.full([sizes[axis] for axis in layout], float("nan"), device=device).to(dtype)
        whole = flat.permute([layout.index(axis) for axis in "LBHNC"])
        generator = torch.Generator().manual_seed(1)
        layers = []
        for row in range(num_layers):
            scales = [None, None]
            if dtype.itemsize == 1:
                powers = torch.randint(-3, 3, (2,), generator=generator)
                scales = [s.to(device) for s in torch.exp2(powers.float())]
            layers.append(LayerCache(whole[row], groups[row] if groups else 0, *scales))
        return PagedCaches(tuple(layers))

    @staticmethod
    def prefix(
        caches: PagedCaches, num_tokens: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> torch.Tensor:
        """Random values that fp8 holds exactly.

        Triton's interpreter drops the carry where rounding to fp8 overflows the mantissa
        (triton-lang/triton#8322), so nothing here may need rounding; scales are powers of two for that, too.
        """
        shape = (len(caches.layers), 2, num_tokens, caches.num_kv_heads, caches.head_size)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e5m2)
        return values.to(torch.float32).to(caches.device, dtype)

    @staticmethod
    def triple(kv: torch.Tensor, slots: list[int], **fields: int) -> PrefixWrite:
        return PrefixWrite(kv, slots=torch.tensor(slots, dtype=torch.int64), **({"first": 0} | fields))

    @staticmethod
    def snapshot(caches: PagedCaches) -> torch.Tensor:
        """``[L, slots, h_kv, 2 * D]`` float32, whatever the layout."""
        paged = [layer.kv.float().transpose(1, 2).flatten(0, 1) for layer in caches.layers]
        return torch.stack(paged).cpu()


@pytest.fixture(scope="session")
def lab() -> type[Lab]:
    return Lab


@pytest.fixture
def rotary() -> Rotary:
    return rotary_of_parameters({"rope_theta": 10000.0}, 16)
