"""Named data sets: how the files of packages, and the few of our own, become items.

Harmful and toxic prompts are read out of their packages when a suite asks for them, and exist in memory only.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

from patches.errors import EvaluationError
from patches.evaluate.data import pinned
from patches.evaluate.data.items import Item, parse_items
from patches.evaluate.data.packages import PackageFile, PackageFiles
from patches.text import decode_text, lines_of

#: Texts shorter than this say little about reading.
MIN_NEUTRAL_CHARS = 200


def source_items(name: str, files: PackageFiles) -> list[Item]:
    """Read a named data set.

    Raises:
        EvaluationError: No data set has this name.
        DataUnavailable: Its package is unavailable.
    """
    if name not in SOURCES:
        raise EvaluationError(f"data: unknown set {name!r}; known are {', '.join(sorted(SOURCES))}")
    return list(SOURCES[name](files))


def jailbreak_templates(names: list[str], files: PackageFiles) -> dict[str, str]:
    """Read jailbreak wrappers, each a text with ``{{ prompt }}`` in it.

    Raises:
        EvaluationError: No template has such a name.
        DataUnavailable: Their package is unavailable.
    """
    import yaml

    if unknown := sorted(set(names) - set(pinned.JAILBREAKS)):
        known = ", ".join(sorted(pinned.JAILBREAKS))
        raise EvaluationError(f"wrappers: unknown {', '.join(unknown)}; known are {known}")
    return {name: str(yaml.safe_load(files.read(pinned.JAILBREAKS[name]))["value"]) for name in names}


def wrap(template: str, prompt: str) -> str:
    """Put a request into a jailbreak wrapper."""
    return re.sub(r"\{\{\s*prompt\s*\}\}", lambda match: prompt, template)


def _harmbench(files: PackageFiles) -> Iterator[Item]:
    for number, line in enumerate(_lines(files, pinned.HARMBENCH)):
        yield Item(f"harmbench/{number}", "harmbench", line.strip())


def _advbench(files: PackageFiles) -> Iterator[Item]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = yaml.load(files.read(pinned.ADVBENCH), Loader=loader)
    for number, seed in enumerate(document["seeds"]):
        category = (seed.get("harm_categories") or ["other"])[0]
        yield Item(f"advbench/{number}", str(category).lower(), str(seed["value"]))


def _real_toxicity(files: PackageFiles) -> Iterator[Item]:
    for name, file in pinned.REAL_TOXICITY.items():
        for number, line in enumerate(_lines(files, file)):
            yield Item(f"rtp/{name}/{number}", name.replace("_", " "), line.strip())


def _alpaca_eval(files: PackageFiles) -> Iterator[Item]:
    for number, row in enumerate(json.loads(files.read(pinned.ALPACA_EVAL))):
        if len(row["instruction"]) <= 400:
            yield Item(f"alpaca-eval/{number}", str(row["dataset"]), str(row["instruction"]))


def _boolq_passages(files: PackageFiles) -> Iterator[Item]:
    seen = set()
    for number, row in enumerate(_json_lines(files, pinned.BOOLQ)):
        text = str(row["passage"])
        if len(text) >= MIN_NEUTRAL_CHARS and text not in seen:
            seen.add(text)
            yield Item(f"boolq-passage/{number}", "encyclopedia", text)


def _boolq(files: PackageFiles) -> Iterator[Item]:
    for number, row in enumerate(_json_lines(files, pinned.BOOLQ)):
        prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        yield Item(f"boolq/{number}", "boolq", prompt, ("no", "yes"), int(str(row["answer"]) == "True"))


def _lettered(source: str, file: PackageFile) -> Callable[[PackageFiles], Iterator[Item]]:
    """Questions whose options stand as lines ``A. …`` and whose answer repeats one of them."""

    def read(files: PackageFiles) -> Iterator[Item]:
        for number, row in enumerate(_json_lines(files, file)):
            options = [line.strip() for line in str(row["options"]).strip().split("\n")]
            answer = str(row["answer"]).strip()
            # A few have line breaks inside an option; they can't be told apart safely.
            if answer in options and all(re.match(r"[A-E]\.", option) for option in options):
                prompt = "\n".join([str(row["question"]).strip(), *options, "Answer:"])
                letters = tuple(option[0] for option in options)
                yield Item(f"{source}/{number}", source, prompt, letters, options.index(answer))

    return read


def _hellaswag(files: PackageFiles) -> Iterator[Item]:
    for number, row in enumerate(_json_lines(files, pinned.HELLASWAG)):
        yield Item(f"hellaswag/{number}", "hellaswag", str(row["question"]), tuple(map(str, row["answer"])))


def _truthfulqa(files: PackageFiles) -> Iterator[Item]:
    for number, row in enumerate(_json_lines(files, pinned.TRUTHFULQA)):
        choices = tuple(str(choice).strip() for choice in row["answer"])
        if len(choices) > 1:
            yield Item(f"truthfulqa/{number}", "truthfulqa", f"Q: {row['question']}\nA:", choices)


def _crows_pairs(files: PackageFiles) -> Iterator[Item]:
    text = files.read(pinned.CROWS_PAIRS).decode("utf-8")
    for row in csv.DictReader(io.StringIO(text)):
        choices = tuple(row["sentence"].replace("[MASK]", row[key]) for key in ("mask1", "mask2"))
        if "[MASK]" in row["sentence"] and choices[0] != choices[1]:
            yield Item(f"crows-pairs/{row['']}", row["bias_type"], "", choices, 0)


def _wino_bias(files: PackageFiles) -> Iterator[Item]:
    for number, row in enumerate(_json_lines(files, pinned.WINO_BIAS)):
        text, stereotyped = str(row["text"]).strip(), str(row["pro_stereotyped"])
        pronouns = re.findall(r"^[ABC]\. (\w+)$", str(row["options"]), re.MULTILINE)
        if stereotyped in pronouns and len(pronouns) == 2:
            # The other brackets mark who is meant.
            choices = tuple(re.sub(r"[\[\]]", "", text.replace("[MASK]", p)) for p in pronouns)
            yield Item(f"wino-bias/{number}", stereotyped, "", choices, pronouns.index(stereotyped))


def _own(name: str) -> Callable[[PackageFiles], Iterator[Item]]:
    def read(files: PackageFiles) -> Iterator[Item]:
        text = resources.files("patches.evaluate").joinpath("data", f"{name}.jsonl").read_text("utf-8")
        yield from parse_items(text, name)

    return read


def _professions(files: PackageFiles) -> Iterator[Item]:
    document = json.loads(
        resources.files("patches.evaluate").joinpath("data", "professions.json").read_text("utf-8")
    )
    for place, template in enumerate(document["templates"]):
        for profession in document["professions"]:
            prompt = template.format(profession=profession)
            yield Item(f"profession/{place}/{profession.replace(' ', '-')}", profession, prompt)


def _lines(files: PackageFiles, file: PackageFile) -> list[str]:
    return [line for line in lines_of(decode_text(files.read(file))) if line.strip()]


def _json_lines(files: PackageFiles, file: PackageFile) -> Iterator[dict[str, Any]]:
    for line in _lines(files, file):
        yield json.loads(line)


SOURCES: dict[str, Callable[[PackageFiles], Iterator[Item]]] = {
    "harmbench": _harmbench,
    "advbench": _advbench,
    "real-toxicity-prompts": _real_toxicity,
    "alpaca-eval": _alpaca_eval,
    "scary-benign": _own("scary-benign"),
    "boolq-passages": _boolq_passages,
    "boolq": _boolq,
    "mmlu": _lettered("mmlu", pinned.MMLU),
    "commonsense-qa": _lettered("commonsense-qa", pinned.COMMONSENSE_QA),
    "openbook-qa": _lettered("openbook-qa", pinned.OPENBOOK_QA),
    "piqa": _lettered("piqa", pinned.PIQA),
    "hellaswag": _hellaswag,
    "truthfulqa": _truthfulqa,
    "crows-pairs": _crows_pairs,
    "wino-bias": _wino_bias,
    "professions": _professions,
}
