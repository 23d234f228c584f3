"""From preference pairs to a steering patch, without training: what the chosen answers leave in the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from patches.canonical import JsonValue
from patches.errors import PairsError
from patches.format import Patch, make_patch
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.model import LoadedModel
from patches.pairs.prompts import split_number
from patches.pairs.rows import PairRow
from patches.steer.directions import METHODS, directions, fitted
from patches.steer.hidden import Tell, pooled_states
from patches.train.data import Encoder

#: Of fewer pairs the direction is as much of their wording as of what they have in common.
MIN_PAIRS = 20


@dataclass(frozen=True)
class PairStates:
    """What both answers of each pair leave in a model."""

    #: ``[pairs, L, d]``.
    chosen: torch.Tensor
    rejected: torch.Tensor


def usable_pairs(rows: Sequence[PairRow], limit: int | None) -> list[PairRow]:
    """Return the pairs to compute from: those of the test split, and those that say nothing, are left out.

    Args:
        rows: Of the file.
        limit: Take a sample of so many, chosen by hash.

    Raises:
        PairsError: None is left.
    """
    usable = [
        row
        for row in rows
        if row.split != "test" and row.chosen.strip() and row.chosen.strip() != row.rejected.strip()
    ]
    if not usable:
        raise PairsError("pairs: none is left to compute from; all are of the test split, empty or equal")
    return sorted(usable, key=lambda row: split_number(f"steer:{row.id}"))[:limit] if limit else usable


def states_of_pairs(
    model: LoadedModel,
    rows: Sequence[PairRow],
    method: str,
    max_answer_tokens: int | None,
    tell: Tell = lambda done, total: None,
) -> PairStates:
    """Read both answers of each pair behind their prompt.

    Args:
        model: The model.
        rows: The pairs.
        method: A key of ``METHODS``; it says which tokens count.
        max_answer_tokens: Read so many tokens of each answer only.
        tell: Told of progress.

    Raises:
        TrainingError: The model has no chat template, or it refuses a prompt.
        ModelUnusable: The model's architecture can't be steered.
    """
    encoder = Encoder(model.tokenizer)
    texts = []
    for row in rows:
        for answer in (row.chosen, row.rejected):
            sample = encoder.sample(row.prompt, answer, is_finished=False)
            texts.append((*sample.prompt_ids, *sample.answer_ids[:max_answer_tokens]))
    states = pooled_states(model.network, texts, [METHODS[method].pool], tell)[:, 0]
    return PairStates(states[0::2], states[1::2])


def patch_from_states(
    model: LoadedModel,
    states: PairStates,
    method: str,
    steering: Steering,
    layers: Sequence[int] | None,
    label: Label,
    origin: Mapping[str, JsonValue],
) -> Patch:
    """Make the patch of a method.

    Args:
        model: The model.
        states: What its pairs left in it.
        method: A key of ``METHODS``.
        steering: How the vector is added.
        layers: The layers that it acts on; all where ``None``.
        label: Name, version and notes.
        origin: What else the manifest says of the pairs.

    Raises:
        CompileError: The pairs have no direction.
        PatchFormatError: The parts do not make a valid patch.
    """
    vector = fitted(
        directions(states.chosen, states.rejected, METHODS[method].direction), steering.scale, layers
    )
    facts = {
        "method": "icv",
        "icv": {"form": method, "num_pairs": len(states.chosen), "agreement": agreement(states)},
        **origin,
    }
    manifest = label.manifest(model.base_model, SteeringBody(steering), facts)
    return make_patch(manifest, {"vector": vector})


def agreement(states: PairStates) -> list[JsonValue]:
    """Return for each layer how alike the differences are: their mean's length over their mean length.

    It is 1 where all pairs agree, and near ``1 / sqrt(pairs)`` where they have nothing in common.
    """
    differences = (states.chosen - states.rejected).double()
    shares = differences.mean(0).norm(dim=1) / differences.norm(dim=2).mean(0).clamp_min(1e-30)
    return [round(float(share), 3) for share in shares]
