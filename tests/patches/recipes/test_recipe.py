"""What a recipe may say, and how it is told what it may not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from patches.errors import RecipeInvalid
from patches.recipes.options import read_change
from patches.recipes.recipe import read_recipe
from tests.patches.recipes.conftest import DOCUMENT

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betta": 1}, "betta: unknown key, got 1; expected one of name, version, license, policy"),
        (
            {"pairs": {"max_tokens": 3}},
            "pairs.max_tokens: unknown key, got 3; expected one of dtype, max-tokens",
        ),
        (
            {"benign": [{"set": "news", "limits": 3}]},
            "benign.0.limits: unknown key, got 3; expected one of set, file, frames, phrases",
        ),
        (
            {"prompts": [{"file": "rude.txt", "limit": "3"}]},
            "prompts.0.limit: expected a valid integer, got '3'",
        ),
        ({"prompts": [{"limit": 3}]}, "prompts.0: expected one of set, file and frames, got none"),
        ({"prompts": [{"set": "a", "file": "b"}]}, "prompts.0: expected one of .*, got set and file"),
        ({"reference": {}}, "reference: expected say, with a text at least, or own: neutral"),
        ({"reference": {"own": "words"}}, "reference.own: expected 'neutral', got 'words'"),
        ({"license": None}, "license: is missing"),
        ({"version": 1.0}, "version: expected a valid string, got 1.0"),
        ({"version": "one"}, "version: expected"),
        ({"policy": "other.txt"}, "policy: no such file: .*other.txt"),
        ({"train": {"betta": 0.1}}, "train: betta: unknown option, got 0.1; expected one of kind, tokens"),
        ({"train": {"beta": "strong"}}, "train: beta: expected a valid number, got 'strong'"),
        ({"train": {"beta": -1}}, "train: beta: expected more than 0, got -1"),
        ({"train": {"stages": "dpo"}}, "train: dpo_reference: expected base, teacher or none"),
        ({"train": {"lora-rank": 0}}, "train: lora_rank: expected at least 1, got 0"),
        ({"reference": {"own": "neutral", "over": ["x"]}}, "reference: over: goes with say"),
        (
            {"benign": [{"file": "rude.txt", "templates-in": "kind.txt", "jailbreaks": True}]},
            "benign.0: expected one of templates, templates-in and jailbreaks at most",
        ),
        ({"condition": {}}, "condition: goes with train: {kind: steering}"),
        ({"critical": {}}, "critical: expected with train: {kind: delta}, and only with it"),
        ({"train": {"kind": "delta"}}, "critical: expected with train: {kind: delta}, and only with it"),
        ({"condition": {"rate": 0.1}}, "condition.rate: unknown key, got 0.1; expected one of hard-negative"),
        ({"continues": "gone.yaml"}, "gone.yaml: No such file"),
        ({"continues": "kind.yaml"}, "continues: expected another recipe, got 'kind.yaml'"),
    ],
)
def test_what_is_wrong_is_named_with_file_key_value_and_what_is_allowed(
    changes: dict[str, Any], message: str, write_recipe: Write
) -> None:
    with pytest.raises(RecipeInvalid, match=rf"\.yaml: .*{message}" if "gone" not in message else message):
        read_recipe(write_recipe(**changes))


@pytest.mark.parametrize("text", ["- a list", "a: [", "\x00"])
def test_what_is_no_object_is_refused(text: str, recipes: Path) -> None:
    (recipes / "kind.yaml").write_text(text)
    with pytest.raises(RecipeInvalid, match=r"kind\.yaml: expected"):
        read_recipe(recipes / "kind.yaml")


def test_a_recipe_that_continues_another_has_what_it_does_not_say_itself(write_recipe: Write) -> None:
    write_recipe(train={"beta": 1, "tokens": 16})
    write_recipe("next.yaml", {"continues": "kind.yaml", "version": "1.1.0", "train": {"beta": 2}})
    last = write_recipe("last.yaml", {"continues": "next.yaml", "version": "1.2.0"})
    recipe = read_recipe(last)
    assert (recipe.name, recipe.version, recipe.train) == ("kind", "1.2.0", {"beta": 2})
    assert (recipe.stem, recipe.data) == ("last", "kind")


def test_paths_are_looked_up_beside_the_file_that_names_them(write_recipe: Write, recipes: Path) -> None:
    write_recipe()
    other = write_recipe(
        "beside/next.yaml",
        {"continues": "../kind.yaml", "beside": {"a": "a.safetensors", "b": "{made}/b"}},
        train={"init-patch": "kind-1.0.0.safetensors"},
    )
    recipe = read_recipe(other)
    assert (recipe.policy, recipe.prompts[0].file) == (str(recipes / "kind.txt"), str(recipes / "rude.txt"))
    assert recipe.train["init-patch"] == str(recipes / "beside" / "kind-1.0.0.safetensors")
    assert recipe.beside == {"a": str(recipes / "beside" / "a.safetensors"), "b": "{made}/b"}


@pytest.mark.parametrize(
    ("text", "change"),
    [("beta=0.1", ("beta", 0.1)), ("tokens=4", ("tokens", 4)), ("kind=prompt", ("kind", "prompt"))],
)
def test_a_change_is_a_number_where_it_looks_like_one(text: str, change: tuple[str, object]) -> None:
    assert read_change(text) == change


def test_a_change_without_a_value_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="--set: expected OPTION=VALUE, got 'beta'"):
        read_change("beta")


NUMBERS = [
    ("pairs", "max-tokens"),
    ("pairs", "batch-size"),
    ("pairs", "temperature"),
    ("contrast", "benign"),
    ("train", "tokens"),
    ("train", "sft-learning-rate"),
    ("train", "batch-size"),
]


@pytest.mark.parametrize("value", [True, "3", [3], {"a": 3}, float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(("part", "key"), NUMBERS)
def test_what_is_no_number_is_refused_where_one_belongs(
    write_recipe: Write, part: str, key: str, value: Any
) -> None:
    path = write_recipe(**{part: {**DOCUMENT[part], key: value}})
    with pytest.raises(RecipeInvalid, match=key):
        read_recipe(path)


@pytest.mark.parametrize("value", [True, 3, 1.5, [], {}], ids=str)
@pytest.mark.parametrize("key", ["name", "version", "license", "policy"])
def test_what_is_no_text_is_refused_where_one_belongs(write_recipe: Write, key: str, value: Any) -> None:
    with pytest.raises(RecipeInvalid, match=key):
        read_recipe(write_recipe(**{key: value}))


@pytest.mark.parametrize("value", [True, "a", 3, None, [True], [[]]], ids=str)
@pytest.mark.parametrize("key", ["prompts", "benign", "documents"])
def test_what_is_no_list_of_sources_is_refused(write_recipe: Write, key: str, value: Any) -> None:
    path = write_recipe()
    path.write_text(yaml.safe_dump({**DOCUMENT, key: value}))
    with pytest.raises(RecipeInvalid, match=key):
        read_recipe(path)
