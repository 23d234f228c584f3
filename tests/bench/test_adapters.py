"""Adapters and embeddings that stand for what peers serve."""

import base64
import io
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.errors import BenchError
from bench.servers.adapters import embedder, lora_flags
from bench.servers.random_adapter import write_adapter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a model folder without weights."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_adapters_are_what_peft_reads_and_change_the_model(model: Path, tmp_path: Path) -> None:
    folder = write_adapter(str(model), tmp_path / "r4", rank=4, dtype="float32", seed=0)
    network = AutoModelForCausalLM.from_config(LlamaConfig.from_pretrained(model)).eval()
    ids = torch.arange(8)[None]
    before = network(ids).logits
    adapted = PeftModel.from_pretrained(network, str(folder))
    assert adapted.peft_config["default"].r == 4
    assert not torch.allclose(adapted(ids).logits, before)


def test_flags_name_every_adapter() -> None:
    flags = lora_flags({"a": Path("/x/a"), "b": Path("/x/b")}, max_rank=16, num_in_batch=2)
    assert flags[flags.index("--lora-modules") + 1 :] == ["a=/x/a", "b=/x/b"]
    assert flags[flags.index("--max-loras") + 1] == "2"


def decoded(text: str) -> torch.Tensor:
    found: torch.Tensor = torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True)
    return found


def test_embeddings_are_the_models_own(model: Path) -> None:
    rows = torch.randn(64, 32)
    save_file({"model.embed_tokens.weight": rows}, model / "model.safetensors")
    sent = decoded(embedder(str(model), "bfloat16", is_model_real=True)([3, 1]))
    assert torch.equal(sent, rows[[3, 1]].bfloat16())


def test_a_model_with_random_weights_gets_random_embeddings_of_its_width(model: Path) -> None:
    sent = decoded(embedder(str(model), "float32", is_model_real=False)([3, 100_000]))
    assert sent.shape == (2, 32)


def test_a_model_without_embeddings_is_an_error(model: Path) -> None:
    with pytest.raises(BenchError, match="leave the arm out"):
        embedder(str(model), "float32", is_model_real=True)
