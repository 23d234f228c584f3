"""`policypatch policy`, through the command line."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.cli import main

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "policy.yaml"
EXAMPLE_PATCHES = ROOT / "examples" / "patches"
KEY = "demo-research-key"
Capture = pytest.CaptureFixture[str]

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def ask(capsys: Capture) -> Ask:
    def call(action: str, *words: str | Path) -> tuple[int, dict[str, Any]]:
        code = main(["policy", action, *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_the_example_is_a_policy_and_its_patches_are_there(ask: Ask) -> None:
    assert ask("check", EXAMPLE) == (0, {"is_valid": True, "problems": [], "notes": []})
    code, report = ask("check", EXAMPLE, "--patches", EXAMPLE_PATCHES)
    assert (code, report["problems"]) == (0, [])
    assert any("'json-only' is unavailable" in note for note in report["notes"])


def test_check_tells_every_mistake_by_line(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nrequired: safety\nothers: {alow: all}\n")
    assert main(["policy", "check", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{path}:2:11", f"{path}:3:10"]


def test_check_names_what_a_folder_lacks(tmp_path: Path, ask: Ask) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 1\nrequired: [absent]\nothers: {}\n")
    assert ask("check", path)[0] == 0
    code, report = ask("check", path, "--patches", EXAMPLE_PATCHES)
    assert code == 1
    assert any("no patch 'absent' is loaded" in problem["message"] for problem in report["problems"])


def test_check_of_a_missing_file_is_a_mistake_in_the_call(tmp_path: Path, capsys: Capture) -> None:
    assert main(["policy", "check", str(tmp_path / "gone.yaml")]) == 2
    assert "can't be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ((), 0, {"patch": "safety@1.0.0", "rule": "required", "source": "default"}),
        (("--header", "none"), 1, {"status": 403, "code": "patch_forbidden", "rule": "required"}),
        (("--header", "pirate"), 1, {"status": 403, "rule": "others.allow"}),
        (("--header", "Pirate"), 1, {"status": 400, "rule": "grammar"}),
        (("--key", KEY, "--header", "nowhere"), 1, {"status": 404}),
        (("--key", KEY, "--header", "pirate"), 1, {"status": 400, "code": "composition_not_prepared"}),
        (("--key-name", "research", "--model-alias", "json-only"), 1, {"status": 403, "rule": "alias.allow"}),
        (("--tenant", "nobody"), 1, {"status": 403, "rule": "tenants.others"}),
        (("--tenant", "acme", "--peer", "192.0.2.1"), 1, {"status": 403, "rule": "tenants.trusted"}),
        (("--tenant", "acme", "--header", "json-only"), 1, {"status": 403, "rule": "tenants.acme.allow"}),
    ],
)
def test_explain_says_what_a_request_would_get(
    ask: Ask, words: tuple[str, ...], code: int, expected: dict[str, Any]
) -> None:
    got, answer = ask("explain", EXAMPLE, *words, "--patches", EXAMPLE_PATCHES)
    assert got == code
    assert {name: answer[name] for name in expected} == expected


def test_explain_without_a_folder_takes_everything_to_be_there(ask: Ask, capsys: Capture) -> None:
    code, answer = ask("explain", EXAMPLE, "--key-name", "research", "--header", "pirate")
    assert (code, answer["patch"], answer["are_patches_assumed"]) == (0, "safety.pirate", True)
    assert main(["policy", "explain", str(EXAMPLE), "--tenant", "acme"]) == 0
    assert "caller    tenant acme" in capsys.readouterr().out


def test_the_key_of_the_example_is_the_one_it_names(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, ask: Ask
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{KEY}\n".encode())))
    assert main(["policy", "hash-key"]) == 0
    digest = capsys.readouterr().out.strip()
    assert digest == hashlib.sha256(KEY.encode()).hexdigest()
    assert digest in EXAMPLE.read_text()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{KEY}\n".encode())))
    assert ask("explain", EXAMPLE, "--key", "-")[1]["caller"] == {"key": "research", "tenant": None}


def test_no_key_is_no_hash(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["policy", "hash-key"]) == 2
    assert "expected a key" in capsys.readouterr().err


def test_a_policy_and_the_flags_that_it_replaces_are_a_mistake(capsys: Capture) -> None:
    folder = str(EXAMPLE_PATCHES)
    words = ["serve", "--model", folder, "--patches", folder, "--policy", str(EXAMPLE), "--require-patch"]
    assert main(words) == 2
    assert "use one way" in capsys.readouterr().err
