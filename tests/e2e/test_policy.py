"""A policy file on the real server: what it requires is in force, and no way around it works.

Which patch answered is told by the tokens, which a reference model gives for the same ids in one prompt; the
answer's own headers are compared with that, not believed. The model is tiny and in float32.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patches.compose import compose_patches
from patches.format import read_patch, write_patch
from patches.label import Label
from tests.attacks.attempt import COMPOSED, KEY, PLAIN, POLICY, Attempt
from tests.attacks.bypass_attempts import GROUPS
from tests.attacks.bypass_sender import Reply, send_raw

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="a policy")]

NUM_TOKENS = 6
NUM_PREFIX_TOKENS = 32
QUESTION = "Which way is the harbour, and who keeps the light there at night?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_patches: Any) -> Path:
    """Every patch that the attempts are made for, and the policy beside them."""
    root = tmp_path_factory.mktemp("policy")
    plain = {
        name: tiny_patches.of_token_ids(name.split("@")[0], ids_of(name), name.split("@")[1])
        for name in PLAIN
    }
    for patch in plain.values():
        write_patch(patch, root / "patches")
    for name, parts in COMPOSED.items():
        composed = compose_patches(tiny_patches.model, [plain[part] for part in parts], Label(name, "1.0.0"))
        write_patch(composed, root / "patches")
    (root / "policy.yaml").write_text(POLICY)
    return root


def ids_of(name: str) -> list[int]:
    """The tokens that a plain patch was compiled from; different from the first on."""
    return [1000 + 97 * PLAIN.index(name) + 13 * i for i in range(NUM_PREFIX_TOKENS)]


@pytest.fixture(scope="module")
def server(start_module_server: Any, tiny_model: Path, folder: Path) -> Iterator[Any]:
    files = ["--policy", str(folder / "policy.yaml"), "--audit-log", str(folder / "audit.jsonl")]
    caching = ["--enable-prefix-caching", "--enable-prompt-tokens-details"]
    model = ["--dtype", "float32", "--max-model-len", "1024"]
    started = start_module_server(tiny_model, *model, *caching, *files, patches=folder / "patches")
    started.wait_ready()
    yield started
    assert started.terminate() == 0


@pytest.fixture(scope="module")
def expected(tiny_patches: Any, generate: Any) -> dict[str, list[int]]:
    """Name of a patch, or ``base`` -> the tokens of its answer to the question, by the reference model."""
    tokenizer = tiny_patches.model.tokenizer
    prompt = list(
        tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    )
    prefixes = {
        "base": [],
        "safety": ids_of("safety@1.0.0"),
        **{
            name: [token for part in COMPOSED[name] for token in ids_of(part)]
            for name in ("safety.pirate", "safety.sailor")
        },
    }
    return {
        name: generate(tiny_patches.model.network, [prefix + prompt], NUM_TOKENS)[0].token_ids
        for name, prefix in prefixes.items()
    }


def test_the_references_differ(expected: dict[str, list[int]]) -> None:
    """Else the tests below would prove nothing."""
    assert len({tuple(ids) for ids in expected.values()}) == len(expected)


def ask(server: Any, attempt: Attempt, digests: dict[str, str]) -> Reply:
    body = {
        "model": attempt.with_digests(attempt.model, digests).replace("demo", "base", 1),
        "messages": MESSAGES,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    if not attempt.path.startswith(CHAT):
        body |= {"prompt": QUESTION, "input": QUESTION}
    return send_raw(attempt, server.port, body, digests)


def token_ids(text: str) -> list[int]:
    """The tokens of a chat completion, streamed or not."""
    if not text.startswith("data:"):
        return list(json.loads(text)["choices"][0]["token_ids"])
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [
        token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids") or ()
    ]


@pytest.fixture(scope="module")
def digests(server: Any, folder: Path) -> dict[str, str]:
    """Of the plain patches; read from the files, since the policy shows callers few of them."""
    found = (read_patch(path) for path in (folder / "patches").glob("*.safetensors"))
    return {f"{patch.manifest.name}@{patch.manifest.version}": patch.digest for patch in found}


def what_became(response: Reply, expected: dict[str, list[int]]) -> str:
    """``refused``, or the patch whose tokens came."""
    if response.status >= 300:
        leaked = {'"choices"', '"embedding"', '"output_text"', '"content":['} & set(response.text.split())
        return f"{response.status} with {leaked}" if leaked else "refused"
    try:
        ids = token_ids(response.text)
    except (ValueError, KeyError, IndexError):
        return f"{response.status}: {response.text[:100]}"
    return next((name for name, tokens in expected.items() if tokens == ids), f"something else: {ids}")


@pytest.mark.parametrize("group", GROUPS)
def test_no_attempt_gets_through(
    server: Any, expected: dict[str, list[int]], digests: dict[str, str], group: str
) -> None:
    """Refused, or answered by the one patch that may; a body's fields may be refused for their own sake."""
    breaches = {}
    for attempt in GROUPS[group]:
        outcome = what_became(ask(server, attempt, digests), expected)
        if outcome != (attempt.answer or "refused") and not (group == "the body" and outcome == "refused"):
            breaches[attempt.what] = outcome
    assert breaches == {}


