"""Suite files: the built-in ones load, mistakes in others are named."""

from pathlib import Path

import pytest

from patches.errors import EvaluationError
from patches.evaluate.data.packages import PackageFiles
from patches.evaluate.data.sources import SOURCES, source_items, wrap
from patches.evaluate.session import load_tasks
from patches.evaluate.suite import BUILT_IN, load_suite


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_suite_uses_measures_and_data_that_exist(name: str) -> None:
    suite = load_suite(name)
    assert suite.description
    for task in suite.tasks:
        assert {source["set"] for source in task.data} <= set(SOURCES)
        assert task.name.startswith(f"{name}/")


def test_all_means_every_suite_once() -> None:
    tasks = load_tasks(["harm", "all"])
    assert len({task.name for task in tasks}) == len(tasks)
    assert {task.name.split("/")[0] for task in tasks} == set(BUILT_IN)


@pytest.mark.parametrize("name", ["scary-benign", "professions"])
def test_our_own_data_need_no_package(name: str, tmp_path: Path) -> None:
    items = source_items(name, PackageFiles(tmp_path, archives=tmp_path))
    assert len(items) >= 60
    assert len({item.id for item in items}) == len(items)
    assert not any("{" in item.prompt for item in items)


def test_a_wrapped_item_remembers_its_request(
    tmp_path: Path, files: PackageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = {"aim": "Obey: {{ prompt }}"}
    monkeypatch.setattr("patches.evaluate.suite.jailbreak_templates", lambda names, files: templates)
    (tmp_path / "mine.yaml").write_text(
        "tasks: {a: {measure: harm, data: [{file: p.jsonl}], wrappers: [aim]}}"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": "tell me"}\n')
    (item,) = load_suite(str(tmp_path / "mine.yaml")).tasks[0].items(files)
    assert (item.id, item.prompt, item.wrapped) == ("p/1+aim", "Obey: tell me", "tell me")


def test_a_wrapper_takes_the_request_as_it_is() -> None:
    assert wrap(r"Say {{ prompt }} now, {{prompt}}", r"a \1 b") == r"Say a \1 b now, a \1 b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "mine: expected an object with tasks"),
        ("tasks: {}", "mine: expected an object with tasks"),
        ("tasks: {a: {measure: harm, data: [{set: x}]}}\nname: b", "mine: unknown keys name"),
        ("tasks: {a: {measure: harm, data: [{set: x}], limit: 3}}", "mine/a: expected .* got limit"),
        ("tasks: {a: {measure: harm, data: []}}", "mine/a: data: expected a list"),
        ("tasks: {a: {measure: harm, data: [{path: x}]}}", "mine/a: data: expected a list"),
        ("tasks: {a: {measure: loud, data: [{set: x}]}}", "measure: unknown 'loud'"),
        (
            "tasks: {a: {measure: harm, data: [{set: x}], wrappers: aim}}",
            "mine/a: expected wrappers as a list",
        ),
        (
            "tasks: {a: {measure: harm, data: [{set: x}], wrappers: [true]}}",
            "mine/a: expected wrappers as a list",
        ),
        ("tasks: {a: {measure: true, data: [{set: x}]}}", "mine/a: measure: expected a text, got True"),
        ("tasks: {a: {measure: harm, data: [{set: true}]}}", "mine/a: data: expected a list"),
        ("tasks: {1: {measure: harm, data: [{set: x}]}}", "mine: expected texts"),
        ("description: 5\ntasks: {a: {measure: harm, data: [{set: x}]}}", "mine: expected texts"),
        ("1: 2\ntasks: {a: {measure: harm, data: [{set: x}]}}", "mine: unknown keys 1"),
        ("tasks: {a: {measure: harm, data: [{set: x}], 1: 2}}", "mine/a: expected .* got 1"),
        ("tasks: {a: !!python/object:os.system {}}", "mine: "),
    ],
)
def test_a_malformed_suite_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        load_suite(str(tmp_path / "mine.yaml"))


def test_what_a_suite_names_has_to_be_there(tmp_path: Path) -> None:
    files = PackageFiles(tmp_path, archives=tmp_path)
    with pytest.raises(EvaluationError, match="unknown 'harms'; known are harm, overrefusal"):
        load_suite("harms")
    with pytest.raises(EvaluationError, match="data: unknown set 'x'; known are advbench"):
        source_items("x", files)
    (tmp_path / "mine.yaml").write_text("tasks: {a: {measure: harm, data: [{file: gone.jsonl}]}}")
    with pytest.raises(EvaluationError, match=r"gone\.jsonl: can't be read"):
        load_suite(str(tmp_path / "mine.yaml")).tasks[0].items(files)
