"""``fleet verify``: a whole store, checked as a server does."""

from pathlib import Path

import pytest

from patches.signing.keys import generate_keys
from server.cli import main
from server.fleet.document import Document
from server.fleet.roles import FleetFolder
from server.fleet.verification import verify_store
from tests.server.fleet.conftest import Fleet
from tests.server.fleet.replica import ship

POLICY = b"version: 1\nothers: {allow: all, allow_none: true}\n"


def problems(fleet: Fleet, address: str, folder: Path) -> dict[str, str]:
    checked = verify_store(address, fleet.folder.root, folder)
    return {one.what: one.problem for one in checked if one.problem is not None}


def target_of(fleet: Fleet, part: str) -> Path:
    (path,) = (Path(fleet.folder.store) / "targets").rglob(f"*{part}*")
    return path


def test_a_sound_store_is_sound(
    fleet: Fleet, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ship(fleet, ("tone", "1.0.0"), ("mood", "2.0.0"), policy=POLICY)
    root = str(fleet.folder.folder / "root.json")
    for address in (url, fleet.folder.store):
        assert main(["fleet", "verify", address, "--root", root]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith("ok ") for line in lines)
        assert {line.split()[1] for line in lines} >= {"tone@1.0.0", "mood@2.0.0", "policies/1.yaml"}


def test_an_altered_patch_is_named(
    fleet: Fleet, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ship(fleet, ("tone", "1.0.0"), ("mood", "2.0.0"))
    path = target_of(fleet, "tone-1.0.0")
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert list(problems(fleet, url, tmp_path / "x")) == ["tone@1.0.0"]
    assert main(["fleet", "verify", url, "--root", str(fleet.folder.folder / "root.json")]) == 1
    assert "a server would refuse 1 of" in capsys.readouterr().err


def test_a_patch_whose_file_is_gone_is_named(fleet: Fleet, url: str, tmp_path: Path) -> None:
    ship(fleet, ("tone", "1.0.0"))
    target_of(fleet, "tone-1.0.0").unlink()
    assert "404" in problems(fleet, url, tmp_path / "x")["tone@1.0.0"]


def test_what_is_no_patch_is_named(fleet: Fleet, url: str, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    assert "tone@1.0.0" in problems(fleet, url, tmp_path / "x")


def test_a_policy_with_mistakes_is_named(fleet: Fleet, url: str, tmp_path: Path) -> None:
    ship(fleet, ("tone", "1.0.0"), policy=b"version: 1\nothers: {alow: all}\n")
    assert "policies/1.yaml" in problems(fleet, url, tmp_path / "x")


def test_a_patch_that_no_trusted_key_signed_is_named(fleet: Fleet, url: str, tmp_path: Path) -> None:
    _, public = generate_keys(tmp_path / "keys", "alice")

    def trusting(document: Document, names: object) -> tuple[Document, object]:
        from dataclasses import replace

        return replace(document, trusted_keys=("keys/alice.pub",)), names

    ship(
        fleet,
        ("tone", "1.0.0"),
        change=trusting,  # type: ignore[arg-type]
        files={"keys/alice.pub": public.read_bytes()},
    )
    assert list(problems(fleet, url, tmp_path / "x")) == ["tone@1.0.0"]


def test_another_fleets_root_vouches_for_nothing(fleet: Fleet, url: str, tmp_path: Path) -> None:
    from server.fleet.roles import make_folder

    ship(fleet, ("tone", "1.0.0"))
    other = make_folder(tmp_path / "other", str(tmp_path / "elsewhere"), 600.0)
    (checked,) = verify_store(url, other.root, tmp_path / "x")
    assert checked.what == "catalog"
    assert checked.problem is not None
    assert checked.problem.startswith("unsigned")


def test_what_is_signed_for_less_than_a_month_is_said(
    fleet: Fleet, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from server.fleet import publisher

    monkeypatch.setattr(publisher, "LIFETIME", timedelta(days=20))
    ship(fleet, ("tone", "1.0.0"))
    warned = [c.what.split(",")[0] for c in verify_store(url, fleet.folder.root, tmp_path / "x") if c.warning]
    assert warned == ["targets", "snapshot"]
    assert FleetFolder.read(fleet.folder.folder).lease_s == 600
