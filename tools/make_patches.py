"""Makes the ready patches from their recipes: data, then `policypatch pairs`, then `policypatch train`.

    python tools/make_patches.py --model MODEL examples/recipes/refuse-harm.yaml --seed 0

Each command is printed as it is run. A step whose result is there is not run again, and a training run that
was cut off goes on from its checkpoint. Prompts and pairs stay in the output's folder: they hold harmful text
and are never committed. A variant is trained from the same data with some options of its own, to see what
they do, in a folder of its own:

    python tools/make_patches.py --model MODEL examples/recipes/debias.yaml --variant soft --set beta=0.1

``--rows`` takes a sample of the prompts, for a quick look or a bigger model.

A recipe that ``continues`` another one has all that it does not say itself, data included, from there. With
``beside``, a patch learns among others, and what they are to say is among its benign rows: the chosen answers
of their pairs, which have to be there. Other recipes' patches are named as ``{made}/RECIPE/seed-{seed}/...``:
those of the same seed, so that the seeds of a chain share nothing but their data.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from patches.evaluate.data.packages import PackageFiles, default_cache  # noqa: E402
from patches.lines import write_lines  # noqa: E402
from patches.model import load_model  # noqa: E402
from patches.pairs.local import LocalSampler  # noqa: E402
from patches.pairs.prompts import prompt_id, read_rows  # noqa: E402
from patches.pairs.rows import PairRow, encode_row, read_pairs  # noqa: E402
from patches.pairs.sampler import Answer  # noqa: E402
from patches.sampling import Sampling  # noqa: E402
from patches.train.data import split_of  # noqa: E402
from tools.neutral import neutralised  # noqa: E402
from tools.patch_data import prompts_of, reference_answer  # noqa: E402

#: The reference is the model's own answer without gendered words, in place of one that was written.
OWN_NEUTRAL = "own-neutral"
RECIPES = ROOT / "examples" / "recipes"
#: The pairs and, of benign prompts, those that say where the reference's answer is wrong.
CONTRAST = "pairs-and-contrast.jsonl"
#: The benign rows beside them.
SILENT = "silent.jsonl"
#: Those, and what other patches say.
BESIDE = "beside.jsonl"
Chat = tuple[Mapping[str, str], ...]


def main() -> None:
    """Make every patch of every recipe that is named, for every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+")
    parser.add_argument("--model", required=True, help="the demo model's folder")
    parser.add_argument(
        "--seed", type=int, nargs="*", default=[0], help="none: make the data alone (default: 0)"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "build" / "patches", help="where everything is put"
    )
    parser.add_argument("--packages", type=Path, help="a folder of wheels to read instead of downloading")
    parser.add_argument("--variant", help="what to call a patch that is trained with --set: VERSION-VARIANT")
    parser.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        nargs="+",
        default=[],
        help="options of `policypatch train` to change",
    )
    parser.add_argument("--rows", metavar="R", type=int, help="take R prompts of each file only")
    args = parser.parse_args()
    if bool(args.set) != bool(args.variant):
        parser.error("a variant needs both: --variant for its name, --set for what it changes")
    if wrong := [change for change in args.set if "=" not in change]:
        parser.error(f"--set takes OPTION=VALUE, not {wrong[0]!r}")
    changes = dict(change.split("=", 1) for change in args.set)
    files = PackageFiles(default_cache(), archives=args.packages, notify=print)
    for path in args.recipes:
        recipe = read_recipe(path)
        folder = args.output / path.stem
        data = args.output / recipe["data"]
        write_data(recipe, data, files, args.rows)
        if recipe["reference"] == OWN_NEUTRAL:
            make_neutral_pairs(recipe, data, args.model)
        else:
            make_pairs(recipe, data, args.model)
        if "contrast" in recipe:
            make_contrast_pairs(recipe, data, args.model)
        if "beside" in recipe:
            write_beside(recipe, data, folder)
        for seed in args.seed:
            train(recipe, data, folder, args.model, seed, args.variant, changes)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe, with the name of its data; of one that continues another, with what that one says."""
    recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    before = read_recipe(RECIPES / recipe["continues"]) if "continues" in recipe else {"data": path.stem}
    return before | recipe


def write_data(
    recipe: Mapping[str, Any], folder: Path, files: PackageFiles, num_rows: int | None = None
) -> None:
    """Write the prompts with the answers that were written for them, and the benign rows."""
    rows = [
        {"prompt": template.replace("{prompt}", prompt).replace("{aim}", prompt[:1].lower() + prompt[1:])}
        for template, prompt in prompts_of(files, recipe["prompts"])
    ]
    if recipe["reference"] != OWN_NEUTRAL:
        rows = [row | {"completion": reference_answer(recipe["reference"], row["prompt"])} for row in rows]
    benign = [{"prompt": prompt} for _, prompt in prompts_of(files, recipe["benign"])][:num_rows]
    benign += [{"document": text} for _, text in prompts_of(files, recipe.get("documents", []))][:num_rows]
    write_lines(folder / "prompts.jsonl", map(json.dumps, rows[:num_rows]))
    write_lines(folder / "benign.jsonl", map(json.dumps, benign))


def make_pairs(recipe: Mapping[str, Any], folder: Path, model: str) -> None:
    """Run `policypatch pairs`."""
    if (folder / "pairs.jsonl").exists():
        return
    policypatch(
        *("pairs", "--model", model, "--reference-column", "completion", *flags(recipe["pairs"])),
        *("--prompts", str(folder / "prompts.jsonl"), "-o", str(folder / "pairs.jsonl")),
    )


def make_neutral_pairs(recipe: Mapping[str, Any], folder: Path, model: str) -> None:
    """Have the model answer, and pair each answer that has gendered words with itself without them.

    What it answers without such words becomes a benign row: there the patch shall change nothing.
    """
    if not (folder / "pairs.jsonl").exists():
        pairs, silent = _neutral_pairs(read_rows(folder / "prompts.jsonl"), recipe["pairs"], model)
        write_lines(folder / SILENT, map(json.dumps, silent))
        write_lines(folder / "pairs.jsonl", map(encode_row, pairs))
        print(f"{folder / 'pairs.jsonl'}: {len(pairs)} pairs, {len(silent)} answers had nothing to change")
    benign = [*read_rows(folder / "benign.jsonl"), *read_rows(folder / SILENT)]
    write_lines(folder / "benign.jsonl", map(json.dumps, benign))


def _neutral_pairs(
    rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], model: str
) -> tuple[list[PairRow], list[dict[str, str]]]:
    pairs, silent = [], []
    for chat, answer in _own_answers([str(row["prompt"]) for row in rows], options, model):
        neutral, key, done = neutralised(answer.text), prompt_id(chat), answer.is_finished
        if neutral == answer.text:
            silent.append({"prompt": chat[0]["content"], "completion": answer.text})
        else:
            pairs.append(PairRow(key, chat, neutral, answer.text, split_of(key), done, done))
    return pairs, silent


def make_contrast_pairs(recipe: Mapping[str, Any], folder: Path, model: str) -> None:
    """Pair the model's own answer to each benign prompt with what it is to say to the others.

    So training sees both sides of the line that the patch has to draw: here the reference's answer is the
    rejected one. ``recipe["contrast"]`` has the options of the answers. Documents stay benign
    rows, in a file of their own, as do ``benign`` of the prompts: pairs are about an answer's first words.
    """
    path, benign = folder / CONTRAST, read_rows(folder / "benign.jsonl")
    prompts = [str(row["prompt"]) for row in benign if "prompt" in row]
    silent = [row for row in benign if "document" in row]
    silent += [{"prompt": prompt} for prompt in prompts[: recipe["contrast"].get("benign", 0)]]
    write_lines(folder / SILENT, map(json.dumps, silent))
    if path.exists():
        return
    rows = []
    for chat, answer in _own_answers(prompts, recipe["contrast"], model):
        rejected, key = reference_answer(recipe["reference"], str(chat[0]["content"])), prompt_id(chat)
        if answer.text.strip():
            rows.append(PairRow(key, chat, answer.text, rejected, split_of(key), answer.is_finished))
    made = [line for line in (folder / "pairs.jsonl").read_text("utf-8").split("\n") if line]
    write_lines(path, [*made, *map(encode_row, rows)])


def write_beside(recipe: Mapping[str, Any], data: Path, folder: Path) -> None:
    """Write the benign rows of a patch that learns beside others: its own, and what each of those says.

    Raises:
        SystemExit: The pairs of one are not there.
    """
    rows = list(read_rows(data / benign_file(recipe)))
    for name in recipe["beside"]:
        pairs = folder.parent / name / "pairs.jsonl"
        if not pairs.exists():
            sys.exit(f"{pairs}: not found; make {name} first")
        said = [row for row in read_pairs(pairs) if row.split == "train"][: recipe["beside-rows"]]
        rows += [{"prompt": row.prompt[-1]["content"], "completion": row.chosen} for row in said]
    write_lines(folder / BESIDE, map(json.dumps, rows))


def benign_file(recipe: Mapping[str, Any]) -> str:
    """Return the name of the file with a recipe's own benign rows."""
    return SILENT if "contrast" in recipe else "benign.jsonl"


