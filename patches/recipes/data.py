"""What a recipe's patch is trained on, apart from what ``policypatch pairs`` makes.

The files hold harmful and toxic prompts where the recipe is about such, and are for the caller alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patches.evaluate.data.packages import PackageFiles
from patches.lines import whole_lines, write_lines
from patches.model import load_model
from patches.pairs.answers import Tell, answer_greedily
from patches.pairs.local import LocalSampler
from patches.pairs.prompts import Prompt, prompt_id, read_rows
from patches.pairs.rows import PairRow, encode_row, read_pairs
from patches.pairs.sampler import Answer
from patches.recipes.neutral import neutralised
from patches.recipes.recipe import Answers, Contrast, Recipe, Source
from patches.recipes.sets import pick, prompts_of
from patches.sampling import Sampling
from patches.train.data import split_of

PROMPTS = "prompts.jsonl"
#: Every benign prompt and document of the recipe.
BENIGN = "benign.jsonl"
#: Harmless prompts that look like those of the recipe.
HARD = "hard.jsonl"
#: The pairs of the prompts.
PAIRS = "pairs.jsonl"
#: These and, of benign prompts, those that say where the reference's answer is wrong.
ALL_PAIRS = "pairs-and-contrast.jsonl"
#: The rows on which training changes nothing: what is left of the benign ones, or more.
SILENT = "train-benign.jsonl"
#: Those, and what other patches say.
BESIDE = "beside.jsonl"


def write_data(recipe: Recipe, folder: Path, files: PackageFiles, num_rows: int | None) -> str:
    """Write the prompts with the answers that were written for them, and the benign rows."""
    rows = [{"prompt": prompt} for prompt in prompts_of(files, recipe.prompts)][:num_rows]
    if recipe.reference.say:
        rows = [row | {"completion": reference_answer(recipe, row["prompt"])} for row in rows]
    benign = [{"prompt": prompt} for prompt in prompts_of(files, recipe.benign)][:num_rows]
    benign += [{"document": text} for text in prompts_of(files, recipe.documents)][:num_rows]
    write_lines(folder / PROMPTS, map(json.dumps, rows))
    write_lines(folder / BENIGN, map(json.dumps, benign))
    return f"{len(rows)} prompts, {len(benign)} benign rows"


def reference_answer(recipe: Recipe, prompt: str) -> str:
    """Return the answer that was written for a prompt, chosen by its hash."""
    return recipe.reference.say[pick(prompt, len(recipe.reference.say))]


def write_said_pairs(recipe: Recipe, folder: Path) -> str:
    """Pair the answers that were written for prompts with others that were written; no model is asked."""
    prompts = [str(row["prompt"]) for row in read_rows(folder / PROMPTS)]
    rows = []
    for prompt in prompts:
        chat = ({"role": "user", "content": prompt},)
        rejected = recipe.reference.over[pick(prompt, len(recipe.reference.over))]
        key = prompt_id(chat)
        rows.append(PairRow(key, chat, reference_answer(recipe, prompt), rejected, split_of(key)))
    write_lines(folder / PAIRS, map(encode_row, rows))
    return f"{len(rows)} pairs"


def write_hard(sources: Sequence[Source], folder: Path, files: PackageFiles, num_rows: int | None) -> str:
    """Write harmless prompts that look like those of the recipe."""
    rows = [{"prompt": prompt} for prompt in prompts_of(files, sources)][:num_rows]
    write_lines(folder / HARD, map(json.dumps, rows))
    return f"{len(rows)} prompts"


def write_neutral_pairs(recipe: Recipe, folder: Path, model: str, device: str, tell: Tell) -> str:
    """Have the model answer, and pair each answer that has gendered words with itself without them.

    What it answers without such words becomes a benign row: there the patch must change nothing.
    """
    prompts = [str(row["prompt"]) for row in read_rows(folder / PROMPTS)]
    pairs, silent = [], []
    for chat, answer in _own_answers(prompts, recipe.pairs, folder / PAIRS, model, device, tell):
        neutral, key, done = neutralised(answer.text), prompt_id(chat), answer.is_finished
        if neutral == answer.text:
            silent.append({"prompt": chat[0]["content"], "completion": answer.text})
        else:
            pairs.append(PairRow(key, chat, neutral, answer.text, split_of(key), done, done))
    write_lines(folder / SILENT, map(json.dumps, [*read_rows(folder / BENIGN), *silent]))
    write_lines(folder / PAIRS, map(encode_row, pairs))
    return f"{len(pairs)} pairs, {len(silent)} answers had nothing to change"


def write_contrast_pairs(
    recipe: Recipe, contrast: Contrast, folder: Path, model: str, device: str, tell: Tell
) -> str:
    """Pair the model's own answer to each benign prompt with what it is to say to the others.

    So training sees both sides of the line that the patch has to draw: here the reference's answer is the
    rejected one. Documents stay benign rows, as do some of the prompts: pairs are about an answer's first
    words.
    """
    benign = read_rows(folder / BENIGN)
    prompts = [str(row["prompt"]) for row in benign if "prompt" in row]
    silent = [row for row in benign if "document" in row]
    silent += [{"prompt": prompt} for prompt in prompts[: contrast.benign]]
    rows = []
    for chat, answer in _own_answers(prompts, contrast, folder / ALL_PAIRS, model, device, tell):
        rejected, key = reference_answer(recipe, str(chat[0]["content"])), prompt_id(chat)
        if answer.text.strip():
            rows.append(PairRow(key, chat, answer.text, rejected, split_of(key), answer.is_finished))
    write_lines(folder / SILENT, map(json.dumps, silent))
    write_lines(folder / ALL_PAIRS, [*whole_lines(folder / PAIRS), *map(encode_row, rows)])
    return f"{len(rows)} pairs more, {len(silent)} benign rows are left"


def write_beside(recipe: Recipe, benign: Path, made: Path, folder: Path) -> str:
    """Write the benign rows of a patch that learns beside others: its own, and what each of those says.

    Args:
        recipe: The recipe.
        benign: Its own benign rows.
        made: Where the other recipes' data is.
        folder: Where the rows go.
    """
    rows = list(read_rows(benign))
    for name in recipe.beside:
        said = [row for row in read_pairs(made / name / PAIRS) if row.split == "train"][: recipe.beside_rows]
        rows += [{"prompt": row.prompt[-1]["content"], "completion": row.chosen} for row in said]
    write_lines(folder / BESIDE, map(json.dumps, rows))
    return f"{len(rows)} rows"


def _own_answers(
    prompts: Sequence[str], options: Answers | Contrast, output: Path, model: str, device: str, tell: Tell
) -> list[tuple[tuple[Mapping[str, str], ...], Answer]]:
    # Prompts of like length side by side need little padding.
    chats: list[Any] = [({"role": "user", "content": text},) for text in sorted(prompts, key=len)]
    loaded = load_model(model, dtype=options.dtype, device=device)
    sampler = LocalSampler(loaded, Sampling(max_tokens=options.max_tokens))
    # Kept until a changed model or option asks for others, so that a run that was cut off continues.
    made_with = f"{loaded.base_model.weights_digest}:{options.dtype}:{options.max_tokens}"
    digest = hashlib.sha256(made_with.encode()).hexdigest()
    store = output.with_name(f"{output.stem}.answers-{digest[:12]}.jsonl")
    asked = [Prompt(prompt_id(chat), chat) for chat in chats]
    answers = answer_greedily(asked, store, sampler, options.batch_size, "", tell)
    return [(chat, answers[prompt_id(chat)]) for chat in chats]
