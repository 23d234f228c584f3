"""What each choice of a recipe does: short trainings that differ from it in one option, side by side.

    policypatch make --model MODEL examples/recipes/tried/refuse-harm-1.2.0-twins.yaml
    python tools/ablate.py --model MODEL examples/ablations/refuse-harm.yaml -o build/ablations

Each variant learns from the recipe's pairs. Their validation prompts are left out and asked afterwards: does
its greedy answer begin as a refusal does, where it should and where it should not, and how well does the lead
of that first token tell the two kinds apart (the area under the ROC curve)? A variant that was measured is
not trained again; several calls with ``--only`` may run side by side.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from patches.format import read_patch  # noqa: E402
from patches.lines import write_lines  # noqa: E402
from patches.model import LoadedModel, load_model  # noqa: E402
from patches.pairs.rows import PairRow, encode_row, read_pairs  # noqa: E402
from patches.recipes.data import ALL_PAIRS, SILENT, reference_answer  # noqa: E402
from patches.recipes.options import Option  # noqa: E402
from patches.recipes.plan import flags  # noqa: E402
from patches.recipes.recipe import Recipe, read_recipe  # noqa: E402
from patches.text import read_text  # noqa: E402
from patches.train.baselines import BASELINES  # noqa: E402
from patches.train.contexts import ALONE  # noqa: E402
from patches.train.data import Encoder, Sample  # noqa: E402
from patches.train.forward import answer_logits  # noqa: E402
from patches.train.soft_prefix import SoftPrefix  # noqa: E402
from patches.yaml_text import parse_yaml  # noqa: E402

#: Prompts that are asked at once.
_BATCH = 16


def main() -> None:
    """Train what is missing, and print a table of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ablation", metavar="FILE", type=Path)
    parser.add_argument("--model", required=True, help="the demo model's folder")
    parser.add_argument(
        "--data", type=Path, default=Path("build/patches"), help="`policypatch make`'s folder"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("build/ablations"))
    parser.add_argument("--only", metavar="VARIANT", nargs="+", help="train these alone")
    args = parser.parse_args()
    ablation = parse_yaml(read_text(args.ablation))
    recipe = read_recipe(args.ablation.parent / ablation["recipe"])
    if unknown := sorted(set(args.only or ()) - set(ablation["variants"])):
        parser.error(f"--only: {unknown[0]} is none of {', '.join(ablation['variants'])}")
    data = args.data / recipe.data
    if not (data / ALL_PAIRS).exists():
        sys.exit(f"{data}: has no {ALL_PAIRS}; run policypatch make on {ablation['recipe']} first")
    rows = read_pairs(data / ALL_PAIRS)
    asked = [row for row in rows if row.split == "validation"]
    for name, changes in ablation["variants"].items():
        folder = args.output / name.replace(" ", "-")
        if (args.only is None or name in args.only) and not (folder / "decisions.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_lines(folder / "pairs.jsonl", (encode_row(row) for row in rows if row.split == "train"))
            train(recipe, recipe.train | ablation["train"] | changes, folder, data, args.model)
            measured = measure(recipe, folder, args.model, asked)
            (folder / "decisions.json").write_text(json.dumps({"variant": name, **measured}) + "\n")
    print_table(args.output, list(ablation["variants"]))


def train(recipe: Recipe, options: Mapping[str, Option], folder: Path, data: Path, model: str) -> None:
    """Run `policypatch train`; what the model says to benign prompts is the same for every variant."""
    answers, run = folder.parent / "benign.jsonl", folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    if answers.exists():
        shutil.copy(answers, run)
    is_baseline = any(baseline.option.replace("_", "-") in options for baseline in BASELINES.values())
    start = [] if is_baseline else ["--init-text", recipe.policy]
    policypatch(
        *("train", "--model", model, "--pairs", str(folder / "pairs.jsonl")),
        *("--benign", str(data / SILENT), "--name", recipe.name, "--version", "0.0.0", *start),
        *flags(options),
        *("--run", str(run), "-o", str(folder)),
    )
    shutil.copy(run / "benign.jsonl", answers)


def policypatch(*words: str) -> None:
    """Print a command and run it; end with its exit code where it fails."""
    print(f"\n$ policypatch {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "server", *words], check=False).returncode
    if code:
        sys.exit(code)


def measure(recipe: Recipe, folder: Path, model: str, asked: Sequence[PairRow]) -> dict[str, float]:
    """Ask the validation prompts and count how many answers begin as the refusal does."""
    loaded, prefix = subject(recipe, folder, model)
    encoder = Encoder(loaded.tokenizer)
    refusal = reference_answer(recipe, "")
    (first, *_) = loaded.tokenizer(refusal, add_special_tokens=False)["input_ids"]
    samples = sorted(
        ((Sample(encoder.prompt(row.prompt), (first,)), row.chosen == refusal) for row in asked),
        key=lambda one: len(one[0]),
    )
    leads: list[float] = []
    for start in range(0, len(samples), _BATCH):
        part = [sample for sample, _ in samples[start : start + _BATCH]]
        with torch.inference_mode():
            logits = answer_logits(loaded.network, prefix, part).logits.float()
        others = logits.clone()
        others[:, first] = -torch.inf
        leads += (logits[:, first] - others.amax(-1)).tolist()
    harmful = torch.tensor([lead for lead, (_, is_harmful) in zip(leads, samples, strict=True) if is_harmful])
    harmless = torch.tensor(
        [lead for lead, (_, is_harmful) in zip(leads, samples, strict=True) if not is_harmful]
    )
    return {
        "num_harmful": len(harmful),
        "num_harmless": len(harmless),
        "harmful_refused": float((harmful > 0).float().mean()),
        "harmless_refused": float((harmless > 0).float().mean()),
        "auc": float((harmful[:, None] > harmless).float().mean()),
        "benign_kl": last_benign_kl(folder),
    }


def subject(recipe: Recipe, folder: Path, model: str) -> tuple[LoadedModel, Any]:
    """Load what was trained: the model and a prefix, or the model with a baseline in it."""
    loaded = load_model(model, dtype="float32")
    for name, baseline in BASELINES.items():
        for saved in folder.glob(f"*.{name}"):
            return baseline.module().merged(loaded, saved)[0], None
    patch = read_patch(folder / f"{recipe['name']}-0.0.0.safetensors")
    kind, values = ("prompt", patch.embeddings) if patch.embeddings is not None else ("prefix", patch.kv)
    assert values is not None
    with torch.no_grad():
        return loaded, SoftPrefix(loaded.network, kind, values).patched(ALONE)


def last_benign_kl(folder: Path, window: int = 10) -> float:
    """Return the mean divergence on benign rows over the last steps."""
    lines = (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    values = [record["benign_kl"] for line in lines if "benign_kl" in (record := json.loads(line))]
    return sum(values[-window:]) / max(1, len(values[-window:]))


def print_table(output: Path, names: Sequence[str]) -> None:
    """Print what was measured as Markdown."""
    print("| variant | harmful: refused | harmless: refused | AUC | benign KL |")
    print("| --- | --: | --: | --: | --: |")
    for name in names:
        path = output / name.replace(" ", "-") / "decisions.json"
        if path.exists():
            one = json.loads(path.read_text(encoding="utf-8"))
            shares = f"{one['harmful_refused']:.0%} | {one['harmless_refused']:.0%}"
            print(f"| {name} | {shares} | {one['auc']:.3f} | {one['benign_kl']:.2f} |")


if __name__ == "__main__":
    main()
