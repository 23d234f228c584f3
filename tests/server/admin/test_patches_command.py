"""``policypatch patches`` against the admin app: orders arrive, refusals end with 1, JSON is the server's."""

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from server.admin.listener import AdminListener, bind_admin
from server.catalog.weights import Effects
from server.cli import main
from server.commands.patches_report import describe_record
from tests.server.stand import Stand

KEY = "alice-knows-this-key"

Command = Callable[..., Awaitable[int]]


@pytest.fixture
async def command(stand: Stand, admin: Any, tmp_path: Path) -> Any:
    """Run one command against the admin app on a Unix socket; gives its exit code."""
    path = tmp_path / "admin.sock"
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\n")

    async def run(*words: str) -> int:
        return await asyncio.to_thread(
            main, ["patches", *words, "--url", f"unix:{path}", "--key-file", str(key_file)]
        )

    with bind_admin(f"unix:{path}") as listener:
        listener.listen()
        async with AdminListener(admin.parts.app(stand.decider), listener):
            yield run


async def test_a_dry_run_of_what_would_be_refused_ends_with_1(
    command: Command,
    stand: Stand,
    admin: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await stand.load("pirate", "1.0.0")
    assert await command("activate", "pirate", "1.0.0", "--dry-run") == 0
    target, _ = admin.operator.effects("pirate", "1.0.0")
    monkeypatch.setattr(admin.operator, "effects", lambda *_: (target, Effects([], [], ["calm"])))
    assert await command("activate", "pirate", "1.0.0", "--dry-run") == 1
    assert "would be REFUSED: the policy needs calm" in capsys.readouterr().out


async def test_a_patch_is_loaded_chosen_rolled_back_and_removed(
    command: Command, stand: Stand, admin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1.0.0", "1.1.0"):
        file = tmp_path / f"{version}.safetensors"
        file.write_bytes(stand.bytes(version=version))
        assert await command("load", str(file)) == 0
    out = capsys.readouterr().out
    assert re.search(r"^patch +state +in flight +digest\npirate@1\.1\.0  active +0 +sha256:", out, re.M)
    assert await command("activate", "pirate", "1.0.0") == 0
    assert await admin.answers() == "pirate@1.0.0"
    assert await command("activate", "pirate", "--follow") == 0
    assert await command("rollback", "pirate", "--expect", "1.1.0") == 0
    assert "pirate: 1.0.0 is active" in capsys.readouterr().out
    assert await admin.answers() == "pirate@1.0.0"
    assert await command("rm", "pirate@1.1.0", "--force") == 0
    assert await admin.states() == {"1.0.0": "active"}
    assert await command("rm", "pirate") == 0
    assert "0 requests may still finish; no version is active" in capsys.readouterr().out


async def test_the_history_is_shown(
    command: Command, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    await stand.load()
    await command("activate", "pirate", "1.0.0")
    capsys.readouterr()
    assert await command("show", "pirate") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pirate: 1.0.0 is active, pinned\n")
    assert "when                  what      by      active then" in shown
    assert re.search(r"^  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  activate  alice   1\.0\.0$", shown, re.MULTILINE)


async def test_json_is_what_the_server_said(
    command: Command, stand: Stand, admin: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await stand.load()
    assert await command("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == (await admin.client.get("/v1/patches")).json()


async def test_a_refusal_ends_with_1_and_says_why(
    command: Command, stand: Stand, capsys: pytest.CaptureFixture[str]
) -> None:
    await stand.load()
    assert await command("activate", "pirate", "9.9.9") == 1
    assert "'pirate@9.9.9' is not loaded" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert main(["patches", "list", "--url", url]) == 2
    assert f"--url: {url} can't be reached" in capsys.readouterr().err


def test_activate_wants_a_version_or_follow() -> None:
    assert main(["patches", "activate", "pirate", "--url", "http://127.0.0.1:9"]) == 2


async def test_a_canary_is_started_shown_and_promoted(
    command: Command, stand: Stand, admin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await stand.load()
    file = tmp_path / "new.safetensors"
    file.write_bytes(stand.bytes(version="1.1.0"))
    assert await command("load", str(file), "--hold") == 0
    rules = ("--max-error-rate", "0.02", "--max-first-token", "0.5", "--promote-after", "600")
    assert await command("canary", "pirate", "1.1.0", "--share", "0.25", "--key", "user", *rules) == 0
    assert "canary: 1.1.0 for 25.0% by user" in capsys.readouterr().out
    assert (await admin.get("pirate/history"))["canary"]["promote_after_s"] == 600
    assert await command("canary", "pirate", "--promote") == 0
    assert await admin.answers() == "pirate@1.1.0"
    assert await command("canary", "pirate", "--abort") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["canary", "x", "1.0.0", "--promote-after", "1e999"],
            "--promote-after: expected a number, got '1e999'",
        ),
        (["canary", "x", "1.0.0", "--share", "nan"], "--share: expected a number, got 'nan'"),
        (["show", "../../health"], "NAME: name: expected 1 to 64 characters"),
        (["show", "\udcff"], "NAME: name: expected 1 to 64 characters"),
        (["activate", "x", "1/2"], "VERSION: expected a version such as 1.2.0, or sha256:"),
        (["rm", "x@../y"], "NAME[@VERSION]: version: expected a semantic version"),
        (["rm", "a,b"], "expected one patch, got 'a,b'"),
        (["rollback", "x", "--expect", "\udcff"], "--expect: expected a version such as 1.2.0, or sha256:"),
    ],
)
def test_what_no_url_and_no_json_holds_is_a_mistake_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["patches", *words, "--url", "http://127.0.0.1:9"])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_argument_that_is_no_text_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    call = ["patches", "canary", "x", "1.0.0", "--key", "header:\udcff", "--url", "http://127.0.0.1:9"]
    assert main(call) == 2
    assert "one holds bytes that are no text" in capsys.readouterr().err


def test_a_change_that_a_rule_made_says_why() -> None:
    change = {"at": "2026-01-31T03:00:00.5Z", "action": "abort", "by": "rules", "reason": "too slow"}
    target = {"version": "1.0.0", "digest": "sha256:0"}
    history = [{**change, "active": target}, {**change, "by": "alice", "reason": None, "active": target}]
    record = {"name": "x", "active": target, "is_pinned": False, "previous": [], "canary": None}
    *_, first, second = describe_record({**record, "history": history})
    assert first.endswith("rules  1.0.0        too slow")
    assert second.endswith("alice  1.0.0")
