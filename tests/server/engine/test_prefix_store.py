"""What one worker holds, and what it confirms."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from server.engine import prefix_store as prefix_shelf
from server.engine.prefix_store import PrefixStore, RankLayout

#: The second of two ranks, on the second of two stages.
LAYOUT = RankLayout([2, 3], range(1, 2), 2, 8, torch.float32)
SHAPE = [4, 2, 5, 2, 8]
NBYTES = 2 * 2 * 5 * 1 * 8 * 4


def store(num_bytes: int = 1 << 20) -> PrefixStore:
    return PrefixStore(LAYOUT, torch.device("cpu"), num_bytes)


def prefix(seed: int = 0, shape: list[int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layout(shape: Sequence[int] = SHAPE, dtype: str = "float32") -> dict[str, tuple[list[int], str]]:
    return {"kv": (list(shape), dtype)}


def wait_loaded(held: PrefixStore, digest: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (answer := held.loaded(digest)) is None:
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)
    return answer


def load(held: PrefixStore, digest: str, kv: torch.Tensor) -> dict[str, Any]:
    held.load(digest, save({"kv": kv}), False, {})
    return wait_loaded(held, digest)


def test_a_rank_holds_its_layers_and_heads_and_confirms_the_whole_shape() -> None:
    held, kv = store(), prefix()
    expected = {"digest": "d", "layout": layout(), "nbytes": NBYTES}
    assert held.check("d", layout(), {}) == expected
    assert "d" not in held
    assert load(held, "d", kv) == expected
    (batch,) = held.together(["d"])
    assert torch.equal(batch["d"], kv[2:, :, :, 1:])
    assert held.resident() == {"d": NBYTES}


def test_steps_go_on_while_a_prefix_is_on_its_way(monkeypatch: Any) -> None:
    may_go_on = threading.Event()
    cut = prefix_shelf.shard_prefix_kv
    monkeypatch.setattr(prefix_shelf, "shard_prefix_kv", lambda *a: may_go_on.wait(30) and cut(*a))
    held = store()
    held.load("d", save({"kv": prefix()}), False, {})
    assert held.loaded("d") is None
    assert "d" not in held
    may_go_on.set()
    assert wait_loaded(held, "d")["nbytes"] == NBYTES
    assert "d" in held


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ([4, 2, 5, 3, 8], torch.float32, "expected .*, 2, 8"),
        ([4, 2, 5, 2, 4], torch.float32, "expected .*, 2, 8"),
        ([4, 2, 5, 2, 8], torch.float64, "float32"),
        ([3, 2, 5, 2, 8], torch.float32, "at least 4 layers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_and_when_it_is_sent(
    shape: list[int], dtype: torch.dtype, message: str
) -> None:
    held = store()
    with pytest.raises(ValueError, match=message):
        held.check("d", layout(shape, str(dtype).removeprefix("torch.")), {})
    with pytest.raises(ValueError, match=message):
        load(held, "d", prefix(shape=shape).to(dtype))
    assert held.resident() == {}


@pytest.mark.parametrize(
    ("own", "made_for", "is_taken"),
    [
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.float16, True),
        (torch.bfloat16, torch.float16, False),
        (torch.float16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.float32, False),
    ],
)
def test_a_narrower_prefix_is_widened_and_no_other_is_taken(
    own: torch.dtype, made_for: torch.dtype, is_taken: bool
) -> None:
    held = PrefixStore(replace(LAYOUT, dtype=own), torch.device("cpu"), 1 << 20)
    kv = prefix().to(made_for)
    name = str(made_for).removeprefix("torch.")
    if not is_taken:
        with pytest.raises(ValueError, match=f"{own}, got .* {made_for}"):
            held.check("d", layout(SHAPE, name), {})
        return
    expected = {"digest": "d", "layout": layout(SHAPE, name), "nbytes": NBYTES}
    assert held.check("d", layout(SHAPE, name), {}) == load(held, "d", kv) == expected
    (batch,) = held.together(["d"])
    assert batch["d"].dtype == own
    assert torch.equal(batch["d"], kv[2:, :, :, 1:].to(own))


def test_a_prefix_larger_than_all_slots_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{NBYTES} bytes exceed the {NBYTES - 1}"):
        store(NBYTES - 1).check("d", layout(), {})


def test_loading_again_changes_nothing() -> None:
    held, kv = store(), prefix()
    load(held, "d", kv)
    assert load(held, "d", prefix(seed=1))["nbytes"] == NBYTES
    (batch,) = held.together(["d"])
    assert torch.equal(batch["d"], kv[2:, :, :, 1:])


def test_an_unloaded_prefix_is_gone_from_slot_and_memory() -> None:
    held = store()
    load(held, "d", prefix())
    list(held.together(["d"]))
    assert held.in_slots() == ["d"]
    assert held.unload("d") == NBYTES
    assert (held.in_slots(), held.resident(), "d" in held) == ([], {}, False)
    assert held.unload("d") == 0
    with pytest.raises(ValueError, match="was not sent"):
        held.loaded("d")
