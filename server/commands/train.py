"""``policypatch train``: preference pairs become a patch."""

import argparse
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.deltas.sides import SIDES
from patches.errors import TrainingStopped
from patches.kinds.steering import SITES
from patches.label import Label
from patches.train.baselines import BASELINES
from patches.train.config import DEFAULTS_OF, INITS, KINDS, REFERENCES, SCHEDULES, STAGES, TrainConfig
from server.commands.errors import CommandError
from server.commands.output import say
from server.commands.patch_arguments import (
    add_label_arguments,
    add_model_arguments,
    add_output_arguments,
    label_of,
    note,
    patch_errors,
    quiet_transformers,
    require_models,
    save,
)
from server.commands.text_file import read_text_file

if TYPE_CHECKING:
    from patches.train.inputs import TrainInputs
    from patches.train.ranks import Ranks
    from patches.train.run import TrainResult

_DEFAULTS = TrainConfig()

DESCRIPTION = """\
Train a patch on preference pairs: N virtual tokens in front of the frozen model, or with --kind steering a
vector for each of some layers, first by supervised fine-tuning on the chosen answers, then by direct
preference optimisation.

With --kind delta it is a weight patch (SET, arXiv 2604.08297): of the model's own weights the --share with
the largest scores of --mask learns, in a hundred steps of supervised fine-tuning; the others stay as they
are.

The run has a folder of its own, DIR/NAME-VERSION.training unless --run says otherwise, with its checkpoint,
a log of every step and a report. Ctrl-C stops after the current step; --resume continues from there and
gives the same patch as an uninterrupted run. On one machine, equal data, configuration and seed give an
equal digest."""

