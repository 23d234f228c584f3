"""The recipes' data: what benign prompts are paired with."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from patches.pairs.rows import decode_row
from patches.pairs.sampling import Answer
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
    make_patches.train(recipe, tmp_path, "m", 0)
    make_patches.train(recipe, tmp_path, "m", 0, "soft", {"beta": "0.1"})
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
        make_patches.train(recipe | {"train": options}, tmp_path, "m", 0)
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
