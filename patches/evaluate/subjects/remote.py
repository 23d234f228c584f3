"""Subjects behind HTTP: a running server, asked through ``X-Policy-Patch`` as any client would.

A server refuses prompt log probabilities under a patch. So a token's likelihood is asked for one token at a
time: the answer is bound to one id, and the log probability that comes with it is the model's own, from
before it was bound. That takes a request per token, most of which the server's prefix cache answers.
"""

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from patches.errors import SubjectFailed
from patches.evaluate.arms import Arm
from patches.evaluate.subjects.subject import Reading, Renderer, Timing
from patches.headers import COMPOSITION_HEADER, DIGEST_HEADER, PATCH_HEADER
from patches.sampling import Sampling

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Endpoint:
    """A server, and how it is called."""

    url: str
    #: The served model name.
    model: str
    api_key: str | None = None
    concurrency: int = 8

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> HTTPResponse:
        """Send JSON past any proxy of the environment.

        Raises:
            SubjectFailed: No answer, or an error, with what the server said.
        """
        request = Request(f"{self.url.rstrip('/')}{path}", json.dumps(body).encode(), method="POST")
        return _open(request, {"Content-Type": "application/json", **headers}, self.api_key)


def connect(
    url: str, *, api_key: str | None = None, concurrency: int = 8, model: str | None = None
) -> Endpoint:
    """Find out what the server calls its model.

    Raises:
        SubjectFailed: The server does not answer, or serves no base model.
    """
    if model is None:
        with _open(Request(f"{url.rstrip('/')}/v1/models"), {}, api_key) as response:
            cards = _decoded(response.read())["data"]
        names = [card["id"] for card in cards if card.get("parent") is None]
        if not names:
            raise SubjectFailed(f"{url}/v1/models: expected a model without parent")
        model = str(names[0])
    return Endpoint(url, model, api_key, concurrency)


class HttpSubject:
    """One arm, answered by a server."""

    def __init__(self, endpoint: Endpoint, tokenizer: Any, arm: Arm) -> None:
        self.arm = arm
        self.renderer = Renderer(tokenizer, arm)
        self._endpoint = endpoint
        self._headers = {PATCH_HEADER: arm.selection or "none"}
        #: What has to answer; for a patch named without its digest, what answered first.
        self._digest = arm.digest

    def chat(self, prompts: Sequence[str], sampling: Sampling) -> list[list[str]]:
        """Answer each prompt; see ``Subject``."""

        def ask(place: int, prompt: str) -> list[str]:
            body = {
                "model": self._endpoint.model,
                "messages": self.renderer.messages(prompt),
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                # A model's own default would sample from fewer tokens than the run in this process does.
                "top_k": 0,
                "n": sampling.num_samples,
                "seed": sampling.seed + place,
            }
            choices = self._ask("/v1/chat/completions", body)["choices"]
            return [(choice["message"]["content"] or "").strip() for choice in choices]

        return self._together(ask, prompts)

    def score(self, readings: Sequence[Reading]) -> list[list[float]]:
        """Return log probabilities; see ``Subject``."""
        steps = [
            ((*reading.context, *reading.tokens[:place]), token)
            for reading in readings
            for place, token in enumerate(reading.tokens)
        ]

        def ask(place: int, step: tuple[tuple[int, ...], int]) -> float:
            ids, token = step
            body = {
                "model": self._endpoint.model,
                "prompt": list(ids),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": 0,
                "allowed_token_ids": [token],
                "return_tokens_as_token_ids": True,
                # An end-of-text token is a token like any other here.
                "ignore_eos": True,
            }
            logprobs = self._ask("/v1/completions", body)["choices"][0]["logprobs"]
            if logprobs["tokens"] != [f"token_id:{token}"]:
                raise SubjectFailed(f"{self.arm.name}: expected token {token}, got {logprobs['tokens']}")
            return float(logprobs["token_logprobs"][0])

        scores = iter(self._together(ask, steps))
        return [[next(scores) for _ in reading.tokens] for reading in readings]

    def time(self, prompts: Sequence[str], num_tokens: int) -> list[Timing]:
        """Time answers; see ``Subject``."""
        return [self._time_one(prompt, num_tokens) for prompt in prompts]

    def _time_one(self, prompt: str, num_tokens: int) -> Timing:
        body = {
            "model": self._endpoint.model,
            "messages": self.renderer.messages(prompt),
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        start = time.perf_counter()
        stamps = []
        with self._endpoint.post("/v1/chat/completions", body, self._headers) as response:
            self._check(response.headers)
            for line in response:
                if line.startswith(b"data: ") and b'"content":"' in line.replace(b": ", b":"):
                    stamps.append(time.perf_counter())
        if not stamps:
            raise SubjectFailed(f"{self.arm.name}: the stream had no tokens")
        return Timing(stamps[0] - start, stamps[-1] - start, num_tokens)

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        with self._endpoint.post(path, body, self._headers) as response:
            self._check(response.headers)
            return _decoded(response.read())

    def _check(self, headers: Message) -> None:
        """Refuse to mix, in one figure, a patch and the base model, two versions, or two ways to compose."""
        digest, form = headers.get(DIGEST_HEADER), headers.get(COMPOSITION_HEADER)
        if self.arm.selection is None and digest is not None:
            raise SubjectFailed(f"{self.arm.name}: expected the base model, got answers under {digest}")
        if self.arm.selection is not None and digest is None:
            raise SubjectFailed(f"{self.arm.name}: expected a patch, got answers of the base model")
        self._digest = self._digest or digest
        if digest != self._digest:
            raise SubjectFailed(f"{self.arm.name}: expected answers under {self._digest}, got {digest}")
        if self.arm.form is not None and form != self.arm.form:
            raise SubjectFailed(
                f"{self.arm.name}: expected the composition {self.arm.form}, got {form or 'none'};"
                " `policypatch compose` makes the prepared one, `serve --composition joined` the other"
            )

    def _together(self, ask: Any, requests: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(max(1, self._endpoint.concurrency)) as pool:
            return list(pool.map(ask, range(len(requests)), requests))


def _open(request: Request, headers: Mapping[str, str], api_key: str | None) -> HTTPResponse:
    for name, value in headers.items():
        request.add_header(name, value)
    if api_key is not None:
        # Not to where a redirect leads: the key is this server's.
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    try:
        response: HTTPResponse = build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_S)
        return response
    except HTTPError as error:
        said = error.read().decode("utf-8", errors="replace")[:300]
        raise SubjectFailed(f"{request.full_url}: {error.code} {said}") from error
    except (URLError, OSError, HTTPException) as error:
        raise SubjectFailed(f"{request.full_url}: no answer: {error}") from error


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise SubjectFailed(f"server: expected JSON, got {data[:80]!r}") from error
