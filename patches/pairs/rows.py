"""The pairs file: one JSON object a line, in TRL's conversational preference format.

``prompt``, ``chosen`` and ``rejected`` are lists of messages, so that TRL's ``DPOTrainer`` takes the file
as it is. Beside them each row has what TRL leaves alone::

    {"id": "5be9…-0", "prompt_id": "5be9…", "split": "train",
     "prompt": [{"role": "user", "content": "…"}],
     "chosen": [{"role": "assistant", "content": "…"}], "rejected": [{"role": "assistant", "content": "…"}],
     "finished": {"chosen": true, "rejected": false},
     "scores": {"scorer": "refusal", "chosen": 0.0, "rejected": 1.0}}

Only the first three keys are needed: a file that was made elsewhere does too. ``finished`` is false where an
answer ran into the limit of tokens: training then does not teach that it ends there.

Law: ``decode_row(encode_row(row)) == row``.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patches.errors import PairsError
from patches.pairs.prompts import checked_messages, prompt_id, read_rows
from patches.text import JSON_SUFFIXES

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class PairRow:
    """One preference: of two answers to a prompt, the one to learn and the one to unlearn."""

    id: str
    prompt: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str
    #: One of ``SPLITS``; ``None`` where the file does not say.
    split: str | None = None
    is_chosen_finished: bool = True
    is_rejected_finished: bool = True
    scores: Mapping[str, Any] | None = None


def encode_row(row: PairRow) -> str:
    """Write one line, without its line break."""
    document: dict[str, Any] = {"id": row.id, "prompt_id": prompt_id(row.prompt)}
    if row.split is not None:
        document["split"] = row.split
    document |= {
        "prompt": [dict(message) for message in row.prompt],
        "chosen": [{"role": "assistant", "content": row.chosen}],
        "rejected": [{"role": "assistant", "content": row.rejected}],
        "finished": {"chosen": row.is_chosen_finished, "rejected": row.is_rejected_finished},
    }
    if row.scores is not None:
        document["scores"] = dict(row.scores)
    return json.dumps(document, ensure_ascii=False)


def decode_row(document: Any, where: str) -> PairRow:
    """Read one row.

    Raises:
        PairsError: It lacks a prompt or one of the answers, or they are of another form.
    """
    if not isinstance(document, Mapping):
        raise PairsError(f"{where}: expected an object, got {type(document).__name__}")
    document = _with_explicit_prompt(document, where)
    missing = [key for key in ("prompt", "chosen", "rejected") if key not in document]
    if missing:
        raise PairsError(f"{where}: lacks {', '.join(missing)}; expected TRL's preference format")
    prompt = document["prompt"]
    messages = (
        ({"role": "user", "content": prompt},)
        if isinstance(prompt, str)
        else checked_messages(prompt, f"{where}: prompt")
    )
    split = document.get("split")
    if split is not None and split not in SPLITS:
        raise PairsError(f"{where}: split: expected one of {', '.join(SPLITS)}, got {split!r}")
    finished = document.get("finished") or {}
    return PairRow(
        id=str(document.get("id") or prompt_id(messages)),
        prompt=messages,
        chosen=_answer_of(document["chosen"], f"{where}: chosen"),
        rejected=_answer_of(document["rejected"], f"{where}: rejected"),
        split=split,
        is_chosen_finished=bool(finished.get("chosen", True)),
        is_rejected_finished=bool(finished.get("rejected", True)),
        scores=document.get("scores"),
    )


def read_pairs(path: Path) -> list[PairRow]:
    """Read a pairs file.

    Raises:
        PairsError: The file, or a row of it, can't be read, or it has no rows.
    """
    if path.suffix.lower() not in JSON_SUFFIXES:
        raise PairsError(f"{path}: expected a file of pairs ({', '.join(JSON_SUFFIXES)})")
    rows = [decode_row(row, f"{path}: row {number}") for number, row in enumerate(read_rows(path), start=1)]
    if not rows:
        raise PairsError(f"{path}: has no pairs")
    return rows


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes.

    Raises:
        PairsError: It can't be read.
    """
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PairsError(f"{path}: {error.strerror}") from None


def _with_explicit_prompt(document: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a row of TRL's preference format with its prompt apart, where both answers begin with it."""
    chosen, rejected = document.get("chosen"), document.get("rejected")
    if "prompt" in document or chosen is None or rejected is None:
        return document
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise PairsError(
            f"{where}: lacks prompt, and its answers are texts; name the prompt apart, as in TRL's format "
            "with an explicit prompt"
        )
    num_shared = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    # Answers that are equal are no part of the prompt.
    num_shared = min(num_shared, len(chosen) - 1, len(rejected) - 1)
    if num_shared < 1:
        raise PairsError(f"{where}: lacks prompt, and its answers don't begin with the same messages")
    return {
        **document,
        "prompt": chosen[:num_shared],
        "chosen": chosen[num_shared:],
        "rejected": rejected[num_shared:],
    }


def _answer_of(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], Mapping)
        and value[0].get("role") == "assistant"
        and isinstance(value[0].get("content"), str)
    ):
        return str(value[0]["content"])
    raise PairsError(f"{where}: expected text or one assistant message")
