"""``policypatch steer``: preference pairs become a steering patch, without training."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patches.kinds.steering import SCALES, SITES, TOKENS
from server import __version__
from server.commands.errors import CommandError
from server.commands.eval_progress import EvalProgress, print_figures
from server.commands.output import say, say_lines
from server.commands.patch_arguments import (
    add_delta_argument,
    add_label_arguments,
    add_model_arguments,
    add_output_arguments,
    counted,
    label_of,
    load,
    note,
    patch_errors,
    save,
    unwritable,
    warn,
)

if TYPE_CHECKING:
    from patches.format import Patch
    from patches.kinds.steering import Steering
    from patches.model import LoadedModel

METHODS = ("mean", "pc1", "paper", "authors")
_SUITES, _LIMIT = "harm,overrefusal", 40

DESCRIPTION = """\
Make a steering patch from preference pairs, without training: for each layer the direction from what the
rejected answers leave in the model to what the chosen ones leave. Thirty pairs are enough.

methods: `mean`, the mean difference at the last token; `pc1`, the first principal direction of the
differences, which hardly differs; both on the last third of the layers, by 0.02 of a state's length. `paper`,
Safety Arithmetic as written (arXiv 2406.11801): absolute, 0.12, one direction over all layers; `authors`, its
code: the last four tokens, at the MLP of all layers, relative, 0.012. --layers, --site, --scale, --strength
and the others change that.

How much a model bears has to be measured: under too much it repeats words and loses the question. A vector
alone moves harmless requests as much as harmful ones. --strengths tries several on the suites of `policypatch
eval` and keeps the one with the least harm done and harmless requests declined together; what lets harmless
requests alone is a condition: `policypatch condition`."""

EPILOG = """\
examples:
  policypatch steer --model models/smollm2 --pairs pairs.jsonl --name safe --version 0.1.0 -o patches
  policypatch steer --model models/smollm2 --pairs pairs.jsonl --layers 19-29 --tokens answer \\
      --strength 0.03 --name safe --version 0.2.0 -o patches
  policypatch steer --model models/smollm2 --pairs pairs.jsonl --strengths 0.01,0.02,0.04 \\
      --suite harm,overrefusal --limit 40 --name safe --version 0.3.0 -o patches
  policypatch steer --model models/smollm2 --pairs pairs.jsonl --method paper \\
      --name icv --version 1.0.0 -o patches"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the pairs, the form, the sweep, the model, the label and the output."""
    data = parser.add_argument_group("pairs")
    data.add_argument(
        "--pairs", metavar="FILE", type=Path, required=True, help="preference pairs, in TRL's format"
    )
    data.add_argument("--num-pairs", metavar="N", type=int, help="take a sample of N pairs (default: all)")
    data.add_argument(
        "--answer-tokens", metavar="T", type=int, help="read T tokens of each answer (default: all)"
    )
    add_form_arguments(parser)
    sweep = parser.add_argument_group("several strengths")
    sweep.add_argument("--strengths", metavar="LIST", help="try each of them, such as 0.01,0.02,0.04")
    sweep.add_argument(
        "--suite", metavar="S", default=_SUITES, help="suites of `policypatch eval` (default: %(default)s)"
    )
    sweep.add_argument(
        "--limit", metavar="N", type=int, default=_LIMIT, help="prompts for each task (default: %(default)s)"
    )
    sweep.add_argument("--batch-size", metavar="N", type=int, default=8, help="prompts at once (default: 8)")
    sweep.add_argument(
        "--packages", metavar="DIR", type=Path, help="read prompts from archives in DIR; download nothing"
    )
    add_model_arguments(parser)
    add_delta_argument(parser)
    add_label_arguments(parser, name=None, version=None)
    add_output_arguments(parser)


