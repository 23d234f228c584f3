"""``policypatch fleet``: orders as they are typed, and what is said of those that can't be carried out."""

from pathlib import Path

import pytest

from patches.signing.keys import generate_keys
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


def test_what_changes_nothing_is_no_revision(
    two: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = two.publisher().read().document
    assert order(two, "publish", tmp_path / "tone-1.0.0.safetensors") == 0
    assert capsys.readouterr().out == "nothing changes: revision 2 stays\n"
    assert two.publisher().read().document == before
    # One whose instant is to come can be brought forward.
    assert order(two, "publish", tmp_path / "tone-1.1.0.safetensors", "--in", "600") == 0
    assert order(two, "publish", tmp_path / "tone-1.1.0.safetensors", "--at-once") == 0
    assert [d.revision for d in [two.publisher().read().document] if d is not None] == [4]


def test_trusted_keys_are_published_only_with_what_they_signed(
    two: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = generate_keys(tmp_path / "keys", "alice")
    assert order(two, "publish", "--trusted-key", public) == 1
    assert "safe@1.0.0: no server would take it beside trusted keys: it has no signature" in (
        capsys.readouterr().err
    )
    paths = sorted(tmp_path.glob("*.safetensors"))
    for path in paths:
        assert main(["sign", str(path), "--key", str(private)]) == 0
    assert order(two, "publish", *paths, "--hold", "--trusted-key", public) == 0
    capsys.readouterr()
    _, other = generate_keys(tmp_path / "keys", "bob")
    assert order(two, "publish", "--trusted-key", other, "--distrust", "alice.pub") == 1
    assert "no server would take it" in capsys.readouterr().err
    assert order(two, "publish", "--distrust", "nobody.pub") == 1
    assert "those are: alice.pub" in capsys.readouterr().err
    assert order(two, "publish", "--distrust", "alice.pub") == 0
    assert "trusted no more: keys/" in capsys.readouterr().out
    document = two.publisher().read().document
    assert document is not None
    assert document.trusted_keys == ()


def test_a_key_of_the_fleets_roles_signs_no_patches(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert order(fleet, "publish", "--trusted-key", fleet.folder.folder / "keys" / "targets.pub") == 1
    assert "targets.pub: is a key of the fleet's own roles" in capsys.readouterr().err


def test_what_is_revoked_stays_revoked_and_is_shown(
    two: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = two.publisher().read().document
    assert document is not None
    digest = document.names["tone"].versions["1.0.0"].digest
    assert order(two, "revoke", digest) == 1
    assert "add --withdraw tone, or roll 'tone' back first" in capsys.readouterr().err
    assert order(two, "revoke", "sha256:abc") == 2
    assert order(two, "revoke", digest, "--withdraw", "tone") == 0
    assert order(two, "publish", tmp_path / "tone-1.0.0.safetensors") == 1
    assert "tone@1.0.0 is revoked for good" in capsys.readouterr().err
    assert order(two, "show") == 0
    assert "1.0.0 (revoked)" in capsys.readouterr().out
    root = str(two.folder.folder / "root.json")
    assert main(["fleet", "verify", two.folder.store, "--root", root]) == 0
    assert "tone@1.0.0, which is revoked and never served" in capsys.readouterr().out


def test_what_is_still_to_come_holds_no_earlier_for_what_follows_it(
    two: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert order(two, "publish", tmp_path / "tone-1.1.0.safetensors", "--in", "3600") == 0
    due = two.publisher().read().document
    assert due is not None
    assert order(two, "canary", "safe", "1.1.0") == 0
    after = two.publisher().read().document
    assert after is not None
    assert after.effective_at == due.effective_at
    capsys.readouterr()
    # A rollback can't wait; it says what comes with it.
    assert order(two, "abort", "safe") == 0
    assert f"which was to hold at {due.effective_at}, holds with this one" in capsys.readouterr().err


def test_a_root_that_is_none_is_said(two: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    (two.folder.folder / "root.json").write_text("{}")
    assert order(two, "show") == 1
    assert "root.json: is no root" in capsys.readouterr().err
