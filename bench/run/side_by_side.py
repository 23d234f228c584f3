"""One server is asked every question under a patch and with the policy as text, alone and in a batch."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.errors import BenchError, CheckFailed, RequestFailed
from bench.load.agreement import Answer
from bench.load.client import call_json, open_session
from bench.load.tokens import served_model, tokenize_policy
from bench.load.workloads import UserTurn
from bench.run.rounds import progress
from bench.servers.launch import PatchFacts
from patches.headers import DIGEST_HEADER, PATCH_HEADER

#: Log probabilities asked for at each step; a token that a patch moves out of them is counted as unlisted.
NUM_LOGPROBS = 5


@dataclass(frozen=True)
class Arm:
    """One way to ask every question.

    Attributes:
        meaning: one line for tables.
        is_patched: the request names the patch; otherwise the policy's tokens stand in the prompt.
        is_batched: many requests are in flight; otherwise one.
    """

    meaning: str
    is_patched: bool
    is_batched: bool


ARMS = {
    "text": Arm("policy as text, one request at a time", is_patched=False, is_batched=False),
    "text-batched": Arm("policy as text, in a batch", is_patched=False, is_batched=True),
    "patched": Arm("patch, one request at a time", is_patched=True, is_batched=False),
    "patched-batched": Arm("patch, in a batch", is_patched=True, is_batched=True),
}

#: (arm, reference, what their difference says)
PAIRS = (
    ("text-batched", "text", "noise floor: text in a batch / text alone"),
    ("patched", "text", "patch alone / text alone"),
    ("patched-batched", "text-batched", "patch in a batch / text in a batch"),
    ("patched-batched", "patched", "patch in a batch / patch alone"),
)


@dataclass(frozen=True)
class Job:
    """What one server is asked.

    Attributes:
        patch: made from ``policy``.
        is_raw: the policy stands as it is, not as a system message.
        check_server: raises where the server has died.
    """

    url: str
    patch: PatchFacts
    policy: str
    is_raw: bool
    prompts: Sequence[str]
    num_output_tokens: int
    concurrency: int
    check_server: Callable[[], None]


async def ask_all(job: Job, note: Callable[[Mapping[str, list[Answer]]], None]) -> None:
    """Ask every question in every arm; ``note`` gets all answers so far when an arm is done.

    Raises:
        CheckFailed: the patch was not made from the tokens that stand in the text arms.
        RequestFailed: an answer was an error.
    """
    async with open_session() as session:
        model = await served_model(session, job.url)
        policy_ids, turn = await tokenize_policy(session, job.url, model, job.policy, is_raw=job.is_raw)
        if len(policy_ids) != job.patch.num_tokens:
            raise CheckFailed(
                [f"patch: expected {len(policy_ids)} tokens as in the text, got {job.patch.num_tokens}"]
            )
        user_ids = [await _user_ids(session, job, model, turn, prompt) for prompt in job.prompts]
        answers: dict[str, list[Answer]] = {}
        for name, arm in ARMS.items():
            progress(f"{name}: {arm.meaning}")
            answers[name] = await _ask_arm(session, job, model, arm, policy_ids, user_ids)
            job.check_server()
            note(answers)


async def _user_ids(
    session: aiohttp.ClientSession, job: Job, model: str, turn: UserTurn, prompt: str
) -> list[int]:
    """Tokenize a question as it follows the policy: a turn of the same conversation, or a chat of its own."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "add_special_tokens": False}
    if job.is_raw:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "add_generation_prompt": True}
    ids = (await call_json(session, "POST", f"{job.url}/tokenize", body))["tokens"]
    return [*turn.head, *ids, *turn.tail]


async def _ask_arm(
    session: aiohttp.ClientSession,
    job: Job,
    model: str,
    arm: Arm,
    policy_ids: Sequence[int],
    prompts: Sequence[Sequence[int]],
) -> list[Answer]:
    in_flight = asyncio.Semaphore(job.concurrency if arm.is_batched else 1)

    async def ask(user_ids: Sequence[int]) -> Answer:
        body = {
            "model": model,
            "prompt": [*(() if arm.is_patched else policy_ids), *user_ids],
            "max_tokens": job.num_output_tokens,
            "temperature": 0,
            "logprobs": NUM_LOGPROBS,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # Nothing is found in the prefix cache: text is computed as a whole, a prefix written as a whole.
            "cache_salt": uuid.uuid4().hex,
        }
        async with in_flight:
            return await _ask_one(session, job, body, is_patched=arm.is_patched)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(user_ids)) for user_ids in prompts]
    except* BenchError as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _ask_one(
    session: aiohttp.ClientSession, job: Job, body: Mapping[str, Any], *, is_patched: bool
) -> Answer:
    url = f"{job.url}/v1/completions"
    headers = {PATCH_HEADER: job.patch.name} if is_patched else {}
    try:
        async with session.post(url, json=body, headers=headers) as response:
            if response.status != 200:
                raise RequestFailed(f"{url}: {response.status} {(await response.text())[:300]}")
            digest = response.headers.get(DIGEST_HEADER)
            if digest != (job.patch.digest if is_patched else None):
                raise CheckFailed(
                    [f"{DIGEST_HEADER}: {'patched' if is_patched else 'text'} arm got {digest}"]
                )
            return decode_answer(await response.json())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RequestFailed(f"{url}: {type(error).__name__}: {error}") from error


def decode_answer(body: Mapping[str, Any]) -> Answer:
    """Read an answer with token ids in the place of tokens.

    Raises:
        RequestFailed: it is not one choice with log probabilities.
    """
    try:
        (choice,) = body["choices"]
        steps = [
            {int(token.removeprefix("token_id:")): float(value) for token, value in step.items()}
            for step in choice["logprobs"]["top_logprobs"]
        ]
        return Answer(tuple(choice["token_ids"]), tuple(steps))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestFailed(f"answer: {type(error).__name__}: {error}; got {str(body)[:200]}") from error
