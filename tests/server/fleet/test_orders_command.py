"""``policypatch fleet``: orders as they are typed, and what is said of those that can't be carried out."""

from pathlib import Path

import pytest

from server.cli import main
from server.fleet.document import Meaning
from tests.server.fleet.conftest import Fleet
from tests.server.stand import conditional_bytes, put


def order(fleet: Fleet, action: str, *arguments: object) -> int:
    return main(["fleet", action, str(fleet.folder.folder), *map(str, arguments)])


def meaning(fleet: Fleet, name: str) -> Meaning:
    document = fleet.publisher().read().document
    assert document is not None
    found = document.names[name].meaning
    assert found is not None
    return found


@pytest.fixture
def two(fleet: Fleet, tmp_path: Path) -> Fleet:
    """Two versions of a prefix and of a vector with a condition; the older is active."""
    files = [put(tmp_path, "tone", version, fill=i + 1.0) for i, version in enumerate(("1.0.0", "1.1.0"))]
    for i, version in enumerate(("1.0.0", "1.1.0")):
        files.append(tmp_path / f"safe-{version}.safetensors")
        files[-1].write_bytes(conditional_bytes("safe", version, fill=0.25 + i / 8))
    assert order(fleet, "publish", files[0], files[2], "--at-once") == 0
    assert order(fleet, "publish", files[1], files[3], "--hold", "--at-once") == 0
    return fleet


def test_rules_travel_with_the_canary(two: Fleet) -> None:
    rules = ["--max-error-rate", "0.1", "--min-condition-met", "0.2", "--promote-after", "60"]
    assert order(two, "canary", "safe", "1.1.0", "--share", "0.5", *rules) == 0
    canary = meaning(two, "safe").canary
    assert canary is not None
    found = canary.rules
    assert (found.max_error_rate, found.min_condition_met, found.promote_after_s) == (0.1, 0.2, 60.0)
    assert found.min_requests == 20


@pytest.mark.parametrize("rule", ["--min-condition-met", "--max-condition-met", "--max-condition-change"])
def test_rules_about_a_condition_need_one(two: Fleet, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert order(two, "canary", "tone", "1.1.0", rule, "0.5") == 1
    assert f"has no condition for {rule} to look at" in capsys.readouterr().err
    assert meaning(two, "tone").canary is None
    assert order(two, "canary", "safe", "1.1.0", rule, "0.5") == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--share", "0"], "--share: expected a value greater than 0, got 0.0"),
        (["--max-error-rate", "1.5"], "--max-error-rate: expected a value less than or equal to 1, got 1.5"),
        (["--key", "bogus"], "--key: expected header:NAME"),
        (
            ["--min-condition-met", "0.9", "--max-condition-met", "0.1"],
            "expected --min-condition-met of at most --max-condition-met, 0.1, got 0.9",
        ),
    ],
)
def test_a_canary_with_mistakes_is_none(
    two: Fleet, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert order(two, "canary", "safe", "1.1.0", *arguments) == 2
    assert said in capsys.readouterr().err
    assert meaning(two, "safe").canary is None


def test_a_version_that_servers_have_to_have_is_said(two: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert order(two, "publish", "--min-server", "9.0.0", "--dry-run") == 0
    assert "servers below policypatch 9.0.0: take no further revision" in capsys.readouterr().out


def test_a_dry_run_of_a_publication_writes_nothing(
    two: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = set(Path(two.folder.store).rglob("*"))
    path = put(tmp_path, "mood", "1.0.0", fill=7.0)
    assert order(two, "publish", path, "--dry-run") == 0
    assert "mood: nothing -> 1.0.0" in capsys.readouterr().out
    assert set(Path(two.folder.store).rglob("*")) == objects


def test_nothing_published_and_no_store_are_said(fleet: Fleet, tmp_path: Path) -> None:
    assert order(fleet, "status", "--server", "http://127.0.0.1:1") == 1
    assert order(fleet, "judge", "--prometheus", "nowhere", "--once") == 2
    assert main(["fleet", "init", str(tmp_path / "new"), "--store", "ftp://x"]) == 2
    assert not (tmp_path / "new").exists()


def test_a_judge_without_canaries_says_so(two: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert order(two, "judge", "--prometheus", "http://127.0.0.1:1", "--once") == 0
    assert capsys.readouterr().out == "no canary runs\n"
