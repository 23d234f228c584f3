"""The arms: ways to ask one model the same question under the same policy, or under none.

All arms send token ids to ``/v1/completions``, not messages to the chat route. A chat template may add a
default system message of its own where none is given, which would make the arms' prompts differ by more than
the policy. With ids the user's tokens are the same in every arm, and the policy's tokens in front of them are
the same as those the patch was compiled from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.load.client import Request
from patches.headers import PATCH_HEADER


@dataclass(frozen=True)
class Arm:
    """One way to ask.

    Attributes:
        name: what tables and records call it.
        server: which server answers.
        meaning: one line for tables.
        has_policy_text: the policy's tokens stand in front of the user's.
        is_embedded: embeddings are sent, of the policy's tokens and the user's, and no tokens.
        adapter: the LoRA adapter that the request names as its model.
        is_patched: the request names the patch.
        salt: ``"none"``: prompts share the server's prefix cache; ``"arm"``: only with this arm;
            ``"request"``: with no other request, so that nothing is ever found in it.
    """

    name: str
    server: Literal["plain", "ours", "twin", "embeds", "lora"]
    meaning: str
    has_policy_text: bool = False
    is_embedded: bool = False
    adapter: str | None = None
    is_patched: bool = False
    salt: Literal["none", "arm", "request"] = "none"


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain", "`vllm serve`, no policy"),
        # Same prompts as "plain" in the same round: without a salt they would be found in the prefix cache.
        Arm("plain-again", "plain", "the same server once more: how far equal arms differ", salt="arm"),
        Arm("twin", "twin", "a second `vllm serve`, started alike: how far equal servers differ"),
        Arm("idle", "ours", "policypatch with the patch loaded, not used"),
        Arm("patched", "ours", "policypatch, every request names the patch", is_patched=True),
        Arm("text-warm", "plain", "`vllm serve`, policy as text, prefix cache warm", has_policy_text=True),
        Arm(
            "text-cold",
            "plain",
            "`vllm serve`, policy as text, never cached",
            has_policy_text=True,
            salt="request",
        ),
        Arm(
            "embeds",
            "embeds",
            "`vllm serve --enable-prompt-embeds`, the client sends the soft prefix with each prompt",
            has_policy_text=True,
            is_embedded=True,
        ),
        Arm("lora-idle", "lora", "`vllm serve --enable-lora` with two adapters, none used"),
        Arm("lora-r1", "lora", "the same, every request names a LoRA of rank 1", adapter="lora-r1"),
        Arm("lora-r16", "lora", "the same, every request names a LoRA of rank 16", adapter="lora-r16"),
    )
}

#: What needs no server beside plain vLLM and ours.
DEFAULT_ARMS = tuple(name for name, arm in ARMS.items() if arm.server in ("plain", "ours"))

#: (arm, reference) of every ratio that is reported.
PAIRS = (
    ("plain-again", "plain"),
    ("twin", "plain"),
    ("idle", "plain"),
    ("idle", "twin"),
    ("patched", "idle"),
    ("patched", "plain"),
    ("patched", "text-warm"),
    ("patched", "text-cold"),
    ("text-warm", "plain"),
    ("text-cold", "plain"),
    ("embeds", "plain"),
    ("lora-idle", "plain"),
    ("lora-r1", "plain"),
    ("lora-r16", "plain"),
    ("patched", "embeds"),
    ("patched", "lora-r16"),
)


@dataclass(frozen=True)
class Question:
    """What the requests of a run have in common.

    Attributes:
        urls: base URL by server.
        models: model name to send, by server.
        patch_name: header value of patched arms.
        policy_ids: the policy as token ids.
        num_output_tokens: exact length of every answer.
        embed: turns token ids into what the field ``prompt_embeds`` takes.
    """

    urls: dict[str, str]
    models: dict[str, str]
    patch_name: str
    policy_ids: tuple[int, ...]
    num_output_tokens: int
    embed: Callable[[Sequence[int]], str] | None = None

    def num_prompt_tokens(self, arm: Arm, user_ids: Sequence[int]) -> int:
        """Return the prompt length that an arm's answer has to report."""
        return len(user_ids) + (len(self.policy_ids) if arm.has_policy_text else 0)

    def request(self, arm: Arm, user_ids: Sequence[int], *, salt: str) -> Request:
        """Build one request; ``salt`` is unique to it."""
        ids = [*(self.policy_ids if arm.has_policy_text else ()), *user_ids]
        body: dict[str, Any] = {
            "model": arm.adapter or self.models[arm.server],
            "max_tokens": self.num_output_tokens,
            "min_tokens": self.num_output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if arm.is_embedded:
            assert self.embed is not None, "an arm that sends embeddings needs what makes them"
            body["prompt_embeds"] = self.embed(ids)
        else:
            body["prompt"] = ids
        if arm.salt != "none":
            body["cache_salt"] = salt if arm.salt == "request" else arm.name
        headers = {PATCH_HEADER: self.patch_name} if arm.is_patched else {}
        return Request(f"{self.urls[arm.server]}/v1/completions", body, headers)


def require_arms(names: Sequence[str]) -> list[Arm]:
    """Return the arms of these names, in the table's order.

    Raises:
        ValueError: an unknown name, or none at all.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise ValueError(f"arms: expected some of {', '.join(ARMS)}; got {', '.join(unknown) or 'none'}")
    return [arm for name, arm in ARMS.items() if name in names]
