"""Whatever else a request asks for, a patch answers as the tokens that it was made from.

The model is the demo model in float32; the reference is the same request with the policy's token ids in front
of the prompt, and no patch.
"""

import json
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("demo"),
    pytest.mark.feature("sampling, stop, penalties, beam search, structured output"),
]

PATCH = "options"
POLICY = "You are the cook of a ship. You love soup, and you answer every question in a few plain words.\n\n"
PROMPT = "Question: What is for dinner tonight?\nAnswer:"
NUM_TOKENS = 24
MAX_LOGPROB_GAP = 1e-4

SCHEMA = {
    "type": "object",
    "properties": {
        "dish": {"type": "string", "maxLength": 20},
        "price": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["dish", "price"],
    "additionalProperties": False,
}

#: What is sent beside the prompt.
OPTIONS: dict[str, dict[str, Any]] = {
    "stop string": {"stop": [".", "soup"]},
    "stop string in the answer": {"stop": [".", "soup"], "include_stop_str_in_output": True},
    "stop token": {"stop_token_ids": [30, 28]},
    "min_tokens": {"min_tokens": NUM_TOKENS, "stop": ["."]},
    "ignore_eos": {"ignore_eos": True},
    "logit_bias": {"logit_bias": {"30": -100.0, "28": 5.0}},
    "bad_words": {"bad_words": [" soup", " the"]},
    "allowed tokens": {"allowed_token_ids": list(range(200, 9000))},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.5},
    "seed": {"temperature": 0.8, "seed": 7},
    "seed and top_p": {"temperature": 1.2, "seed": 11, "top_p": 0.7, "top_k": 40, "min_p": 0.01},
    "three sampled choices": {"temperature": 0.9, "seed": 3, "n": 3},
    "beam search": {"use_beam_search": True, "n": 3, "max_tokens": 8},
    "json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "dinner", "schema": SCHEMA}},
        "max_tokens": 60,
    },
    "choice": {"structured_outputs": {"choice": ["fish", "soup", "bread and butter"]}},
    "regex": {"structured_outputs": {"regex": r" [A-Z][a-z]+, [0-9]{2} coins\."}},
    "cache_salt": {"cache_salt": "of the caller"},
    "priority": {"priority": 0},
}


@pytest.fixture(scope="module")
def prompts(demo_fp32: Any) -> dict[str, list[int]]:
    """The prompt alone, and behind the policy."""
    tokenizer = demo_fp32.tokenizer
    policy, prompt = (list(tokenizer(text)["input_ids"]) for text in (POLICY, PROMPT))
    return {"policy": policy, "patched": prompt, "text": policy + prompt}


@pytest.fixture(scope="module")
def server(shared_server: Any, demo_patches: Any, prompts: dict[str, list[int]]) -> Any:
    """The shared server with the policy as a patch."""
    shared_server.install(demo_patches.of_token_ids(PATCH, prompts["policy"]))
    return shared_server


def choices_of(server: Any, prompt: list[int], patch: str | None, options: dict[str, Any]) -> Any:
    body = {"max_tokens": NUM_TOKENS, "logprobs": 2, "return_tokens_as_token_ids": True} | options
    response = server.complete(prompt, patch=patch, **body)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def assert_same_choices(patched: list[dict[str, Any]], text: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(patched, text, strict=True):
        for key in ("text", "finish_reason", "stop_reason"):
            assert ours[key] == theirs[key]
        if ours["logprobs"] is None or theirs["logprobs"] is None:
            assert ours["logprobs"] == theirs["logprobs"]
            continue
        assert ours["logprobs"]["tokens"] == theirs["logprobs"]["tokens"]
        assert ours["logprobs"]["token_logprobs"] == pytest.approx(
            theirs["logprobs"]["token_logprobs"], abs=MAX_LOGPROB_GAP, rel=0
        )


@pytest.mark.parametrize("name", OPTIONS)
def test_a_patch_answers_as_text_under_the_option(
    server: Any, prompts: dict[str, list[int]], name: str
) -> None:
    options = OPTIONS[name]
    patched = choices_of(server, prompts["patched"], PATCH, options)
    assert len(patched) == options.get("n", 1)
    assert_same_choices(patched, choices_of(server, prompts["text"], None, options))


def test_structured_output_under_a_patch_keeps_the_schema(server: Any) -> None:
    body = {"max_tokens": 80, "response_format": OPTIONS["json_schema"]["response_format"]}
    response = server.chat("What is for dinner, and what does it cost?", patch=PATCH, **body)
    assert response.status_code == 200, response.text
    answer = json.loads(response.json()["choices"][0]["message"]["content"])
    assert answer.keys() == {"dish", "price"}
    assert 1 <= answer["price"] <= 99


@pytest.mark.parametrize(
    "options", [{"n": 3, "temperature": 0.9, "seed": 3}, {"use_beam_search": True, "n": 3}]
)
def test_usage_of_several_choices_counts_the_visible_prompt(
    server: Any, prompts: dict[str, list[int]], options: dict[str, Any]
) -> None:
    usage = [
        server.complete(prompts[arm], patch=patch, max_tokens=8, **options).json()["usage"]
        for arm, patch in (("patched", PATCH), ("text", None))
    ]
    assert usage[0]["prompt_tokens"] == usage[1]["prompt_tokens"] - len(prompts["policy"])
    assert usage[0]["prompt_tokens"] == len(prompts["patched"])
    assert usage[0]["completion_tokens"] == usage[1]["completion_tokens"]


def test_several_prompts_in_one_request_are_all_patched(server: Any, prompts: dict[str, list[int]]) -> None:
    patched = choices_of(server, [prompts["patched"], prompts["patched"][:5]], PATCH, {})
    text = choices_of(server, [prompts["text"], prompts["text"][: len(prompts["policy"]) + 5]], None, {})
    assert_same_choices(patched, text)
