"""A tiny random model with a tiny tokenizer, and patches made by hand."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.format import Patch, make_patch
from patches.label import Label
from patches.manifest import BaseModel
from patches.model import LoadedModel, load_model

# Like the demo model's: a default system message where the conversation has none.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|start|>system\nYou are tiny.<|end|>\n{% endif %}"
    "<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

BASE_MODEL = BaseModel(
    architecture="LlamaForCausalLM",
    num_layers=2,
    num_kv_heads=2,
    head_size=4,
    hidden_size=8,
    rope={"rope_theta": 10000, "rope_type": "default"},
    dtype="bfloat16",
    tokenizer_digest="sha256:" + "0" * 64,
    weights_digest="sha256:" + "1" * 64,
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, which only get into each other's way on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base_model() -> BaseModel:
    return BASE_MODEL


@pytest.fixture
def make() -> Callable[..., Patch]:
    """Make a small valid patch; the arguments replace parts of it."""

    def make_small(
        name: str = "pirate",
        version: str = "1.0.0",
        *,
        num_tokens: int = 3,
        base_model: BaseModel = BASE_MODEL,
        origin: dict[str, Any] | None = None,
        embeddings: bool = True,
        kv: bool = True,
        seed: int = 0,
        **notes: Any,
    ) -> Patch:
        manifest = Label(name, version, **notes).manifest(
            base_model, num_tokens, origin or {"method": "text"}
        )
        rows = exact_values((num_tokens, base_model.hidden_size), seed)
        shape = (base_model.num_layers, 2, num_tokens, base_model.num_kv_heads, base_model.head_size)
        cache = exact_values(shape, seed + 1).to(getattr(torch, base_model.dtype))
        return make_patch(manifest, rows if embeddings else None, cache if kv else None)

    return make_small


def exact_values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values that every dtype holds exactly, equal on every machine and with every torch."""
    counter = torch.arange(math.prod(shape)).reshape(shape)
    return ((counter * 37 + seed * 11) % 101 - 50).float() / 16


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., None]:
    """Write a tiny random Llama and its tokenizer into a folder."""
    return save_tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder: Path) -> LoadedModel:
    return load_model(tiny_model_folder)


def save_tiny_model(folder: Path, *, seed: int = 0, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """Two layers, four query heads on two KV heads, head size 8, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(chat_template)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=0,
        eos_token_id=1,
        # The default of 0.02 makes all logits nearly equal.
        initializer_range=0.5,
        dtype="float32",
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)


def tiny_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["system user assistant", "answer politely, never answer rudely"] * 4, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", chat_template=chat_template
    )
