"""Compiled K/V is what the model itself computes from the text."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compile import compile_embeddings, compile_patch, compile_text, compile_token_ids
from patches.errors import CompileError, ModelUnusable
from patches.label import Label
from patches.model import LoadedModel, load_model, own_dtype
from patches.rendering import render_system

LABEL = Label("polite", "1.0.0")
TEXT = "answer politely, never answer rudely"


def own_cache(network: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        cache = network(torch.tensor([token_ids]), use_cache=True).past_key_values
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
    return torch.stack(pairs).transpose(2, 3)


def continued_logits(network: Any, kv: torch.Tensor, user_ids: list[int]) -> torch.Tensor:
    """Logits of user tokens behind a compiled prefix."""
    from transformers import DynamicCache

    pairs = [(layer[0][None].transpose(1, 2), layer[1][None].transpose(1, 2)) for layer in kv]
    with torch.no_grad():
        return network(torch.tensor([user_ids]), past_key_values=DynamicCache(pairs)).logits[0]


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 50, 200])
def test_kv_equals_the_models_own_cache_of_the_tokens(tiny_model: LoadedModel, num_tokens: int) -> None:
    ids = [(7 * i) % 290 + 2 for i in range(num_tokens)]
    patch = compile_token_ids(tiny_model, ids, LABEL)
    assert patch.kv is not None
    assert patch.kv.shape == (2, 2, num_tokens, 2, 8)
    expected = own_cache(copy.deepcopy(tiny_model.network).double(), ids)
    torch.testing.assert_close(patch.kv, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_kv_of_a_model_in_half_precision_is_computed_in_float64_and_rounded_once(
    tiny_model_folder: Path, dtype: str
) -> None:
    model = load_model(tiny_model_folder, dtype=dtype)
    ids = [(7 * i) % 290 + 2 for i in range(50)]
    stored = {name: parameter.data_ptr() for name, parameter in model.network.named_parameters()}
    kv = compile_token_ids(model, ids, LABEL).kv
    assert kv is not None
    wide = own_cache(copy.deepcopy(model.network).double(), ids)
    assert torch.equal(kv, wide.to(getattr(torch, dtype)))
    # The model is as it was: the same memory, the same dtype, nothing hooked in.
    assert {name: parameter.data_ptr() for name, parameter in model.network.named_parameters()} == stored
    assert {parameter.dtype for parameter in model.network.parameters()} == {getattr(torch, dtype)}
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.network.modules())


def test_a_model_that_fails_half_way_gets_its_weights_back(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder, dtype="bfloat16")

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    model.network.get_decoder().layers[1].self_attn.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        compile_token_ids(model, [5, 6, 7], LABEL)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.bfloat16}


def test_a_request_behind_the_patch_sees_what_it_would_see_behind_the_text(tiny_model: LoadedModel) -> None:
    patch = compile_text(tiny_model, TEXT, LABEL)
    assert patch.kv is not None
    prefix, user = list(render_system(tiny_model.tokenizer, TEXT).token_ids), [5, 9, 80, 81, 82]
    with torch.no_grad():
        whole = tiny_model.network(torch.tensor([prefix + user])).logits[0, len(prefix) :]
    torch.testing.assert_close(continued_logits(tiny_model.network, patch.kv, user), whole, rtol=0, atol=1e-4)


def test_equal_input_gives_an_equal_digest(tiny_model: LoadedModel, tiny_model_folder: Path) -> None:
    again = load_model(tiny_model_folder)
    assert compile_text(tiny_model, TEXT, LABEL).digest == compile_text(again, TEXT, LABEL).digest
    others = [
        compile_text(tiny_model, TEXT + "!", LABEL),
        compile_text(tiny_model, TEXT, Label("polite", "1.0.1")),
        compile_text(tiny_model, TEXT, LABEL, raw=True),
        compile_text(tiny_model, TEXT, LABEL, keep_text=True),
    ]
    assert len({patch.digest for patch in others}) == 4


def test_the_manifest_says_how_the_patch_was_made(tiny_model: LoadedModel) -> None:
    label = Label("polite", "2.0.0", license="MIT", changelog="Kinder.", supersedes="1.0.0")
    manifest = compile_text(tiny_model, TEXT, label, pad_to_multiple=16, keep_text=True).manifest
    assert (manifest.name, manifest.version, manifest.license) == ("polite", "2.0.0", "MIT")
    assert (manifest.changelog, manifest.supersedes) == ("Kinder.", "1.0.0")
    assert manifest.base_model == tiny_model.base_model
    assert manifest.num_virtual_tokens % 16 == 0
    origin = dict(manifest.origin)
    assert origin["method"] == "text"
    assert origin["rendering"] == "chat-template"
    assert origin["text"] == TEXT
    assert 0 <= manifest.num_virtual_tokens - origin["num_text_tokens"] < 16


def test_the_text_is_kept_out_of_the_manifest_unless_asked_for(tiny_model: LoadedModel) -> None:
    assert "text" not in compile_text(tiny_model, TEXT, LABEL).manifest.origin


def test_cutting_gives_a_multiple(tiny_model: LoadedModel) -> None:
    patch = compile_text(tiny_model, TEXT * 5, LABEL, cut_to_multiple=16)
    assert patch.manifest.num_virtual_tokens % 16 == 0
    assert patch.manifest.num_virtual_tokens < patch.manifest.origin["num_text_tokens"]


@pytest.mark.parametrize(
    "options",
    [{"pad_to_multiple": 16, "cut_to_multiple": 16}, {"pad_to_multiple": 0}, {"cut_to_multiple": -1}],
)
def test_contradicting_or_senseless_multiples_are_refused(
    tiny_model: LoadedModel, options: dict[str, int]
) -> None:
    with pytest.raises(CompileError, match="multiple"):
        compile_text(tiny_model, TEXT, LABEL, **options)


def test_learned_embeddings_keep_their_precision_and_are_cast_for_the_cache(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder, dtype="bfloat16")
    rows = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    patch = compile_patch(model, rows, LABEL, {"method": "trained"})
    assert patch.embeddings is not None
    assert patch.kv is not None
    assert torch.equal(patch.embeddings, rows)
    assert patch.kv.dtype == torch.bfloat16
    assert torch.equal(patch.kv, compile_embeddings(model.network, rows.bfloat16()))
    assert patch.manifest.base_model.dtype == "bfloat16"


def test_the_default_dtype_is_the_models_own(tiny_model: LoadedModel) -> None:
    assert tiny_model.base_model.dtype == "float32"
    assert own_dtype(tiny_model.network.config) == "float32"


def test_compiled_tensors_may_be_trained_on(tiny_model: LoadedModel) -> None:
    patch = compile_text(tiny_model, TEXT, LABEL)
    assert patch.embeddings is not None
    assert patch.kv is not None
    assert not patch.embeddings.is_inference()
    assert not patch.kv.is_inference()


@pytest.mark.parametrize("shape", [(0, 32), (3, 31), (3,), (1, 3, 32), (512, 32)])
def test_embeddings_of_a_wrong_shape_are_refused(tiny_model: LoadedModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(CompileError, match=r"embeddings: expected|prefix: expected 1 to 511 tokens"):
        compile_embeddings(tiny_model.network, torch.zeros(shape))


@pytest.mark.parametrize("ids", [[], [-1], [10_000], [5] * 512])
def test_token_ids_outside_of_the_model_are_refused(tiny_model: LoadedModel, ids: list[int]) -> None:
    with pytest.raises(CompileError):
        compile_token_ids(tiny_model, ids, LABEL)


def random_network(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


COMMON = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 256}


def test_a_hybrid_model_keeps_every_position_of_its_sliding_layers() -> None:
    """Its own cache forgets what lies behind the window; a patch must not."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        **COMMON,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    network = random_network(config)
    rows = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
    kv = compile_embeddings(network, rows)
    assert kv.shape == (3, 2, 24, 1, 8)
    with torch.no_grad():
        cache = network(inputs_embeds=rows[None], use_cache=True).past_key_values
    for ours, theirs in zip(kv, cache.layers, strict=True):
        kept = theirs.keys.shape[2]
        torch.testing.assert_close(ours[0, -kept:], theirs.keys[0].transpose(0, 1), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours[1, -kept:], theirs.values[0].transpose(0, 1), rtol=0, atol=1e-5)
    assert cache.layers[0].keys.shape[2] < 24


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_multi_query_grouped_query_and_multi_head_attention_all_compile(num_kv_heads: int) -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(
        **COMMON, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=num_kv_heads
    )
    assert compile_embeddings(random_network(config), torch.zeros(3, 32)).shape == (2, 2, 3, num_kv_heads, 8)


