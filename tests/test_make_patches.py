"""The recipes' data: what benign prompts are paired with."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from patches.pairs.rows import PairRow, decode_row, encode_row
from patches.pairs.sampler import Answer
from tools import make_patches

REFUSAL = "Sorry, I can't help with that."


def test_of_a_benign_prompt_the_models_own_answer_is_chosen_and_the_references_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(prompts: Sequence[str], options: Mapping[str, Any], model: str) -> Iterator[Any]:
        assert (prompts, model) == (["Why is the sky blue?", "Say nothing."], "m")
        yield ({"role": "user", "content": prompts[0]},), Answer("Because of", is_finished=False)
        yield ({"role": "user", "content": prompts[1]},), Answer(" ")

    monkeypatch.setattr(make_patches, "_own_answers", answers)
    pair = '{"id": "a", "prompt_id": "a"}'
    (tmp_path / "pairs.jsonl").write_text(f"{pair}\n")
    rows = [{"prompt": "Why is the sky blue?"}, {"document": "News."}, {"prompt": "Say nothing."}]
    (tmp_path / "benign.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = {"reference": "short-refusals", "contrast": {"max-tokens": 12}}
    make_patches.make_contrast_pairs(recipe, tmp_path, "m")
    first, second = (tmp_path / make_patches.CONTRAST).read_text().splitlines()
    assert first == pair
    made = decode_row(json.loads(second), "row")
    assert (made.chosen, made.rejected) == ("Because of", REFUSAL)
    assert (made.is_chosen_finished, made.is_rejected_finished) == (False, True)
    # What is a pair now is no benign row as well, if the recipe does not want some.
    assert (tmp_path / make_patches.SILENT).read_text() == '{"document": "News."}\n'
    recipe["contrast"] = {"max-tokens": 12, "benign": 1}
    make_patches.make_contrast_pairs(recipe, tmp_path, "m")
    assert [json.loads(line) for line in (tmp_path / make_patches.SILENT).read_text().splitlines()] == [
        {"document": "News."},
        {"prompt": "Why is the sky blue?"},
    ]


def test_a_variant_changes_options_and_has_a_folder_and_a_version_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(make_patches, "policypatch", lambda *words: calls.append(words))
    recipe = {
        "name": "debias",
        "version": "1.0.0",
        "license": "Apache-2.0",
        "policy": "debias.txt",
        "train": {"beta": 0.3, "tokens": 16},
    }
    make_patches.train(recipe, tmp_path, tmp_path, "m", 0)
    make_patches.train(recipe, tmp_path, tmp_path, "m", 0, "soft", {"beta": "0.1"})
    plain, soft = (dict(zip(words[1::2], words[2::2], strict=True)) for words in calls)
    assert (plain["--version"], plain["--beta"], plain["-o"]) == ("1.0.0", "0.3", str(tmp_path / "seed-0"))
    assert (soft["--version"], soft["--beta"], soft["-o"]) == (
        *("1.0.0-soft", "0.1"),
        str(tmp_path / "soft-seed-0"),
    )
    assert plain["--tokens"] == soft["--tokens"] == "16"


def test_a_recipe_may_begin_with_a_patch_in_place_of_a_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(make_patches, "policypatch", lambda *words: calls.append(words))
    recipe = {"name": "debias", "version": "1.1.0", "license": "Apache-2.0", "policy": "debias.txt"}
    for options in ({"beta": 0.3}, {"beta": 0.3, "init-patch": "debias-1.0.0.safetensors"}):
        make_patches.train(recipe | {"train": options}, tmp_path, tmp_path, "m", 0)
    text, patch = (dict(zip(words[1::2], words[2::2], strict=True)) for words in calls)
    assert Path(text.pop("--init-text")) == make_patches.RECIPES / "debias.txt"
    assert Path(patch.pop("--init-patch")) == make_patches.RECIPES / "debias-1.0.0.safetensors"
    assert text == patch


def test_a_sample_of_the_prompts_is_the_beginning_of_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def some(files: object, sets: Sequence[str]) -> list[tuple[str, str]]:
        return [("{prompt}", f"{sets[0]} {number}") for number in range(4)]

    monkeypatch.setattr(make_patches, "prompts_of", some)
    recipe = {"reference": "short-refusals", "prompts": ["ask"], "benign": ["chat"], "documents": ["read"]}
    files = make_patches.PackageFiles(tmp_path)
    for rows, (num_prompts, num_benign) in {None: (4, 8), 3: (3, 6)}.items():
        make_patches.write_data(recipe, tmp_path, files, rows)
        written = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("prompts", "benign")]
        assert [len(lines) for lines in written] == [num_prompts, num_benign]
        assert json.loads(written[0][0]) == {"prompt": "ask 0", "completion": REFUSAL}
        assert json.loads(written[1][-1]) == {"document": f"read {num_benign // 2 - 1}"}


def test_a_recipe_that_continues_another_has_what_it_does_not_say_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make_patches, "RECIPES", tmp_path)
    (tmp_path / "tone.yaml").write_text("{name: tone, version: 1.0.0, train: {beta: 1, tokens: 16}}")
    (tmp_path / "next.yaml").write_text("{continues: tone.yaml, version: 1.1.0, train: {beta: 2}}")
    (tmp_path / "last.yaml").write_text("{continues: next.yaml, version: 1.2.0}")
    for name, version in (("next", "1.1.0"), ("last", "1.2.0")):
        recipe = make_patches.read_recipe(tmp_path / f"{name}.yaml")
        assert (recipe["name"], recipe["version"], recipe["train"]) == ("tone", version, {"beta": 2})
        assert recipe["data"] == "tone"


def test_beside_others_a_patch_learns_among_them_and_keeps_what_they_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(make_patches, "policypatch", lambda *words: calls.append(words))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "benign.jsonl").write_text('{"document": "News."}\n')
    (tmp_path / "tone").mkdir()
    pairs = [
        PairRow(text, ({"role": "user", "content": text},), f"Dear {text}", "No", split)
        for text, split in (("a", "train"), ("b", "validation"), ("c", "train"), ("d", "train"))
    ]
    recipe: dict[str, Any] = {"name": "own", "version": "1.1.0", "license": "MIT", "policy": "own.txt"}
    tone = "{made}/tone/seed-{seed}/tone-1.0.0.safetensors"
    recipe |= {
        "beside": {"tone": tone},
        "beside-rows": 2,
        "train": {"beta": 1, "init-patch": "own.safetensors"},
    }
    with pytest.raises(SystemExit, match="make tone first"):
        make_patches.write_beside(recipe, tmp_path / "own", tmp_path / "out")
    (tmp_path / "tone" / "pairs.jsonl").write_text("".join(f"{encode_row(row)}\n" for row in pairs))
    make_patches.write_beside(recipe, tmp_path / "own", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / make_patches.BESIDE).read_text().splitlines()]
    assert rows == [
        {"document": "News."},
        {"prompt": "a", "completion": "Dear a"},
        {"prompt": "c", "completion": "Dear c"},
    ]
    make_patches.train(recipe, tmp_path / "own", tmp_path / "out", "m", 2)
    (words,) = calls
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--benign"] == str(tmp_path / "out" / make_patches.BESIDE)
    assert Path(options["--compose-with"]) == tmp_path / "tone" / "seed-2" / "tone-1.0.0.safetensors"
    assert Path(options["--init-patch"]) == make_patches.RECIPES / "own.safetensors"
    assert (options["-o"], options["--seed"]) == (str(tmp_path / "out" / "seed-2"), "2")
