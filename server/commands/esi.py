"""``policypatch esi``: prompts become scores of a model's weights: which of them safety hangs on."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.deltas.sides import DEFAULT_SHARE, MAX_SHARE
from server import __version__
from server.commands.errors import CommandError
from server.commands.output import say, say_lines
from server.commands.patch_arguments import (
    add_output_arguments,
    counted,
    note,
    patch_errors,
    progress,
    require_models,
    unwritable,
    warn,
    write_errors,
)
from server.commands.tables import print_tables

if TYPE_CHECKING:
    from patches.critical.report import NoiseTest
    from patches.critical.scorer import Questions, Scorer
    from patches.critical.scores import Scores
    from patches.model import LoadedModel

_SCORER, _NOISE_SEEDS, _FEW = "refusal-margin", 3, 30

DESCRIPTION = """\
Find the weights that a model's safety hangs on: ESI (arXiv 2604.08297). The score of a weight is
sigma |dS/dtheta|: how much S, a number that says how safely the model answers, would change if the weight
moved as far as weights of its tensor typically do. The --share of all weights with the largest scores is
critical.

S is the model's own refusal margin, unless --scorer names another: how much likelier refusing openings are
than complying ones, on harmful prompts, less the same on --benign ones. Without benign prompts the weights
are found that refuse always. A package brings a scorer of its own, a guard model for example, as an entry
point of the group policypatch.safety_scorers.

The folder gets the scores, a safetensors file for each layer, and report.md with the share of critical
weights by layer and module, as table and heat map. `policypatch train --kind delta --mask` learns these
weights alone, `policypatch tune --protect` all others. With --noise, S is computed again with noise on the
critical weights, on as many of the lowest scores, and on as many at random: the paper's test.

Weights of linear layers in the decoder layers count. Memory is that of the model and one gradient."""

EPILOG = """\
prompts: as `policypatch pairs` takes them; a hundred of each kind are enough for the picture.

