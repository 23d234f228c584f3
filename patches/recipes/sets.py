"""The prompts that recipes take: named sets out of pinned packages, and files beside the recipe.

Harmful and toxic prompts are read out of their packages when a recipe asks for them; nothing of them is part
of this repository. What the suites of ``policypatch eval`` ask is left out: HarmBench, AlpacaEval,
RealToxicityPrompts and the bias suite's professions are never trained on, and of AdvBench only a half is,
which an evaluation leaves out with ``--exclude``.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from patches.errors import RecipeInvalid
from patches.evaluate.data.items import normalised
from patches.evaluate.data.packages import PackageFile, PackageFiles
from patches.evaluate.data.pinned import REFUSAL_PAIRS
from patches.evaluate.data.sources import source_items
from patches.pairs.prompts import read_prompts, split_number
from patches.recipes import pinned
from patches.recipes.jailbreaks import jailbreak_wrappers
from patches.recipes.recipe import Source
from patches.text import decode_text, lines_of, parse_row, read_text, said

#: What a suite asks, whose prompts no set may hold.
_HELD_OUT = ("harmbench", "alpaca-eval", "real-toxicity-prompts", "scary-benign", "professions")
_MAX_PROMPT_CHARS = 220
_DOCUMENT_CHARS = 400
#: Of a text that a question is about.
_LONG_CHARS = 900


def _advbench(files: PackageFiles) -> Iterator[str]:
    for item in source_items("advbench", files):
        if split_number(item.id) < 0.5:
            yield item.prompt


def _do_not_answer(files: PackageFiles) -> Iterator[str]:
    for file in pinned.DO_NOT_ANSWER:
        for row in _json_lines(files, file):
            if "S004lewd" not in row["intents"]:
                yield str(row["prompt"])


def _instructions(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["prompt"]) for row in _json_lines(files, pinned.IFEVAL))


def _health(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["question"]) for row in _json_lines(files, pinned.HEALTH))


def _open_questions(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.OPEN_QUESTIONS):
        question = str(row["question"]).strip()
        yield f"{question[0].upper()}{question[1:]}?"


def _how_to(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.HOW_TO):
        # The set's aims are phrases ("to fold a shirt,"); the recipe's templates make requests of them.
        aim = str(row["question"]).strip(" .,?:")
        yield f"{aim[0].lower()}{aim[1:]}" if aim else ""


def _arena(files: PackageFiles) -> Iterator[str]:
    # Other scripts take the demo model several tokens a letter.
    for row in _json_lines(files, pinned.ARENA):
        if (text := str(row["prompt"])).isascii():
            yield text


def _health_chats(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.HEALTHBENCH):
        if len(row["prompt"]) == 1 and (text := str(row["prompt"][0]["content"])).isascii():
            yield text


def _constraints(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.IFBENCH):
        if (text := str(row["prompt"])).isascii():
            yield text


def _news(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.NEWS):
        yield " ".join(str(row["document"]).split())[:_DOCUMENT_CHARS]


def _news_openings(files: PackageFiles) -> Iterator[str]:
    yield from (" ".join(text.split()[:12]) for text in _news(files))


def _toxic_openings(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.TOXIC_TEXTS):
        words = str(row["text"]).split()
        if len(words) >= 6:
            yield " ".join(words[: max(4, len(words) // 2)])


def _finance(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["question"]) for row in _json_lines(files, pinned.FINANCE))


def _medicines(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["Question"]) for row in _json_lines(files, pinned.MEDICINES))


def _sums(files: PackageFiles) -> Iterator[str]:
    yield from (f"{row['passage']} {row['question']}" for row in _json_lines(files, pinned.SUMS))


def _situations(files: PackageFiles) -> Iterator[str]:
    yield from (f"{row['passage']} {row['question']}" for row in _json_lines(files, pinned.SITUATIONS))


def _sentences(files: PackageFiles) -> Iterator[str]:
    yield from (str(row["sourceString"]) for row in _json_lines(files, pinned.SENTENCES))


def _writing(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.WRITING):
        if row["lang"] == "en" and (text := str(row["query"])).isascii():
            yield text


def _puzzles(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.PUZZLES):
        yield f"{row['passage']} {str(row['question']).strip()}\n{row['options']}"


def _contracts(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.CONTRACTS):
        yield f"{_opening(row['contract'])}\n\n{row['question']}"


def _abstracts(files: PackageFiles) -> Iterator[str]:
    for row in _json_lines(files, pinned.ABSTRACTS):
        yield f"{_opening(row['passage'])} {row['question']}"


def _opening(text: object) -> str:
    return " ".join(str(text).split())[:_LONG_CHARS]


def _uncensored(files: PackageFiles) -> Iterator[str]:
    document = parse_row(decode_text(files.read(REFUSAL_PAIRS)))
    yield from (str(row["prompt"]) for row in document["prompts"])


#: The value of ``set`` -> its prompts.
SETS: dict[str, Callable[[PackageFiles], Iterator[str]]] = {
    "advbench-half": _advbench,
    "do-not-answer": _do_not_answer,
    "instructions": _instructions,
    "health": _health,
    "open-questions": _open_questions,
    "how-to": _how_to,
    "arena": _arena,
    "health-chats": _health_chats,
    "constraints": _constraints,
    "news": _news,
    "news-openings": _news_openings,
    "toxic-openings": _toxic_openings,
    "finance": _finance,
    "medicines": _medicines,
    "sums": _sums,
    "situations": _situations,
    "sentences": _sentences,
    "writing": _writing,
    "uncensored": _uncensored,
    "puzzles": _puzzles,
    "contracts": _contracts,
    "abstracts": _abstracts,
}


def require_known(sources: Sequence[Source], where: str) -> None:
    """Check that every set of a recipe exists.

    Raises:
        RecipeInvalid: One does not.
    """
    for source in sources:
        if source.set is not None and source.set not in SETS:
            known = ", ".join(SETS)
            raise RecipeInvalid(f"{where}: set: expected one of {known}, got {source.set!r}")


def prompts_of(files: PackageFiles, sources: Sequence[Source]) -> list[str]:
    """Read the prompts of sources, at most ``limit`` of each, in a fixed order that mixes them.

    Raises:
        DataUnavailable: A package is unavailable.
        PatchError: A file beside the recipe can't be read.
    """
    held_out = {normalised(item.prompt) for name in _HELD_OUT for item in source_items(name, files)}
    chosen: dict[str, str] = {}
    for source in sources:
        most = _most_chars(source)
        found = {
            normalised(text): text
            for text in _texts(source, files)
            if text.strip() and (most is None or len(text) <= most)
        }
        # The hash decides which are taken, so that a limit takes a sample and not the beginning.
        keys = sorted(found.keys() - held_out, key=split_number)[: source.limit]
        templates = _templates(source, files)
        for key in keys:
            filled = _filled(templates, key, found[key])
            # In two templates it is two prompts.
            chosen[key if chosen.get(key, filled) == filled else normalised(filled)] = filled
    return [chosen[key] for key in sorted(chosen, key=lambda key: split_number(f"order:{key}"))]


def pick(prompt: str, num_choices: int) -> int:
    """Choose one of several by the hash of a prompt."""
    return int(split_number(f"ending:{prompt}") * num_choices)


def _most_chars(source: Source) -> int | None:
    if source.shorter_than is not None:
        return source.shorter_than - 1
    # What people put beside their recipe is theirs to measure.
    if source.file is not None:
        return None
    return _DOCUMENT_CHARS if source.set == "news" else _MAX_PROMPT_CHARS


def _texts(source: Source, files: PackageFiles) -> Iterator[str]:
    if source.set is not None:
        yield from SETS[source.set](files)
    elif source.file is not None:
        yield from (prompt.messages[-1]["content"] for prompt in read_prompts(Path(source.file)).prompts)
    elif source.frames is not None:
        yield from _filled_frames(Path(source.frames), source.phrases, source.first)


def _filled_frames(path: Path, phrases: str, num_sets: int | None) -> Iterator[str]:
    try:
        for one in parse_row(read_text(path))["sets"][:num_sets]:
            for frame in one["frames"]:
                yield from (frame.replace("{x}", phrase) for phrase in one[phrases])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeInvalid(
            f"{path}: expected sets, each with frames and {phrases}: {type(error).__name__}: {error}"
        ) from None


def _templates(source: Source, files: PackageFiles) -> Sequence[str]:
    if source.jailbreaks:
        return jailbreak_wrappers(files)
    if source.templates_in is None:
        return source.templates
    try:
        templates = [line for line in lines_of(read_text(Path(source.templates_in))) if line.strip()]
    except (OSError, ValueError) as error:
        raise RecipeInvalid(f"{source.templates_in}: {said(error)}") from None
    if not templates or not all("{prompt}" in one or "{aim}" in one for one in templates):
        raise RecipeInvalid(f"{source.templates_in}: expected a template with {{prompt}} a line")
    return templates


def _filled(templates: Sequence[str], key: str, prompt: str) -> str:
    template = templates[pick(key, len(templates))]
    return template.replace("{prompt}", prompt).replace("{aim}", prompt[:1].lower() + prompt[1:])


def _json_lines(files: PackageFiles, file: PackageFile) -> Iterator[dict[str, Any]]:
    for line in lines_of(decode_text(files.read(file))):
        if line.strip():
            yield parse_row(line)
