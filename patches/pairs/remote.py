"""Answers from an OpenAI-compatible server, such as vLLM or policypatch, several requests at a time.

Invariant: every answer of a sampler was made by the same thing. A base model is asked for by
``X-Policy-Patch: none``, whatever patch its server puts in front by default; a patch that a ``model`` names
is held to one content. What answered is read from the response, and anything else ends the run.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from patches.errors import PairsError
from patches.headers import DIGEST_HEADER, PATCH_HEADER
from patches.pairs.prompts import Messages, under_policy
from patches.pairs.sampler import Answer
from patches.sampling import Sampling

#: Requests under way at once; a server batches them.
_CONCURRENCY = 16
_TIMEOUT_S = 600.0
_RETRIES = 3


class RemoteSampler:
    """A served model, by itself or under a policy text."""

    def __init__(
        self,
        url: str,
        sampling: Sampling,
        *,
        model: str | None = None,
        api_key: str | None = None,
        policy_text: str | None = None,
        may_be_patched: bool = False,
    ) -> None:
        """Reach for the server.

        Args:
            url: Up to and without ``/v1``, or with it.
            sampling: How answers are drawn.
            model: The model's name there; the first one that the server lists where ``None``.
            api_key: Sent as a bearer token.
            policy_text: A policy to put every conversation under.
            may_be_patched: ``model`` may be an alias of a patch; else it has to be a base model.

        Raises:
            PairsError: The server does not answer, or ``model`` is a patch's and may not be.
        """
        import httpx

        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._client = httpx.Client(
            headers=headers, timeout=_TIMEOUT_S, transport=httpx.HTTPTransport(retries=_RETRIES)
        )
        self._sampling = sampling
        self._policy_text = policy_text
        cards = self._cards(is_needed=model is None)
        self.model = model if model is not None else _first_model(cards, self._url)
        card = next((card for card in cards if card.get("id") == self.model), None)
        parent = None if card is None else card.get("parent")
        is_patched = self.model.startswith(f"{parent}:")
        if is_patched and not may_be_patched:
            raise PairsError(f"{self._url}: {self.model} names a patch; name the base model, {parent}")
        #: What has to answer: a digest, or ``none``; ``None`` until something has.
        self._answerer: str | None = None if is_patched or (may_be_patched and card is None) else "none"
        self._patch_headers = {} if self._answerer is None else {PATCH_HEADER: "none"}
        self._is_patched = is_patched

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        """Answer each conversation by one request."""
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return list(pool.map(self._ask, conversations, (f"{key}:{i}" for i in range(len(conversations)))))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, messages: Messages, key: str) -> list[Answer]:
        if self._policy_text is not None:
            messages = under_policy(messages, self._policy_text)
        sampling = self._sampling
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "n": sampling.num_distinct,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed_of(key),
        }
        answer = self._request("POST", "/chat/completions", json=body, headers=self._patch_headers)
        try:
            return [
                Answer((choice["message"]["content"] or "").strip(), choice["finish_reason"] != "length")
                for choice in answer["choices"]
            ]
        except (KeyError, TypeError) as error:
            raise PairsError(f"{self._url}: expected a chat completion, got one without {error}") from None

    def _cards(self, *, is_needed: bool) -> list[dict[str, Any]]:
        """Return what the server lists, nothing where it lists nothing and nothing is needed of it."""
        try:
            listed = self._request("GET", "/models").get("data")
        except PairsError:
            if is_needed:
                raise
            return []
        return [card for card in listed or [] if isinstance(card, dict)]

    def _check_answerer(self, headers: Mapping[str, str]) -> None:
        answerer = headers.get(DIGEST_HEADER) or "none"
        if self._is_patched and answerer == "none":
            raise PairsError(f"{self._url}: expected answers under {self.model}, got the base model's")
        self._answerer = self._answerer or answerer
        if answerer != self._answerer:
            raise PairsError(
                f"{self._url}: expected every answer of {self.model} from one source ({self._answerer}), "
                f"got one from {answerer}; let nothing swap while pairs are made, or name a version"
            )

    def _request(self, method: str, path: str, **options: Any) -> Mapping[str, Any]:
        import httpx

        try:
            answer = self._client.request(method, self._url + path, **options)
        except httpx.HTTPError as error:
            raise PairsError(f"{self._url}: can't be reached: {error or type(error).__name__}") from None
        if answer.status_code != 200:
            raise PairsError(f"{self._url}{path}: answered {answer.status_code}: {answer.text[:300]}")
        if method == "POST":
            self._check_answerer(answer.headers)
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise PairsError(f"{self._url}{path}: expected a JSON object, got {answer.text[:80]!r}")
        return document


def _first_model(cards: Sequence[Mapping[str, Any]], url: str) -> str:
    """Return the first base model; adapters and patches name what they belong to."""
    for card in cards:
        if card.get("parent") is None:
            return str(card["id"])
    raise PairsError(f"{url}: lists no model; name one")
