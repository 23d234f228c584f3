"""The write of prefixes: every implementation against the reference, and that against the definition."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from prefix_kernels import PagedCaches, PrefixWrite, Rotary, write_prefix_kv
from prefix_kernels.reference import write_prefix_kv_reference
from prefix_kernels.torch_ops import write_prefix_kv_torch

Write = Callable[..., None]

BLOCK, NUM_BLOCKS = 4, 9

#: Memory order of [layer, block, head, token, content], as vLLM names them; "LBNHC" is NHD, "LBHNC" is HND.
LAYOUTS = ("LBNHC", "LBHNC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1)
#: Slots of blocks that lie apart and out of order.
SLOTS = [block * BLOCK + offset for block in (7, 2, 5, 3) for offset in range(BLOCK)]


@pytest.fixture(params=["torch", "triton"])
def write(request: pytest.FixtureRequest) -> Write:
    if request.param == "torch":
        return write_prefix_kv_torch
    module: ModuleType = request.getfixturevalue("triton_ops")
    function: Write = module.write_prefix_kv_triton
    return function


class Bench:
    """Writes the same into two poisoned caches, one by the reference, and compares all of both."""

    def __init__(self, lab: Any, write: Write, device: torch.device) -> None:
        self._lab, self._write, self._device = lab, write, device

    def compare(
        self,
        writes: Callable[[PagedCaches], list[PrefixWrite]],
        rotary: Rotary | None = None,
        **shape: object,
    ) -> torch.Tensor:
        """Return what the caches hold after the write."""
        caches, expected = (self._lab.caches(**shape, device=self._device) for _ in range(2))
        self._write(caches, writes(caches), rotary)
        write_prefix_kv_reference(expected, writes(expected), rotary)
        after = self._lab.snapshot(caches)
        tolerance = self._lab.TOLERANCES[caches.dtype]
        torch.testing.assert_close(after, self._lab.snapshot(expected), **tolerance, equal_nan=True)
        result: torch.Tensor = after
        return result


@pytest.fixture
def bench(lab: Any, write: Write, device: torch.device) -> Bench:
    return Bench(lab, write, device)


def test_the_reference_puts_each_token_into_its_slot_and_touches_nothing_else(lab: Any) -> None:
    caches = lab.caches()
    kv = lab.prefix(caches, 6)
    write_prefix_kv_reference(caches, [lab.triple(kv, SLOTS[:4], first=2)])
    after = lab.snapshot(caches)
    for i, slot in enumerate(SLOTS[:4]):
        assert torch.equal(after[:, slot], torch.cat([kv[:, 0, 2 + i], kv[:, 1, 2 + i]], dim=-1))
    others = [slot for slot in range(NUM_BLOCKS * BLOCK) if slot not in SLOTS[:4]]
    assert after[:, others].isnan().all()


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_length_in_every_layout_is_as_the_reference(
    bench: Bench, lab: Any, layout: str, num_tokens: int
) -> None:
    after = bench.compare(
        lambda c: [lab.triple(lab.prefix(c, num_tokens), SLOTS[:num_tokens])], layout=layout
    )
    assert after[:, SLOTS[:num_tokens]].isfinite().all()
    assert after.isfinite().sum() == after[:, SLOTS[:num_tokens]].numel()


@pytest.mark.parametrize("head_size", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("num_heads", [1, 3, 8])
def test_any_number_of_heads_and_any_head_size_is_as_the_reference(
    bench: Bench, lab: Any, num_heads: int, head_size: int
) -> None:
    bench.compare(
        lambda c: [lab.triple(lab.prefix(c, 5), SLOTS[:5])], num_heads=num_heads, head_size=head_size
    )


@pytest.mark.parametrize("cache_dtype", [*DTYPES, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_dtypes_is_as_the_reference(
    bench: Bench, lab: Any, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    """fp8 saturates: much too large is no NaN."""
    after = bench.compare(
        lambda c: [lab.triple(lab.prefix(c, 5, dtype=dtype) * 512, SLOTS[:5])], dtype=cache_dtype
    )
    assert not after[:, SLOTS[:5]].isnan().any()


def test_scales_are_read_when_writing(write: Write, lab: Any, device: torch.device) -> None:
    """vLLM may compute them in the first forward pass, after the caches were bound."""
    caches = lab.caches(dtype=torch.float8_e4m3fn, device=device)
    kv = torch.full_like(lab.prefix(caches, 1), 6.0)
    write(caches, [lab.triple(kv, [0])])
    for layer in caches.layers:
        layer.k_scale.fill_(2.0)
    write(caches, [lab.triple(kv, [1])])
    keys = lab.snapshot(caches)[..., : caches.head_size]
    assert (keys[:, 1] == 3.0).all()
    assert (keys[:, 0] != 3.0).any()


def test_many_patches_requests_and_ranges_go_in_one_call(bench: Bench, lab: Any) -> None:
    """Different lengths, one patch for two requests, a range that begins in the middle, and an empty one."""

    def writes(caches: PagedCaches) -> list[PrefixWrite]:
        short, long = lab.prefix(caches, 3, seed=1), lab.prefix(caches, 9, seed=2)
        return [
            lab.triple(short, [4, 5, 6]),
            lab.triple(long, SLOTS[:9]),
            lab.triple(short, [32], first=2),
            lab.triple(long, [], first=9),
            lab.triple(long, [0, 1], first=4),
        ]

    assert bench.compare(writes)[0, :, 0, 0].isfinite().sum() == 3 + 9 + 1 + 2


def test_an_empty_batch_writes_nothing(write: Write, lab: Any, device: torch.device) -> None:
    caches = lab.caches(device=device)
    write(caches, [])
    assert lab.snapshot(caches).isnan().all()


@pytest.mark.parametrize("kind", ["strided", "sliced-heads", "misaligned"])
def test_a_source_need_not_be_contiguous(bench: Bench, lab: Any, kind: str) -> None:
    def source(caches: PagedCaches) -> torch.Tensor:
        kv: torch.Tensor = lab.prefix(caches, 5)
        if kind == "strided":
            return kv.permute(2, 3, 0, 1, 4).contiguous().permute(2, 3, 0, 1, 4)
        if kind == "sliced-heads":
            return torch.cat([kv, kv + 1], dim=3)[:, :, :, 2:]
        return torch.cat([kv.flatten().new_zeros(1), kv.flatten()])[1:].view(kv.shape)

    bench.compare(lambda c: [lab.triple(source(c), SLOTS[:5])])


def test_a_write_reaches_only_the_layers_of_its_group(bench: Bench, lab: Any) -> None:
    """A group of two layers and one of a single layer: both tables in one launch."""

    def writes(caches: PagedCaches) -> list[PrefixWrite]:
        kv = lab.prefix(caches, 5)
        return [lab.triple(kv, SLOTS[:5], group=0), lab.triple(kv, SLOTS[5:8], group=1, first=2)]

    after = bench.compare(writes, groups=(0, 1, 0))
    assert after[1, SLOTS[:5]].isnan().all()
    assert after[0, SLOTS[5:8]].isnan().all()


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize("rotary_dim", [32, 24, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moved_keys_are_as_the_reference(
    bench: Bench, lab: Any, dtype: torch.dtype, rotary_dim: int, is_interleaved: bool
) -> None:
    """Moved and unmoved prefixes in one call, and two different shifts."""
    inv_freq = 1.0 / 100 ** (torch.arange(0, rotary_dim, 2) / rotary_dim)
    rotary = Rotary(inv_freq, is_interleaved)

    def writes(caches: PagedCaches) -> list[PrefixWrite]:
        kv = lab.prefix(caches, 5, dtype=dtype)
        return [
            lab.triple(kv, SLOTS[:5], shift=37),
            lab.triple(kv, SLOTS[5:10]),
            lab.triple(kv, SLOTS[10:12], first=3, shift=1000),
        ]

    after = bench.compare(writes, rotary, head_size=32, dtype=dtype)
    assert not torch.equal(after[:, SLOTS[:5], :, :rotary_dim], after[:, SLOTS[5:10], :, :rotary_dim])
    assert torch.equal(after[:, SLOTS[:5], :, rotary_dim:], after[:, SLOTS[5:10], :, rotary_dim:])


def test_moved_keys_are_quantized_after_the_move(
    bench: Bench, write: Write, lab: Any, device: torch.device, rotary: Rotary
) -> None:
    if write is not write_prefix_kv_torch and device.type != "cuda":
        pytest.skip("needs a GPU: Triton's interpreter rounds to fp8 wrongly (triton-lang/triton#8322)")
    bench.compare(
        lambda c: [lab.triple(lab.prefix(c, 5, dtype=torch.bfloat16), SLOTS[:5], shift=9)],
        rotary,
        dtype=torch.float8_e4m3fn,
    )


def test_the_public_operation_takes_the_implementation_that_it_is_told(lab: Any, rotary: Rotary) -> None:
    caches = lab.caches()
    write_prefix_kv(caches, [lab.triple(lab.prefix(caches, 2), [3, 4])], rotary, implementation="torch")
    assert lab.snapshot(caches)[:, 3:5].isfinite().all()
    with pytest.raises(ValueError, match="expected 'triton' or 'torch', got 'backend'"):
        write_prefix_kv(caches, [], implementation="backend")


#: Message -> how a write of three tokens, ``(kv, slots, fields)``, is made not to fit.
MISFITS: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, list[int], dict[str, int]]]] = {
    r"writes\[0\].kv: expected \[3, 2, N, 2, 16\], got \[2, ": lambda kv: (kv[:2], [0], {}),
    r"writes\[0\].kv: expected torch.int64 .*": lambda kv: (kv.long(), [0], {}),
    r"writes\[0\]: expected a range within 3 tokens, got 2 from 2": lambda kv: (kv, [0, 1], {"first": 2}),
    r"writes\[0\].group: expected one of 1 groups, got 1": lambda kv: (kv, [0], {"group": 1}),
    r"writes\[0\].slots: expected 0 to 35, got 0 to 36": lambda kv: (kv, [0, 36], {}),
    r"writes\[0\].slots: expected 0 to 35, got -1 to 0": lambda kv: (kv, [0, -1], {}),
    r"writes\[0\].shift: expected 0 where no rotary is given, got 4": lambda kv: (kv, [0], {"shift": 4}),
}


@pytest.mark.parametrize("message", MISFITS)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_written(
    write: Write, lab: Any, message: str
) -> None:
    caches = lab.caches()
    kv, slots, fields = MISFITS[message](lab.prefix(caches, 3))
    with pytest.raises(ValueError, match=message):
        write(caches, [lab.triple(kv, slots, **fields)])
    assert lab.snapshot(caches).isnan().all()


def test_slots_on_another_device_or_of_another_dtype_are_refused(write: Write, lab: Any) -> None:
    caches = lab.caches()
    misfit = PrefixWrite(lab.prefix(caches, 3), 0, torch.zeros(1))
    with pytest.raises(ValueError, match=r"writes\[0\].slots: expected one axis of int64"):
        write(caches, [misfit])