EPILOG = """\
Several GPUs, or machines: accelerate launch -m server train ...; each process takes its share of every step.

examples:
  policypatch train --model models/smollm2 --pairs pairs.jsonl --init-text policy.txt \\
      --name refuse --version 0.1.0 -o patches
  policypatch train --model models/smollm2 --pairs pairs.jsonl --init-text policy.txt --benign everyday.txt \\
      --benign-weight 2 --sft-epochs 5 --dpo-epochs 3 --beta 0.3 --name refuse --version 0.2.0 -o patches
  policypatch train --model models/smollm2 --pairs pairs.jsonl --init-text policy.txt \\
      --compose-with patches/tone-1.0.0.safetensors --name refuse --version 0.3.0 -o patches
  policypatch train --model models/smollm2 --pairs pairs.jsonl --init-text policy.txt \\
      --name refuse --version 0.2.0 -o patches --resume
  policypatch train --model models/smollm2 --pairs pairs.jsonl --kind steering --layers 19-29 --stages sft \\
      --sft-epochs 1 --sft-pairs 160 --sft-learning-rate 0.02 --name decline --version 0.1.0 -o patches
  policypatch train --model models/smollm2 --pairs pairs.jsonl --benign everyday.txt --kind delta \\
      --mask scores --name set-harm --version 0.1.0 -o patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the data, the configuration, the model, the label and the output."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--pairs", metavar="FILE", type=Path, required=True, help="preference pairs, in TRL's format"
    )
    data.add_argument(
        "--benign",
        metavar="FILE",
        type=Path,
        help="where the patch must change nothing: prompts (`completion` for the answer), `document` rows",
    )
    start = data.add_mutually_exclusive_group()
    start.add_argument(
        "--init-text", metavar="FILE", type=Path, help="policy text that the prefix starts from"
    )
    start.add_argument(
        "--init-patch", metavar="FILE", type=Path, help="patch to continue from, such as the previous version"
    )
    data.add_argument(
        "--compose-with",
        metavar="PATCH",
        type=Path,
        nargs="+",
        default=[],
        help="train among random subsets and orders of these patches",
    )
    _add_config_arguments(parser)
    _add_teacher_arguments(parser)
    _add_steering_arguments(parser)
    _add_delta_arguments(parser)
    add_model_arguments(parser)
    add_label_arguments(parser, name=None, version=None)
    add_output_arguments(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--run", metavar="DIR", type=Path, dest="run_folder", help="the run's folder")
    begin = run.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="continue from the run's checkpoint")
    begin.add_argument("--restart", action="store_true", help="discard the run's checkpoint and start over")


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")

    def add(name: str, meaning: str, **options: Any) -> None:
        default, told = _default_of(name)
        flag, shown = f"--{name.replace('_', '-')}", f"{meaning} ({told})" if told else meaning
        group.add_argument(flag, dest=name, default=default, help=shown, **options)

    add("kind", "learn input embeddings, the K/V of every layer, vectors, or weights", choices=KINDS)
    group.add_argument(
        "--tokens",
        metavar="N",
        type=int,
        dest="num_virtual_tokens",
        default=_DEFAULTS.num_virtual_tokens,
        help="number of virtual tokens (default: %(default)s)",
    )
    add("init", "how the prefix starts, from --init-text", choices=INITS)
    group.add_argument(
        "--stages",
        metavar="LIST",
        help="sft,dpo (the default; with --kind delta it is sft), or one of them",
    )
    add("steps", "steps of each stage, in place of epochs", type=int, metavar="S")
    for stage in STAGES:
        add(f"{stage}_epochs", f"passes over the pairs in {stage}", type=int, metavar="E")
        add(f"{stage}_learning_rate", f"highest learning rate in {stage}", type=float, metavar="R")
        add(
            f"{stage}_pairs",
            f"pairs that {stage} learns from, a sample (default: all)",
            type=int,
            metavar="P",
        )
    add("beta", "how strongly dpo is held to the reference", type=float, metavar="B")
    add("dpo_reference", "what dpo is held to", choices=REFERENCES)
    add("benign_weight", "weight of the KL divergence on --benign", type=float, metavar="W")
    add("benign_tokens", "tokens of an answer that count there", type=int, metavar="T")
    add("benign_rows", "benign rows of a step (default: as many as pairs)", type=int, metavar="R")
    add("schedule", "how the learning rate falls", choices=SCHEDULES)
    add("warmup", "share of a stage's steps in which the rate rises", type=float, metavar="R")
    add("batch_size", "pairs in one forward pass", type=int, metavar="B")
    add("accumulate", "forward passes for one step", type=int, metavar="A")
    add("max_length", "tokens of prompt and answer; longer samples are left out", type=int, metavar="T")
    add("max_grad_norm", "gradients are clipped to this norm", type=float, metavar="G")
    add("validate_every", "steps between validations (default: an epoch)", type=int, metavar="S")
    add(
        "patience",
        "end a stage after so many validations without improvement, 0 for never",
        type=int,
        metavar="P",
    )
    add("compute_dtype", "the dtype to train in", choices=("float32", "bfloat16", "float16"))
    # A group without members would break the help.
    baselines = group.add_mutually_exclusive_group() if BASELINES else group
    for baseline in BASELINES.values():
        flag = f"--{baseline.option.replace('_', '-')}"
        baselines.add_argument(flag, type=int, metavar=baseline.metavar, help=baseline.train_help)
    add("seed", "decides the order of rows, the contexts and a random start", type=int, metavar="S")


def _add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    teacher = parser.add_argument_group("teacher").add_mutually_exclusive_group()
    teacher.add_argument(
        "--teacher-text", metavar="FILE", type=Path, help="the teacher is the model under this policy text"
    )
    teacher.add_argument("--teacher", metavar="M", help="the teacher is another model of the same tokenizer")


def _default_of(name: str) -> tuple[Any, str]:
    """Return the default of an option of the configuration, and what the help says of it."""
    default = getattr(_DEFAULTS, name)
    others = [f"{own[name]} with --kind {kind}" for kind, own in DEFAULTS_OF.items() if name in own]
    values = [*([] if default is None else [str(default)]), *others]
    # What a kind has a default of its own for is left open until the kind is known.
    return (None if others else default), f"default: {', '.join(values)}" if values else ""


def _add_steering_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --kind steering")
    group.add_argument("--layers", metavar="L", help="such as 19-29 (default: the last third)")
    group.add_argument("--site", choices=SITES, help="a layer's output (the default), or its MLP's")
    group.add_argument(
        "--strength", metavar="S", type=float, help="share of a hidden state's length (default: 0.1)"
    )


def _add_delta_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --kind delta")
    group.add_argument(
        "--mask",
        metavar="DIR",
        type=Path,
        help="scores of the model's weights, made by `policypatch esi`",
    )
    group.add_argument(
        "--share", metavar="R", type=float, help="share of all weights that learns (default: 0.01)"
    )
    group.add_argument(
        "--side", choices=SIDES, help="which: of the top scores (the default), or others, to compare with"
    )


def run(args: argparse.Namespace) -> int:
    """Train the patch."""
    require_models(args)
    with patch_errors():
        label, config = label_of(args, args.name), _config(args)
        inputs = _inputs(args, label)
        _check_folder(args, inputs.folder)
        from patches.train.ranks import join_ranks

        ranks, device = join_ranks(args.device)
        inputs = type(inputs)(**{**vars(inputs), "device": device})
        try:
            result = _train(inputs, config, args.resume, ranks)
        except TrainingStopped as error:
            note(str(error))
            return 1
        if not result.state.is_finished:
            # `policypatch make` calls this as one of its steps, and says itself how to continue.
            if not vars(args).get("is_step"):
                step = result.state.step
                note(f"stopped at step {step}; the same command with --resume continues from there")
            return 130
        if ranks.index == 0:
            _finish(args, inputs, result)
    return 0


def _train(inputs: "TrainInputs", config: TrainConfig, is_resumed: bool, ranks: "Ranks") -> "TrainResult":
    from patches.train.log import StepLog
    from patches.train.run import Watch, train_patch
    from server.commands.train_progress import TrainProgress

    if ranks.index > 0:
        with _interrupts() as should_stop:
            return train_patch(
                inputs, config, is_resumed=is_resumed, watch=Watch(should_stop=should_stop), ranks=ranks
            )
    log = StepLog(inputs.folder)
    try:
        with TrainProgress() as bar, _interrupts() as should_stop, quiet_transformers():

            def tell(record: Any) -> None:
                log.tell(record)
                bar.tell(record)

            watch = Watch(tell, should_stop)
            return train_patch(inputs, config, is_resumed=is_resumed, watch=watch, ranks=ranks)
    finally:
        log.close()


def _finish(args: argparse.Namespace, inputs: "TrainInputs", result: "TrainResult") -> None:
    from patches.train.log import write_report

    if result.baseline is not None:
        say(result.baseline.save(result.state.values, args.output / f"{args.name}-{args.version}"))
        return
    assert result.patch is not None
    save(result.patch, args)
    report = write_report(inputs.folder, result.patch, result.state.curves, result.counts)
    left_out = result.counts["left_out"]
    if left_out:
        note("left out of the pairs: " + ", ".join(f"{n} {reason}" for reason, n in left_out.items()))
    say(f"{report}: what it learned from, and how far it came")


def _config(args: argparse.Namespace) -> TrainConfig:
    given = {name: getattr(args, name) for name in TrainConfig.__dataclass_fields__ if name != "baseline"}
    values = {name: value for name, value in given.items() if value is not None}
    if args.stages is not None:
        values["stages"] = tuple(args.stages.split(","))
    sizes = {baseline.option: getattr(args, baseline.option) for baseline in BASELINES.values()}
    asked = next(((option, size) for option, size in sizes.items() if size is not None), None)
    return TrainConfig.of(**values, baseline=asked)


def _inputs(args: argparse.Namespace, label: Label) -> "TrainInputs":
    from patches.train.inputs import TrainInputs

    def text_of(path: Path | None) -> str | None:
        return None if path is None else read_text_file(path)

    return TrainInputs(
        model=args.model,
        pairs=args.pairs,
        label=label,
        folder=args.run_folder or args.output / f"{args.name}-{args.version}.training",
        benign=args.benign,
        init_text=text_of(args.init_text),
        init_patch=args.init_patch,
        teacher_text=text_of(args.teacher_text),
        teacher=args.teacher,
        compose_with=tuple(args.compose_with),
        mask=args.mask,
        dtype=args.dtype,
        device=args.device,
        revision=args.revision,
    )


def _check_folder(args: argparse.Namespace, folder: Path) -> None:
    has_checkpoint = (folder / "checkpoint.safetensors").exists()
    if has_checkpoint and not (args.resume or args.restart):
        raise CommandError(f"{folder} holds a run: --resume continues it, --restart starts over")
    if args.resume and not has_checkpoint:
        raise CommandError(f"{folder} holds no checkpoint to resume from")
    if args.restart and folder.exists() and os.environ.get("RANK", "0") == "0":
        shutil.rmtree(folder)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C end the run after the step at hand, and a second one at once."""
    asked: list[int] = []

    def on_signal(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        note("stopping after this step; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
