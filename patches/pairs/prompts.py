"""The prompts of a file: read, checked, and freed of empty and repeated ones, which are counted.

Three forms: JSON lines, a JSON array, or plain text with one prompt a line. A JSON row has ``prompt`` (text
or a list of messages), ``messages`` or ``text``; a string is a prompt too. A trailing assistant message of
``messages`` is an answer, and not part of the prompt.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patches import text
from patches.canonical import canonical_json
from patches.errors import PairsError

#: ``[{"role": …, "content": …}, …]``, as chat templates take them.
Messages = Sequence[Mapping[str, str]]

_KEYS = ("prompt", "messages", "text")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Prompt:
    """One conversation that waits for an answer."""

    #: Half a SHA-256 of the messages: equal prompts have equal ids in every file.
    id: str
    messages: tuple[Mapping[str, str], ...]
    #: The whole row, for columns that hold answers; empty for a line of text.
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptFile:
    """The usable prompts of a file, and how many were not."""

    prompts: tuple[Prompt, ...]
    num_rows: int
    num_empty: int
    num_duplicates: int


def read_prompts(path: Path) -> PromptFile:
    """Read the prompts of a file.

    Raises:
        PairsError: The file can't be read, a row is not a prompt, or none is left.
    """
    return prompts_of(read_rows(path), path)


def prompts_of(rows: Sequence[Any], path: Path) -> PromptFile:
    """Check the rows of a file.

    Raises:
        PairsError: A row is not a prompt, or none is left.
    """
    prompts: dict[str, Prompt] = {}
    num_empty = num_duplicates = 0
    for number, row in enumerate(rows, start=1):
        messages = _messages_of(row, f"{path}: row {number}")
        if not messages or not messages[-1]["content"].strip():
            num_empty += 1
            continue
        prompt = Prompt(prompt_id(messages), messages, row if isinstance(row, Mapping) else {})
        num_duplicates += prompt.id in prompts
        prompts.setdefault(prompt.id, prompt)
    if not prompts:
        raise PairsError(f"{path}: expected at least one prompt, got {len(rows)} rows, all of them empty")
    return PromptFile(tuple(prompts.values()), len(rows), num_empty, num_duplicates)


def prompt_id(messages: Messages) -> str:
    """Return the id of a prompt."""
    content = canonical_json([dict(message) for message in messages])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def split_number(key: str) -> float:
    """Return the place of a prompt between 0 and 1, evenly spread, the same in every run."""
    return int.from_bytes(hashlib.sha256(f"split:{key}".encode()).digest()[:8], "big") / 2**64


def read_rows(path: Path) -> list[Any]:
    """Return the rows of a file; see ``patches.text.read_rows``.

    Raises:
        PairsError: The file can't be read, or is not what its name says.
    """
    try:
        return [row for _, row in text.read_rows(path)]
    except (OSError, ValueError) as error:
        raise PairsError(f"{path}: {text.said(error)}") from None


def _messages_of(row: Any, where: str) -> tuple[Mapping[str, str], ...]:
    if isinstance(row, Mapping):
        key = next((key for key in _KEYS if key in row), None)
        if key is None:
            raise PairsError(f"{where}: expected one of the keys {', '.join(_KEYS)}, got {', '.join(row)}")
        row = row[key]
    if isinstance(row, str):
        return ({"role": "user", "content": row.strip()},)
    return checked_messages(row, where)


def under_policy(messages: Messages, policy_text: str) -> tuple[Mapping[str, str], ...]:
    """Put a conversation under a policy text: as its system message, or in front of the one it has."""
    if messages and messages[0]["role"] == "system":
        own = messages[0]["content"]
        return ({"role": "system", "content": f"{policy_text.strip()}\n\n{own}"}, *messages[1:])
    return ({"role": "system", "content": policy_text.strip()}, *messages)


def checked_messages(value: Any, where: str) -> tuple[Mapping[str, str], ...]:
    """Return a list of messages as it should be, without a trailing answer.

    Raises:
        PairsError: It is not a list of messages with a known role and text.
    """
    if not isinstance(value, list):
        raise PairsError(f"{where}: expected text or a list of messages, got {type(value).__name__}")
    messages = []
    for message in value:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (0, 0)
        )
        if role not in _ROLES or not isinstance(content, str):
            raise PairsError(f"{where}: expected messages of a role ({', '.join(_ROLES)}) and text content")
        messages.append({"role": str(role), "content": content})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return tuple(messages)
