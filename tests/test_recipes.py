"""The recipes of the ready patches: the commands take them, and the committed patches come from them."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from patches.format import read_patch
from patches.recipes.recipe import read_recipe
from patches.recipes.sets import require_known
from patches.train.config import TrainConfig
from server.commands import train

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))
#: Whose patches are not shipped.
TRIED = sorted((EXAMPLES / "recipes" / "tried").glob("*.yaml"))
BESIDE = sorted((EXAMPLES / "recipes" / "beside").glob("*.yaml"))
PATCHES = sorted((EXAMPLES / "patches").glob("*.safetensors"))
TRAINED = [path for path in PATCHES if read_patch(path).manifest.origin["method"] == "trained"]


def stem_of(path: Path) -> str:
    return path.stem


def destinations(command: Any) -> dict[str, str]:
    """Give each flag of a command with the name that its value has."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return {flag: action.dest for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("path", RECIPES + TRIED + BESIDE, ids=stem_of)
def test_a_recipe_is_called_as_its_patch_and_finds_its_files(path: Path) -> None:
    recipe = read_recipe(path)
    assert {f"--{name}" for name in recipe.train} <= set(destinations(train))
    assert path.stem in (recipe.name, f"{recipe.name}-{recipe.version}")
    assert Path(recipe.policy).read_text(encoding="utf-8").strip()
    hard = recipe.condition.hard_negative if recipe.condition is not None else ()
    sources = [*recipe.prompts, *recipe.benign, *recipe.documents, *hard]
    require_known(sources, path.stem)
    named = [path for one in sources for path in (one.file, one.frames) if path is not None]
    assert [path for path in named if not Path(path).is_file()] == []


@pytest.mark.parametrize("path", BESIDE, ids=stem_of)
def test_a_recipe_begins_with_patches_of_recipes(path: Path) -> None:
    recipe = read_recipe(path)
    made = {
        f"{{made}}/{one.stem}/seed-{{seed}}/{made.name}-{made.version}.safetensors"
        for one in RECIPES + BESIDE
        for made in [read_recipe(one)]
    }
    assert {*recipe.beside.values(), recipe.train["init-patch"]} <= made


def test_there_are_ready_patches_and_each_has_a_recipe() -> None:
    made = {read_patch(path).manifest.name for path in TRAINED}
    assert made == {read_recipe(path).name for path in RECIPES}


@pytest.mark.parametrize("path", TRAINED, ids=stem_of)
def test_a_ready_patch_says_what_its_recipe_says(path: Path) -> None:
    manifest = read_patch(path).manifest
    (recipe,) = [
        recipe
        for recipe in map(read_recipe, RECIPES + BESIDE)
        if (recipe.name, recipe.version) == (manifest.name, manifest.version)
    ]
    names = destinations(train)
    options: dict[str, Any] = dict(recipe.train)
    started_from = options.pop("init-patch", None)
    asked = {names[f"--{flag}"]: value for flag, value in options.items()}
    asked["stages"] = tuple(asked["stages"].split(","))
    config = TrainConfig(**asked, seed=manifest.origin["seed"]).as_json()
    assert json.loads(json.dumps(manifest.origin["config"])) == config
    # Vectors start from nothing, and need no text.
    if started_from is None and manifest.kind != "steering":
        text = Path(recipe.policy).read_bytes()
        assert manifest.origin["init_text_digest"] == "sha256:" + hashlib.sha256(text).hexdigest()
    assert ("init_patch_digest" in manifest.origin) == (started_from is not None)
    others = [f"{one['name']}-{one['version']}" for one in manifest.origin.get("composed_with", [])]
    assert others == [Path(patch).stem for patch in recipe.beside.values()]


@pytest.mark.parametrize("name", ["twins.json", "code.json"])
def test_twins_differ_by_their_phrase_alone_and_hold_none_of_the_prompts_that_are_asked_later(
    name: str,
) -> None:
    asked = {
        line.lower().rstrip(".?")
        for path in (EXAMPLES / "prompts").glob("*.txt")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    for one in json.loads((EXAMPLES / "recipes" / name).read_text(encoding="utf-8"))["sets"]:
        assert all("{x}" in frame for frame in one["frames"])
        assert not set(one["harmful"]) & set(one["harmless"])
        for phrase in one["harmful"] + one["harmless"]:
            assert not {frame.replace("{x}", phrase).lower().rstrip(".?") for frame in one["frames"]} & asked
