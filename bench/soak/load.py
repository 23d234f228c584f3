"""The load of a soak: so many streams, each followed by the next as soon as it ended, until it is over.

An eighth as many clients beside them ask for whole answers. Each request draws its patch and its prompt by
the seed of its client; every complete answer is compared with the reference of the content that its header
names.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.load.timing import quantile
from bench.soak.references import References
from bench.soak.requests import PROMPTS, Ask, Outcome, send

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Choice:
    """A patch that requests may ask for, and the digest that has to answer; ``None``: any that is known."""

    patch: str | None
    digest: str | None = None
    is_bare: bool = False
    #: Text in front of the prompt instead of a patch; what is answered has no reference.
    num_text_tokens: int = 0


@dataclass
class Tally:
    """What came of the requests."""

    num_ok: int = 0
    num_tokens: int = 0
    num_ties: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    #: Complete answers that are not what the content of their header says.
    num_wrong: int = 0
    examples: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    num_streams: int = 0

    @property
    def num_failed(self) -> int:
        """Requests without a complete answer."""
        return sum(count for kind, count in self.kinds.items() if kind != "ok")

    def note(self, outcome: Outcome, verdict: str) -> None:
        """Record one outcome, and for a complete answer whether it is that of its reference."""
        self.kinds[outcome.kind] += 1
        if not outcome.is_ok:
            self._example(f"{outcome.ask.patch}: {outcome.kind}: {outcome.detail}")
            return
        self.num_ok += 1
        self.num_streams += outcome.ask.is_stream
        self.num_tokens += len(outcome.token_ids)
        if outcome.ask.is_stream:
            self.first_token_s.append(outcome.first_s - outcome.sent_s)
        self.num_ties += verdict == "tie"
        if verdict not in ("same", "tie"):
            self.num_wrong += 1
            self._example(f"{outcome.ask.patch} answered as {outcome.digest}: {verdict} answer")

    def _example(self, text: str) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(text[:300])

    def as_dict(self) -> dict[str, Any]:
        """For records."""
        times = self.first_token_s
        return {
            "num_ok": self.num_ok,
            "num_streams": self.num_streams,
            "num_failed": self.num_failed,
            "num_wrong": self.num_wrong,
            "num_ties": self.num_ties,
            "num_tokens": self.num_tokens,
            "kinds": dict(self.kinds),
            "first_token_p50_s": round(quantile(times, 0.5), 4) if times else None,
            "first_token_p99_s": round(quantile(times, 0.99), 4) if times else None,
            "examples": self.examples,
        }


Seen = Callable[[Outcome], None]


class Load:
    """Clients that ask until told otherwise; an async context manager whose end waits for their answers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        references: References,
        choices: Sequence[Choice],
        *,
        concurrency: int,
        seed: int = 0,
        seen: Seen = lambda outcome: None,
    ) -> None:
        """Prepare clients.

        Args:
            session: With connections for all of them.
            url: Of the server.
            references: What contents answer.
            choices: What a request may ask for, each as often.
            concurrency: How many streams at a time.
            seed: Decides what they ask.
            seen: Told each outcome.
        """
        self.tally = Tally()
        self._session, self._url, self._references = session, url, references
        self._choices, self._concurrency, self._seed, self._seen = choices, concurrency, seed, seen
        self._is_over = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        num_clients = self._concurrency + max(1, self._concurrency // 8)
        self._clients = [asyncio.create_task(self._client(i)) for i in range(num_clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        await self.ended()

    def stop(self) -> None:
        """Stop all clients after the request that each has in flight."""
        self._is_over.set()

    async def ended(self) -> None:
        """Wait until every client had the end of its last request."""
        await asyncio.gather(*self._clients)

    async def _client(self, index: int) -> None:
        rng = random.Random(f"{self._seed}-{index}")
        while not self._is_over.is_set():
            choice = rng.choice(self._choices)
            ask = Ask(
                rng.randrange(len(PROMPTS)),
                choice.patch,
                index < self._concurrency,
                self._references.num_tokens,
                num_text_tokens=choice.num_text_tokens,
            )
            outcome = await send(self._session, self._url, ask)
            verdict = "same" if choice.num_text_tokens else self._references.judge(outcome)
            if outcome.is_ok and not choice.is_bare and outcome.digest != choice.digest:
                verdict = "another content's"
            self.tally.note(outcome, verdict)
            self._seen(outcome)
            if not outcome.is_ok:
                # Whoever is refused at once would only count refusals.
                await asyncio.sleep(0.2)


async def eventually(
    holds: Callable[[], Awaitable[bool]], timeout_s: float, poll_s: float = 0.1
) -> float | None:
    """Wait until ``holds``; returns the seconds that took, ``None`` where it never did."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    while not await holds():
        if loop.time() - started_s > timeout_s:
            return None
        await asyncio.sleep(poll_s)
    return loop.time() - started_s