def test_a_model_with_learned_positions_compiles() -> None:
    from transformers import GPT2Config

    network = random_network(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    ids = [3, 1, 4, 1, 5]
    rows = network.get_input_embeddings()(torch.tensor(ids)).detach()
    torch.testing.assert_close(compile_embeddings(network, rows), own_cache(network, ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "factor": 2.0,
            "original_max_position_embeddings": 128,
        },
    ],
)
def test_rotation_that_depends_on_the_length_is_refused(rope: dict[str, Any]) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(**COMMON, num_hidden_layers=1, num_attention_heads=4, rope_parameters=rope)
    with pytest.raises(CompileError, match="depend on the sequence's length"):
        compile_embeddings(random_network(config), torch.zeros(3, 32))


def test_a_model_with_state_space_layers_is_refused() -> None:
    from transformers import JambaConfig

    config = JambaConfig(
        **COMMON,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
    )
    with pytest.raises(CompileError, match="state-space"):
        compile_embeddings(random_network(config), torch.zeros(3, 32))


def test_loading_what_is_no_model_is_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"has no config\.json"):
        load_model(tmp_path)
    with pytest.raises(ModelUnusable, match="dtype: expected"):
        load_model(tiny_model_folder, dtype="int8")
    with pytest.raises(ModelUnusable, match="device: warp is unavailable here"):
        load_model(tiny_model_folder, device="warp")


def test_a_model_without_tokenizer_takes_ids_but_no_text(
    tmp_path: Path, make_tiny_model: Callable[..., None]
) -> None:
    make_tiny_model(tmp_path)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    model = load_model(tmp_path)
    assert compile_token_ids(model, [1, 2, 3], LABEL).manifest.num_virtual_tokens == 3
    with pytest.raises(CompileError, match="has no tokenizer"):
        compile_text(model, TEXT, LABEL)
