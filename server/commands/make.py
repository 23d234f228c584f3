"""``policypatch make``: recipes become patches, step by step, from prompts to finished files."""

import argparse
import contextlib
import io
import shlex
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from patches.base_model import DTYPES
from patches.command_parser import CommandParser
from patches.errors import DataUnavailable, PatchError
from patches.terminal import one_line
from patches.text import lines_of
from server.commands import condition, esi, pairs, train
from server.commands.errors import CommandError
from server.commands.output import complain, say
from server.commands.patch_arguments import note, patch_errors, quiet_transformers

if TYPE_CHECKING:
    from patches.recipes.plan import Settings, Step, Variant
    from patches.recipes.run import Workshop

DESCRIPTION = """\
Make patches from recipes: read the prompts, have the model answer, choose pairs, train. A recipe is a file of
YAML: the first versions of the ready patches are in examples/recipes, the later ones, which continue them, in
examples/recipes/beside (`make patches` runs all in order). `policypatch train` says what its options do.

Everything lies under --output: a recipe's data in DIR/RECIPE, its patches in DIR/RECIPE/seed-S. Prompts and
pairs may hold harmful text: keep them to yourself. A step whose result exists is not taken again, and one
that was cut off continues where it stopped: after Ctrl-C, give the same command again. What was made from
another recipe, model or sample of rows is not overwritten; the command says so and stops.

A variant learns from the same data with some options of its own, in a folder of its own.

Exit status: 0 everything is made; 1 a step ended early, or data was unavailable; 2 a mistake in the call or
in a recipe; 130 stopped by Ctrl-C."""

