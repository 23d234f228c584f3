"""YAML of people: what it says counts, all of it, or the file is refused."""

from pathlib import Path

import pytest

from patches.errors import EvaluationError, RecipeInvalid
from patches.evaluate.gate import parse_gate
from patches.evaluate.suite import load_suite
from patches.recipes.recipe import read_recipe
from patches.yaml_text import parse_yaml

#: A threshold that would not count.
GATE = """\
thresholds:
  - figure: harm/plain/compliance
    max: 0.01
    max: 0.9
"""


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "x: {a: 1, 'a': 2}", "- {b: {}, b: {}}", "? a\n: 1\n? a\n: 2", "<<: {}\n<<: {}"]
)
def test_a_key_that_stands_twice_in_a_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the key '(a|b|<<)' appears twice in one mapping"):
        parse_yaml(text)


def test_equal_keys_of_two_mappings_and_replaced_ones_of_a_merge_are_fine() -> None:
    assert parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\n1: a\n'1': b") == {
        "x": {"a": 1, "b": 2},
        "y": {"a": 3, "b": 2},
        1: "a",
        "1": "b",
    }


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "!!python/object:os.system {}", "a: b: c"])
def test_what_is_no_data_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected YAML") as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["9" * 5000, "!!int x"])
def test_an_integer_that_python_does_not_read_is_named_in_plain_words(number: str) -> None:
    with pytest.raises(
        ValueError, match=r"^expected YAML: expected an integer that is not too long, got '[9x]"
    ):
        parse_yaml(f"a: {number}")
    assert parse_yaml("a: 0x1f\nb: 1_000") == {"a": 31, "b": 1000}


def test_gates_suites_and_recipes_are_read_that_way(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gate\.yaml: .*'max' appears twice .* line 4"):
        parse_gate(GATE, "gate.yaml")
    suite, recipe = tmp_path / "suite.yaml", tmp_path / "recipe.yaml"
    suite.write_text("tasks: {a: {measure: outputs}}\ntasks: {}\n")
    recipe.write_text("name: a\nname: b\n")
    with pytest.raises(EvaluationError, match="'tasks' appears twice"):
        load_suite(str(suite))
    with pytest.raises(RecipeInvalid, match="'name' appears twice"):
        read_recipe(recipe)
