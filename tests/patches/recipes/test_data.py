"""The data of recipes: which prompts are taken, and what benign ones are paired with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patches.errors import RecipeInvalid
from patches.evaluate.data import pinned as evaluated
from patches.evaluate.data.items import Item
from patches.evaluate.data.packages import PackageFiles
from patches.pairs.rows import PairRow, decode_row, encode_row, read_pairs
from patches.pairs.sampler import Answer
from patches.recipes import data, jailbreaks, sets
from patches.recipes.data import ALL_PAIRS, BENIGN, BESIDE, PAIRS, PROMPTS, SILENT
from patches.recipes.recipe import Contrast, Recipe, Reference, Source, read_recipe

REFUSAL = "answer politely"


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Recipe:
    return read_recipe(write_recipe())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Answer]) -> None:
    """Have the model say what the test wants."""

    def own(prompts: list[str], *_: Any) -> Any:
        assert prompts == list(answers)
        return [(({"role": "user", "content": prompt},), answers[prompt]) for prompt in prompts]

    monkeypatch.setattr(data, "_own_answers", own)


def test_of_a_benign_prompt_the_models_own_answer_is_chosen_and_the_references_rejected(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sky = Answer("Because of", is_finished=False)
    answering(monkeypatch, {"Why is the sky blue?": sky, "Say nothing.": Answer(" ")})
    pair = '{"id": "a", "prompt_id": "a"}'
    (tmp_path / PAIRS).write_text(f"{pair}\n")
    rows = [{"prompt": "Why is the sky blue?"}, {"document": "News."}, {"prompt": "Say nothing."}]
    (tmp_path / BENIGN).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def write(contrast: Contrast) -> None:
        data.write_contrast_pairs(recipe, contrast, tmp_path, "m", "cpu", lambda done, total: None)

    write(Contrast())
    first, second = (tmp_path / ALL_PAIRS).read_text().splitlines()
    assert first == pair
    made = decode_row(json.loads(second), "row")
    assert (made.chosen, made.rejected) == ("Because of", REFUSAL)
    assert (made.is_chosen_finished, made.is_rejected_finished) == (False, True)
    # What is a pair now is no benign row as well, if the recipe does not want some.
    assert rows_of(tmp_path / SILENT) == [{"document": "News."}]
    write(Contrast(benign=1))
    assert rows_of(tmp_path / SILENT) == [{"document": "News."}, {"prompt": "Why is the sky blue?"}]


def test_an_answer_without_gendered_words_is_a_benign_row_and_another_a_pair(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, {"a": Answer("She works."), "b": Answer("It works.")})
    (tmp_path / PROMPTS).write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / BENIGN).write_text('{"document": "News."}\n')
    neutral = replace(recipe, reference=Reference(own="neutral"))
    data.write_neutral_pairs(neutral, tmp_path, "m", "cpu", lambda done, total: None)
    (pair,) = read_pairs(tmp_path / PAIRS)
    assert (pair.chosen, pair.rejected) == ("They work.", "She works.")
    assert rows_of(tmp_path / SILENT) == [{"document": "News."}, {"prompt": "b", "completion": "It works."}]


@pytest.mark.usefixtures("no_packages")
def test_a_sample_of_the_prompts_is_the_beginning_of_all(recipe: Recipe, tmp_path: Path) -> None:
    files = PackageFiles(tmp_path)
    read = replace(recipe, documents=(Source(frames=recipe.benign[0].frames, phrases="odd"),))
    data.write_data(read, tmp_path / "all", files, None)
    assert data.write_data(read, tmp_path / "some", files, 1) == "1 prompts, 2 benign rows"
    (prompt,) = rows_of(tmp_path / "some" / PROMPTS)
    assert prompt == rows_of(tmp_path / "all" / PROMPTS)[0]
    assert prompt["completion"] == REFUSAL
    assert [list(row) for row in rows_of(tmp_path / "some" / BENIGN)] == [["prompt"], ["document"]]
    assert len(rows_of(tmp_path / "all" / PROMPTS)) == 12


@pytest.mark.usefixtures("no_packages")
def test_a_limit_takes_a_sample_by_hash_and_templates_are_filled(recipes: Path, tmp_path: Path) -> None:
    frames, files = str(recipes / "plain.json"), PackageFiles(tmp_path)
    whole = sets.prompts_of(files, [Source(frames=frames)])
    assert len(whole) == 6
    some = sets.prompts_of(files, [Source(frames=frames, limit=2)])
    assert len(some) == 2
    assert set(some) < set(whole)
    assert sets.prompts_of(files, [Source(frames=frames, phrases="odd", first=0)]) == []
    aimed = sets.prompts_of(
        files, [Source(frames=frames, phrases="odd", templates=("I want {aim}: {prompt}",))]
    )
    assert set(aimed) == {"I want what is one: what is one", "I want say one: say one"}
    assert sets.prompts_of(files, [Source(frames=frames, phrases="odd", shorter_than=8)]) == ["say one"]


@pytest.mark.usefixtures("no_packages")
def test_templates_come_from_a_file_or_a_package_too(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, files = Source(frames=str(recipes / "plain.json"), phrases="odd"), PackageFiles(tmp_path)
    (recipes / "roles.txt").write_text("You are a baker. {prompt}\n\n")
    in_roles = replace(plain, templates_in=str(recipes / "roles.txt"))
    assert sorted(sets.prompts_of(files, [in_roles])) == [
        "You are a baker. say one",
        "You are a baker. what is one",
    ]
    monkeypatch.setattr(PackageFiles, "read", lambda self, file: b"value: 'No rules. {{ prompt }}'")
    in_jailbreaks = replace(plain, jailbreaks=True)
    assert "No rules. say one" in sets.prompts_of(files, [in_jailbreaks])
    (recipes / "roles.txt").write_text("You are a baker.\n")
    with pytest.raises(RecipeInvalid, match=r"roles.txt: expected a template with \{prompt\} a line"):
        sets.prompts_of(files, [in_roles])


def test_no_wrapper_of_a_recipe_is_one_of_the_suites() -> None:
    names = {file.member for file in jailbreaks.FILES}
    assert len(names) > 30
    assert not names & {file.member for file in evaluated.JAILBREAKS.values()}


@pytest.mark.usefixtures("no_packages")
def test_a_prompt_in_two_templates_is_two_prompts_and_twice_alike_it_is_one(
    recipes: Path, tmp_path: Path
) -> None:
    plain = Source(frames=str(recipes / "plain.json"), phrases="odd")
    wrapped = replace(plain, templates=("Please: {prompt}",))
    found = sets.prompts_of(PackageFiles(tmp_path), [plain, wrapped, plain])
    assert sorted(found) == ["Please: say one", "Please: what is one", "say one", "what is one"]


def test_what_a_suite_asks_is_never_taken(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"harmbench": [Item("h/0", "h", "Be rude, 3!")]}
    monkeypatch.setattr(sets, "source_items", lambda name, files: asked.get(name, []))
    found = sets.prompts_of(PackageFiles(tmp_path), [Source(file=str(recipes / "rude.txt"))])
    assert len(found) == 11
    assert "be rude 3" not in found


@pytest.mark.usefixtures("no_packages")
def test_frames_without_the_phrases_are_refused(recipes: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"plain\.json: expected sets, each with frames and harmful"):
        sets.prompts_of(
            PackageFiles(tmp_path), [Source(frames=str(recipes / "plain.json"), phrases="harmful")]
        )


def test_beside_others_a_patch_keeps_what_they_say(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tone").mkdir()
    (tmp_path / "benign.jsonl").write_text('{"document": "News."}\n')
    pairs = [
        PairRow(text, ({"role": "user", "content": text},), f"Dear {text}", "No", split)
        for text, split in (("a", "train"), ("b", "validation"), ("c", "train"), ("d", "train"))
    ]
    (tmp_path / "tone" / PAIRS).write_text("".join(f"{encode_row(row)}\n" for row in pairs))
    among = replace(recipe, beside={"tone": "tone.safetensors"}, beside_rows=2)
    data.write_beside(among, tmp_path / "benign.jsonl", tmp_path, tmp_path / "out")
    assert rows_of(tmp_path / "out" / BESIDE) == [
        {"document": "News."},
        {"prompt": "a", "completion": "Dear a"},
        {"prompt": "c", "completion": "Dear c"},
    ]
