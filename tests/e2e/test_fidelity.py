"""Fidelity in float32: a patch answers exactly as the tokens, or the embeddings, that it was made from.

"Exactly" means the same greedy tokens, and log probabilities within 1e-4. All requests of a kind are sent at
once, so what is compared was computed in mixed batches.
"""

import json
from typing import Any

import httpx
import pytest
import torch

from patches.format import Patch

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("demo"),
    pytest.mark.feature("grouped-query attention (Llama): completions, chat, responses, streams"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 20

#: Around the ends of blocks of 16 (a GPU's) and 32 (a CPU's), and the paper's length.
POLICY_LENGTHS = [1, 15, 16, 17, 31, 32, 33, 48, 50, 200]
EMBEDDING_LENGTHS = [16, 48, 50]

POLICY = """\
You are Captain Flint, the master of a ship that carries mail and oranges between the islands. \
Answer like a sailor of the old days: plainly, loudly, and with a word about the weather. Never say \
where the treasure lies, never help anybody to sink a ship, and never promise to arrive before the \
next full moon. If somebody asks for medical advice, send them to the ship's doctor, who is called \
Mrs. Brown and who does not like to be woken up at night. If somebody asks for the price of a \
passage, say that it is three silver coins, or two for children under ten years of age. Speak well \
of the crew, even of the cook, whose soup is famous in every harbour from here to the cape for the \
wrong reasons. Do not talk about politics, religion or the price of rum. When you do not know an \
answer, say so, and ask for the star map. When you are asked to count, count slowly, and never go \
beyond one hundred. End each conversation with good wishes for a calm sea and a fair wind, in one \
short sentence. Write in English only, even if the passenger writes in French, Dutch or Portuguese, \
and excuse yourself for it once."""

PROMPTS = [
    "Hello",
    "The capital of France is",
    "Tell me a short story about a dog that wanted to learn how to swim.",
    "Question: what does it cost to sail to the island with two children, and when shall we arrive?\nAnswer:",
    "Here is a list of things that everybody should take along on a long journey over the sea, in the "
    "order of how much they will be missed when they are left at home on the kitchen table: bread, water,",
]


def token_ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


@pytest.fixture(scope="module")
def policy_ids(demo_fp32: Any) -> list[int]:
    return token_ids_of(demo_fp32.tokenizer, POLICY)


@pytest.fixture(scope="module")
def prompts(demo_fp32: Any) -> list[list[int]]:
    return [token_ids_of(demo_fp32.tokenizer, prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def answers(
    shared_server: Any, demo_patches: Any, policy_ids: list[int], prompts: list[list[int]]
) -> dict[tuple[str, int, int], Any]:
    """(arm, policy length, prompt) -> answer; the arms are `text`, `cold` and `warm`."""
    for length in POLICY_LENGTHS:
        shared_server.install(demo_patches.of_token_ids(f"fidelity-{length}", policy_ids[:length]))
    cases = [(length, i) for length in POLICY_LENGTHS for i in range(len(prompts))]
    patched = [{"prompt": prompts[i], "patch": f"fidelity-{length}"} for length, i in cases]
    text = [{"prompt": policy_ids[:length] + prompts[i]} for length, i in cases]
    requests = [{**request, "max_tokens": NUM_TOKENS} for request in (*text, *patched)]
    got = shared_server.ask_together(requests) + shared_server.ask_together(requests[len(cases) :])
    keys = [(arm, *case) for arm in ("text", "cold", "warm") for case in cases]
    return dict(zip(keys, got, strict=True))


@pytest.mark.parametrize("arm", ["cold", "warm"])
@pytest.mark.parametrize("length", POLICY_LENGTHS)
def test_a_patch_answers_as_the_tokens_it_was_made_from(
    answers: dict[tuple[str, int, int], Any], length: int, arm: str
) -> None:
    for i in range(len(PROMPTS)):
        patched, text = answers[arm, length, i], answers["text", length, i]
        assert patched.token_ids == text.token_ids
        assert patched.logprob_gap(text) < MAX_LOGPROB_GAP
        assert patched.text == text.text


@pytest.mark.parametrize("length", POLICY_LENGTHS)
def test_usage_counts_the_prompt_without_the_prefix(
    answers: dict[tuple[str, int, int], Any], prompts: list[list[int]], length: int
) -> None:
    for i, prompt in enumerate(prompts):
        assert answers["cold", length, i].num_prompt_tokens == len(prompt)
        assert answers["warm", length, i].num_prompt_tokens == len(prompt)


def test_policies_of_different_length_answer_differently(answers: dict[tuple[str, int, int], Any]) -> None:
    """What is compared above depends on the policy, or it would prove nothing."""
    for i in range(len(PROMPTS)):
        first = [answers["text", length, i].logprobs[0] for length in POLICY_LENGTHS]
        assert all(one != other for n, one in enumerate(first) for other in first[:n])


@pytest.mark.parametrize("length", EMBEDDING_LENGTHS)
def test_learned_embeddings_answer_as_in_transformers(
    shared_server: Any,
    demo_fp32: Any,
    demo_patches: Any,
    generate: Any,
    policy_ids: list[int],
    length: int,
) -> None:
    patch: Patch = demo_patches.of_random_embeddings(f"learned-{length}", length, seed=length)
    shared_server.install(patch)
    # Of one length, so that transformers can take them as one batch without padding.
    prompts = [policy_ids[40 * i : 40 * i + 12] for i in range(5)]
    requests = [{"prompt": ids, "patch": f"learned-{length}", "max_tokens": NUM_TOKENS} for ids in prompts]
    assert patch.embeddings is not None
    user = demo_fp32.network.get_input_embeddings()(torch.tensor(prompts))
    inputs = torch.cat([patch.embeddings.expand(len(prompts), -1, -1), user], dim=1)
    expected = generate(demo_fp32.network, prompts, NUM_TOKENS, inputs_embeds=inputs)
    for answer, reference in zip(shared_server.ask_together(requests), expected, strict=True):
        assert answer.token_ids == reference.token_ids
        assert answer.logprob_gap(reference) < MAX_LOGPROB_GAP


CHAT_TEXT = "What does it cost to sail to the island?"
CHAT_PATCH = "fidelity-chat"
CHAT_LENGTH = 50


@pytest.fixture(scope="module")
def chat_ids(demo_fp32: Any) -> list[int]:
    """What the chat template makes of one user message."""
    messages = [{"role": "user", "content": CHAT_TEXT}]
    rendered = demo_fp32.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(demo_fp32.tokenizer(rendered, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def chat_answer(shared_server: Any, demo_patches: Any, policy_ids: list[int], chat_ids: list[int]) -> Any:
    """The answer to policy and chat as token ids, without a patch; the patch is installed too."""
    shared_server.install(demo_patches.of_token_ids(CHAT_PATCH, policy_ids[:CHAT_LENGTH]))
    return shared_server.ask(policy_ids[:CHAT_LENGTH] + chat_ids, max_tokens=NUM_TOKENS)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON events of a stream, which must be complete."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    assert events
    return events


def responses_body(**more: Any) -> dict[str, Any]:
    body = {"model": "base", "input": CHAT_TEXT, "temperature": 0, "max_output_tokens": NUM_TOKENS}
    return body | more


def test_chat_answers_as_policy_and_rendered_message(
    shared_server: Any, chat_answer: Any, chat_ids: list[int]
) -> None:
    body = {"max_tokens": NUM_TOKENS, "logprobs": True, "return_token_ids": True}
    response = shared_server.chat(CHAT_TEXT, patch=CHAT_PATCH, **body).json()
    (choice,) = response["choices"]
    assert choice["token_ids"] == chat_answer.token_ids
    assert choice["message"]["content"] == chat_answer.text
    for token, expected, token_id in zip(
        choice["logprobs"]["content"], chat_answer.logprobs, chat_answer.token_ids, strict=True
    ):
        assert abs(token["logprob"] - expected[token_id]) < MAX_LOGPROB_GAP
    assert response["prompt_token_ids"] == chat_ids
    assert response["usage"]["prompt_tokens"] == len(chat_ids)
    assert response["usage"]["total_tokens"] == len(chat_ids) + NUM_TOKENS


def test_streamed_chat_answers_the_same_and_shows_no_prefix(
    shared_server: Any, chat_answer: Any, chat_ids: list[int]
) -> None:
    response = shared_server.chat(
        CHAT_TEXT,
        patch=CHAT_PATCH,
        max_tokens=NUM_TOKENS,
        stream=True,
        return_token_ids=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    events = events_of(response)
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == chat_answer.text
    assert [i for choice in choices for i in choice.get("token_ids") or ()] == chat_answer.token_ids
    assert {event["usage"]["prompt_tokens"] for event in events} == {len(chat_ids)}
    prompts = [event["prompt_token_ids"] for event in events if event.get("prompt_token_ids")]
    assert prompts == [chat_ids]
    assert response.headers["X-Policy-Patch"] == f"{CHAT_PATCH}@1.0.0"


def test_streamed_completions_answer_the_same_and_show_no_prefix(
    shared_server: Any, chat_answer: Any, chat_ids: list[int]
) -> None:
    response = shared_server.complete(
        chat_ids,
        patch=CHAT_PATCH,
        max_tokens=NUM_TOKENS,
        stream=True,
        return_token_ids=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    events = events_of(response)
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["text"] for choice in choices) == chat_answer.text
    assert [i for choice in choices for i in choice.get("token_ids") or ()] == chat_answer.token_ids
    assert {event["usage"]["prompt_tokens"] for event in events} == {len(chat_ids)}
    prompts = [choice["prompt_token_ids"] for choice in choices if choice.get("prompt_token_ids")]
    assert prompts == [chat_ids]


def test_responses_answer_the_same(shared_server: Any, chat_answer: Any, chat_ids: list[int]) -> None:
    response = shared_server.client.post(
        "/v1/responses",
        json=responses_body(include=["message.output_text.logprobs"], top_logprobs=1),
        headers={"X-Policy-Patch": CHAT_PATCH},
    ).json()
    (part,) = response["output"][0]["content"]
    assert part["text"] == chat_answer.text
    for token, expected, token_id in zip(
        part["logprobs"], chat_answer.logprobs, chat_answer.token_ids, strict=True
    ):
        assert abs(token["logprob"] - expected[token_id]) < MAX_LOGPROB_GAP
    assert response["usage"]["input_tokens"] == len(chat_ids)
    assert response["usage"]["total_tokens"] == len(chat_ids) + NUM_TOKENS


def test_streamed_responses_answer_the_same(
    shared_server: Any, chat_answer: Any, chat_ids: list[int]
) -> None:
    response = shared_server.client.post(
        "/v1/responses", json=responses_body(stream=True), headers={"X-Policy-Patch": CHAT_PATCH}
    )
    events = events_of(response)
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == chat_answer.text
    (completed,) = [
        e["response"] for e in events if e["type"] in ("response.completed", "response.incomplete")
    ]
    assert completed["usage"]["input_tokens"] == len(chat_ids)


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_echo_repeats_the_prompt_and_not_the_prefix(
    shared_server: Any, chat_answer: Any, is_stream: bool
) -> None:
    prompt = "The capital of France is"
    alone = shared_server.ask(prompt, patch=CHAT_PATCH)
    response = shared_server.complete(prompt, patch=CHAT_PATCH, echo=True, stream=is_stream)
    events = events_of(response) if is_stream else [response.json()]
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == prompt + alone.text


def test_echo_with_token_ids_shows_the_prompts_own(
    shared_server: Any, chat_answer: Any, chat_ids: list[int]
) -> None:
    body = {"max_tokens": NUM_TOKENS, "echo": True, "return_token_ids": True}
    (choice,) = shared_server.complete(chat_ids, patch=CHAT_PATCH, **body).json()["choices"]
    assert choice["prompt_token_ids"] == chat_ids
    assert choice["token_ids"] == chat_answer.token_ids
