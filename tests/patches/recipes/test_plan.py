"""From recipes to steps: the flags of a training, and what has to be there before it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from patches.errors import RecipeInvalid
from patches.evaluate.data.packages import PackageFiles
from patches.recipes.plan import Settings, Step, Variant, plan
from patches.recipes.recipe import read_recipe

Write = Callable[..., Path]


def steps_of(
    output: Path, *paths: Path, seeds: tuple[int, ...] = (0,), variant: Variant | None = None
) -> list[Step]:
    settings = Settings("m", output, seeds=seeds, variant=variant)
    return plan([read_recipe(path) for path in paths], settings, PackageFiles(output))


def flags_of(step: Step) -> dict[str, str]:
    assert step.words is not None
    words = step.words()
    return dict(zip(words[1::2], words[2::2], strict=True))


def test_a_variant_changes_options_and_has_a_folder_and_a_version_of_its_own(
    write_recipe: Write, tmp_path: Path
) -> None:
    path = write_recipe()
    plain = flags_of(steps_of(tmp_path, path)[-1])
    soft = flags_of(steps_of(tmp_path, path, variant=Variant("soft", {"beta": 0.1}))[-1])
    assert (plain["--version"], plain["-o"]) == ("1.0.0", str(tmp_path / "kind" / "seed-0"))
    assert (soft["--version"], soft["-o"]) == ("1.0.0-soft", str(tmp_path / "kind" / "soft-seed-0"))
    assert soft["--beta"] == "0.1"
    assert plain["--tokens"] == soft["--tokens"] == "8"


def test_a_baseline_is_done_when_its_own_folder_is_there(write_recipe: Write, tmp_path: Path) -> None:
    step = steps_of(tmp_path, write_recipe(), variant=Variant("lora", {"lora-rank": 2}))[-1]
    assert [path.name for path in step.outputs] == ["kind-1.0.0-lora.lora"]


def test_every_seed_is_a_step_and_none_leaves_the_data(write_recipe: Write, tmp_path: Path) -> None:
    path = write_recipe()
    assert [step.name for step in steps_of(tmp_path, path, seeds=(0, 2))] == [
        *("data", "pairs", "contrast", "train", "train"),
    ]
    assert [step.name for step in steps_of(tmp_path, path, seeds=())] == ["data", "pairs", "contrast"]


def test_recipes_of_one_chain_share_their_data(write_recipe: Write, tmp_path: Path) -> None:
    paths = write_recipe(), write_recipe("next.yaml", {"continues": "kind.yaml", "version": "1.1.0"})
    assert [step.name for step in steps_of(tmp_path, *paths)].count("data") == 1
    other = write_recipe("other.yaml", {"continues": "kind.yaml", "benign": [{"file": "rude.txt"}]})
    with pytest.raises(RecipeInvalid, match=r"other: makes .*prompts\.jsonl from something else"):
        steps_of(tmp_path, paths[0], other)


def test_beside_others_a_patch_learns_among_those_of_its_own_seed(
    write_recipe: Write, tmp_path: Path, recipes: Path
) -> None:
    write_recipe()
    beside = {"tone": "{made}/tone/seed-{seed}/tone-1.0.0.safetensors"}
    own = write_recipe(
        "own.yaml",
        {"continues": "kind.yaml", "version": "1.1.0", "beside": beside},
        train={"init-patch": "own.safetensors"},
    )
    with pytest.raises(
        RecipeInvalid, match=r"own: benign rows.*: needs .*tone/pairs.jsonl, which does not exist"
    ):
        steps_of(tmp_path / "out", own)
    (recipes / "own.safetensors").touch()
    for path in (tmp_path / "out/tone/pairs.jsonl", tmp_path / "out/tone/seed-2/tone-1.0.0.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    *_, row_step, train = steps_of(tmp_path / "out", own, seeds=(2,))
    flags = flags_of(train)
    assert flags["--benign"] == str(row_step.outputs[0]) == str(tmp_path / "out" / "own" / "beside.jsonl")
    assert flags["--compose-with"] == str(tmp_path / "out" / "tone" / "seed-2" / "tone-1.0.0.safetensors")
    assert flags["--init-patch"] == str(recipes / "own.safetensors")
    assert "--init-text" not in flags
    assert flags["--seed"] == "2"


def test_a_set_that_is_none_is_found_before_the_first_step(write_recipe: Write, tmp_path: Path) -> None:
    path = write_recipe(benign=[{"set": "jokes"}])
    with pytest.raises(
        RecipeInvalid, match=r"kind: benign: set: expected one of advbench-half, .*, got 'jokes'"
    ):
        steps_of(tmp_path, path)


def test_contrast_needs_something_to_say(write_recipe: Write, tmp_path: Path) -> None:
    path = write_recipe(reference={"own": "neutral"})
    with pytest.raises(RecipeInvalid, match="kind: contrast: goes with a reference that says something"):
        steps_of(tmp_path, path)


STEERING = {
    "kind": "steering",
    "layers": "1",
    "stages": "sft",
    "sft-epochs": 1,
    "sft-learning-rate": 0.05,
    "batch-size": 4,
}


def steering_recipe(write_recipe: Write, **changes: object) -> Path:
    return write_recipe(
        reference={"say": ["answer politely"], "over": ["answer rudely"]},
        contrast=None,
        train=STEERING,
        condition={"hard-negative": [{"frames": "plain.json", "phrases": "odd"}], "hard-weight": 3.0},
        **changes,
    )


def test_a_condition_is_fitted_to_a_vector_that_was_trained_without_benign_rows(
    write_recipe: Write, tmp_path: Path
) -> None:
    path = steering_recipe(write_recipe)
    steps = steps_of(tmp_path, path, variant=Variant("strong", {"strength": 0.3}))
    assert [step.name for step in steps] == ["data", "pairs", "hard", "train", "condition"]
    train, condition = flags_of(steps[-2]), flags_of(steps[-1])
    assert "--benign" not in train
    assert "--init-text" not in train
    assert train["--version"] == "1.0.0-strong-vector"
    output = tmp_path / "kind" / "strong-seed-0"
    assert condition["--patch"] == str(output / "vector" / "kind-1.0.0-strong-vector.safetensors")
    assert (condition["--version"], condition["-o"]) == ("1.0.0-strong", str(output))
    assert condition["--positive"] == str(tmp_path / "kind" / "prompts.jsonl")
    assert condition["--hard-negative"] == str(tmp_path / "kind" / "hard.jsonl")
    assert condition["--hard-weight"] == "3.0"


def test_seeds_share_what_the_model_makes_of_prompts(write_recipe: Write, tmp_path: Path) -> None:
    steps = steps_of(tmp_path, steering_recipe(write_recipe), seeds=(0, 1))
    assert {flags_of(step)["--states"] for step in steps if step.name == "condition"} == {
        str(tmp_path / "kind" / "states")
    }


def test_critical_weights_are_found_once_for_all_seeds(write_recipe: Write, tmp_path: Path) -> None:
    delta = {"kind": "delta", "share": 0.002, "steps": 2}
    path = write_recipe(critical={"num-prompts": 5}, train=delta, contrast=None)
    steps = steps_of(tmp_path, path, seeds=(0, 1))
    assert [step.name for step in steps] == ["data", "pairs", "critical", "train", "train"]
    found, train = flags_of(steps[2]), flags_of(steps[3])
    assert (found["--num-prompts"], found["-o"]) == ("5", str(tmp_path / "kind" / "scores"))
    assert found["--prompts"] == str(tmp_path / "kind" / "prompts.jsonl")
    assert (train["--mask"], train["--share"]) == (found["-o"], "0.002")
    assert "--init-text" not in train
    assert steps[3].needs["scores/scores.json"] == steps[2].outputs[0]
    assert [step.name for step in steps_of(tmp_path, path, seeds=())] == ["data", "pairs"]


def test_a_step_is_made_anew_when_the_templates_beside_the_recipe_change(
    write_recipe: Write, recipes: Path, tmp_path: Path
) -> None:
    (recipes / "roles.txt").write_text("You are a baker. {prompt}\n")
    source = {"frames": "plain.json", "templates-in": "roles.txt"}
    (step,) = steps_of(tmp_path, steering_recipe(write_recipe, benign=[source]), seeds=())[:1]
    assert step.needs["roles.txt"] == recipes / "roles.txt"
    (benign,) = step.setup["benign"]
    assert benign["templates_in"] == "roles.txt"
    # A source that lacks the keys that came later is written down as before.
    assert "templates_in" not in step.setup["prompts"][0]
