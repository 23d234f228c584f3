"""What a training run begins with: where it is, and the same loaded and checked.

Everything that can be wrong with files and model is found here, before the first step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from patches.canonical import JsonValue
from patches.compose import require_composable
from patches.critical.scores import Scores, read_scores, require_scores_of
from patches.critical.selection import select
from patches.deltas.sides import DEFAULT_SHARE, TOP
from patches.errors import TrainingError
from patches.format import Patch, read_patch
from patches.label import Label
from patches.model import LoadedModel, load_model, own_dtype
from patches.pairs.local import LocalSampler
from patches.pairs.rows import read_pairs
from patches.sampling import Sampling
from patches.train.baselines import baseline_of_option
from patches.train.baselines.baseline import BaselineForm
from patches.train.benign_rows import BenignData, answer_benign, load_benign, read_benign
from patches.train.config import TrainConfig
from patches.train.data import Encoder, PairData, encode_pairs
from patches.train.initial import initial_values, values_of_patch
from patches.train.learned import Form
from patches.train.loop import out_of_memory_explained
from patches.train.ranks import Ranks
from patches.train.soft_prefix import PrefixForm
from patches.train.vectors import vector_form
from patches.train.weights import WeightForm


@dataclass(frozen=True)
class TrainInputs:
    """Where a run gets what it needs; only digests of it reach the patch."""

    model: str
    pairs: Path
    label: Label
    #: The folder of the run.
    folder: Path
    benign: Path | None = None
    init_text: str | None = None
    #: The patch whose values the run begins with, such as the previous version; instead of a text.
    init_patch: Path | None = None
    #: The teacher: the model under this text, or another model of the same tokenizer.
    teacher_text: str | None = None
    teacher: str | None = None
    compose_with: Sequence[Path] = ()
    #: Scores of the model's weights, in a folder; of the kind ``delta`` alone.
    mask: Path | None = None
    #: The dtype that the server will run the model in; the model's own where ``None``.
    dtype: str | None = None
    device: str = "cpu"
    revision: str | None = None


@dataclass
class LoadedInputs:
    """What a run learns from, in memory."""

    model: LoadedModel
    #: The dtype that the server will run the model in.
    served_dtype: str
    pairs: PairData
    benign: BenignData
    #: The patches to compose with.
    others: Sequence[Patch]
    #: What decides which of the model's weights learn, if any do.
    scores: Scores | None = None

    def counts(self) -> dict[str, JsonValue]:
        """Count what is learned from, and what was left out and why."""
        return {
            "num_train": len(self.pairs.train),
            "num_validation": len(self.pairs.validation),
            "left_out": {k: v for k, v in self.pairs.left_out.items() if v},
            "num_benign": len(self.benign.train),
            "num_benign_validation": len(self.benign.validation),
            "num_benign_too_long": self.benign.num_too_long,
        }


def load_inputs(
    inputs: TrainInputs, config: TrainConfig, ranks: Ranks, tell: Callable[[Mapping[str, Any]], None]
) -> LoadedInputs:
    """Load and check what a run begins with.

    Args:
        inputs: Where it is.
        config: How to train.
        ranks: The processes that train together; one of them asks the model.
        tell: Told of each benign prompt that the model has answered.

    Raises:
        TrainingError: The run can't begin as it was asked for.
        PatchError: A file or the model can't be used.
    """
    _check_kind(inputs, config)
    rows = read_pairs(inputs.pairs)
    if config.dpo_reference == "teacher" and not (inputs.teacher_text or inputs.teacher):
        raise TrainingError("dpo_reference: teacher needs a policy text, or a model, that is the teacher")
    model = load_model(
        inputs.model, dtype=config.compute_dtype, device=inputs.device, revision=inputs.revision
    )
    encoder = Encoder(model.tokenizer)
    scores = None if inputs.mask is None else read_scores(inputs.mask)
    if scores is not None:
        require_scores_of(scores, model.base_model)
    others = [_composable(path, model, config.kind) for path in inputs.compose_with]
    pairs = encode_pairs(encoder, rows, config.max_length, inputs.teacher_text)
    benign = _load_benign(inputs, config, model, encoder, ranks, tell)
    return LoadedInputs(model, _served_dtype(inputs), pairs, benign, others, scores)


def patch_form(inputs: TrainInputs, config: TrainConfig, loaded: LoadedInputs) -> Form:
    """Prepare what a run learns: a soft prefix, vectors or weights.

    Raises:
        TrainingError: Vectors are to be continued from others, or too much of a tensor is to learn.
        PatchError: The model can't be steered, or the patch to continue from can't be read.
    """
    if config.kind == "steering":
        first = None if inputs.init_patch is None else read_patch(inputs.init_patch)
        return vector_form(loaded.model, config, first)

    if loaded.scores is not None:
        side, share = config.side or TOP, config.share or DEFAULT_SHARE
        return WeightForm(loaded.model.network, select(loaded.scores, share, side, config.seed))

    def start() -> torch.Tensor:
        if inputs.init_patch is not None:
            return values_of_patch(read_patch(inputs.init_patch), loaded.model, config)
        return initial_values(loaded.model.network, loaded.model.tokenizer, config, inputs.init_text)

    others = [_values_of(patch, config.kind) for patch in loaded.others]
    return PrefixForm(loaded.model.network, config.kind, others, start)


def baseline_form(config: TrainConfig, loaded: LoadedInputs) -> BaselineForm | None:
    """Prepare the baseline that is to be learned instead, if any.

    Raises:
        TrainingError: It can't be learned in this model, or beside patches.
    """
    if config.baseline is None:
        return None
    option, size = config.baseline
    if loaded.others:
        raise TrainingError(f"{option}: an adapter can't stand beside patches; leave out compose_with")
    return baseline_of_option(option).module().form(loaded.model.network, size, config.seed)


def load_teacher(inputs: TrainInputs, config: TrainConfig, model: LoadedModel) -> LoadedModel | None:
    """Load the model that DPO's reference is, where it is another one.

    Raises:
        TrainingError: It has another tokenizer.
    """
    if config.dpo_reference != "teacher" or inputs.teacher is None:
        return None
    teacher = load_model(inputs.teacher, dtype=config.compute_dtype, device=inputs.device)
    if teacher.base_model.tokenizer_digest != model.base_model.tokenizer_digest:
        raise TrainingError("teacher: has another tokenizer, so its log-probabilities can't be compared")
    return teacher


def _check_kind(inputs: TrainInputs, config: TrainConfig) -> None:
    """Check what of the inputs a kind has no use for, or needs."""
    if config.kind in ("steering", "delta") and inputs.compose_with:
        raise TrainingError(
            "compose_with: vectors and weights are the same beside every prefix; leave it out"
        )
    if (config.kind == "delta" and config.baseline is None) != (inputs.mask is not None):
        raise TrainingError("mask: expected scores with the kind delta, and only with it")
    if config.kind == "delta" and inputs.init_patch is not None:
        raise TrainingError("init_patch: weights begin as they are in the model; leave it out")


def _load_benign(
    inputs: TrainInputs,
    config: TrainConfig,
    model: LoadedModel,
    encoder: Encoder,
    ranks: Ranks,
    tell: Callable[[Mapping[str, Any]], None],
) -> BenignData:
    if inputs.benign is None:
        return BenignData()
    file = read_benign(inputs.benign)
    sampler = LocalSampler(model, Sampling(max_tokens=config.benign_tokens))
    store = inputs.folder / "benign.jsonl"
    if ranks.index == 0:
        with out_of_memory_explained():
            answer_benign(
                file,
                store,
                sampler,
                lambda done, total: tell({"event": "benign", "done": done, "total": total}),
            )
    ranks.wait()
    answers = answer_benign(file, store, sampler, lambda done, total: None)
    return load_benign(file, encoder, config, answers)


def _composable(path: Path, model: LoadedModel, kind: str) -> Patch:
    patch = read_patch(path)
    # The dtype that it is served in does not matter here.
    same_dtype = replace(patch.manifest.base_model, dtype=model.base_model.dtype)
    require_composable(replace(patch, manifest=replace(patch.manifest, base_model=same_dtype)), model)
    try:
        _values_of(patch, kind)
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from None
    return patch


def _values_of(patch: Patch, kind: str) -> torch.Tensor:
    values = patch.embeddings if kind == "prompt" else patch.kv
    if values is None:
        part, other = ("embeddings", "prefix") if kind == "prompt" else ("K/V", "prompt")
        raise TrainingError(f"has no {part} to stand beside; choose kind {other}, or leave it out")
    return values


def _served_dtype(inputs: TrainInputs) -> str:
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(inputs.model, revision=inputs.revision, trust_remote_code=False)
    return inputs.dtype or own_dtype(own)
