"""Which implementation is chosen, why, and what no implementation takes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefix_kernels import LayerCache, PagedCaches, choose_implementation, write_prefix_kv


class OnGpu(PagedCaches):
    """Caches that say that they are on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@pytest.fixture
def on_gpu(lab: Any) -> PagedCaches:
    return OnGpu(lab.caches().layers)


def test_caches_on_a_gpu_are_written_by_triton(monkeypatch: pytest.MonkeyPatch, on_gpu: PagedCaches) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(name=name))
    assert choose_implementation(on_gpu, has_backend_op=True).implementation == "triton"


@pytest.mark.parametrize(("has_backend_op", "expected"), [(True, "backend"), (False, "torch")])
def test_without_triton_the_backend_is_asked_first(
    monkeypatch: pytest.MonkeyPatch, on_gpu: PagedCaches, has_backend_op: bool, expected: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    choice = choose_implementation(on_gpu, has_backend_op=has_backend_op)
    assert (choice.implementation, choice.reason) == (expected, "Triton is not installed")


def test_on_a_cpu_torch_writes_what_this_package_describes_and_the_backend_what_not(lab: Any) -> None:
    assert choose_implementation(lab.caches()).implementation == "torch"
    assert choose_implementation(None, has_backend_op=True).implementation == "backend"
    with pytest.raises(ValueError, match="got neither"):
        choose_implementation(None)


def test_rows_that_are_not_aligned_are_not_for_triton() -> None:
    flat = torch.zeros(1 + 2 * 4 * 2 * 32)[1:]
    caches = OnGpu((LayerCache(flat.view(2, 2, 4, 32)),))
    choice = choose_implementation(caches, has_backend_op=True)
    assert choice.implementation == "backend"
    assert "16 bytes" in choice.reason


def test_the_choice_is_what_a_write_uses_where_nothing_is_said(lab: Any) -> None:
    caches = lab.caches()
    write_prefix_kv(caches, [lab.triple(lab.prefix(caches, 1), [0])])
    after = lab.snapshot(caches)
    assert after[:, 0].isfinite().all()
    assert after[:, 1:].isnan().all()


def _unfit() -> dict[str, tuple[LayerCache, ...]]:
    kv = torch.zeros(2, 2, 4, 32)
    scale = torch.ones(())
    fp8 = kv.to(torch.float8_e4m3fn)
    return {
        "at least one layer, got none": (),
        "a multiple of 16": (LayerCache(torch.zeros(2, 2, 4, 24)),),
        "last axis contiguous": (LayerCache(torch.zeros(2, 2, 32, 4).transpose(2, 3)),),
        "layers alike, layer 0 is": (LayerCache(kv), LayerCache(kv.half())),
        "groups from 0 on": (LayerCache(kv, group=-1),),
        "needs k_scale and v_scale": (LayerCache(fp8, 0, scale, scale), LayerCache(fp8, 0, scale)),
    }


@pytest.mark.parametrize("message", _unfit())
def test_caches_that_do_not_fit_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_prefix_kv(PagedCaches(_unfit()[message]), [], implementation="torch")


def test_the_table_of_layers_is_filled_up_with_zeros_where_a_group_has_fewer(lab: Any) -> None:
    caches = lab.caches(groups=(0, 1, 0))
    table = caches.layer_table
    assert table.shape == (2, 2, 7)
    assert table[0, :, 6].tolist() == [0, 2]
    assert table[1, 1].tolist() == [0] * 7
    assert table[1, 0, 0] == caches.layers[1].kv.data_ptr()
