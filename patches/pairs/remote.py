"""Answers from an OpenAI-compatible server, such as vLLM or policypatch, several requests at a time."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from patches.errors import PairsError
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
    ) -> None:
        """Reach for the server.

        Args:
            url: Up to and without ``/v1``, or with it.
            sampling: How answers are drawn.
            model: The model's name there; the first one that the server lists where ``None``.
            api_key: Sent as a bearer token.
            policy_text: A policy to put every conversation under.

        Raises:
            PairsError: Nobody answers there.
        """
        import httpx

        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._client = httpx.Client(
            headers=headers, timeout=_TIMEOUT_S, transport=httpx.HTTPTransport(retries=_RETRIES)
        )
        self._sampling = sampling
        self._policy_text = policy_text
        self.model = model if model is not None else self._first_model()

    def sample(self, conversations: Sequence[Messages], key: str) -> list[list[Answer]]:
        """Answer each conversation by one request."""
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            return list(pool.map(self._ask, conversations, (f"{key}:{i}" for i in range(len(conversations)))))

    def close(self) -> None:
        """Let the connections go."""
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
        answer = self._request("POST", "/chat/completions", json=body)
        try:
            return [
                Answer((choice["message"]["content"] or "").strip(), choice["finish_reason"] != "length")
                for choice in answer["choices"]
            ]
        except (KeyError, TypeError) as error:
            raise PairsError(f"{self._url}: expected a chat completion, got one without {error}") from None

    def _first_model(self) -> str:
        listed = self._request("GET", "/models").get("data") or []
        if not listed:
            raise PairsError(f"{self._url}: lists no model; name one")
        return str(listed[0]["id"])

    def _request(self, method: str, path: str, **options: Any) -> Mapping[str, Any]:
        import httpx

        try:
            answer = self._client.request(method, self._url + path, **options)
        except httpx.HTTPError as error:
            raise PairsError(f"{self._url}: can't be reached: {error or type(error).__name__}") from None
        if answer.status_code != 200:
            raise PairsError(f"{self._url}{path}: answered {answer.status_code}: {answer.text[:300]}")
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise PairsError(f"{self._url}{path}: expected a JSON object, got {answer.text[:80]!r}")
        return document
