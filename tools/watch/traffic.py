"""Some traffic for a server that is watched: patched and unpatched requests, and some that are refused."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx

from patches.headers import PATCH_HEADER

PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write a line about the sea.",
    "How many days has a week?",
)
#: No patch has this name: a refusal in each round.
UNKNOWN = "no-such-patch"


class Traffic:
    """Sends requests from a few threads, from ``with`` to its end."""

    def __init__(
        self,
        url: str,
        model: str,
        patches: Sequence[str],
        *,
        num_threads: int = 2,
        pause_s: float = 0.05,
        num_tokens: int = 12,
    ) -> None:
        """Prepare the requests.

        Args:
            url: Of the server.
            model: As it is served.
            patches: Asked for in turn, with the base model and a name that does not exist between them.
            num_threads: How many requests are sent at the same time.
            pause_s: After each answer.
            num_tokens: Of each answer.
        """
        self._url = url
        self._model = model
        self._names: tuple[str | None, ...] = (*patches, None, *patches, None, *patches, UNKNOWN)
        self._pause_s = pause_s
        self._num_tokens = num_tokens
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(num_threads)
        ]
        #: Status -> how often it was answered; 0 where nothing was.
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> "Traffic":
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End after the requests that are in flight."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _requests(self, first: int) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
        for i in itertools.count(first):
            name = self._names[i % len(self._names)]
            messages = [{"role": "user", "content": f"{PROMPTS[i % len(PROMPTS)]} ({i})"}]
            body = {"model": self._model, "messages": messages, "max_tokens": self._num_tokens}
            # The server sees the time between two tokens only where it sends them one by one.
            body |= {"stream": True, "ignore_eos": True}
            yield body, {} if name is None else {PATCH_HEADER: name}

    def _run(self, first: int) -> None:
        # Each thread begins elsewhere, so that they do not ask the same in the same moment.
        with httpx.Client(base_url=self._url, timeout=60) as client:
            for body, headers in self._requests(first * 1000):
                if self._is_over.is_set():
                    return
                try:
                    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                        status = answer.status_code
                        answer.read()
                except httpx.TransportError:
                    status = 0
                self.statuses[status] = self.statuses.get(status, 0) + 1
                time.sleep(self._pause_s)
