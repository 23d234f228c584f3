"""From recipes to steps: what has to be made, out of what, in which order.

A step is a call of ``policypatch`` or a piece of work of ``data``. Everything lies under one folder: a
recipe's data in the folder of the first recipe of its chain, its patches in ``RECIPE/seed-S``, those of a
variant in ``RECIPE/VARIANT-seed-S``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from patches.canonical import JsonValue
from patches.critical.scores import MANIFEST as SCORES_FILE
from patches.errors import RecipeInvalid
from patches.evaluate.data.packages import PackageFiles
from patches.format import SUFFIX
from patches.pairs.answers import Tell
from patches.recipes import data
from patches.recipes.options import INIT_PATCH, Option
from patches.recipes.recipe import MADE, PATHS, Conditioning, Critical, Recipe, Source
from patches.recipes.sets import require_known
from patches.train.baselines import BASELINES
from patches.train.run import CHECKPOINT

#: The folder of the scores of weights.
_SCORES = "scores"
#: Keys of a source that came after the first recipes.
_LATER = ("templates_in", "jailbreaks")


@dataclass(frozen=True)
class Variant:
    """Other options of a training, tried from the same data."""

    name: str
    changes: Mapping[str, Option]


@dataclass(frozen=True)
class Settings:
    """What the caller decides, beside the recipes."""

    model: str
    output: Path
    #: Each makes every patch once; none makes the data alone.
    seeds: Sequence[int] = (0,)
    #: So many prompts of each file only.
    rows: int | None = None
    variant: Variant | None = None
    #: The dtype that the server will run the model in.
    dtype: str = "bfloat16"
    device: str = "cpu"


@dataclass(frozen=True)
class Step:
    """One thing to make."""

    title: str
    #: The step's name in its folder, for the record of what it was made from.
    name: str
    outputs: tuple[Path, ...]
    #: The files that it is made from, by their names in the record.
    needs: Mapping[str, Path]
    #: What else decides the result.
    setup: Mapping[str, JsonValue]
    #: The arguments of `policypatch`, asked for when the step begins; or, in their place, ``work``.
    words: Callable[[], list[str]] | None = None
    #: Makes the outputs and returns a line about them.
    work: Callable[[Tell], str] = lambda tell: ""
    #: What it asks the base model for decides the result.
    asks_model: bool = True

    @property
    def folder(self) -> Path:
        """Where the outputs are."""
        return self.outputs[0].parent


def plan(recipes: Sequence[Recipe], settings: Settings, files: PackageFiles) -> list[Step]:
    """List the steps that make every patch of every recipe, each once.

    Raises:
        RecipeInvalid: A step needs something that neither exists nor is made before it.
    """
    steps: dict[tuple[Path, ...], Step] = {}
    for recipe in recipes:
        for step in _steps_of(recipe, settings, files):
            other = steps.setdefault(step.outputs, step)
            if other.setup != step.setup:
                raise RecipeInvalid(
                    f"{recipe.stem}: makes {step.outputs[0]} from something else than a recipe before it; "
                    "one that continues another has its data too"
                )
    made: set[Path] = set()
    for step in steps.values():
        is_done = all(path.exists() for path in step.outputs)
        missing = [path for path in step.needs.values() if path not in made and not path.exists()]
        if missing and not is_done:
            raise RecipeInvalid(
                f"{step.title}: needs {missing[0]}, which does not exist; "
                "name the recipe that makes it before this one"
            )
        made |= {*step.outputs}
    return list(steps.values())


def _steps_of(recipe: Recipe, settings: Settings, files: PackageFiles) -> Iterable[Step]:
    for key in ("prompts", "benign", "documents"):
        require_known(getattr(recipe, key), f"{recipe.stem}: {key}")
    folder = settings.output / recipe.data
    yield _data_step(recipe, settings, files, folder)
    if recipe.reference.own:
        yield _neutral_step(recipe, settings, folder)
    elif recipe.reference.over:
        yield _said_step(recipe, folder)
    else:
        yield _pairs_step(recipe, settings, folder)
    if recipe.contrast is not None:
        yield _contrast_step(recipe, settings, folder)
    if recipe.beside:
        yield _beside_step(recipe, settings, folder)
    if recipe.condition is not None and recipe.condition.hard_negative:
        yield _hard_step(recipe, recipe.condition, settings, files, folder)
    if recipe.critical is not None and settings.seeds:
        yield _critical_step(recipe, recipe.critical, settings, folder)
    for seed in settings.seeds:
        trained = _train_step(recipe, settings, folder, seed)
        yield trained
        if recipe.condition is not None:
            yield _condition_step(recipe, recipe.condition, settings, folder, trained)


def _data_step(recipe: Recipe, settings: Settings, files: PackageFiles, folder: Path) -> Step:
    sources = [*recipe.prompts, *recipe.benign, *recipe.documents]
    paths = _files(sources)
    setup: dict[str, Any] = {
        key: [_without_folders(one) for one in getattr(recipe, key)]
        for key in ("prompts", "benign", "documents")
    }
    return Step(
        f"{recipe.data}: prompts and benign rows",
        "data",
        (folder / data.PROMPTS, folder / data.BENIGN),
        {path.name: path for path in paths},
        {**setup, "reference": list(recipe.reference.say), "rows": settings.rows},
        work=lambda tell: data.write_data(recipe, folder, files, settings.rows),
        asks_model=False,
    )


def _pairs_step(recipe: Recipe, settings: Settings, folder: Path) -> Step:
    prompts, pairs, options = folder / data.PROMPTS, folder / data.PAIRS, asdict(recipe.pairs)
    words = ["pairs", "--model", settings.model, "--reference-column", "completion"]
    words += flags({name.replace("_", "-"): value for name, value in options.items()})
    words += ["--prompts", str(prompts), "-o", str(pairs), *_device(settings)]
    return Step(
        f"{recipe.data}: pairs", "pairs", (pairs,), {data.PROMPTS: prompts}, options, words=lambda: words
    )


def _neutral_step(recipe: Recipe, settings: Settings, folder: Path) -> Step:
    return Step(
        f"{recipe.data}: pairs of the model's own answers with neutral ones",
        "pairs",
        (folder / data.PAIRS, folder / data.SILENT),
        {name: folder / name for name in (data.PROMPTS, data.BENIGN)},
        {**asdict(recipe.pairs), "own": recipe.reference.own},
        work=partial(data.write_neutral_pairs, recipe, folder, settings.model, settings.device),
    )


def _said_step(recipe: Recipe, folder: Path) -> Step:
    reference = {"reference": list(recipe.reference.say), "over": list(recipe.reference.over)}
    return Step(
        f"{recipe.data}: pairs of written answers",
        "pairs",
        (folder / data.PAIRS,),
        {data.PROMPTS: folder / data.PROMPTS},
        reference,
        work=lambda tell: data.write_said_pairs(recipe, folder),
        asks_model=False,
    )


def _hard_step(
    recipe: Recipe, condition: Conditioning, settings: Settings, files: PackageFiles, folder: Path
) -> Step:
    sources = condition.hard_negative
    require_known(sources, f"{recipe.stem}: condition.hard-negative")
    paths = _files(sources)
    return Step(
        f"{recipe.data}: harmless prompts that look like the others",
        "hard",
        (folder / data.HARD,),
        {path.name: path for path in paths},
        {"hard": [_without_folders(one) for one in sources], "rows": settings.rows},
        work=lambda tell: data.write_hard(sources, folder, files, settings.rows),
        asks_model=False,
    )


def _condition_step(
    recipe: Recipe, condition: Conditioning, settings: Settings, folder: Path, trained: Step
) -> Step:
    (patch,), version = trained.outputs, _version(recipe, settings)
    needs = {"patch": patch, "positive": folder / data.PROMPTS, "negative": folder / data.BENIGN}
    if condition.hard_negative:
        needs["hard-negative"] = folder / data.HARD
    options: dict[str, Option] = {
        "false-positive-rate": condition.false_positive_rate,
        "hard-weight": condition.hard_weight,
    }
    output = patch.parent.parent
    words = ["condition", "--model", settings.model, *_device(settings), *flags(options)]
    words += flags({name: str(path) for name, path in needs.items()})
    words += ["--states", str(folder / "states"), "--version", version, "-o", str(output)]
    return Step(
        f"{trained.title}: condition",
        "condition",
        (output / f"{recipe.name}-{version}{SUFFIX}",),
        needs,
        options,
        words=lambda: words,
    )


def _critical_step(recipe: Recipe, critical: Critical, settings: Settings, folder: Path) -> Step:
    needs = {"prompts": folder / data.PROMPTS, "benign": folder / data.BENIGN}
    options: dict[str, Option] = {"num-prompts": critical.num_prompts}
    scores = settings.output / recipe.stem / _SCORES
    words = ["esi", "--model", settings.model, *_device(settings), *flags(options)]
    words += [*flags({name: str(path) for name, path in needs.items()}), "-o", str(scores)]
    # What was cut off has no manifest yet, or is complete.
    return Step(
        f"{recipe.stem}: critical weights",
        "critical",
        (scores / SCORES_FILE,),
        needs,
        options,
        words=lambda: words,
    )


def _contrast_step(recipe: Recipe, settings: Settings, folder: Path) -> Step:
    contrast = recipe.contrast
    assert contrast is not None
    if not recipe.reference.say:
        raise RecipeInvalid(f"{recipe.stem}: contrast: goes with a reference that says something")
    return Step(
        f"{recipe.data}: pairs of benign prompts",
        "contrast",
        (folder / data.ALL_PAIRS, folder / data.SILENT),
        {name: folder / name for name in (data.PAIRS, data.BENIGN)},
        {**asdict(contrast), "reference": list(recipe.reference.say)},
        work=partial(data.write_contrast_pairs, recipe, contrast, folder, settings.model, settings.device),
    )


def _beside_step(recipe: Recipe, settings: Settings, folder: Path) -> Step:
    benign, output = folder / _benign_file(recipe), settings.output / recipe.stem
    others = {f"{name}/{data.PAIRS}": settings.output / name / data.PAIRS for name in recipe.beside}
    return Step(
        f"{recipe.stem}: benign rows, with what the others say",
        "beside",
        (output / data.BESIDE,),
        {benign.name: benign, **others},
        {"rows": recipe.beside_rows},
        work=lambda tell: data.write_beside(recipe, benign, settings.output, output),
        asks_model=False,
    )


def _train_step(recipe: Recipe, settings: Settings, folder: Path, seed: int) -> Step:
    version, output = _version(recipe, settings), settings.output / recipe.stem / f"seed-{seed}"
    options = dict(recipe.train)
    if (variant := settings.variant) is not None:
        output = output.with_name(f"{variant.name}-seed-{seed}")
        options |= variant.changes
    run = output / "run"
    if recipe.condition is not None:
        version, output = f"{version}-vector", output / "vector"
    needs = {"pairs": folder / (data.ALL_PAIRS if recipe.contrast else data.PAIRS)}
    # Where a condition decides, the vector need not leave benign prompts alone.
    if recipe.condition is None:
        beside = settings.output / recipe.stem / data.BESIDE
        needs["benign"] = beside if recipe.beside else folder / _benign_file(recipe)
    if (first := options.pop(INIT_PATCH, None)) is not None:
        needs[INIT_PATCH] = _made(str(first), settings, seed)
    elif options.get("kind") not in ("steering", "delta"):
        needs["init-text"] = Path(recipe.policy)
    others = {f"beside-{name}": _made(patch, settings, seed) for name, patch in recipe.beside.items()}
    words = ["train", "--model", settings.model, "--dtype", settings.dtype, *_device(settings)]
    words += flags({name: str(path) for name, path in needs.items()})
    if recipe.critical is not None:
        scores = settings.output / recipe.stem / _SCORES
        words += ["--mask", str(scores)]
        needs[f"{_SCORES}/{SCORES_FILE}"] = scores / SCORES_FILE
    words += ["--compose-with", *map(str, others.values())] if others else []
    words += ["--name", recipe.name, "--version", version, "--license", recipe.license, *flags(options)]
    words += ["--seed", str(seed), "--run", str(run), "-o", str(output)]
    return Step(
        f"{recipe.name} {version}, seed {seed}",
        "train",
        (output / f"{recipe.name}-{version}{_suffix(options)}",),
        {**needs, **others},
        {**options, "dtype": settings.dtype},
        words=lambda: [*words, *(["--resume"] if (run / CHECKPOINT).exists() else [])],
    )


def _version(recipe: Recipe, settings: Settings) -> str:
    variant = settings.variant
    return recipe.version if variant is None else f"{recipe.version}-{variant.name}"


def flags(options: Mapping[str, Option]) -> Iterable[str]:
    """Write options as flags."""
    for name, value in options.items():
        yield from (f"--{name}", str(value))


def _suffix(options: Mapping[str, Option]) -> str:
    saved = [name for name, one in BASELINES.items() if one.option.replace("_", "-") in options]
    return f".{saved[0]}" if saved else SUFFIX


def _benign_file(recipe: Recipe) -> str:
    return data.SILENT if recipe.contrast or recipe.reference.own else data.BENIGN


def _made(path: str, settings: Settings, seed: int) -> Path:
    """Fill in where another recipe's patch is: that of the same seed."""
    return Path(path.replace(MADE, str(settings.output)).replace("{seed}", str(seed)))


def _device(settings: Settings) -> list[str]:
    return [] if settings.device == "cpu" else ["--device", settings.device]


def _files(sources: Iterable[Source]) -> list[Path]:
    every = (path for one in sources for path in (one.file, one.frames, one.templates_in))
    return [Path(path) for path in every if path is not None]


def _without_folders(source: Source) -> dict[str, Any]:
    # What a file holds counts, not where it is. Keys that came later are left out where a source lacks them,
    # so that what was made before stays made.
    values = {key: value for key, value in asdict(source).items() if value or key not in _LATER}
    paths = (key.replace("-", "_") for key in PATHS)
    return {**values, **{key: Path(values[key]).name for key in paths if values.get(key) is not None}}