def _own_answers(
    prompts: Sequence[str], options: Mapping[str, Any], model: str
) -> Iterator[tuple[Chat, Answer]]:
    sampling = Sampling(max_tokens=options["max-tokens"])
    sampler = LocalSampler(load_model(model, dtype=options["dtype"]), sampling)
    size = options["batch-size"]
    # Prompts of like length side by side need little padding.
    prompts = sorted(prompts, key=len)
    for start in range(0, len(prompts), size):
        print(f"answers: {start} of {len(prompts)}", flush=True)
        chats: list[Chat] = [({"role": "user", "content": text},) for text in prompts[start : start + size]]
        for chat, (answer,) in zip(chats, sampler.sample(chats, f"{start}"), strict=True):
            yield chat, answer


def train(
    recipe: Mapping[str, Any],
    data: Path,
    folder: Path,
    model: str,
    seed: int,
    variant: str | None = None,
    changes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run `policypatch train`; the patch lands in ``folder/seed-S``, a variant's in ``VARIANT-seed-S``."""
    version = f"{recipe['version']}-{variant}" if variant else recipe["version"]
    output = folder / (f"{variant}-seed-{seed}" if variant else f"seed-{seed}")
    if (output / f"{recipe['name']}-{version}.safetensors").exists():
        return
    run = output / "run"
    pairs = CONTRAST if "contrast" in recipe else "pairs.jsonl"
    benign = folder / BESIDE if "beside" in recipe else data / benign_file(recipe)
    others = [str(file_of(patch, folder.parent, seed)) for patch in recipe.get("beside", {}).values()]
    options = dict(recipe["train"] | changes)
    start = (
        ("init-patch", options.pop("init-patch"))
        if "init-patch" in options
        else ("init-text", recipe["policy"])
    )
    resume = ["--resume"] if (run / "checkpoint.safetensors").exists() else []
    policypatch(
        *("train", "--model", model, "--dtype", "bfloat16", "--pairs", str(data / pairs)),
        *("--benign", str(benign), f"--{start[0]}", str(file_of(start[1], folder.parent, seed))),
        *(["--compose-with", *others] if others else []),
        *("--name", recipe["name"], "--version", version, "--license", recipe["license"]),
        *flags(options),
        *("--seed", str(seed), "--run", str(run), "-o", str(output), *resume),
    )


def file_of(name: str, output: Path, seed: int) -> Path:
    """Find a file that a recipe names: beside the recipe, or ``{made}`` from another one with this seed."""
    return RECIPES / name.replace("{seed}", str(seed)).replace("{made}", str(output.resolve()))


def flags(options: Mapping[str, Any]) -> Iterable[str]:
    """Turn a recipe's options into flags."""
    for name, value in options.items():
        yield from (f"--{name}", str(value)) if value is not True else (f"--{name}",)


def policypatch(*words: str) -> None:
    """Print a command and run it; end with its exit code where it fails."""
    print(f"\n$ policypatch {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "server", *words], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
