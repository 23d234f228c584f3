"""The prompts that a condition is fitted to and judged on, with what they leave in the model.

The hash of a prompt says whether it fits or tests, the same in every run and whatever else the file holds.
States are kept in a folder, set by set, so that another threshold reads no prompt again; they hold numbers
alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from patches.errors import PairsError
from patches.model import LoadedModel
from patches.pairs.prompts import Prompt, read_prompts, split_number
from patches.steer.hidden import LAST, MEAN, Tell, pooled_states
from patches.train.data import Encoder

#: In the order of the states' second axis.
POOLS = {"mean": MEAN, "last": LAST}
#: Share of the prompts that are kept for the report.
TEST_SHARE = 0.2
#: Fewer prompts on one side can't hold a threshold.
MIN_PROMPTS = 20
_KEY = "policypatch.states"


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a file, and which side they are on."""

    name: str
    #: ``positive``, ``negative``, ``hard`` (negatives that look like positives), ``also`` (reported alone).
    role: str
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class ReadSet:
    """A set that the model has read."""

    name: str
    role: str
    #: ``[n, pools, layers, d]``.
    states: torch.Tensor
    #: ``[n]``, true for prompts that only test.
    is_test: torch.Tensor


def read_set(path: Path, role: str) -> PromptSet:
    """Read the prompts of a file.

    Raises:
        PairsError: It can't be read.
    """
    return PromptSet(path.name, role, read_prompts(path).prompts)


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
            kept.append(PromptSet(one.name, one.role, own))
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
    is_test = torch.tensor([one.role == "also" or _is_test(prompt) for prompt in one.prompts])
    states = _kept(path, key)
    if states is None:
        rows = [encoder.prompt(prompt.messages) for prompt in one.prompts]
        states = pooled_states(model.network, rows, [*POOLS.values()], tell, layers)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        save_file({"states": states.contiguous()}, temporary, {_KEY: key})
        temporary.replace(path)
    return ReadSet(one.name, one.role, states, is_test)


def _is_test(prompt: Prompt) -> bool:
    return split_number(f"condition:{prompt.id}") < TEST_SHARE


def _key_of(model: LoadedModel, one: PromptSet, layers: Sequence[int]) -> str:
    base, tokenizer = model.base_model, model.tokenizer
    parts = [base.weights_digest, base.tokenizer_digest, base.dtype, str(list(layers))]
    parts.append(hashlib.sha256(str(getattr(tokenizer, "chat_template", None)).encode()).hexdigest())
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
