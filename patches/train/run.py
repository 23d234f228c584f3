"""A training run: from files to a patch, with a folder of its own that lets it go on where it stopped.

The folder holds ``checkpoint.safetensors``, ``log.jsonl`` (every step as it came, with times),
``benign.jsonl`` (what the unpatched model answers to benign prompts) and, at the end, ``report.json`` and
``report.md``.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from patches.canonical import JsonValue, canonical_json
from patches.compose import require_composable
from patches.errors import TrainingError
from patches.format import Patch, read_patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.pairs.local import LocalSampler
from patches.pairs.rows import file_digest, read_pairs
from patches.pairs.sampling import Sampling
from patches.train.baselines import baseline_of_option
from patches.train.baselines.baseline import BaselineForm
from patches.train.benign_rows import BenignData, answer_benign, load_benign, read_benign
from patches.train.checkpoint import RunState, read_checkpoint, write_checkpoint
from patches.train.config import TrainConfig
from patches.train.data import Encoder, PairSample, encode_pairs
from patches.train.export import best_validations, curves_for_manifest, make_trained_patch
from patches.train.initial import initial_values, values_of_patch
from patches.train.learned import Form, Learned
from patches.train.loop import Loop, StageWork, out_of_memory_explained
from patches.train.ranks import OneRank, Ranks
from patches.train.reference import reference_logprobs
from patches.train.schedule import sample_rows
from patches.train.soft_prefix import PrefixForm
from patches.train.stages import Benign, Dpo, Objective, Reference, Sft

CHECKPOINT = "checkpoint.safetensors"


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
    #: The patch whose values the run begins with, such as the version before; instead of a text.
    init_patch: Path | None = None
    #: The teacher: the model under this text, or another model of the same tokenizer.
    teacher_text: str | None = None
    teacher: str | None = None
    compose_with: Sequence[Path] = ()
    #: The dtype that the server will run the model in; the model's own where ``None``.
    dtype: str | None = None
    device: str = "cpu"
    revision: str | None = None


@dataclass(frozen=True)
class Watch:
    """Who is told of what happens, and who may stop it."""

    #: Gets each record of a step or a validation, and others that name an ``event``.
    tell: Callable[[Mapping[str, Any]], None] = lambda record: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class TrainResult:
    """What a run gave: a patch, or ``None`` where it was stopped before its end."""

    patch: Patch | None
    state: RunState
    counts: Mapping[str, JsonValue] = field(default_factory=dict)
    #: With ``TrainConfig.baseline``, in place of a patch: what saves the values.
    baseline: BaselineForm | None = None


def train_patch(
    inputs: TrainInputs,
    config: TrainConfig,
    *,
    is_resumed: bool = False,
    watch: Watch | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train a patch.

    Args:
        inputs: Model, data and label.
        config: How to train.
        is_resumed: Go on from the folder's checkpoint.
        watch: Who is told, and who may stop the run.
        ranks: The processes that train together.

    Raises:
        TrainingError: The run can't begin as it was asked for.
        TrainingStopped: It had to end before its time; the checkpoint is kept.
        PatchError: A file or the model can't be used.
    """
    run = _Run(inputs, config, watch or Watch(), ranks or OneRank())
    state = run.begin(is_resumed)
    while not state.is_finished:
        stage_idx = state.stage_idx
        state = run.stage(state)
        if state.stage_idx == stage_idx:
            return TrainResult(None, state, run.counts())
    if run.baseline is not None:
        return TrainResult(None, state, run.counts(), run.baseline)
    return TrainResult(run.patch(state), state, run.counts())


