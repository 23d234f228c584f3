"""PEFT adapters in and out: whatever PEFT's own model answers, the patch answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    CartridgeConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from patches.compile import compile_text
from patches.errors import AdapterError, PatchExists
from patches.format import Patch, decode_patch, encode_patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.peft_export import export_adapter
from patches.peft_import import import_adapter

LABEL = Label("tone", "0.1.0")
USER = [5, 9, 80, 81, 82, 33]
COMMON: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 7}

CONFIGS: dict[str, Callable[[], Any]] = {
    "prompt tuning": lambda: PromptTuningConfig(**COMMON),
    "p-tuning, mlp": lambda: PromptEncoderConfig(encoder_hidden_size=16, **COMMON),
    "p-tuning, lstm": lambda: PromptEncoderConfig(
        encoder_reparameterization_type="LSTM", encoder_hidden_size=16, **COMMON
    ),
    "prefix tuning": lambda: PrefixTuningConfig(**COMMON),
    "prefix tuning, projected": lambda: PrefixTuningConfig(
        prefix_projection=True, encoder_hidden_size=12, **COMMON
    ),
    "cartridge": lambda: CartridgeConfig(num_frozen_tokens=1, **COMMON),
    "cartridge, all trained": lambda: CartridgeConfig(num_frozen_tokens=0, **COMMON),
}


def random_adapter(model: LoadedModel, config: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(model.network, config).eval()


def peft_logits(adapter: Any) -> torch.Tensor:
    ids = torch.tensor([USER])
    with torch.no_grad():
        logits = adapter(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits[-len(USER) :]


def patch_logits(network: Any, patch: Patch) -> torch.Tensor:
    from transformers import DynamicCache

    assert patch.kv is not None
    pairs = [(layer[0][None].transpose(1, 2), layer[1][None].transpose(1, 2)) for layer in patch.kv]
    with torch.no_grad():
        return network(torch.tensor([USER]), past_key_values=DynamicCache(pairs)).logits[0]


@pytest.fixture(params=CONFIGS, ids=CONFIGS)
def adapter(request: pytest.FixtureRequest, tiny_model: LoadedModel) -> Any:
    return random_adapter(tiny_model, CONFIGS[request.param]())


def test_an_imported_adapter_answers_as_pefts_own_model(
    adapter: Any, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    expected = peft_logits(adapter)
    adapter.save_pretrained(tmp_path)
    patch = import_adapter(tiny_model, tmp_path, LABEL)
    torch.testing.assert_close(patch_logits(tiny_model.network, patch), expected, rtol=0, atol=1e-4)
    assert patch.manifest.num_virtual_tokens == 7
    is_kv = patch.manifest.origin["peft_type"] in ("PREFIX_TUNING", "CARTRIDGE")
    assert (patch.embeddings is None) == is_kv
    assert decode_patch(encode_patch(patch.manifest, patch.tensors)).digest == patch.digest


def test_importing_is_deterministic_and_leaves_the_model_alone(
    adapter: Any, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    before = compile_text(tiny_model, "be brief", LABEL).digest
    adapter.save_pretrained(tmp_path)
    first = import_adapter(tiny_model, tmp_path, LABEL)
    assert import_adapter(tiny_model, tmp_path, LABEL).digest == first.digest
    assert compile_text(tiny_model, "be brief", LABEL).digest == before


def test_an_exported_adapter_answers_as_the_one_imported(
    adapter: Any, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    expected = peft_logits(adapter)
    adapter.save_pretrained(tmp_path / "in")
    export_adapter(import_adapter(tiny_model, tmp_path / "in", LABEL), tmp_path / "out")
    again = PeftModel.from_pretrained(tiny_model.network, str(tmp_path / "out")).eval()
    torch.testing.assert_close(peft_logits(again), expected, rtol=0, atol=1e-4)


def test_an_exported_adapter_loads_with_the_base_model_that_it_names(
    tiny_model: LoadedModel, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    patch = compile_text(tiny_model, "answer politely", LABEL)
    export_adapter(patch, tmp_path, base_model=str(tiny_model_folder))
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path)).eval()
    torch.testing.assert_close(
        peft_logits(loaded), patch_logits(tiny_model.network, patch), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning", "cartridge"])
def test_a_compiled_text_survives_every_kind_of_adapter(
    kind: str, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    patch = compile_text(tiny_model, "answer politely", LABEL)
    assert export_adapter(patch, tmp_path, kind) == kind
    loaded = PeftModel.from_pretrained(tiny_model.network, str(tmp_path)).eval()
    expected = patch_logits(tiny_model.network, patch)
    torch.testing.assert_close(peft_logits(loaded), expected, rtol=0, atol=1e-4)
    imported = import_adapter(tiny_model, tmp_path, LABEL)
    assert patch.kv is not None
    assert imported.kv is not None
    torch.testing.assert_close(imported.kv, patch.kv, rtol=0, atol=1e-6)


def test_peft_generates_what_the_patch_generates(tiny_model: LoadedModel, tmp_path: Path) -> None:
    from transformers import DynamicCache

    patch = compile_text(tiny_model, "never answer rudely", LABEL)
    assert patch.kv is not None
    export_adapter(patch, tmp_path, "cartridge")
    adapter = PeftModel.from_pretrained(tiny_model.network, str(tmp_path)).eval()
    ids = torch.tensor([USER])
    theirs = adapter.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=1)[
        0, len(USER) :
    ]
    cache = DynamicCache(
        [(layer[0][None].transpose(1, 2), layer[1][None].transpose(1, 2)) for layer in patch.kv]
    )
    ours, step = [], ids
    with torch.no_grad():
        for _ in range(len(theirs)):
            step = tiny_model.network(step, past_key_values=cache).logits[:, -1:].argmax(-1)
            ours.append(int(step))
    assert ours == theirs.tolist()


def test_a_float32_adapter_of_a_bfloat16_model_keeps_its_embeddings(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_model_folder, dtype="bfloat16")
    random_adapter(model, PromptTuningConfig(**COMMON)).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    patch = import_adapter(model, tmp_path, LABEL)
    assert patch.embeddings is not None
    assert patch.kv is not None
    assert torch.equal(patch.embeddings.float(), stored.float())
    assert patch.embeddings.dtype == stored.dtype == torch.float32
    assert patch.kv.dtype == torch.bfloat16


@pytest.fixture
def saved(tiny_model: LoadedModel, tmp_path: Path) -> Path:
    random_adapter(tiny_model, PromptTuningConfig(**COMMON)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "LoRA adapter changes weights"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "needs a task id"),
        ({"peft_type": "IA3"}, "peft_type: expected one of PROMPT_TUNING"),
        ({"peft_type": None}, "peft_type: expected one of"),
        ({"peft_type": ["LORA"]}, "peft_type: expected one of"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type: expected CAUSAL_LM"),
        ({"task_type": "SEQ_CLS"}, "task_type: expected CAUSAL_LM"),
        ({"num_transformer_submodules": 2}, "encoder-decoder"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens: expected 1 to 4096, got 0"),
        ({"num_virtual_tokens": 5000}, "num_virtual_tokens: expected 1 to 4096"),
        ({"num_virtual_tokens": "7"}, "num_virtual_tokens: expected 1 to 4096"),
        ({"num_virtual_tokens": 8}, r"of shape \[8, 32\] for this model, got \[7, 32\]"),
        ({"peft_type": "PREFIX_TUNING"}, r"of shape \[7, 64\] for this model, got \[7, 32\]"),
    ],
)
def test_an_adapter_that_is_no_prefix_is_refused(
    saved: Path, tiny_model: LoadedModel, changes: dict[str, Any], message: str
) -> None:
    edit_config(saved, **changes)
    with pytest.raises(AdapterError, match=message):
        import_adapter(tiny_model, saved, LABEL)


def test_a_lora_adapter_is_refused(tiny_model_folder: Path, tmp_path: Path, tiny_model: LoadedModel) -> None:
    network = load_model(tiny_model_folder).network
    get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(
        tmp_path
    )
    with pytest.raises(AdapterError, match="vLLM serves it with --enable-lora"):
        import_adapter(tiny_model, tmp_path, LABEL)


def test_a_pickled_adapter_is_never_loaded(saved: Path, tiny_model: LoadedModel, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (saved / "adapter_model.safetensors").unlink()
    (saved / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(canary).encode())
    with pytest.raises(AdapterError, match="is a pickle, which could run code"):
        import_adapter(tiny_model, saved, LABEL)
    assert not canary.exists()


def test_damaged_adapter_files_are_refused(saved: Path, tiny_model: LoadedModel, tmp_path: Path) -> None:
    weights = saved / "adapter_model.safetensors"
    save_file({"base_model.lm_head": torch.zeros(7, 32)}, weights)
    with pytest.raises(AdapterError, match="expected one tensor prompt_embeddings, got base_model"):
        import_adapter(tiny_model, saved, LABEL)
    weights.write_bytes(b"\x05")
    with pytest.raises(AdapterError, match="can't be read"):
        import_adapter(tiny_model, saved, LABEL)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors"):
        import_adapter(tiny_model, saved, LABEL)
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config\.json can't be read"):
        import_adapter(tiny_model, saved, LABEL)
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        import_adapter(tiny_model, tmp_path, LABEL)


def test_a_patch_without_embeddings_is_no_prompt_tuning(make: Callable[..., Patch], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="has no embeddings"):
        export_adapter(make(embeddings=False), tmp_path, "prompt-tuning")
    with pytest.raises(AdapterError, match="has no K/V"):
        export_adapter(make(kv=False), tmp_path, "cartridge")
    with pytest.raises(AdapterError, match="kind: expected one of"):
        export_adapter(make(), tmp_path, "lora")
    assert export_adapter(make(embeddings=False), tmp_path) == "prefix-tuning"


def test_an_adapter_that_is_there_is_not_overwritten_by_accident(
    make: Callable[..., Patch], tmp_path: Path
) -> None:
    export_adapter(make(), tmp_path)
    with pytest.raises(PatchExists, match="already holds an adapter"):
        export_adapter(make(seed=1), tmp_path)
    export_adapter(make(seed=1), tmp_path, overwrite=True)
    rows = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(rows, make(seed=1).embeddings)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
