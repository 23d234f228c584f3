"""What writes prefixes on a worker: chosen once, and held against the attention backend before that."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from prefix_kernels import Choice, PrefixWrite, Rotary, relocate
from server.engine import cache_writer
from server.engine.cache_writer import CachedLayer, CacheWriter, describe_caches
from server.metrics.patches import PatchMetrics

BLOCK, HEADS, HEAD_SIZE, NUM_BLOCKS = 4, 2, 16, 5


class PlainBackend:
    """An attention backend that keeps K and V side by side, as those of CUDA do."""

    def __init__(self, *, is_swapped: bool = False) -> None:
        self.num_calls = 0
        self.is_swapped = is_swapped

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor
    ) -> None:
        self.num_calls += 1
        sides = (value, key) if self.is_swapped else (key, value)
        kv_cache[slots // BLOCK, :, slots % BLOCK] = torch.cat(sides, dim=-1)


def layer_of(backend: Any, *, name: str = "FLASH_ATTN", cache_dtype: str = "auto") -> Any:
    return SimpleNamespace(
        impl=backend,
        attn_backend=SimpleNamespace(get_name=lambda: name),
        kv_cache=torch.full((NUM_BLOCKS, HEADS, BLOCK, 2 * HEAD_SIZE), torch.nan),
        kv_cache_dtype=cache_dtype,
        num_kv_heads=HEADS,
        head_size=HEAD_SIZE,
        _k_scale=torch.ones(()),
        _v_scale=torch.ones(()),
    )


def layers_of(backend: Any, groups: tuple[int, ...] = (0, 0), **fields: str) -> list[CachedLayer]:
    return [CachedLayer(row, group, layer_of(backend, **fields)) for row, group in enumerate(groups)]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice as it falls on a GPU; the torch path stands in for the kernel."""
    monkeypatch.setattr(
        cache_writer,
        "choose_implementation",
        lambda caches, has_backend_op: Choice("torch" if caches is not None else "backend", "told so"),
    )


def write_one(
    writer: CacheWriter, layers: list[CachedLayer], shift: int = 0, rotary: Rotary | None = None
) -> torch.Tensor:
    """Write three tokens into group 0 and return what the first layer holds of them."""
    kv = torch.randn(len(layers), 2, 3, HEADS, HEAD_SIZE, generator=torch.Generator().manual_seed(2))
    writer.write([PrefixWrite(kv, 0, torch.tensor([4, 9, 6]), shift=shift)], rotary)
    held = layers[0].layer.kv_cache[[1, 2, 1], :, [0, 1, 2]]
    keys = kv[0, 0] if rotary is None else relocate(kv[0, 0], shift, rotary)
    torch.testing.assert_close(held, torch.cat([keys, kv[0, 1]], dim=-1))
    return held


def test_on_a_cpu_the_backend_writes_each_layer() -> None:
    backend = PlainBackend()
    layers = layers_of(backend)
    writer = CacheWriter(layers, torch.float32)
    assert writer.choice.implementation == "backend"
    write_one(writer, layers)
    assert backend.num_calls == 2


@pytest.mark.usefixtures("fused")
def test_a_fused_write_that_agrees_with_the_backend_is_used() -> None:
    backend = PlainBackend()
    layers = layers_of(backend, groups=(0, 1))
    writer = CacheWriter(layers, torch.float32)
    assert writer.choice == Choice("torch", "told so")
    num_calls = backend.num_calls
    write_one(writer, layers)
    assert backend.num_calls == num_calls
    assert layers[1].layer.kv_cache.isnan().all()


@pytest.mark.usefixtures("fused")
def test_the_comparison_leaves_the_caches_as_they_were() -> None:
    layers = layers_of(PlainBackend())
    CacheWriter(layers, torch.float32)
    assert all(cached.layer.kv_cache.isnan().all() for cached in layers)


@pytest.mark.usefixtures("fused")
def test_a_backend_that_lays_its_cache_out_otherwise_writes_itself() -> None:
    """A new vLLM may swap K and V under the same name: slower, never wrong."""
    backend = PlainBackend(is_swapped=True)
    writer = CacheWriter(layers_of(backend), torch.float32)
    assert writer.choice.implementation == "backend"
    assert "otherwise" in writer.choice.reason


@pytest.mark.usefixtures("fused")
def test_a_comparison_that_sees_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = PlainBackend()
    monkeypatch.setattr(backend, "do_kv_cache_update", lambda *args: None)
    assert CacheWriter(layers_of(backend), torch.float32).choice.implementation == "backend"


@pytest.mark.usefixtures("fused")
def test_a_fused_write_that_fails_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cache_writer, "write_prefix_kv", broken)
    layers = layers_of(PlainBackend())
    writer = CacheWriter(layers, torch.float32)
    assert writer.choice == Choice("backend", "torch failed: RuntimeError")
    write_one(writer, layers)


@pytest.mark.parametrize("is_fused", [True, False])
def test_keys_are_moved_by_either_way(request: pytest.FixtureRequest, is_fused: bool) -> None:
    if is_fused:
        request.getfixturevalue("fused")
    layers = layers_of(PlainBackend())
    rotary = Rotary(torch.rand(8, generator=torch.Generator().manual_seed(1)))
    write_one(CacheWriter(layers, torch.float32), layers, shift=21, rotary=rotary)


@pytest.mark.parametrize(
    "fields", [{"name": "CPU_ATTN"}, {"cache_dtype": "fp8_per_token_head"}, {"cache_dtype": "nvfp4"}]
)
def test_other_backends_and_quantizations_are_not_described(fields: dict[str, str]) -> None:
    assert describe_caches(layers_of(PlainBackend(), **fields)) is None


def test_an_fp8_cache_is_described_with_its_scales() -> None:
    layers = layers_of(PlainBackend(), cache_dtype="fp8")
    for cached in layers:
        cached.layer.kv_cache = cached.layer.kv_cache.to(torch.float8_e4m3fn).view(torch.uint8)
    caches = describe_caches(layers)
    assert caches is not None
    assert caches.is_quantized
    assert caches.layers[1].k_scale is layers[1].layer._k_scale


def test_layers_that_differ_are_not_described() -> None:
    layers = layers_of(PlainBackend())
    layers[1].layer.kv_cache = layers[1].layer.kv_cache.half()
    assert describe_caches(layers) is None


def test_the_choice_reaches_the_metrics() -> None:
    registry = CollectorRegistry()
    metrics = PatchMetrics(registry)
    metrics.prefixes.set_writers({"backend"})
    metrics.prefixes.set_writers({"triton"})
    assert registry.get_sample_value("policy_patch_writer_info", {"writer": "triton"}) == 1
    assert registry.get_sample_value("policy_patch_writer_info", {"writer": "backend"}) == 0