def add_form_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the method, and how the vector is added."""
    form = parser.add_argument_group("vector")
    form.add_argument("--method", choices=METHODS, default="mean", help="see above (default: mean)")
    form.add_argument("--layers", metavar="L", help="such as 19-29, 0,4,8 or all (default: the last third)")
    form.add_argument("--site", choices=SITES, help="where it is added: a layer's output, or its MLP's")
    form.add_argument("--scale", choices=SCALES, help="relative: strength is a share of a state's length")
    form.add_argument("--strength", metavar="S", type=float, help="how much is added (default: the method's)")
    form.add_argument("--opposed-gain", metavar="G", type=float, help="more for states that point away")
    form.add_argument(
        "--no-renormalise", action="store_false", dest="renormalise", default=None, help="let states grow"
    )
    form.add_argument("--tokens", choices=TOKENS, help="all, or the answer's alone (default: all)")


def run(args: argparse.Namespace) -> int:
    """Make the patch."""
    with patch_errors():
        for name in ("num_pairs", "answer_tokens", "limit", "batch_size"):
            if (value := getattr(args, name)) is not None and value < 1:
                raise CommandError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
        if args.strengths and args.strength is not None:
            raise CommandError("--strengths: expected it, or --strength, got both")
        patch, model = _made(args)
        if args.strengths:
            patch = _strongest(args, patch, model)
        save(patch, args)
    return 0


def _made(args: argparse.Namespace) -> "tuple[Patch, LoadedModel]":
    from patches.pairs.rows import file_digest, read_pairs
    from patches.steer.directions import METHODS as FORMS
    from patches.steer.from_pairs import MIN_PAIRS, patch_from_states, states_of_pairs, usable_pairs
    from patches.steer.layer_list import ALL, last_third, read_layers, written_layers

    label, rows = label_of(args, args.name), usable_pairs(read_pairs(args.pairs), args.num_pairs)
    if len(rows) < MIN_PAIRS:
        warn(
            f"pairs: expected at least {MIN_PAIRS}, got {len(rows)}; the direction is as much of their "
            "wording as of what they have in common, so take more, thirty for example"
        )
    steering = _steering(args)
    model = load(args)
    num_layers, asked = model.base_model.num_layers, args.layers
    if asked is None and FORMS[args.method].is_for_all_layers:
        asked = ALL
    layers = last_third(num_layers) if asked is None else read_layers(asked, num_layers)
    with counted("reading pairs") as tell:
        states = states_of_pairs(model, rows, args.method, args.answer_tokens, tell)
    origin = {
        "layers": written_layers(layers),
        "answer_tokens": args.answer_tokens,
        "pairs_digest": file_digest(args.pairs),
    }
    made = patch_from_states(model, states, args.method, steering, layers, label, origin)
    return made, model


def _steering(args: argparse.Namespace) -> "Steering":
    from patches.steer.directions import METHODS as FORMS
    from patches.steer.directions import form_of

    names = ("site", "scale", "strength", "opposed_gain", "renormalise", "tokens")
    return form_of(FORMS[args.method], **{name: getattr(args, name) for name in names})


def _strongest(args: argparse.Namespace, patch: "Patch", model: "LoadedModel") -> "Patch":
    """Measure every strength, report, and return the patch of the best one."""
    from patches.evaluate.arms import BASE, Arm
    from patches.evaluate.data.packages import PackageFiles, default_cache
    from patches.evaluate.report.pages import write_reports
    from patches.evaluate.run import RunOptions
    from patches.evaluate.session import evaluate, load_tasks, offline_subjects
    from patches.steer import sweep

    tasks = load_tasks(args.suite.split(","))
    sweep.require_both_kinds(tasks)
    arms = sweep.strength_arms(patch, sweep.read_strengths(args.strengths))
    subjects = offline_subjects(model, [Arm(BASE, BASE), *arms.values()], batch_size=args.batch_size)
    files = PackageFiles(default_cache(), archives=args.packages, notify=note)
    folder = args.output / f"{args.name}-{args.version}.sweep"
    options = RunOptions(limit=args.limit, chunk_size=args.batch_size)
    try:
        with EvalProgress() as bar:
            setup = {"policypatch": __version__, "pairs": patch.manifest.origin["pairs_digest"]}
            summary = evaluate(
                subjects,
                tasks,
                files,
                options,
                folder,
                setup,
                overwrite=args.force,
                start=bar.start,
                advance=bar.advance,
            )
        print_figures(summary)
        say_lines(write_reports(folder, summary))
    except OSError as error:
        raise unwritable(folder, error) from error
    figures = sweep.compared(summary, arms)
    chosen = sweep.best(figures)
    say(
        f"strength {chosen.strength:g}: harm complied with {chosen.compliance:.1%}, harmless declined "
        f"{chosen.refusal:.1%}, the least of both together"
    )
    vector = arms[chosen.strength].vector
    assert vector is not None
    return sweep.with_figures(vector, figures)
