"""The worker's half of the connector: prefixes of one or several parts, in hand-made caches on the CPU."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from prefix_kernels import relocate, rotary_of_parameters
from server.engine import worker_side
from server.engine.cache_writer import CachedLayer, CacheWriter
from server.engine.claim import PrefixPart
from server.engine.plan import BlockSpan, PrefixLoad, StepPlan
from server.engine.worker_side import WorkerSide

BLOCK, HEADS, HEAD_SIZE, NUM_LAYERS = 4, 2, 16, 2
ROPE = {"rope_type": "default", "rope_theta": 100.0}
A, B = PrefixPart("sha256:a", 6), PrefixPart("sha256:b", 5)
#: Room for A or for B, not for both.
MAX_DEVICE_BYTES = NUM_LAYERS * 2 * 6 * HEADS * HEAD_SIZE * 4
#: The eleven tokens of A and B in blocks 3, 1 and 2.
BLOCK_IDS = (3, 1, 2)


class PlainBackend:
    """Keeps K and V side by side."""

    def do_kv_cache_update(
        self, layer: Any, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor
    ) -> None:
        kv_cache[slots // BLOCK, :, slots % BLOCK] = torch.cat([key, value], dim=-1)


def network(theta: float = 100.0, *, is_neox_style: bool = True) -> torch.nn.Module:
    """A loaded model, as far as its rotary embedding goes."""
    with set_current_vllm_config(VllmConfig()):
        embedding = RotaryEmbedding(HEAD_SIZE, HEAD_SIZE, 64, theta, is_neox_style, torch.float32)
    return torch.nn.Sequential(embedding)


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> WorkerSide:
    """One rank with two layers, on which the prefixes A and B are resident."""
    monkeypatch.setattr(worker_side, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(worker_side, "get_tensor_model_parallel_world_size", lambda: 1)
    model = SimpleNamespace(
        get_total_num_kv_heads=lambda: HEADS,
        dtype=torch.float32,
        architecture="LlamaForCausalLM",
        hf_text_config=SimpleNamespace(rope_parameters=ROPE),
    )
    compilation = SimpleNamespace(static_forward_context={})
    group = SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=BLOCK), layer_names=[])
    made = WorkerSide(
        SimpleNamespace(  # type: ignore[arg-type]
            model_config=model,
            compilation_config=compilation,
            kv_transfer_config=SimpleNamespace(get_from_extra_config=lambda key, default: MAX_DEVICE_BYTES),
        ),
        SimpleNamespace(kv_cache_groups=[group]),  # type: ignore[arg-type]
    )
    made._layer_indices = list(range(NUM_LAYERS))
    made._layers = [
        CachedLayer(
            row,
            0,
            SimpleNamespace(  # type: ignore[arg-type]
                impl=PlainBackend(),
                attn_backend=SimpleNamespace(get_name=lambda: "CPU_ATTN"),
                kv_cache=torch.full((5, HEADS, BLOCK, 2 * HEAD_SIZE), torch.nan),
                kv_cache_dtype="auto",
                num_kv_heads=HEADS,
                head_size=HEAD_SIZE,
            ),
        )
        for row in range(NUM_LAYERS)
    ]
    made._writer = CacheWriter(made._layers, torch.float32)
    made._store = made._make_store()
    for seed, part in enumerate((A, B)):
        made.store.load(part.digest, save({"kv": prefix(part, seed)}), False, {})
        while made.store.loaded(part.digest) is None:
            time.sleep(0.001)
    return made


def prefix(part: PrefixPart, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_LAYERS, 2, part.num_tokens, HEADS, HEAD_SIZE, generator=generator)


def load_of(*parts: PrefixPart, first: int = 0) -> PrefixLoad:
    num_tokens = sum(part.num_tokens for part in parts)
    span = BlockSpan(first, BLOCK_IDS[first // BLOCK : -(-num_tokens // BLOCK)])
    return PrefixLoad("r", "sha256:whole", num_tokens, (span,), parts)


def held(side: WorkerSide, num_tokens: int) -> torch.Tensor:
    """What the caches hold at the first positions: ``[L, tokens, H, 2 * D]``."""
    slots = [(BLOCK_IDS[p // BLOCK], p % BLOCK) for p in range(num_tokens)]
    layers = [cached.layer.kv_cache for cached in side._layers]
    return torch.stack([torch.stack([kv[block, :, offset] for block, offset in slots]) for kv in layers])


def expected(*parts: tuple[PrefixPart, int]) -> torch.Tensor:
    """Each part with its own K/V, the keys moved behind the parts before it."""
    rotary = rotary_of_parameters(ROPE, HEAD_SIZE)
    pieces, start = [], 0
    for part, seed in parts:
        key, value = prefix(part, seed).unbind(1)
        pieces.append(torch.cat([relocate(key, start, rotary), value], dim=-1))
        start += part.num_tokens
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("order", [((A, 0), (B, 1)), ((B, 1), (A, 0))])
def test_parts_lie_one_behind_the_other(side: WorkerSide, order: Any) -> None:
    assert side.enable_composition(network()) is None
    side.run(StepPlan([load_of(*(part for part, _ in order))]))
    torch.testing.assert_close(held(side, 11), expected(*order))
    assert side.take_failed_block_ids() == set()


@pytest.mark.parametrize("first", [4, 8])
def test_what_the_cache_holds_of_the_parts_is_not_written_again(side: WorkerSide, first: int) -> None:
    """4 lies inside A, 8 inside B."""
    assert side.enable_composition(network()) is None
    side.run(StepPlan([load_of(A, B, first=first)]))
    found = held(side, 11)
    torch.testing.assert_close(found[:, first:], expected((A, 0), (B, 1))[:, first:])
    assert found[:, :first].isnan().all()


def test_a_single_part_is_written_as_it_is(side: WorkerSide) -> None:
    side.run(StepPlan([load_of(B)]))
    assert torch.equal(held(side, 5), expected((B, 1)))


def test_several_parts_fail_where_keys_may_not_be_moved(side: WorkerSide) -> None:
    """Unmoved keys would be an answer that nobody can explain."""
    side.run(StepPlan([load_of(A, B)]))
    assert side.take_failed_block_ids() == set(BLOCK_IDS)
    assert held(side, 11).isnan().all()


def test_a_part_that_is_not_resident_fails_the_whole(side: WorkerSide) -> None:
    assert side.enable_composition(network()) is None
    side.store.unload(B.digest)
    side.run(StepPlan([load_of(A, B)]))
    assert side.take_failed_block_ids() == set(BLOCK_IDS)
    assert held(side, 11).isnan().all()


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (network, None),
        (lambda: network(theta=200.0), "its angles at position 1 are others"),
        (lambda: network(is_neox_style=False), "neighbours"),
        (lambda: torch.nn.Sequential(torch.nn.Linear(2, 2)), "it has none"),
    ],
)
def test_keys_move_only_as_the_loaded_model_rotates(
    side: WorkerSide, model: Any, problem: str | None
) -> None:
    answer = side.enable_composition(model())
    assert (answer is None) if problem is None else (answer is not None and problem in answer)
    assert (side._rotary is None) == (problem is not None)


@pytest.mark.parametrize(
    ("architecture", "rope", "problem"),
    [
        ("Cohere2ForCausalLM", ROPE, "architecture: expected one of"),
        ("LlamaForCausalLM", {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}, "rope_type"),
        ("LlamaForCausalLM", {"full_attention": ROPE, "sliding_attention": ROPE}, "one rope_theta"),
        ("LlamaForCausalLM", None, "one rope_theta"),
    ],
)
def test_models_that_nobody_vouches_for_are_refused(
    side: WorkerSide, architecture: str, rope: Any, problem: str
) -> None:
    side._model_config.architecture = architecture
    side._model_config.hf_text_config.rope_parameters = rope
    answer = side.enable_composition(network())
    assert answer is not None
    assert problem in answer
