"""Fields of a body that a server might take for a choice of a patch."""

from typing import Any

from tests.attacks.attempt import CHAT, Attempt

#: Fields of a body that vLLM knows, or that people hope it knows. What is required answers, or nothing.
BODY_FIELDS: dict[str, Any] = {
    "a patch": {"policy_patch": "none", "patch": "secret", "policy": "none"},
    "headers": {"extra_headers": {"X-Policy-Patch": "none"}, "headers": {"X-Policy-Patch": "none"}},
    "a header's name": {"X-Policy-Patch": "none", "x-policy-patch": "none"},
    "an extra body": {"extra_body": {"policy_patch": "none", "model": "demo:none"}},
    "metadata": {"metadata": {"policy_patch": "none"}},
    "a user": {"user": "acme"},
    "a tenant": {"X-Tenant": "acme", "tenant": "acme"},
    "a stream": {"stream": True},
    "a salt": {"cache_salt": "sha256:" + "0" * 64},
    "our salt": {"cache_salt": "patch:sha256:" + "0" * 64},
    "a template's arguments": {"chat_template_kwargs": {"policy_patch": "none"}},
    "an empty claim": {"kv_transfer_params": {"policy_patch": ["sha256:" + "0" * 64, 0]}},
    "a foreign claim": {"kv_transfer_params": {"do_remote_prefill": True}},
    "a claim that is null": {"kv_transfer_params": {"policy_patch": None}},
    "a claim in vLLM's extras": {"vllm_xargs": {"kv_transfer_params": "{}"}},
    "a flag in vLLM's extras": {"vllm_xargs": {"skip_reading_prefix_cache": 1}},
    "a sampling flag": {"skip_reading_prefix_cache": True},
    "prompt log-probabilities": {"prompt_logprobs": 1},
    "a LoRA adapter": {"lora": "a", "lora_request": {"lora_name": "a", "lora_int_id": 1, "lora_path": "/"}},
    "embeddings of a prompt": {"prompt_embeds": "AAAA"},
    "token ids": {"prompt_token_ids": [1, 2, 3]},
    "an earlier response": {"previous_response_id": "resp_0"},
    "a data-parallel rank": {"data_parallel_rank": 0},
    "a request id": {"request_id": "none"},
}
BODY = (
    *(
        Attempt(f"{what}, in the body: {field_name}", answer, header, body=body)
        for what, answer, header in (
            ("naming nothing", "safety", None),
            ("opting out", None, "none"),
            ("a forbidden patch", None, "secret"),
        )
        for field_name, body in BODY_FIELDS.items()
    ),
    Attempt("a stream under a forbidden alias", None, model="demo:secret", body={"stream": True}),
    Attempt("a query", "safety", path=f"{CHAT}?X-Policy-Patch=none&policy_patch=secret&model=demo:none"),
)