EPILOG = """\
examples:
  policypatch make --model models/smollm2 examples/recipes/detox.yaml
  policypatch make --model models/smollm2 examples/recipes/detox.yaml --rows 40 -o quick-look
  policypatch make --model models/smollm2 examples/recipes/*.yaml --seed 0 1 2 --dry-run
  policypatch make --model models/smollm2 examples/recipes/debias.yaml --variant soft --set beta=0.1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipes, the model, what is made of them and where."""
    parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+", help="recipe files, in order")
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="M", required=True, help="a model folder, or a hub id")
    model.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="the dtype that the server will run the model in (default: bfloat16)",
    )
    model.add_argument("--device", metavar="D", default="cpu", help="where to compute (default: cpu)")
    scope = parser.add_argument_group("what is made")
    scope.add_argument(
        "--seed",
        metavar="S",
        type=int,
        nargs="*",
        default=[0],
        help="make every patch once with each; no seed makes the data alone (default: 0)",
    )
    scope.add_argument(
        "--rows", metavar="R", type=int, help="take R prompts of each file only, for a quick look"
    )
    scope.add_argument(
        "--variant", metavar="NAME", help="what to call a patch that is trained with --set: VERSION-NAME"
    )
    scope.add_argument(
        "--set", metavar="OPTION=VALUE", nargs="+", default=[], help="options of the training to change"
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("build/patches"),
        help="folder for everything (default: build/patches)",
    )
    out.add_argument(
        "--packages", metavar="DIR", type=Path, help="read prompts from archives in DIR; download nothing"
    )
    out.add_argument(
        "--dry-run", action="store_true", help="print the steps, and which are done; make nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Take the steps."""
    from patches.evaluate.data.packages import PackageFiles, default_cache
    from patches.fingerprint import fingerprint_model
    from patches.recipes.options import require_options
    from patches.recipes.plan import plan
    from patches.recipes.recipe import read_recipe
    from patches.recipes.run import Workshop, is_done

    with patch_errors():
        settings = _settings(args)
        files = PackageFiles(default_cache(), archives=args.packages, notify=note)
        recipes = [read_recipe(path) for path in args.recipes]
        if settings.variant is not None:
            for recipe in recipes:
                # Together, as what an option may be depends on others of the recipe.
                require_options(recipe.train | dict(settings.variant.changes), "--set")
        steps = plan(recipes, settings, files)
        weights_digest = fingerprint_model(args.model, "float32").weights_digest
        if args.dry_run:
            for number, step in enumerate(steps, 1):
                _print_step(number, len(steps), step, is_done(step, weights_digest))
            return 0
        told = _Told(len(steps))
        workshop = Workshop(_call, weights_digest, told.begin, told.end, told.skip, told.progress)
        with told, quiet_transformers():
            code = _take(steps, workshop, told)
    if code:
        note(f"stopped in step {told.current}; the same command continues from there")
    return code


def _take(steps: "Sequence[Step]", workshop: "Workshop", told: "_Told") -> int:
    from patches.recipes.run import take

    try:
        return take(steps, workshop)
    except DataUnavailable as error:
        complain(f"policypatch make: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    except (CommandError, PatchError) as error:
        # The message of a command that runs by itself; here it has to say in which step.
        raise CommandError(f"step {told.current}: {error}") from error


def _settings(args: argparse.Namespace) -> "Settings":
    from patches.recipes.plan import Settings

    if args.rows is not None and args.rows < 1:
        raise CommandError(f"--rows: expected at least 1, got {args.rows}")
    if len(set(args.seed)) < len(args.seed) or min(args.seed, default=0) < 0:
        raise CommandError(
            f"--seed: expected numbers from 0 that differ, got {' '.join(map(str, args.seed))}"
        )
    return Settings(
        model=args.model,
        output=args.output,
        seeds=args.seed,
        rows=args.rows,
        variant=_variant(args),
        dtype=args.dtype,
        device=args.device,
    )


def _variant(args: argparse.Namespace) -> "Variant | None":
    from patches.recipes.options import read_change
    from patches.recipes.plan import Variant

    if bool(args.set) != bool(args.variant):
        raise CommandError("a variant needs both: --variant for its name, --set for what it changes")
    if not args.variant:
        return None
    return Variant(args.variant, dict(map(read_change, args.set)))


def _print_step(number: int, total: int, step: "Step", is_done: bool) -> None:
    say(f"{number}/{total} {step.title}{': done already' if is_done else ''}")
    if step.words is not None:
        say(f"    policypatch {shlex.join(step.words())}")
    else:
        say("    writes " + ", ".join(map(str, step.outputs)))


def _call(words: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process, and take what it prints as the summary of the step."""
    module = {"pairs": pairs, "train": train, "condition": condition, "esi": esi}[words[0]]
    parser = CommandParser(prog=f"policypatch {words[0]}", allow_abbrev=False)
    module.add_arguments(parser)
    parser.set_defaults(is_step=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = module.run(parser.parse_args(words[1:]))
    return code, (lines_of(printed.getvalue()) or [""])[0]


class _Told:
    """What a person sees: a line for each step and, on a terminal, a bar below it; use as a context."""

    def __init__(self, num_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._num_steps = num_steps
        self._out = Console(highlight=False, soft_wrap=True)
        columns = (TextColumn("answering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._began = 0.0
        #: The step at hand.
        self.current = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_bar()

    def begin(self, number: int, step: "Step") -> None:
        """Announce a step on a terminal; elsewhere its one line comes when it is done."""
        self._began, self.current = time.monotonic(), f"{number}/{self._num_steps} {step.title}"
        if self._out.is_terminal:
            self._out.print(one_line(self.current), style="bold", markup=False)

    def end(self, number: int, step: "Step", summary: str) -> None:
        """Print how long it took, and what came of it."""
        self._stop_bar()
        lead = "    " if self._out.is_terminal else f"{self.current}: "
        took = str(timedelta(seconds=round(time.monotonic() - self._began)))
        line = f"{lead}{took}{': ' if summary else ''}{summary}"
        self._out.print(one_line(line), markup=False)

    def skip(self, number: int, step: "Step") -> None:
        """Print that a step is done already."""
        self._out.print(one_line(f"{number}/{self._num_steps} {step.title}: done already"), markup=False)

    def progress(self, done: int, total: int) -> None:
        """Draw how many prompts are answered."""
        if not self._out.is_terminal:
            return
        if not self._bar.task_ids:
            self._bar.add_task("answering")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def _stop_bar(self) -> None:
        for task_id in self._bar.task_ids:
            self._bar.stop()
            self._bar.remove_task(task_id)
