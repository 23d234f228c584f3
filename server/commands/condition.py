"""``policypatch condition``: a steering patch learns when to act."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patches.label import Label
from server.commands.errors import CommandError
from server.commands.output import say_lines
from server.commands.patch_arguments import (
    add_delta_argument,
    add_label_arguments,
    add_model_arguments,
    add_output_arguments,
    counted,
    load,
    note,
    patch_errors,
    read,
    save,
    unwritable,
    warn,
)
from server.commands.tables import print_tables

if TYPE_CHECKING:
    from patches.format import Patch
    from patches.model import LoadedModel
    from patches.steer.fit_condition import Options
    from patches.steer.prompt_sets import PromptSet, ReadSet

_RATE, _HARD_WEIGHT = 0.02, 2.0

DESCRIPTION = """\
Give a steering patch a condition: a linear probe of the prompt's hidden states that decides, at the last
token of the prompt, whether the vector acts. Where it is not met, the answer is the base model's own.

The probe learns to tell --positive prompts from --negative ones. Its layers, and whether it reads the mean
over the prompt or its last token, are chosen on prompts that it has not seen; so is the line, which at most
the wanted share of the negatives crosses. A fifth of the prompts takes no part in that and is reported on;
a rate needs 5 / RATE negatives, 250 for 0.02, and fewer are warned of.
Harmless prompts full of dangerous words belong into --hard-negative: they weigh more, and are reported apart.
Rows {"document": TEXT} of --negative are text without a chat, as a completion has it: it is fitted to from
its first token on, and reported apart too.

The result is a new version of the patch, whose origin names the first, and a folder
DIR/NAME-VERSION.condition with report.md, report.json and roc.svg. What the model makes of prompts is kept as
numbers in DIR/NAME.states: the same call with another rate takes seconds. --shadow counts how often it would
be met, and steers nothing."""

EPILOG = """\
prompts: as `policypatch pairs` takes them, one a row, at least 20 a file; a file of pairs does too.

examples:
  policypatch condition --patch patches/safe-0.1.0.safetensors --model models/smollm2 \\
      --positive harmful.jsonl --negative everyday.jsonl --version 0.2.0 -o patches
  policypatch condition --patch patches/safe-0.1.0.safetensors --model models/smollm2 \\
      --positive harmful.jsonl --negative everyday.jsonl --hard-negative twins.jsonl --also other.jsonl \\
      --false-positive-rate 0.01 --version 0.3.0 -o patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the patch, the prompts, the probe, the model, the label and the output."""
    parser.add_argument("--patch", metavar="FILE", type=Path, required=True, help="a steering patch")
    prompts = parser.add_argument_group("prompts")
    for role, meaning in (
        ("positive", "where the patch is to act"),
        ("negative", "where it is not"),
        ("hard-negative", "where it is not, and that look as if it were"),
        ("also", "of which only is reported how often the condition is met"),
    ):
        is_required = role in ("positive", "negative")
        prompts.add_argument(
            f"--{role}",
            metavar="FILE",
            type=Path,
            nargs="+",
            default=[],
            required=is_required,
            help=f"prompts {meaning}",
        )
    probe = parser.add_argument_group("probe")
    probe.add_argument(
        "--false-positive-rate",
        metavar="R",
        type=float,
        default=_RATE,
        help="share of the negatives that may meet it (default: %(default)s)",
    )
    probe.add_argument("--layers", metavar="L", help="layers to read, such as 9,12,15 (default: chosen)")
    probe.add_argument("--pool", choices=("mean", "last", "last-16"), help="tokens to read (default: chosen)")
    probe.add_argument(
        "--hard-weight",
        metavar="W",
        type=float,
        default=_HARD_WEIGHT,
        help="how much a hard negative weighs (default: %(default)s)",
    )
    probe.add_argument(
        "--states", metavar="DIR", type=Path, help="where states are kept (default: OUTPUT/NAME.states)"
    )
    probe.add_argument("--shadow", action="store_true", help="only count how often it is met")
    add_model_arguments(parser)
    add_delta_argument(parser)
    add_label_arguments(parser, name="that of the patch", version=None)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Fit the condition, report on it, and write the patch."""
    from patches.steer.condition_report import tables, write_report
    from patches.steer.fit_condition import fit_condition, patch_with_condition

    with patch_errors():
        patch = read(args.patch)
        label = _label(args, patch)
        folder = args.output / f"{label.name}-{label.version}.condition"
        try:
            sets = _sets(args)
            model, layers, options = _prepared(args, patch)
            kept = args.states or args.output / f"{label.name}.states"
            states = _states(model, sets, layers, kept)
            with counted("fitting probes") as tell:
                fitted = fit_condition(states, layers, options, tell)
            made = patch_with_condition(patch, fitted, label)
            paths = write_report(folder, fitted)
            if fitted.warning is not None:
                warn(fitted.warning)
            # `policypatch make` calls this as one of its steps, and has a line for each.
            if not vars(args).get("is_step"):
                print_tables(tables(fitted))
                say_lines(paths)
        except OSError as error:
            raise unwritable(folder, error) from error
        save(made, args)
    return 0


def _label(args: argparse.Namespace, patch: "Patch") -> Label:
    manifest = patch.manifest
    return Label(
        args.name or manifest.name,
        args.version,
        license=args.license or manifest.license,
        changelog=args.changelog,
        supersedes=args.supersedes,
        evaluation=manifest.evaluation,
    )


def _sets(args: argparse.Namespace) -> "list[PromptSet]":
    from patches.steer.prompt_sets import read_sets, require_enough, without_doubles

    roles = {
        "positive": args.positive,
        "negative": args.negative,
        "hard": args.hard_negative,
        "also": args.also,
    }
    paths = [path for files in roles.values() for path in files]
    if len({path.name for path in paths}) < len(paths):
        raise CommandError("prompts: expected files whose names differ, by which the report calls them")
    every = [one for role, files in roles.items() for path in files for one in read_sets(path, role)]
    require_enough(every)
    sets, num_doubles = without_doubles(every)
    if num_doubles:
        note(f"{num_doubles} prompts stand in several files; each counts in the first one only")
    return sets


def _prepared(args: argparse.Namespace, patch: "Patch") -> "tuple[LoadedModel, list[int], Options]":
    from patches.errors import CompileError
    from patches.fingerprint import require_fits
    from patches.steer.fit_condition import Options, candidate_layers
    from patches.steer.layer_list import read_layers
    from patches.steer.vector import acting_layers, require_steering

    require_steering(patch)
    num_layers = patch.manifest.base_model.num_layers
    first = min(acting_layers(patch.tensors["vector"]))
    layers = candidate_layers(first, num_layers)
    asked = None
    if args.layers is not None:
        layers = read_layers(args.layers, num_layers)
        if layers[-1] >= first:
            raise CompileError(
                f"layers: expected layers before {first}, where the vector begins, got {layers[-1]}"
            )
        asked = tuple(layers)
    options = Options(args.false_positive_rate, args.hard_weight, asked, args.pool, args.shadow)
    # As in `policypatch eval`: most CPUs take several times as long in a narrower one.
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else patch.manifest.base_model.dtype)
    model = load(args)
    require_fits(model.base_model, patch.manifest.base_model)
    return model, layers, options


def _states(
    model: "LoadedModel", sets: "Sequence[PromptSet]", layers: Sequence[int], folder: Path
) -> "list[ReadSet]":
    from patches.steer.prompt_sets import read_states

    found = []
    for one in sets:
        with counted(f"reading {one.name}") as tell:
            found.append(read_states(model, one, layers, folder, tell))
    return found
