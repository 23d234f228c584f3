"""Benign prompts: where a patch must stay silent, with the answers that the unpatched model gives.

A row may bring its answer (``completion``, text or one assistant message). Where it does not, the model
answers greedily by itself; those answers are kept in the run's folder, so that a resumed run does not ask
again. A row may also be a ``document``: plain text, with no chat around it, that the model must read as it
would without the patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from patches.errors import PairsError, TrainingError
from patches.pairs.answers import Tell, answer_greedily
from patches.pairs.prompts import Prompt, PromptFile, prompt_id, prompts_of, read_rows
from patches.pairs.sampler import Answer, Sampler
from patches.train.config import TrainConfig
from patches.train.data import Encoder, Sample, split_of

_BATCH = 16


@dataclass(frozen=True)
class BenignData:
    """Benign prompts with answers, to learn from and to be validated on."""

    train: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()
    num_too_long: int = 0
    num_empty: int = 0


@dataclass(frozen=True)
class BenignFile:
    """The rows of a file."""

    prompts: tuple[Prompt, ...]
    documents: tuple[str, ...]


def read_benign(path: Path) -> BenignFile:
    """Read benign prompts and documents.

    Raises:
        PairsError: The file can't be read, a row is neither, or none is left.
    """
    rows = read_rows(path)
    documents = [row["document"] for row in rows if isinstance(row, Mapping) and "document" in row]
    if wrong := [text for text in documents if not isinstance(text, str)]:
        raise PairsError(f"{path}: document: expected text, got {type(wrong[0]).__name__}")
    others = [row for row in rows if not (isinstance(row, Mapping) and "document" in row)]
    chats = PromptFile((), 0, 0, 0) if documents and not others else prompts_of(others, path)
    return BenignFile(chats.prompts, tuple(dict.fromkeys(text for text in documents if text.strip())))


def load_benign(
    file: BenignFile, encoder: Encoder, config: TrainConfig, answers: Mapping[str, Answer]
) -> BenignData:
    """Encode benign prompts and documents.

    Args:
        file: Prompts and documents.
        encoder: For the model.
        config: How long they may be, and how much of an answer counts.
        answers: The model's answers to the prompts that bring none, by the prompt's id.

    Raises:
        TrainingError: Nothing is left of the file.
    """
    parts: dict[str, list[Sample]] = {"train": [], "validation": []}
    num_too_long = num_empty = 0
    samples = {
        prompt.id: _answered(encoder, prompt, own_answer(prompt) or answers[prompt.id])
        for prompt in file.prompts
    } | {_document_id(text): encoder.document(text) for text in file.documents}
    for key, whole in samples.items():
        sample = replace(whole, answer_ids=whole.answer_ids[: config.benign_tokens])
        num_empty += not sample.answer_ids
        num_too_long += len(sample) > config.max_length
        if sample.answer_ids and len(sample) <= config.max_length:
            parts[split_of(key)].append(sample)
    if not parts["train"]:
        raise TrainingError(f"benign: no row is left ({num_too_long} too long, {num_empty} empty)")
    return BenignData(tuple(parts["train"]), tuple(parts["validation"]), num_too_long, num_empty)


def answer_benign(file: BenignFile, store: Path, sampler: Sampler, tell: Tell) -> dict[str, Answer]:
    """Have the unpatched model answer the prompts that bring no answer, and keep what it says.

    Args:
        file: Its prompts.
        store: Where the answers are kept.
        sampler: The unpatched model.
        tell: Told the number of answered prompts, and of all.
    """
    asked = [prompt for prompt in file.prompts if own_answer(prompt) is None]
    return answer_greedily(asked, store, sampler, _BATCH, "benign:", tell)


def own_answer(prompt: Prompt) -> Answer | None:
    """Return the answer that a row brings."""
    value = prompt.row.get("completion")
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if isinstance(value, str) and value.strip():
        return Answer(value.strip())
    return None


def _answered(encoder: Encoder, prompt: Prompt, answer: Answer) -> Sample:
    return encoder.sample(prompt.messages, answer.text, answer.is_finished)


def _document_id(text: str) -> str:
    return prompt_id([{"role": "document", "content": text}])
