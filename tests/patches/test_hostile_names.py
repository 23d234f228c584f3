"""Names that break lines, move cursors or turn text around: no command prints them as they are."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from patches.format import Patch, write_patch
from server.cli import main
from server.commands.output import say_lines
from server.commands.patches_report import describe_list

EVIL = "a\nqq\x1b[2J\u202e\u2028c"
SHOWN = r"a\nqq\x1b[2J\u202e\u2028c"
RAW = "\n\x1b\u202e\u2028"

CALLS = {
    "inspect": ["PATCH"],
    "inspect --json": ["GONE"],
    "verify": ["PATCH"],
    "sign": ["PATCH", "--key", "PATCH"],
    "compose": ["PATCH", "PATCH", "--model", "GONE", "-o", "OUT"],
    "compile": ["--text", "GONE", "--model", "GONE", "--name", "a", "--version", "1.0.0", "-o", "OUT"],
    "convert": ["PATCH", "--dtype", "float16", "-o", "OUT"],
    "convert again": ["PATCH", "--dtype", "bfloat16", "-o", "OUT"],
    "export": ["--peft", "PATCH", "-o", "OUT"],
    "keygen": ["OUT"],
    "policy check": ["PATCH"],
    "serve": ["--model", "GONE", "--patches", "GONE"],
    "serve --policy": ["PATCH", "--model", "GONE", "--patches", "."],
    "eval": ["--model", "GONE", "--patch", "PATCH", "-o", "OUT"],
    "eval --gate": ["PATCH", "--model", "MODEL", "-o", "OUT"],
    "pairs": ["--model", "GONE", "--reference-text", "GONE", "--prompts", "GONE", "-o", "OUT"],
    "train": [
        *("--model", "MODEL", "--pairs", "PATCH", "--init-text", "GONE", "--name", "a", "--version", "1.0.0"),
        *("-o", "OUT"),
    ],
    "make": ["PATCH", "--model", "GONE", "-o", "OUT"],
    "patches load gone": ["GONE", "--url", "http://127.0.0.1:9"],
    "patches list": ["--url", "http://127.0.0.1:9", "--key-file", "GONE"],
    "demo-model": ["PATCH"],
}


@pytest.mark.parametrize("call", CALLS)
def test_a_path_that_breaks_lines_is_printed_escaped(
    call: str,
    make: Callable[..., Patch],
    tmp_path: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    patch = write_patch(make(), tmp_path).rename(tmp_path / f"{EVIL}.safetensors")
    places = {
        "PATCH": patch,
        "GONE": tmp_path / EVIL,
        "OUT": tmp_path / f"out{EVIL}",
        "MODEL": tiny_model_folder,
    }
    words = [str(places.get(word, word)) for word in CALLS[call]]
    with contextlib.suppress(SystemExit):
        main([*call.removesuffix(" again").removesuffix(" gone").split(), *words])
    out, err = capsys.readouterr()
    for line in (out + err).split("\n"):
        assert not set(line) & set(RAW)
        # A forged line would begin where the name broke off.
        assert not line.startswith("qq")
    assert r"a\n" in out + err


def test_a_card_on_a_terminal_breaks_between_items_and_cuts_no_digest(
    make: Callable[..., Patch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    path = write_patch(
        make(changelog="Speaks as sailors did once upon a time, and never of where the gold is."), tmp_path
    )
    for width in (60, 80, 100):
        screen = Terminal()
        with monkeypatch.context() as patched:
            patched.setenv("COLUMNS", str(width))
            patched.setenv("TERM", "dumb")
            patched.setenv("NO_COLOR", "1")
            patched.setattr(sys, "stdout", screen)
            assert main(["inspect", path.name]) == 0
        lines = screen.getvalue().split("\n")
        assert "sha256:" + "0" * 64 in screen.getvalue()
        if width >= 80:
            assert max(map(len, lines)) <= width
        (shape,) = [line for line in lines if "KV heads of" in line]
        assert "2 KV heads of 4" in shape


def test_what_a_server_says_stands_on_its_own_lines(capsys: pytest.CaptureFixture[str]) -> None:
    failure = {"file": EVIL, "reason": "unreadable", "message": EVIL}
    say_lines(describe_list({"data": [], "failures": [failure]}))
    assert capsys.readouterr().out.split("\n") == [
        "no patch is loaded",
        f"refused: {SHOWN} (unreadable): {SHOWN}",
        "",
    ]
