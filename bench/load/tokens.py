"""Token ids, asked from a running server: the policy's, and those around a user message.

The server's own ``/tokenize`` is used, so that the bench needs no tokenizer and cannot disagree with the
server.
"""

from collections.abc import Sequence
from typing import Any

import aiohttp

from bench.errors import RequestFailed
from bench.load.client import call_json
from bench.load.workloads import VOCABULARY_TEXT, UserTurn, split_user_turn

# Two messages that no tokenizer begins or ends alike.
_FIRST_MESSAGE = "apple"
_SECOND_MESSAGE = "Zürich 7"


async def served_model(session: aiohttp.ClientSession, url: str) -> str:
    """Return the name of the base model that a server serves.

    Raises:
        RequestFailed: the server lists none.
    """
    listing = await call_json(session, "GET", f"{url}/v1/models")
    try:
        # Adapters and patches name the model they belong to as parent.
        return next(str(card["id"]) for card in listing["data"] if not card.get("parent"))
    except (KeyError, TypeError, StopIteration) as error:
        raise RequestFailed(f"{url}/v1/models: expected a base model, got {str(listing)[:200]}") from error


async def tokenize_policy(
    session: aiohttp.ClientSession, url: str, model: str, text: str, *, is_raw: bool
) -> tuple[tuple[int, ...], UserTurn]:
    """Tokenize a policy and find the user turn that follows it.

    Args:
        session: an open session.
        url: base URL of a server.
        model: the server's model name.
        text: the policy. White space around it counts only where it is raw, as in `policypatch compile`.
        is_raw: the policy stands as it is in front of the user's tokens; otherwise it is rendered as a system
            message by the chat template.

    Returns:
        The policy's ids, and the user turn. The ids of a conversation are the policy's followed by the
        turn's.

    Raises:
        RequestFailed: the server has no usable chat template, or its renderings do not begin with the
            policy's.
    """
    pool = await _tokenize(session, url, model, prompt=VOCABULARY_TEXT, add_special_tokens=False)
    if is_raw:
        policy_ids = await _tokenize(session, url, model, prompt=text, add_special_tokens=True)
        return tuple(policy_ids), UserTurn((), (), tuple(pool))
    system = {"role": "system", "content": text.strip()}
    policy_ids = await _tokenize(session, url, model, messages=[system], add_generation_prompt=False)
    turns = []
    for message in (_FIRST_MESSAGE, _SECOND_MESSAGE):
        messages = [system, {"role": "user", "content": message}]
        ids = await _tokenize(session, url, model, messages=messages, add_generation_prompt=True)
        if ids[: len(policy_ids)] != policy_ids:
            raise RequestFailed(
                "chat template: expected a conversation to begin with its system message alone; use --raw"
            )
        turns.append(ids[len(policy_ids) :])
    return tuple(policy_ids), split_user_turn(turns[0], turns[1], pool)


async def _tokenize(session: aiohttp.ClientSession, url: str, model: str, **fields: Any) -> Sequence[int]:
    answer = await call_json(session, "POST", f"{url}/tokenize", {"model": model, **fields})
    try:
        return [int(token) for token in answer["tokens"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RequestFailed(f"{url}/tokenize: expected tokens, got {str(answer)[:200]}") from error
