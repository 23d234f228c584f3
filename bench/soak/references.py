"""What each content says to each prompt, and whether an answer is that.

Asked from the server itself while nothing else goes on, each content by its digest. That such answers are
right at all is checked against transformers in ``tests/e2e``; here they tell one content from another. Greedy
answers depend on what else is in the batch only where two tokens are as likely within rounding: there, and
only where the answer takes the other one of the two, it counts as a *tie*.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench.errors import CheckFailed, RequestFailed
from bench.soak.contents import Content
from bench.soak.requests import NUM_COMPLETION_PROMPTS, PROMPTS, Ask, Outcome

#: Two tokens whose log-probabilities differ by less are as likely. In float32 batches move them by 1e-5.
TIE = 1e-3
_NUM_AT_ONCE = 8


@dataclass(frozen=True)
class Reference:
    """One greedy answer: its token ids, and for each of them the runner-up and how far behind it was."""

    token_ids: tuple[int, ...]
    runners_up: tuple[int, ...]
    margins: tuple[float, ...]


@dataclass
class References:
    """The greedy answers of all contents; a digest of ``None`` is the base model."""

    num_tokens: int
    _answers: dict[tuple[str | None, int], Reference] = field(default_factory=dict)

    def judge(self, outcome: Outcome) -> str:
        """Compare a complete answer with that of the content which its header names.

        Returns:
            ``same``, ``tie``, ``other`` (another content's answer, or a mixture) or ``unknown``.
        """
        reference = self._answers.get((outcome.digest, outcome.ask.prompt_idx))
        if reference is None:
            return "unknown"
        for got, expected, runner_up, margin in zip(
            outcome.token_ids, reference.token_ids, reference.runners_up, reference.margins, strict=False
        ):
            if got != expected:
                return "tie" if got == runner_up and margin < TIE else "other"
        return "same"

    def alias(self, known: Content, other: Content) -> None:
        """Expect of a content of equal K/V the answers of ``known``."""
        for prompt_idx in range(len(PROMPTS)):
            if (answer := self._answers.get((known.digest, prompt_idx))) is not None:
                self._answers[other.digest, prompt_idx] = answer

    async def collect(
        self,
        session: aiohttp.ClientSession,
        url: str,
        contents: Iterable[Content],
        prompts: Sequence[int] = range(len(PROMPTS)),
    ) -> None:
        """Ask for the answers of contents that are served, and of the base model.

        Raises:
            RequestFailed: an answer did not come.
            CheckFailed: two contents answer alike, so that one could pass for the other.
        """
        named: list[tuple[str | None, str | None]] = [(None, None)]
        named += [(content.digest, content.reference) for content in contents]
        places = [(digest, patch, i) for digest, patch in named for i in prompts]
        limit = asyncio.Semaphore(_NUM_AT_ONCE)

        async def ask(digest: str | None, patch: str | None, prompt_idx: int) -> None:
            async with limit:
                answer = await _ask(session, url, Ask(prompt_idx, patch, False, self.num_tokens))
                self._answers[digest, prompt_idx] = answer

        await asyncio.gather(*(ask(*place) for place in places if place[::2] not in self._answers))
        self._require_different()

    def _require_different(self) -> None:
        findings = []
        for i in range(len(PROMPTS)):
            counted = Counter(answer.token_ids for (_, idx), answer in self._answers.items() if idx == i)
            for ids, count in counted.items():
                if count > 1:
                    findings.append(f"prompt {i}: {count} contents answer {list(ids)[:6]}…")
        if findings:
            raise CheckFailed(findings)


async def _ask(session: aiohttp.ClientSession, url: str, ask: Ask) -> Reference:
    is_chat = ask.prompt_idx >= NUM_COMPLETION_PROMPTS
    wanted = {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    body = {**ask.body(), **wanted, "return_tokens_as_token_ids": True}
    async with session.post(url + ask.path, data=json.dumps(body), headers=ask.all_headers()) as response:
        if response.status != 200:
            raise RequestFailed(f"reference of {ask.patch}: {response.status} {await response.text()}")
        (choice,) = (await response.json())["choices"]
    token_ids = tuple(choice["token_ids"])
    likeliest = _chat_steps(choice) if is_chat else choice["logprobs"]["top_logprobs"]
    steps = [
        _runner_up({int(k.removeprefix("token_id:")): v for k, v in step.items()}, own)
        for step, own in zip(likeliest, token_ids, strict=True)
    ]
    return Reference(token_ids, tuple(s[0] for s in steps), tuple(s[1] for s in steps))


def _chat_steps(choice: dict[str, Any]) -> list[dict[str, float]]:
    return [
        {top["token"]: top["logprob"] for top in s["top_logprobs"]} for s in choice["logprobs"]["content"]
    ]


def _runner_up(step: dict[int, float], own: int) -> tuple[int, float]:
    """Return the likeliest id but ``own``, and how far it is behind."""
    others = {token_id: logprob for token_id, logprob in step.items() if token_id != own}
    if own not in step or not others:
        return own, 0.0
    other = max(others, key=lambda token_id: others[token_id])
    return other, step[own] - others[other]
