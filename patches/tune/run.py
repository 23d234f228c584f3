"""Tunes a model with TRL's trainer and writes its folder.

The folder is the base's with other weights, in the dtype that the base has: configuration, tokenizer and chat
template are copied as they are. ``tune.json`` beside them says how it was made.
"""

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patches.canonical import JsonValue
from patches.critical.gradient import linear_parameters
from patches.critical.protect import Protection, protect
from patches.critical.scores import Scores, read_scores, require_scores_of
from patches.durable import write_json_atomically
from patches.errors import PatchExists, TrainingError, TrainingStopped
from patches.model import LoadedModel, load_model, own_dtype
from patches.model_files import model_folder
from patches.pairs.rows import file_digest
from patches.train.data import Encoder
from patches.train.loop import out_of_memory_explained
from patches.tune.config import TuneConfig
from patches.tune.rows import TuneRows, columns_of, read_tune_rows

RECORD = "tune.json"
#: What holds weights, as globs.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.index.json")

#: Told how many of how many steps are done, and the loss.
Tell = Callable[[int, int, float | None], None]


@dataclass(frozen=True)
class TuneInputs:
    """Where a run gets what it needs."""

    model: str
    data: Path
    output: Path
    #: Scores of the model's weights: the critical ones are held.
    protect: Path | None = None
    device: str = "cpu"
    revision: str | None = None


@dataclass(frozen=True)
class TuneResult:
    """What a run came to."""

    rows: TuneRows
    num_steps: int
    #: How many weights were held.
    num_held: int
    first_loss: float
    last_loss: float


def tune_model(
    inputs: TuneInputs, config: TuneConfig, *, overwrite: bool = False, tell: Tell = lambda *told: None
) -> TuneResult:
    """Tune a model.

    Raises:
        TrainingError: The run can't begin as it was asked for.
        TrainingStopped: Memory did not suffice, or a loss is not finite; nothing was written.
        ScoresError: The scores are not this model's.
        PatchExists: The folder holds something already.
        PatchError: A file or the model can't be used.
        OSError: The folder can't be written.
    """
    if inputs.output.exists() and any(inputs.output.iterdir()) and not overwrite:
        raise PatchExists(f"{inputs.output}: holds something already")
    model = load_model(inputs.model, dtype="float32", device=inputs.device, revision=inputs.revision)
    scores = None if inputs.protect is None else read_scores(inputs.protect)
    if scores is not None:
        require_scores_of(scores, model.base_model)
    rows = read_tune_rows(inputs.data, Encoder(model.tokenizer), config.max_length)
    _choose_weights(model, config)
    trainer, protections = _trainer(model, rows, config, scores, inputs.device, tell)
    with out_of_memory_explained(more=""):
        trainer.train()
    if changed := [name for one in protections for name in one.changed()]:
        raise TrainingStopped(f"protect: expected held weights as they were, got others in {changed[0]}")
    curve = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    _require_finite(curve)
    _write(model, inputs, config, scores, rows, curve)
    num_held = sum(one.num_held for one in protections)
    return TuneResult(rows, trainer.state.global_step, num_held, curve[0], curve[-1])


def _choose_weights(model: LoadedModel, config: TuneConfig) -> None:
    model.network.train()
    model.network.requires_grad_(config.weights == "all")
    if config.weights == "linear":
        for weight in linear_parameters(model.network).values():
            weight.requires_grad_(True)


def _trainer(
    model: LoadedModel, rows: TuneRows, config: TuneConfig, scores: Scores | None, device: str, tell: Tell
) -> tuple[Any, list[Protection]]:
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer
    except ImportError as error:
        raise TrainingError("TRL is not installed; install policypatch[tune]") from error
    protections: list[Protection] = []

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
            optimizer = super().create_optimizer(*arguments, **options)
            if scores is not None and not protections:
                protections.append(protect(optimizer, model.network, scores, config.share))
            return optimizer

    class Told(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            tell(state.global_step, state.max_steps, (logs or {}).get("loss"))

    arguments = SFTConfig(
        # Nothing is written there: no checkpoint is kept, and nothing is reported anywhere.
        output_dir=tempfile.gettempdir(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        # A loss that is not finite shall be seen.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        max_length=None,
        num_train_epochs=config.epochs,
        max_steps=config.steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=False,
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model.network,
        arguments,
        train_dataset=Dataset.from_dict(columns_of(rows.samples)),
        processing_class=model.tokenizer,
        callbacks=[Told()],
    )
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    return trainer, protections


def _write(
    model: LoadedModel,
    inputs: TuneInputs,
    config: TuneConfig,
    scores: Scores | None,
    rows: TuneRows,
    curve: list[float],
) -> None:
    network, base = model.network, model_folder(inputs.model, inputs.revision)
    inputs.output.mkdir(parents=True, exist_ok=True)
    dtype = config.dtype or own_dtype(_config_of(base))
    network.requires_grad_(False).to(getattr(torch, dtype))
    network.save_pretrained(inputs.output)
    # After it, as it writes a configuration of its own.
    shutil.copytree(base, inputs.output, ignore=shutil.ignore_patterns(*_WEIGHTS), dirs_exist_ok=True)
    data: dict[str, JsonValue] = {
        "digest": file_digest(inputs.data),
        "num_rows": len(rows.samples),
        "num_too_long": rows.num_too_long,
        "num_other_split": rows.num_other_split,
    }
    document: dict[str, JsonValue] = {
        "base_weights_digest": model.base_model.weights_digest,
        "config": config.as_json(),
        "data": data,
        "loss": [round(value, 6) for value in curve],
    }
    if scores is not None:
        document["scores_digest"] = scores.digest
    write_json_atomically(inputs.output / RECORD, document)


def _config_of(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _require_finite(curve: list[float]) -> None:
    bad = [step for step, loss in enumerate(curve, start=1) if not math.isfinite(loss)]
    if bad:
        raise TrainingStopped(
            f"step {bad[0]}: the loss is not finite; nothing was written: start over with a lower rate "
            "(--learning-rate)"
        )
