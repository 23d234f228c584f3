"""What clients get wrong: an error of theirs, one line in the log at most, and no claim of a patch."""

import time
from typing import Any

import pytest

from tests.e2e.running_server import SERVED_NAME

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

LONG = "word " * 5000
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, TEXT, RESPONSES, ANTHROPIC = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)

#: What is wrong with a request, whatever its route calls the prompt.
PARAMETERS: list[dict[str, Any]] = [
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"grammar": "nope ::="}},
    {"structured_outputs": {"json": "{"}},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"regex": "a", "json": {}}},
    {"logit_bias": {"999999999": 1}},
    {"allowed_token_ids": [10**9]},
    {"allowed_token_ids": []},
    {"stop_token_ids": ["a"]},
    {"min_tokens": 99},
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_k": -9},
    {"repetition_penalty": -1},
    {"max_tokens": -1},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}},
    {"vllm_xargs": {"kv_transfer_params": "x"}},
    {"cache_salt": 5},
]
#: Route and body of what is wrong on one route.
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}),
    (CHAT, {"messages": [{"role": "user", "content": LONG}], "stream": True}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": MESSAGES, "chat_template": "{{"}),
    (CHAT, {"messages": MESSAGES, "tool_choice": "nope"}),
    (CHAT, {"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True}),
    (TEXT, {"prompt": LONG}),
    (TEXT, {"prompt": LONG, "stream": True}),
    (TEXT, {"prompt": [10**9]}),
    (TEXT, {"prompt": [-5]}),
    (TEXT, {"prompt": ""}),
    (TEXT, {"prompt": "hi", "suffix": "x"}),
    (RESPONSES, {"input": LONG}),
    (RESPONSES, {"input": LONG, "stream": True}),
    (RESPONSES, {"input": "hi", "previous_response_id": "resp_none"}),
    (RESPONSES, {"input": "hi", "tools": [{"type": "nope"}]}),
    (ANTHROPIC, {"messages": [{"role": "user", "content": LONG}]}),
    (ANTHROPIC, {"messages": [{"role": "user", "content": LONG}], "stream": True}),
    (ANTHROPIC, {"messages": [{"role": "wizard", "content": "x"}]}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "wizard", "content": "x"}]}),
    ("/tokenize", {"prompt": 5}),
    ("/tokenize", {"messages": MESSAGES, "chat_template": "{{"}),
    ("/detokenize", {"tokens": [10**12]}),
    ("/detokenize", {"tokens": [-1]}),
    ("/detokenize", {"tokens": "x"}),
]
REQUESTS += [(CHAT, {"messages": MESSAGES, **one}) for one in PARAMETERS]
REQUESTS += [(TEXT, {"prompt": "hi", **one}) for one in PARAMETERS]
REQUESTS += [(TEXT, {"prompt": "hi", "stream": True, **one}) for one in PARAMETERS]


@pytest.mark.parametrize("selection", ["mistaken", "none"])
def test_a_clients_mistake_claims_no_patch_and_leaves_no_traceback(
    shared_server: Any, demo_patches: Any, selection: str
) -> None:
    shared_server.install(demo_patches.of_text("mistaken", "Answer like a sailor."))
    begin = shared_server.log.stat().st_size
    failed = {"name": "policy_patch_requests_total", "outcome": "server_error"}
    num_failed = shared_server.metric(**failed)
    problems = []
    for route, body in REQUESTS:
        response = shared_server.client.post(
            route,
            json={"model": SERVED_NAME, "max_tokens": 4, **body},
            headers={"X-Policy-Patch": selection},
        )
        shown = f"{route} {str(body)[:120]}: {response.status_code} {response.text[:160]}"
        is_refused = 400 <= response.status_code < 500 or response.status_code == 501
        if not is_refused and '"error"' not in response.text:
            problems.append(f"answered: {shown}")
        if response.status_code >= 500 and response.status_code != 501:
            problems.append(f"a fault of ours: {shown}")
        if response.headers.get("x-policy-patch", "none") != "none":
            problems.append(f"claims a patch: {shown}")
        log = shared_server.log.read_bytes()[begin:].decode(errors="replace")
        if "Traceback" in log:
            problems.append(f"traceback: {shown}\n{log[-600:]}")
            begin += len(log.encode())
    # What is written by other processes may come later.
    time.sleep(0.5)
    assert "Traceback" not in shared_server.log.read_bytes()[begin:].decode(errors="replace")
    assert not problems, "\n".join(problems)
    assert shared_server.metric(**failed) == num_failed
    assert shared_server.chat("hi", patch=selection).status_code == 200
