"""Answered prompts, as token ids: what is learned is what the model will read and say in a request.

A row has a prompt as ``policypatch pairs`` takes it and its answer: ``completion``, an assistant message at
the end of ``messages``, or ``chosen``, so that a file of pairs does, too. What a file of pairs keeps for
validation or test is left out. Only tokens of answers count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patches.errors import PairsError, TrainingError
from patches.pairs.prompts import prompts_of, read_rows
from patches.train.data import Encoder, Sample


@dataclass(frozen=True)
class TuneRows:
    """What is learned from, and what was left out."""

    samples: Sequence[Sample]
    num_too_long: int
    num_other_split: int


def read_tune_rows(path: Path, encoder: Encoder, max_length: int) -> TuneRows:
    """Read and encode a file.

    Raises:
        PairsError: The file can't be read, or a row has no answer.
        TrainingError: Nothing is left of it.
    """
    samples, num_too_long, num_other_split = [], 0, 0
    for number, row in enumerate(read_rows(path), start=1):
        where = f"{path}: row {number}"
        if not isinstance(row, Mapping):
            raise PairsError(f"{where}: expected an object with a prompt and an answer, got text alone")
        if row.get("split") in ("validation", "test"):
            num_other_split += 1
            continue
        finished = row.get("finished")
        is_finished = finished.get("chosen") is not False if isinstance(finished, Mapping) else True
        messages = prompts_of([row], path).prompts[0].messages
        sample = encoder.sample(messages, _answer_of(row, where), is_finished)
        if len(sample) > max_length:
            num_too_long += 1
        else:
            samples.append(sample)
    if not samples:
        raise TrainingError(
            f"{path}: no row is left to learn from ({num_too_long} too long, "
            f"{num_other_split} of another split)"
        )
    return TuneRows(samples, num_too_long, num_other_split)


def columns_of(samples: Sequence[Sample]) -> dict[str, list[list[int]]]:
    """Lay rows out as TRL takes them: tokens, and labels for those of answers alone."""
    return {
        "input_ids": [[*sample.prompt_ids, *sample.answer_ids] for sample in samples],
        "labels": [[*[-100] * len(sample.prompt_ids), *sample.answer_ids] for sample in samples],
    }


def _answer_of(row: Mapping[str, Any], where: str) -> str:
    found = row.get("completion", row.get("chosen"))
    if found is None and isinstance(row.get("messages"), list) and row["messages"]:
        found = row["messages"][-1:]
    if isinstance(found, list) and len(found) == 1 and isinstance(found[0], Mapping):
        found = found[0].get("content") if found[0].get("role") == "assistant" else None
    if not isinstance(found, str) or not found.strip():
        raise PairsError(
            f"{where}: expected an answer, as completion, chosen or a last message of the assistant, got none"
        )
    return found