class _Run:
    """The parts of a run, made once."""

    def __init__(self, inputs: TrainInputs, config: TrainConfig, watch: Watch, ranks: Ranks) -> None:
        self._inputs, self._config, self._watch, self._ranks = inputs, config, watch, ranks
        rows = read_pairs(inputs.pairs)
        if config.dpo_reference == "teacher" and not (inputs.teacher_text or inputs.teacher):
            raise TrainingError("dpo_reference: teacher needs a policy text, or a model, that is the teacher")
        self._model = load_model(
            inputs.model, dtype=config.compute_dtype, device=inputs.device, revision=inputs.revision
        )
        self._encoder = Encoder(self._model.tokenizer)
        self._others = [_composable(path, self._model, config.kind) for path in inputs.compose_with]
        self._pairs = encode_pairs(self._encoder, rows, config.max_length, inputs.teacher_text)
        self._benign = self._load_benign()
        self.baseline = self._baseline_form()
        self._form: Form = self.baseline or self._prefix_form()

    def counts(self) -> dict[str, JsonValue]:
        """Count what was learned from, and what was left out and why."""
        return {
            "num_train": len(self._pairs.train),
            "num_validation": len(self._pairs.validation),
            "left_out": {k: v for k, v in self._pairs.left_out.items() if v},
            "num_benign": len(self._benign.train),
            "num_benign_validation": len(self._benign.validation),
            "num_benign_too_long": self._benign.num_too_long,
        }

    def begin(self, is_resumed: bool) -> RunState:
        """Read the checkpoint, or make the first state."""
        path, identity = self._inputs.folder / CHECKPOINT, self._identity()
        if not is_resumed:
            return RunState(identity=identity, values=self._form.start())
        state = read_checkpoint(path)
        if state.identity != identity:
            raise TrainingError(
                f"{path}: belongs to another configuration, model or data; resume with what it began with, "
                "or begin anew"
            )
        self._watch.tell({"event": "resumed", "stage_idx": state.stage_idx, "step": state.step})
        return state

    def stage(self, state: RunState) -> RunState:
        """Run the stage that the state is in."""
        name = self._config.stages[state.stage_idx]
        learned = self._form.learned(state.values)
        if state.stage_start is None:
            state = replace(state, stage_start=state.values)
        if name == "dpo" and state.reference is None:
            state = self._with_reference(state)
        self._watch.tell({"event": "stage", "stage": name, **self.counts()})
        loop = Loop(self._config, learned, self._save, self._watch.tell, self._watch.should_stop, self._ranks)
        return loop.run_stage(self._work(name, state), state)

    def patch(self, state: RunState) -> Patch:
        """Make the patch of a finished run, on the model as the server runs it."""
        served = self._model
        if self._config.compute_dtype != self._served_dtype():
            # Read anew: casting back would round what is not stored in the served dtype, such as rotations.
            del self._model
            served = load_model(
                self._inputs.model,
                dtype=self._served_dtype(),
                device=self._inputs.device,
                revision=self._inputs.revision,
            )
        label = replace(self._inputs.label, evaluation={"training": best_validations(state.curves)})
        with out_of_memory_explained():
            return make_trained_patch(served, self._config.kind, state.values, label, self._origin(state))

    def _prefix_form(self) -> PrefixForm:
        others = [_values_of(patch, self._config.kind) for patch in self._others]
        return PrefixForm(self._model.network, self._config.kind, others, self._start)

    def _start(self) -> torch.Tensor:
        if self._inputs.init_patch is not None:
            return values_of_patch(read_patch(self._inputs.init_patch), self._model, self._config)
        network, tokenizer = self._model.network, self._model.tokenizer
        return initial_values(network, tokenizer, self._config, self._inputs.init_text)

    def _baseline_form(self) -> BaselineForm | None:
        if self._config.baseline is None:
            return None
        option, size = self._config.baseline
        if self._others:
            raise TrainingError(f"{option}: an adapter can't stand beside patches; leave out compose_with")
        return baseline_of_option(option).module().form(self._model.network, size, self._config.seed)

    def _work(self, name: str, state: RunState) -> StageWork:
        network, pairs, benign = self._model.network, self._pairs, self._benign
        if name == "sft":
            objective: Objective = Sft(network, self._pairs_of("sft"))
            validation: Objective = Sft(network, pairs.validation)
        else:
            assert state.stage_start is not None
            frozen = self._form.learned(state.values).frozen(state.stage_start)
            objective, validation = (
                Dpo(network, part, self._config.beta, self._reference(reference, frozen))
                for part, reference in (
                    (self._pairs_of("dpo"), state.reference),
                    (pairs.validation, state.validation_reference),
                )
            )
        return StageWork(
            name, objective, validation, Benign(network, benign.train), Benign(network, benign.validation)
        )

    def _pairs_of(self, stage: str) -> Sequence[PairSample]:
        config, train = self._config, self._pairs.train
        rows = sample_rows(len(train), config.pairs_of(stage), f"{stage}:{config.seed}")
        return [train[row] for row in rows]

    def _reference(self, alone: torch.Tensor | None, frozen: Learned) -> Reference:
        assert alone is not None
        return Reference(
            self._model.network, self._config.dpo_reference, alone.to(frozen.values.device), frozen
        )

    def _with_reference(self, state: RunState) -> RunState:
        chosen, pairs = self._pairs_of("dpo"), self._pairs
        if self._config.dpo_reference == "none":
            train, validation = (torch.zeros(2, len(part)) for part in (chosen, pairs.validation))
            return replace(state, reference=train, validation_reference=validation)
        total = len(chosen) + len(pairs.validation)
        teacher = None
        if self._config.dpo_reference == "teacher" and self._inputs.teacher is not None:
            teacher = _same_tokenizer(
                load_model(
                    self._inputs.teacher, dtype=self._config.compute_dtype, device=self._inputs.device
                ),
                self._model,
            )
        network = self._model.network if teacher is None else teacher.network
        learned = self._form.learned(state.values) if self._config.dpo_reference == "sft" else None
        is_taught = self._config.dpo_reference == "teacher" and teacher is None

        def compute(part: Sequence[PairSample], num_before: int) -> torch.Tensor:
            def tell(num_done: int) -> None:
                self._watch.tell({"event": "reference", "done": num_before + num_done, "total": total})

            return reference_logprobs(network, learned, part, self._config.batch_size, is_taught, tell)

        with out_of_memory_explained():
            train = compute(chosen, 0)
            validation = compute(pairs.validation, len(chosen))
        return replace(state, reference=train, validation_reference=validation)

    def _save(self, state: RunState) -> None:
        write_checkpoint(state, self._inputs.folder / CHECKPOINT)

    def _load_benign(self) -> BenignData:
        path = self._inputs.benign
        if path is None:
            return BenignData()
        file = read_benign(path)
        length = self._config.benign_tokens
        sampler = LocalSampler(self._model, Sampling(num_samples=1, temperature=0, max_tokens=length))
        store = self._inputs.folder / "benign.jsonl"
        if self._ranks.index == 0:
            with out_of_memory_explained():
                answer_benign(
                    file,
                    store,
                    sampler,
                    lambda done, total: self._watch.tell({"event": "benign", "done": done, "total": total}),
                )
        self._ranks.wait()
        answers = answer_benign(file, store, sampler, lambda done, total: None)
        return load_benign(file, self._encoder, self._config, answers)

    def _served_dtype(self) -> str:
        from patches.model import own_dtype

        return self._inputs.dtype or own_dtype(_own_config(self._inputs))

    def _identity(self) -> str:
        model = vars(self._model.base_model) | {"dtype": self._served_dtype()}
        text = canonical_json({"model": {**model, "rope": dict(model["rope"])}, **self._recipe()})
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def _recipe(self) -> dict[str, JsonValue]:
        inputs = self._inputs
        data: dict[str, JsonValue] = {"pairs_digest": file_digest(inputs.pairs)}
        if inputs.benign is not None:
            data["benign_digest"] = file_digest(inputs.benign)
        recipe: dict[str, JsonValue] = {"config": self._config.as_json(), "data": data}
        for key, text in (
            ("init_text_digest", inputs.init_text),
            ("teacher_text_digest", inputs.teacher_text),
        ):
            if text is not None:
                recipe[key] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
        if inputs.init_patch is not None:
            recipe["init_patch_digest"] = read_patch(inputs.init_patch).digest
        if inputs.teacher is not None and self._config.dpo_reference == "teacher":
            from patches.fingerprint import fingerprint_model

            recipe["teacher_weights_digest"] = fingerprint_model(inputs.teacher, "float32").weights_digest
        if self._others:
            recipe["composed_with"] = [
                {"name": p.manifest.name, "version": p.manifest.version, "digest": p.digest}
                for p in self._others
            ]
        return recipe

    def _origin(self, state: RunState) -> dict[str, JsonValue]:
        recipe = self._recipe()
        recipe["data"] |= self.counts()
        return {
            "method": "trained",
            "seed": self._config.seed,
            "curves": curves_for_manifest(state.curves),
            **recipe,
        }


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


def _same_tokenizer(teacher: LoadedModel, model: LoadedModel) -> LoadedModel:
    if teacher.base_model.tokenizer_digest != model.base_model.tokenizer_digest:
        raise TrainingError("teacher: has another tokenizer, so its log-probabilities can't be compared")
    return teacher


def _own_config(inputs: TrainInputs) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(inputs.model, revision=inputs.revision, trust_remote_code=False)
