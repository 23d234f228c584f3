"""One request of a soak, and how it ended. Nothing here raises: in a soak an error is a result.

Answers are greedy and short, with token ids, so that each can be compared with what its patch should say.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.errors import RequestFailed
from bench.servers.launch import SERVED_NAME
from patches.headers import ARM_HEADER, DIGEST_HEADER, PATCH_HEADER

#: An answer that takes longer hangs.
HANG_S = 240.0
MAX_BODY_BYTES = 4 << 20

#: One token of text, roughly, in any tokenizer: a policy of N tokens as text is N of them.
FILLER = " and"

#: What requests ask. The first two go to the completions route, the others to chat.
PROMPTS = (
    "The first thing to know about tides is that",
    "A recipe for bread begins with",
    "What is the capital of France?",
    "Name three rivers and say where they end.",
)
NUM_COMPLETION_PROMPTS = 2


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt_idx: int
    #: ``X-Policy-Patch``; ``None`` for the base model.
    patch: str | None
    is_stream: bool
    num_tokens: int
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Tokens of text in front of the prompt, where a patch would have as many virtual ones.
    num_text_tokens: int = 0

    @property
    def path(self) -> str:
        """The route."""
        return "/v1/completions" if self.prompt_idx < NUM_COMPLETION_PROMPTS else "/v1/chat/completions"

    def body(self) -> dict[str, Any]:
        """The body."""
        text = PROMPTS[self.prompt_idx]
        before = FILLER * self.num_text_tokens
        prompt: dict[str, Any] = {"prompt": before + text}
        if self.prompt_idx >= NUM_COMPLETION_PROMPTS:
            prompt = {"messages": [{"role": "user", "content": text}]}
            if before:
                prompt["messages"].insert(0, {"role": "system", "content": before})
        return {
            "model": SERVED_NAME,
            **prompt,
            "max_tokens": self.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": self.is_stream,
        }

    def all_headers(self) -> dict[str, str]:
        """The headers."""
        named = {} if self.patch is None else {PATCH_HEADER: self.patch}
        return {"Content-Type": "application/json", **named, **self.headers}


@dataclass
class Outcome:
    """How one request ended."""

    ask: Ask
    sent_s: float
    #: ``ok``, ``status`` (refused), ``event`` (an error event in a stream), ``cut`` (the connection ended
    #: before the answer did), ``unreachable``, ``hung`` or ``malformed``.
    kind: str = "ok"
    detail: str = ""
    status: int | None = None
    digest: str | None = None
    patch: str | None = None
    arm: str | None = None
    token_ids: list[int] = field(default_factory=list)
    #: When headers came, the first token, and the end.
    headers_s: float = 0.0
    first_s: float = 0.0
    done_s: float = 0.0

    @property
    def is_ok(self) -> bool:
        """Whether it is a complete answer."""
        return self.kind == "ok"


async def send(session: aiohttp.ClientSession, url: str, ask: Ask, *, hang_s: float = HANG_S) -> Outcome:
    """Send a request and wait for its end, ``hang_s`` at most."""
    outcome = Outcome(ask, time.perf_counter())
    try:
        async with asyncio.timeout(hang_s):
            await _exchange(session, url, ask, outcome)
    except TimeoutError:
        outcome.kind, outcome.detail = "hung", f"no end after {hang_s:.0f} s"
    except aiohttp.ClientConnectorError as error:
        outcome.kind, outcome.detail = "unreachable", str(error.os_error.strerror or error)
    except (aiohttp.ClientError, ConnectionError) as error:
        outcome.kind, outcome.detail = "cut", type(error).__name__
    except (RequestFailed, ValueError, KeyError, IndexError, TypeError) as error:
        outcome.kind, outcome.detail = "malformed", f"{type(error).__name__}: {error}"[:200]
    outcome.done_s = time.perf_counter()
    return outcome


async def _exchange(session: aiohttp.ClientSession, url: str, ask: Ask, outcome: Outcome) -> None:
    data = json.dumps(ask.body()).encode()
    async with session.post(url + ask.path, data=data, headers=ask.all_headers()) as response:
        outcome.headers_s = time.perf_counter()
        outcome.status = response.status
        outcome.digest = response.headers.get(DIGEST_HEADER)
        outcome.patch = response.headers.get(PATCH_HEADER)
        outcome.arm = response.headers.get(ARM_HEADER)
        if response.status != 200:
            outcome.kind, outcome.detail = "status", f"{response.status} {(await response.text())[:300]}"
        elif ask.is_stream:
            await _read_stream(response.content, outcome)
        else:
            (choice,) = (await response.json())["choices"]
            outcome.first_s = time.perf_counter()
            outcome.token_ids = list(choice["token_ids"])
    if outcome.is_ok and len(outcome.token_ids) != ask.num_tokens:
        outcome.kind = "malformed"
        outcome.detail = f"expected {ask.num_tokens} tokens, got {len(outcome.token_ids)}"


async def _read_stream(content: aiohttp.StreamReader, outcome: Outcome) -> None:
    buffer, is_done = b"", False
    async for chunk in content.iter_any():
        *events, buffer = (buffer + chunk).split(b"\n\n")
        for event in events:
            is_done = read_event(event.removeprefix(b"data: "), outcome) or is_done
        if len(buffer) > MAX_BODY_BYTES:
            raise RequestFailed(f"stream event: expected at most {MAX_BODY_BYTES} bytes, got more")
    if outcome.is_ok and not is_done:
        outcome.kind, outcome.detail = "cut", "the stream ended without [DONE]"


def read_event(data: bytes, outcome: Outcome) -> bool:
    """Record one event; return whether it was the last."""
    if data == b"[DONE]":
        return True
    fields = json.loads(data)
    if "error" in fields:
        outcome.kind, outcome.detail = "event", str(fields["error"])[:300]
        return False
    for choice in fields["choices"]:
        ids = choice.get("token_ids") or []
        if ids and not outcome.token_ids:
            outcome.first_s = time.perf_counter()
        outcome.token_ids += ids
    return False
