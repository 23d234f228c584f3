"""The arms: same user tokens, and the policy where it belongs."""

from bench.load.arms import ARMS, PAIRS, Question

SERVERS = ("plain", "ours", "twin", "embeds", "lora")
QUESTION = Question(
    {name: f"http://{name}" for name in SERVERS}, dict.fromkeys(SERVERS, "m"), "kind", (7, 8), 4, str
)


def salts(name: str) -> list[str | None]:
    requests = [QUESTION.request(ARMS[name], [1], salt=f"s{i}") for i in range(2)]
    return [request.body.get("cache_salt") for request in requests]


def test_arms_share_the_users_tokens_and_differ_in_the_policy() -> None:
    bodies = {name: QUESTION.request(arm, [1, 2, 3], salt="s").body for name, arm in ARMS.items()}
    prompts = {name: body.get("prompt") for name, body in bodies.items()}
    assert prompts["plain"] == prompts["twin"] == prompts["idle"] == prompts["patched"] == [1, 2, 3]
    assert prompts["text-warm"] == prompts["text-cold"] == [7, 8, 1, 2, 3]
    assert prompts["embeds"] is None
    assert bodies["embeds"]["prompt_embeds"] == "[7, 8, 1, 2, 3]"


def test_adapters_are_named_as_models() -> None:
    models = {name: QUESTION.request(arm, [1], salt="s").body["model"] for name, arm in ARMS.items()}
    assert {name: model for name, model in models.items() if model != "m"} == {
        "lora-r1": "lora-r1",
        "lora-r16": "lora-r16",
    }


def test_only_the_patched_arm_names_the_patch() -> None:
    headers = {name: QUESTION.request(arm, [1], salt="s").headers for name, arm in ARMS.items()}
    assert {name for name, sent in headers.items() if sent} == {"patched"}
    assert headers["patched"] == {"X-Policy-Patch": "kind"}


def test_cold_requests_share_no_cache_and_warm_ones_do() -> None:
    assert salts("text-cold") == ["s0", "s1"]
    assert salts("text-warm") == salts("patched") == [None, None]
    assert salts("plain-again") == ["plain-again", "plain-again"]


def test_output_length_is_fixed_and_greedy() -> None:
    body = QUESTION.request(ARMS["plain"], [1], salt="s").body
    assert (body["min_tokens"], body["max_tokens"], body["ignore_eos"], body["temperature"]) == (
        4,
        4,
        True,
        0,
    )


def test_prompt_length_counts_the_policy_where_it_is_text() -> None:
    assert QUESTION.num_prompt_tokens(ARMS["patched"], [1]) == 1
    assert QUESTION.num_prompt_tokens(ARMS["text-warm"], [1]) == 3


def test_pairs_name_arms() -> None:
    assert {name for pair in PAIRS for name in pair} == set(ARMS)
