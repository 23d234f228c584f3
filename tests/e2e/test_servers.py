"""The rule that end-to-end tests say which server they use."""

from pathlib import Path

import pytest

from tests.e2e.servers import group_of, problem_of

pytestmark = pytest.mark.server("none")


@pytest.mark.parametrize(
    ("names", "fixtures", "has_why", "problem"),
    [
        (set(), (), True, "got []"),
        ({"huge"}, (), True, "got ['huge']"),
        ({"none"}, ("shared_server",), True, "expected ['demo'] too"),
        ({"demo"}, ("shared_server", "tiny_server"), True, "expected ['tiny'] too"),
        ({"demo"}, ("start_module_server",), True, "expected ['own'] too"),
        ({"demo", "none"}, (), True, "beside 'none'"),
        ({"own"}, (), False, "expected why"),
    ],
)
def test_a_test_that_does_not_say_its_server_is_named(
    names: set[str], fixtures: tuple[str, ...], has_why: bool, problem: str
) -> None:
    assert problem in (problem_of(names, fixtures, has_why=has_why) or "")


@pytest.mark.parametrize(
    ("names", "fixtures"),
    [
        ({"none"}, ("tiny_patches",)),
        ({"demo"}, ("shared_server",)),
        ({"tiny", "own"}, ("tiny_server", "start_module_server")),
        ({"own"}, ()),
    ],
)
def test_a_test_that_says_its_server_is_let_through(names: set[str], fixtures: tuple[str, ...]) -> None:
    assert problem_of(names, fixtures) is None


def test_files_that_share_a_server_run_in_one_worker_and_others_by_themselves(tmp_path: Path) -> None:
    marks = {
        "one": "pytestmark = [pytest.mark.e2e, pytest.mark.server('demo')]",
        "two": "pytestmark = pytest.mark.server('own', 'demo', why='a flag')",
        "three": "pytestmark = pytest.mark.server('tiny')",
        "four": "pytestmark = pytest.mark.server('own', why='a flag')",
        "five": "",
    }
    files = {name: tmp_path / f"test_{name}.py" for name in marks}
    for name, mark in marks.items():
        files[name].write_text(f"import pytest\n{mark}\n")
    assert [group_of(file) for file in files.values()] == [
        "server demo",
        "server demo",
        "server tiny",
        str(files["four"]),
        str(files["five"]),
    ]
