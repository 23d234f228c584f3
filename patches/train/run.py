"""A training run, stage after stage, with a folder of its own that lets it continue where it stopped.

The folder holds ``checkpoint.safetensors``, ``log.jsonl`` (every step as it came, with times),
``benign.jsonl`` (what the unpatched model answers to benign prompts) and, at the end, ``report.json`` and
``report.md``. ``inputs`` loads what a run begins with, ``identity`` says what it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from patches.canonical import JsonValue
from patches.errors import TrainingError
from patches.format import Patch
from patches.model import load_model
from patches.train.baselines.baseline import BaselineForm
from patches.train.checkpoint import RunState, read_checkpoint, write_checkpoint
from patches.train.config import TrainConfig
from patches.train.data import PairSample
from patches.train.export import best_validations, make_trained_patch
from patches.train.identity import identity_of, origin_of
from patches.train.inputs import TrainInputs, baseline_form, load_inputs, load_teacher, patch_form
from patches.train.learned import Form, Learned
from patches.train.loop import Loop, StageWork, out_of_memory_explained
from patches.train.ranks import OneRank, Ranks
from patches.train.reference import reference_logprobs
from patches.train.schedule import sample_rows
from patches.train.stages import Benign, Dpo, Objective, Reference, Sft
from patches.train.weights import WeightForm

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Watch:
    """What is told of a run's progress, and what may stop it."""

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
        is_resumed: Continue from the folder's checkpoint.
        watch: What is told of progress, and what may stop the run.
        ranks: The processes that train together.

    Raises:
        TrainingError: The run can't begin as it was asked for.
        TrainingStopped: It had to end before its time; the checkpoint is kept.
        PatchError: A file or the model can't be used.
    """
    run = _Run(inputs, config, watch or Watch(), ranks or OneRank())
    state, counts = run.begin(is_resumed), run.counts()
    while not state.is_finished:
        stage_idx = state.stage_idx
        state = run.stage(state)
        if state.stage_idx == stage_idx:
            return TrainResult(None, state, counts)
    if run.baseline is not None:
        return TrainResult(None, state, counts, run.baseline)
    return TrainResult(run.patch(state), state, counts)


class _Run:
    """The parts of a run, made once."""

    def __init__(self, inputs: TrainInputs, config: TrainConfig, watch: Watch, ranks: Ranks) -> None:
        self._inputs, self._config, self._watch, self._ranks = inputs, config, watch, ranks
        self._loaded = load_inputs(inputs, config, ranks, watch.tell)
        self.baseline = baseline_form(config, self._loaded)
        self._form: Form = self.baseline or patch_form(inputs, config, self._loaded)

    def counts(self) -> dict[str, JsonValue]:
        """Count what was learned from, and what was left out and why."""
        return self._loaded.counts()

    def begin(self, is_resumed: bool) -> RunState:
        """Read the checkpoint, or make the first state."""
        path, identity = self._checkpoint, identity_of(self._inputs, self._config, self._loaded)
        if not is_resumed:
            return RunState(identity=identity, values=self._form.start())
        state = read_checkpoint(path)
        if state.identity != identity:
            raise TrainingError(
                f"{path}: belongs to another configuration, model or data; resume with what it began with, "
                "or start over"
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
        """Make the patch of a finished run, on the model as the server runs it; this ends the run."""
        inputs, dtype = self._inputs, self._loaded.served_dtype
        origin = origin_of(inputs, self._config, self._loaded, state)
        label = replace(self._inputs.label, evaluation={"training": best_validations(state.curves)})
        if isinstance(self._form, WeightForm):
            base_model = replace(self._loaded.model.base_model, dtype=dtype)
            return self._form.patch(state.values, base_model, label, origin)
        served = self._loaded.model if self._config.compute_dtype == dtype else None
        if served is None and self._config.kind != "prompt":
            # Only embeddings are run through the model once more; the rest needs to know it by name.
            model = self._loaded.model
            served = replace(model, base_model=replace(model.base_model, dtype=dtype))
        # The model that was trained in makes room for the other one.
        del self._loaded, self._form
        if served is None:
            # Read anew: casting back would round what is not stored in the served dtype, such as rotations.
            served = load_model(inputs.model, dtype=dtype, device=inputs.device, revision=inputs.revision)
        with out_of_memory_explained():
            return make_trained_patch(served, self._config, state.values, label, origin)

    def _work(self, name: str, state: RunState) -> StageWork:
        network, pairs, benign = self._network, self._loaded.pairs, self._loaded.benign
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
        config, train = self._config, self._loaded.pairs.train
        rows = sample_rows(len(train), config.pairs_of(stage), f"{stage}:{config.seed}")
        return [train[row] for row in rows]

    def _reference(self, alone: torch.Tensor | None, frozen: Learned) -> Reference:
        assert alone is not None
        return Reference(self._network, self._config.dpo_reference, alone.to(frozen.values.device), frozen)

    def _with_reference(self, state: RunState) -> RunState:
        chosen, pairs = self._pairs_of("dpo"), self._loaded.pairs
        if self._config.dpo_reference == "none":
            train, validation = (torch.zeros(2, len(part)) for part in (chosen, pairs.validation))
            return replace(state, reference=train, validation_reference=validation)
        total = len(chosen) + len(pairs.validation)
        teacher = load_teacher(self._inputs, self._config, self._loaded.model)
        network = self._network if teacher is None else teacher.network
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
        write_checkpoint(state, self._checkpoint)

    @property
    def _checkpoint(self) -> Path:
        return self._inputs.folder / CHECKPOINT

    @property
    def _network(self) -> Any:
        return self._loaded.model.network
