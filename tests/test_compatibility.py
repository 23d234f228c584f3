"""The table of what was run with what: made by a test run, and about the tests that there are."""

import json

import pytest

from tools.compatibility import JOINT, TESTS, Row, carried_features, merged, read_rows, table

pytest_plugins = "pytester"

PAGE = TESTS.parent / "docs" / "compatibility.md"
RECORDS = PAGE.with_suffix(".jsonl")

SUITE = """
import pytest

@pytest.mark.feature("good")
def test_good():
    pass

@pytest.mark.feature("mixed")
@pytest.mark.parametrize("value", [True, False])
def test_mixed(value):
    assert value

@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.feature("mode"))])
def mode(request):
    return request.param

@pytest.mark.feature("swap")
def test_together(mode):
    pass

@pytest.mark.feature("broken start")
def test_broken(missing):
    pass

@pytest.mark.feature("absent")
@pytest.mark.skipif(True, reason="no device")
def test_absent():
    pass

def test_unmarked():
    pass
"""


def row(feature: str, result: str = "passed", device: str = "CPU", release: str = "1.0") -> Row:
    return Row(feature, device, result, "", {"tests/x.py": 1}, f"vLLM {release}.0", "2026-01-01", device)


def test_the_table_is_about_the_features_that_tests_carry() -> None:
    listed = {part for kept in read_rows(RECORDS) for part in kept.feature.split(JOINT)}
    assert listed == carried_features(TESTS), "run `make compatibility`"


def test_the_page_is_made_from_the_records() -> None:
    assert PAGE.read_text(encoding="utf-8") == table(read_rows(RECORDS)), "run `make compatibility`"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The suite above, in the place of this repository's tests."""
    monkeypatch.setattr("tools.compatibility.TESTS", pytester.path)
    pytester.makepyfile(test_suite=SUITE)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nmarkers =\n    feature(name): a row\n"
    )
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> dict[str, Row]:
    suite.runpytest_inprocess("-p", "tools.compatibility", "--compatibility", "table.md", *arguments)
    lines = (suite.path / "table.jsonl").read_text(encoding="utf-8").splitlines()
    return {kept.feature: kept for kept in (Row(**json.loads(line)) for line in lines)}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_a_run_says_what_passed_failed_and_did_not_run(
    suite: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    rows = run(suite, *workers)
    assert {name: kept.result for name, kept in rows.items()} == {
        "good": "passed",
        "mixed": "failed",
        f"mode{JOINT}swap": "passed",
        "broken start": "failed",
        "absent": "not run",
    }
    assert rows["absent"].reason == "no device"
    assert rows["good"].tests == {"test_suite.py": 1}
    page = (suite.path / "table.md").read_text(encoding="utf-8")
    assert "| absent | not run: no device | `test_suite.py` |  |  |  |" in page


def test_a_part_of_a_features_tests_says_nothing_about_it(suite: pytest.Pytester) -> None:
    assert "mixed" not in run(suite, "-k", "True or good")


def test_a_device_and_release_replace_their_own_rows_only() -> None:
    kept = [row("a", device="GPU"), row("a", release="1.1")]
    assert merged([row("a", "failed"), *kept, row("gone")], [row("a")], {"a"}) == [row("a"), *kept]


def test_a_release_has_a_column_of_its_own() -> None:
    page = table([row("a"), row("a", "failed", release="1.10"), row("b", release="1.9")])
    assert [line.split("|")[1:5] for line in page.splitlines()[-4:]] == [
        [" feature ", " vLLM 1.0 ", " vLLM 1.9 ", " vLLM 1.10 "],
        [" --- ", " --- ", " --- ", " --- "],
        [" a ", " passed ", " not run ", " failed "],
        [" b ", " not run ", " passed ", " not run "],
    ]


def test_what_passes_without_kernels_is_called_rehearsed(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLICYPATCH_NO_KERNELS", "1")
    rows = run(suite)
    assert [rows[name].result for name in ("good", "mixed", "absent")] == ["rehearsed", "failed", "not run"]


def test_a_feature_that_ran_anywhere_is_not_listed_as_not_run() -> None:
    page = table([row("a", "not run"), row("a", device="GPU"), row("b", "not run")])
    assert [line.split("|")[1:3] for line in page.splitlines()[-2:]] == [
        [" a ", " passed "],
        [" b ", " not run "],
    ]
