"""A stand-in for both servers: rehearses a benchmark in seconds, without a model. Its figures mean nothing.

It answers the routes that benchmarks use as vLLM does, keeps a prefix cache of block-sized beginnings, and
puts a policy in front of requests that name its patch. Answers are words drawn by a hash of the whole prompt,
so that equal prompts give equal answers. A *fault* makes it wrong in one way, to show that a benchmark
notices.

    python -m bench.servers.fake --port 8200 --patch-name polite --policy-text policy.txt
"""

import argparse
import asyncio
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from patches.headers import DIGEST_HEADER, PATCH_HEADER

FAULTS = (
    "cut_off",
    "drop_digest",
    "error_in_stream",
    "forget_cache",
    "ignore_patch",
    "leak_prefix",
    "one_short",
)

_SYSTEM, _USER, _ASSISTANT, _END = 1, 2, 3, 4
_ROLES = {"system": _SYSTEM, "user": _USER, "assistant": _ASSISTANT}
_NUM_SPECIAL = 10


@dataclass
class FakeServer:
    """What the stand-in knows, and what its cache has seen.

    Attributes:
        policy: text that the patch stands for.
        patch_name: ``None`` makes it a plain server.
        token_delay_s: pause before each token.
        block_size: tokens in a block of its prefix cache.
        fault: one of ``FAULTS``.
    """

    policy: str = ""
    patch_name: str | None = None
    token_delay_s: float = 0.0
    block_size: int = 32
    fault: str | None = None
    seen: set[tuple[Any, ...]] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """Digest of the patch."""
        return "sha256:" + hashlib.sha256(self.policy.encode()).hexdigest()

    def app(self) -> web.Application:
        """Build the HTTP application."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/completions", self._completions)
        return app

    def count_cached(self, salt: str, ids: Sequence[int]) -> int:
        """Return how many leading tokens the cache holds, in whole blocks, and remember these."""
        ends = range(self.block_size, len(ids), self.block_size)
        num_cached = max((end for end in ends if (salt, *ids[:end]) in self.seen), default=0)
        self.seen.update((salt, *ids[:end]) for end in ends)
        return 0 if self.fault == "forget_cache" else num_cached

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        cards = [{"id": "fake", "parent": None}]
        if self.patch_name:
            cards.append({"id": f"fake:{self.patch_name}", "parent": "fake"})
        return web.json_response({"object": "list", "data": cards})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        ids = tokenize_words(body["prompt"]) if "prompt" in body else render_messages(body)
        return web.json_response({"tokens": ids, "count": len(ids)})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = request.headers.get(PATCH_HEADER)
        if name is not None and name != self.patch_name:
            error = {"message": f"no patch {name!r}", "type": "NotFoundError", "code": "patch_not_found"}
            return web.json_response({"error": error}, status=404)
        if set("@/\\\0") & set(body.get("cache_salt") or ""):
            # As vLLM does.
            return web.json_response({"error": {"message": "cache_salt", "code": 400}}, status=400)
        is_patched = name is not None and self.fault != "ignore_patch"
        prefix = policy_ids(self.policy) if is_patched else []
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        if self.patch_name:
            response.headers[PATCH_HEADER] = f"{self.patch_name}@1.0.0" if is_patched else "none"
        if is_patched and self.fault != "drop_digest":
            response.headers[DIGEST_HEADER] = self.digest
        await response.prepare(request)
        await self._stream(response, body, prefix)
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any], prefix: list[int]) -> None:
        prompt: list[int] = body["prompt"]
        salt = body.get("cache_salt", "") + (self.digest if prefix else "")
        num_cached = self.count_cached(salt, prompt)
        num_tokens = body["max_tokens"] - (self.fault == "one_short")
        answer = hashlib.shake_128(repr([*prefix, *prompt]).encode()).digest(num_tokens)
        for i, byte in enumerate(answer):
            await asyncio.sleep(self.token_delay_s)
            if self.fault == "error_in_stream" and i == 1:
                await _send(response, {"error": {"message": "out of luck", "code": 500}})
                return
            if self.fault == "cut_off" and i == 1:
                return
            finish_reason = "length" if i + 1 == num_tokens else None
            await _send(response, {"choices": [{"text": f" w{byte}", "finish_reason": finish_reason}]})
        num_prompt = len(prompt) + (len(prefix) if self.fault == "leak_prefix" else 0)
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}
        details = {"prompt_tokens_details": {"cached_tokens": num_cached}}
        await _send(response, {"choices": [], "usage": {**usage, **details}})
        await response.write(b"data: [DONE]\n\n")


def tokenize_words(text: str) -> list[int]:
    """Return one id per word."""
    return [
        _NUM_SPECIAL + int.from_bytes(hashlib.sha256(word.encode()).digest()[:3]) for word in text.split()
    ]


def policy_ids(text: str) -> list[int]:
    """Return the ids of a policy, rendered as a system message."""
    return [_SYSTEM, *tokenize_words(text), _END]


def render_messages(body: dict[str, Any]) -> list[int]:
    """Return the ids of a conversation."""
    ids = []
    for message in body["messages"]:
        ids += [_ROLES[message["role"]], *tokenize_words(message["content"]), _END]
    return [*ids, _ASSISTANT] if body.get("add_generation_prompt", True) else ids


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m bench.servers.fake", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--patch-name", metavar="NAME", help="serve this patch (default: a plain server)")
    parser.add_argument("--policy-text", type=Path, metavar="FILE", help="what the patch stands for")
    parser.add_argument("--token-delay-s", type=float, default=0.001, help="default: %(default)s")
    parser.add_argument("--fault", choices=FAULTS)
    args = parser.parse_args(argv)
    policy = args.policy_text.read_text(encoding="utf-8") if args.policy_text else ""
    server = FakeServer(policy, args.patch_name, args.token_delay_s, fault=args.fault)
    web.run_app(server.app(), host="127.0.0.1", port=args.port, print=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