def test_plain_requests_are_answered_not_refused(
    server: Any, expected: dict[str, list[int]], digests: dict[str, str]
) -> None:
    for attempt in (
        Attempt("nothing", "safety"),
        Attempt("an allowed one", "safety.pirate", "pirate"),
        Attempt("by a key", "safety.sailor", "sailor", headers=(KEY,)),
        Attempt("as a stream", "safety", body={"stream": True}),
    ):
        response = ask(server, attempt, digests)
        assert what_became(response, expected) == attempt.answer
        assert response.patch == f"{attempt.answer}@1.0.0"


#: Route -> a body that asks the question there, and where the answer's text stands.
ROUTES: dict[str, tuple[dict[str, Any], Any]] = {
    CHAT: ({"messages": MESSAGES}, lambda r: r["choices"][0]["message"]["content"]),
    f"{CHAT}/batch": ({"messages": [MESSAGES]}, lambda r: r["choices"][0]["message"]["content"]),
    "/v1/responses": ({"input": QUESTION}, lambda r: r["output"][-1]["content"][0]["text"]),
    "/v1/messages": ({"messages": MESSAGES}, lambda r: r["content"][0]["text"]),
    "/invocations": ({"messages": MESSAGES}, lambda r: r["choices"][0]["message"]["content"]),
}


@pytest.mark.parametrize("path", ROUTES)
def test_the_required_patch_answers_on_every_route(
    server: Any, expected: dict[str, list[int]], tiny_patches: Any, path: str
) -> None:
    body, text_of = ROUTES[path]
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    response = server.client.post(path, json={"model": "base", "temperature": 0, limit: NUM_TOKENS} | body)
    assert response.status_code == 200, response.text
    assert response.headers["X-Policy-Patch"] == "safety@1.0.0"
    texts = {
        name: tiny_patches.model.tokenizer.decode(ids, skip_special_tokens=True)
        for name, ids in expected.items()
    }
    assert texts["safety"] != texts["base"]
    assert text_of(response.json()).strip() == texts["safety"].strip()


def test_completions_have_the_required_prefix(server: Any, tiny_patches: Any, generate: Any) -> None:
    prompt = [300 + 7 * i for i in range(20)]
    reference = generate(tiny_patches.model.network, [ids_of("safety@1.0.0") + prompt], NUM_TOKENS)[0]
    answer = server.ask(prompt, max_tokens=NUM_TOKENS)
    assert answer.token_ids == reference.token_ids
    assert answer.num_prompt_tokens == len(prompt)


def test_tokenize_shows_the_callers_tokens_only(server: Any) -> None:
    plain = server.client.post("/tokenize", json={"model": "base", "prompt": QUESTION})
    assert plain.status_code == 200
    assert plain.json()["count"] < NUM_PREFIX_TOKENS
    # No model is touched: a patch that is named claims nothing and tells nothing, even a forbidden one.
    for body, headers in (
        ({"model": "base"}, {"X-Policy-Patch": "pirate"}),
        ({"model": "base:secret"}, {}),
        ({"model": "base:nowhere"}, {}),
    ):
        named = server.client.post("/tokenize", json={**body, "prompt": QUESTION}, headers=headers)
        assert (named.status_code, named.json()) == (200, plain.json())
        assert "X-Policy-Patch" not in named.headers


def cached_tokens(server: Any, prompt: list[int], **headers: str) -> int:
    body = {"model": "base", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    response = server.client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return int((response.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


def test_one_caller_cannot_find_anothers_prompt_in_the_cache(server: Any) -> None:
    """The count of cached tokens is what a stop-watch would show, without its noise."""
    prompt = [500 + 3 * i for i in range(200)]
    key = dict([KEY])
    assert cached_tokens(server, prompt, **key) == 0
    assert cached_tokens(server, prompt, **key) >= 64
    assert cached_tokens(server, prompt) == 0
    assert cached_tokens(server, prompt) >= 64


def test_the_audit_log_names_rules_and_holds_no_prompt(server: Any, folder: Path) -> None:
    text = (folder / "audit.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    denied = [event for event in events if event["decision"] == "denied"]
    assert len(denied) >= 100
    assert {"required", "others.allow", "alias.allow", "tenants.others"} <= {
        event.get("rule") for event in denied
    }
    assert "harbour" not in text
    assert "research-key" not in text


def test_a_changed_file_is_in_force_soon_and_a_broken_one_never(server: Any, folder: Path) -> None:
    def replace(text: str) -> None:
        (folder / "policy.new").write_text(text)
        (folder / "policy.new").rename(folder / "policy.yaml")

    def status_within(wanted: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (status := server.chat(QUESTION, max_tokens=1).status_code) != wanted:
            if time.monotonic() > deadline:
                return False
            assert status in (200, 403)
        return True

    replace("version: 1\nothers: {alow: all}\n")
    assert not status_within(403, 3)
    assert server.metric("policy_patch_policy_current") == 0
    replace("version: 1\n")
    assert status_within(403, 30)
    assert server.metric("policy_patch_policy_current") == 1