examples:
  policypatch esi --model models/smollm2 --prompts harmful.jsonl --benign everyday.txt -o scores
  policypatch esi --model models/smollm2 --prompts harmful.jsonl --benign everyday.txt --num-prompts 150 \\
      --noise 0.38 -o scores
  policypatch esi --model models/smollm2 --prompts harmful.jsonl --scorer my-guard -o scores"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the prompts, the score, the noise, the model and the output."""
    data = parser.add_argument_group("prompts")
    data.add_argument(
        "--prompts", metavar="FILE", type=Path, required=True, help="what the model should decline"
    )
    data.add_argument("--benign", metavar="FILE", type=Path, help="what it should answer")
    data.add_argument("--num-prompts", metavar="N", type=int, help="take the first N of each (default: all)")
    score = parser.add_argument_group("score")
    score.add_argument("--scorer", metavar="NAME", default=_SCORER, help="S (default: %(default)s)")
    score.add_argument(
        "--share",
        metavar="R",
        type=float,
        default=DEFAULT_SHARE,
        help="share of all weights that counts as critical in the report (default: %(default)s)",
    )
    test = parser.add_argument_group("test by noise")
    test.add_argument(
        "--noise", metavar="X", type=float, help="standard deviations of a weight's tensor; the paper: 0.38"
    )
    test.add_argument(
        "--noise-seeds", metavar="N", type=int, default=_NOISE_SEEDS, help="times each (default: %(default)s)"
    )
    test.add_argument(
        "--noise-prompts", metavar="FILE", type=Path, help="other harmful prompts to test on (default: those)"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=True, help="a model folder, or a hub id")
    group.add_argument("--revision", metavar="R", help="the revision of a hub model")
    group.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="the dtype to compute and add gradients in (default: %(default)s)",
    )
    group.add_argument("--device", metavar="D", default="cpu", help="where to compute (default: cpu)")
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Compute, write and report the scores."""
    _check(args)
    require_models(args)
    from patches.critical.report import BY_LAYER, tables, write_report
    from patches.critical.selection import select
    from patches.critical.shares import shares_of

    with patch_errors():
        questions = _questions(args, args.prompts)
        others = None if args.noise_prompts is None else _questions(args, args.noise_prompts)
        model = _loaded(args)
        scores = _scores(args, model, questions)
        shares = shares_of(select(scores, args.share))
        noise = None if args.noise is None else _noise(args, model, scores, others or questions)
        try:
            paths = write_report(args.output, scores, shares, noise)
        except OSError as error:
            raise unwritable(args.output, error) from error
        # `policypatch make` calls this as one of its steps, and has a line for each.
        if not vars(args).get("is_step"):
            print_tables([table for table in tables(shares, noise) if table.title != BY_LAYER])
            say_lines(paths)
        say(f"{args.output}: scores of {scores.num_weights} weights, {scores.digest}")
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("num_prompts", "noise_seeds"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise CommandError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if not 0 < args.share <= MAX_SHARE:
        raise CommandError(f"--share: expected more than 0, at most {MAX_SHARE:g}, got {args.share:g}")
    if args.noise is None and args.noise_prompts is not None:
        raise CommandError("--noise-prompts: expected --noise beside it, got none")


def _questions(args: argparse.Namespace, harmful: Path) -> "Questions":
    from patches.critical.scorer import Questions
    from patches.pairs.prompts import read_prompts
    from patches.train.benign_rows import read_benign

    declined = read_prompts(harmful).prompts[: args.num_prompts]
    # A file of benign rows for training may hold documents beside its prompts.
    answered = () if args.benign is None else read_benign(args.benign).prompts[: args.num_prompts]
    if not answered:
        note("without --benign, the weights are found that refuse whatever is asked")
    if len(declined) < _FEW:
        warn(f"prompts: expected at least {_FEW}, got {len(declined)}; scores are those of their wording")
    return Questions([prompt.messages for prompt in declined], [prompt.messages for prompt in answered])


def _loaded(args: argparse.Namespace) -> "LoadedModel":
    from patches.model import load_model

    with progress(f"loading {args.model}"):
        return load_model(args.model, dtype=args.compute_dtype, device=args.device, revision=args.revision)


def _scores(args: argparse.Namespace, model: "LoadedModel", questions: "Questions") -> "Scores":
    from patches.critical.gradient import gradient_of, linear_parameters
    from patches.critical.scorers import make_scorer
    from patches.critical.scores import MANIFEST, read_scores, require_scores_of, write_scores
    from patches.pairs.rows import file_digest

    scorer = make_scorer(args.scorer, model, questions)
    origin: dict[str, Any] = {
        "method": "esi",
        "policypatch": __version__,
        "scorer": dict(scorer.setup()),
        "prompts_digest": file_digest(args.prompts),
        "num_prompts": len(questions.harmful),
    }
    if args.benign is not None:
        origin |= {"benign_digest": file_digest(args.benign), "num_benign": len(questions.benign)}
    if (args.output / MANIFEST).exists() and not args.force:
        found = read_scores(args.output)
        require_scores_of(found, model.base_model)
        if found.origin != origin:
            raise CommandError(f"{args.output}: holds scores of other prompts, or of another S (--force)")
        note(f"{args.output}: holds these scores already; they are reported anew")
        return found
    with counted("adding up the gradient") as tell:
        gradient = gradient_of(model.network, scorer, tell)
    with write_errors(args.output), counted("writing scores") as tell:
        return write_scores(
            args.output,
            model.base_model,
            gradient,
            linear_parameters(model.network),
            origin,
            overwrite=args.force,
            tell=tell,
        )


def _noise(
    args: argparse.Namespace, model: "LoadedModel", scores: "Scores", questions: "Questions"
) -> "NoiseTest":
    from patches.critical.noise_test import noise_test
    from patches.critical.scorers import make_scorer

    scorer: Scorer = make_scorer(args.scorer, model, questions)
    with counted("testing by noise") as tell:
        return noise_test(model, scores, scorer, args.share, args.noise, args.noise_seeds, tell)
