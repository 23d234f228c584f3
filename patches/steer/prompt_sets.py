"""The prompts that a condition is fitted to and judged on, with what they leave in the model.

The hash of a prompt says whether it fits or tests, the same in every run and whatever else the file holds.
Plain text without a chat around it is a set of its own. States are kept in a folder, set by set, so that
another threshold reads no prompt again; they hold numbers alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from patches.errors import PairsError
from patches.model import LoadedModel
from patches.pairs.prompts import Prompt, prompt_id, split_number
from patches.steer.hidden import LAST, LAST_SIXTEEN, MEAN, Tell, pooled_states
from patches.train.benign_rows import read_benign
from patches.train.data import Encoder

#: What a condition may read, in the order of the states' second axis. At the end of a long prompt, request
#: and answer's beginning stand beside each other, where a mean over the prompt is a mean over all the rest.
POOLS = {"mean": MEAN, "last": LAST, "last-16": LAST_SIXTEEN}
#: Share of the prompts that are kept for the report.
TEST_SHARE = 0.2
#: Fewer prompts on one side can't hold a threshold.
MIN_PROMPTS = 20
#: What of a plain text is read; where a probe tells it from a chat, it does so before.
MAX_TEXT_TOKENS = 256
_KEY = "policypatch.states"


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a file, and which side they are on."""

    name: str
    #: ``positive``, ``negative``, ``hard`` (negatives that look like positives), ``text`` (negatives without
    #: a chat), ``also`` (reported alone).
    role: str
    prompts: Sequence[Prompt]
    #: Each prompt is one message of plain text, whose beginnings are prompts too.
    is_text: bool = False


@dataclass(frozen=True)
class ReadSet:
    """A set that the model has read."""

    name: str
    role: str
    #: ``[n, pools, layers, d]``.
    states: torch.Tensor
    #: ``[n]``, true for prompts that only test.
    is_test: torch.Tensor


def read_sets(path: Path, role: str) -> list[PromptSet]:
    """Read the prompts of a file, and its plain text, which no line is drawn by.

    Raises:
        PairsError: It can't be read, or has plain text where the condition is to be met.
    """
    file = read_benign(path)
    if file.documents and role == "positive":
        raise PairsError(
            f"{path}: document: expected prompts where the condition is to be met, got plain text, whose "
            "beginnings say nothing yet; give it as negative, or as a prompt"
        )
    texts = [
        Prompt(prompt_id(message), message)
        for text in file.documents
        for message in [({"role": "document", "content": text},)]
    ]
    sets = [PromptSet(path.name, role, file.prompts)] if file.prompts else []
    if texts:
        name = f"{path.name}, plain text" if sets else path.name
        sets.append(PromptSet(name, role if role == "also" else "text", texts, is_text=True))
    return sets


def require_enough(sets: Sequence[PromptSet]) -> None:
    """Check that there is enough to fit to in every set that is not reported alone.

    Raises:
        PairsError: Some hold too few; all of them are named.
    """
    small = [
        f"{one.name} ({len(one.prompts)})"
        for one in sets
        if one.role != "also" and len(one.prompts) < MIN_PROMPTS
    ]
    if small:
        raise PairsError(
            f"prompts: expected at least {MIN_PROMPTS} that differ in each file, got fewer in "
            f"{', '.join(small)}; add more, a prompt a row"
        )


def without_doubles(sets: Sequence[PromptSet]) -> tuple[list[PromptSet], int]:
    """Leave each prompt in the first set that has it; return how many were left out.

    A prompt on both sides could teach nothing, and one that fits must not be reported as unseen.
    """
    seen: set[str] = set()
    kept: list[PromptSet] = []
    num_before = sum(len(one.prompts) for one in sets)
    for one in sets:
        own = [prompt for prompt in one.prompts if prompt.id not in seen]
        seen |= {prompt.id for prompt in own}
        if own:
            kept.append(replace(one, prompts=own))
    return kept, num_before - sum(len(one.prompts) for one in kept)


def read_states(
    model: LoadedModel, one: PromptSet, layers: Sequence[int], folder: Path, tell: Tell
) -> ReadSet:
    """Have the model read a set, or take what it left there before.

    Args:
        model: The model.
        one: The prompts.
        layers: Whose output is kept.
        folder: Where states are kept.
        tell: Told of progress.

    Raises:
        TrainingError: The model has no chat template, or it refuses a prompt.
        ModelUnusable: The model's architecture can't be steered.
        OSError: The folder can't be written.
    """
    encoder = Encoder(model.tokenizer)
    key = _key_of(model, one, layers)
    path = folder / f"{key[:16]}.safetensors"
    rows, is_test = _rows(encoder, one)
    states = _kept(path, key)
    if states is None:
        states = pooled_states(model.network, rows, [*POOLS.values()], tell, layers)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        save_file({"states": states.contiguous()}, temporary, {_KEY: key})
        temporary.replace(path)
    return ReadSet(one.name, one.role, states, torch.tensor(is_test))


def _rows(encoder: Encoder, one: PromptSet) -> tuple[list[tuple[int, ...]], list[bool]]:
    """Encode a set; text is read from its beginnings of 1, 2, 4 … tokens on, each of them once."""
    if not one.is_text:
        is_test = [one.role == "also" or _is_test(prompt) for prompt in one.prompts]
        return [encoder.prompt(prompt.messages) for prompt in one.prompts], is_test
    beginnings: dict[tuple[int, ...], bool] = {}
    for prompt in one.prompts:
        ids = encoder.plain(prompt.messages[0]["content"])[:MAX_TEXT_TOKENS]
        lengths = {*(2**n for n in range(len(ids).bit_length())), len(ids)} if ids else ()
        for length in sorted(lengths):
            beginnings.setdefault(ids[:length], one.role == "also" or _is_test(prompt))
    return [*beginnings], [*beginnings.values()]


def _is_test(prompt: Prompt) -> bool:
    return split_number(f"condition:{prompt.id}") < TEST_SHARE


def _key_of(model: LoadedModel, one: PromptSet, layers: Sequence[int]) -> str:
    base, tokenizer = model.base_model, model.tokenizer
    parts = [base.weights_digest, base.tokenizer_digest, base.dtype, str(list(layers)), str([*POOLS])]
    parts.append(hashlib.sha256(str(getattr(tokenizer, "chat_template", None)).encode()).hexdigest())
    if one.is_text:
        parts.append(f"beginnings, {MAX_TEXT_TOKENS} tokens")
    return hashlib.sha256("\n".join(parts + [prompt.id for prompt in one.prompts]).encode()).hexdigest()


def _kept(path: Path, key: str) -> torch.Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_KEY) != key:
                return None
            states: torch.Tensor = file.get_tensor("states")
            return states
    except (SafetensorError, OSError):
        return None
