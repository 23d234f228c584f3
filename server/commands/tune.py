"""``policypatch tune``: instruction tuning of a whole model, its critical weights held."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.base_model import DTYPES
from patches.errors import TrainingStopped
from patches.train.config import SCHEDULES
from patches.tune.config import WEIGHTS, TuneConfig
from server.commands.output import say
from server.commands.patch_arguments import (
    add_output_arguments,
    note,
    patch_errors,
    require_models,
    write_errors,
)

if TYPE_CHECKING:
    from patches.tune.run import TuneResult

_DEFAULTS = TuneConfig()

DESCRIPTION = """\
Tune a whole model on answered prompts, by TRL's SFTTrainer. With --protect the weights that its safety hangs
on are held while all others learn (SPA, arXiv 2604.08297): the --share with the largest scores, as
`policypatch esi` made them of this very model, stay what they are to the last bit.

The result is a model folder: the base's, with other weights. Of it and the base `policypatch delta` makes a
weight patch; with --weights linear only weights learn that a weight patch can hold, and --dtype float32 keeps
steps that bfloat16 would round away.

Full tuning, in float32: memory is four times that of the weights, and activations. There are no checkpoints
and no LoRA, which adds to every weight of a layer, so that none could be held. In a trainer of your own,
patches.critical.protect.protect(optimizer, model, "scores") does the same to any optimizer."""

EPILOG = """\
data: rows of JSON with `prompt` and `completion`, or `messages` that end with an assistant's; a file of pairs
does, too, of which the chosen answers are learned.

examples:
  policypatch tune --model models/base --data sums.jsonl -o models/base-sums
  policypatch tune --model models/base --data sums.jsonl --protect scores --steps 1000 -o models/base-sums
  policypatch tune --model models/base --data lists.jsonl --weights linear --dtype float32 \\
      -o models/base-lists"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the data, the configuration and the output."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=True, help="a model folder, or a hub id")
    group.add_argument("--revision", metavar="R", help="the revision of a hub model")
    group.add_argument("--device", metavar="D", default="cpu", help="where to compute (default: cpu)")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="FILE", type=Path, required=True, help="answered prompts; see below")
    data.add_argument(
        "--protect", metavar="DIR", type=Path, help="scores of the model, whose critical weights are held"
    )
    training = parser.add_argument_group("training")

    def add(name: str, meaning: str, **options: Any) -> None:
        default = getattr(_DEFAULTS, name)
        shown = meaning if default is None else f"{meaning} (default: {default})"
        flag = f"--{name.replace('_', '-')}"
        training.add_argument(flag, dest=name, default=default, help=shown, **options)

    add("share", "share of all weights that --protect holds", type=float, metavar="R")
    add("weights", "which weights learn", choices=WEIGHTS)
    add("epochs", "passes over the rows", type=int, metavar="E")
    add("steps", "steps, in place of epochs", type=int, metavar="S")
    add("learning_rate", "highest learning rate", type=float, metavar="R")
    add("schedule", "how the learning rate falls", choices=SCHEDULES)
    add("warmup", "share of the steps in which the rate rises", type=float, metavar="R")
    add("weight_decay", "AdamW's", type=float, metavar="W")
    add("batch_size", "rows in one forward pass", type=int, metavar="B")
    add("accumulate", "forward passes for one step", type=int, metavar="A")
    add("max_length", "tokens of prompt and answer; longer rows are left out", type=int, metavar="T")
    add("max_grad_norm", "gradients are clipped to this norm", type=float, metavar="G")
    add("seed", "decides the order of rows", type=int, metavar="S")
    add("dtype", "of the folder's weights (default: the base's)", choices=DTYPES)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Tune the model."""
    require_models(args)
    with patch_errors():
        config = TuneConfig(**{name: getattr(args, name) for name in TuneConfig.__dataclass_fields__})
        try:
            result = _tuned(args, config)
        except TrainingStopped as error:
            note(str(error))
            return 1
    rows = result.rows
    if rows.num_too_long or rows.num_other_split:
        note(f"left out: {rows.num_too_long} too long, {rows.num_other_split} of validation and test")
    held = f", {result.num_held} weights held" if args.protect is not None else ""
    say(
        f"{args.output}: {len(rows.samples)} rows, {result.num_steps} steps{held}, loss "
        f"{result.first_loss:.3f} to {result.last_loss:.3f}"
    )
    return 0


def _tuned(args: argparse.Namespace, config: TuneConfig) -> "TuneResult":
    from patches.tune.run import TuneInputs, tune_model
    from server.commands.patch_arguments import counted

    inputs = TuneInputs(args.model, args.data, args.output, args.protect, args.device, args.revision)
    with write_errors(args.output), counted("tuning") as tell:
        return tune_model(
            inputs, config, overwrite=args.force, tell=lambda done, total, loss: tell(done, total)
        )
