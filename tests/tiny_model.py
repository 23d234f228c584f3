"""The models of the fixtures: what a tiny one is to a manifest, and a real one with random weights.

``BASE_MODEL`` and ``SMALLEST_MODEL`` are fingerprints that belong to no weights. ``save_tiny_model`` writes a
Llama that runs in a millisecond; with ``tokenizer`` and ``sizes`` of your own it is as large as you want.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from patches.base_model import BaseModel

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

#: Two layers with one head: the least that has K/V, and a layer for a condition to read before the vector's.
SMALLEST_MODEL = replace(
    BASE_MODEL,
    num_layers=2,
    num_kv_heads=1,
    head_size=2,
    hidden_size=4,
    dtype="float32",
    tokenizer_digest="sha256:" + "a" * 64,
    weights_digest="sha256:" + "b" * 64,
)

#: Two layers, four query heads on two KV heads, head size 8.
TINY_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # The default of 0.02 makes all logits nearly equal.
    "initializer_range": 0.5,
}


def save_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    tokenizer: Any = None,
    **sizes: Any,
) -> None:
    """Write a random Llama in float32 and its tokenizer; ``sizes`` replace those of ``TINY_SIZES``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or tiny_tokenizer(chat_template)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
        **{**TINY_SIZES, **sizes},
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
