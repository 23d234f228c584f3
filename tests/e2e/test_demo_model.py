"""The demo model that `make test` unpacked is the real one, and it talks."""

from pathlib import Path

import pytest

from server.demo.model import is_demo_model

pytestmark = [pytest.mark.e2e, pytest.mark.server("none")]


def test_the_demo_model_is_whole(demo_model: Path) -> None:
    assert is_demo_model(demo_model, "bfloat16")


def test_the_demo_model_has_the_shape_that_the_docs_name(demo_model: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(demo_model)
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim, config.hidden_size)
    assert shape == (30, 3, 64, 576)


def test_the_demo_model_knows_the_capital_of_france(demo_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype="auto")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
