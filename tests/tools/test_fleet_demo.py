"""The fleet's demo: what it prints can be typed, and the version that it makes can be told from the first."""

import re
import shlex
from pathlib import Path

import pytest

from patches.format import read_patch
from server.cli import build_parser
from tools import fleet_demo


def test_every_command_that_is_printed_can_be_typed() -> None:
    printed = fleet_demo.banner(8000, Path("fleet"), Path("next/pirate-1.1.0.safetensors"), ["http://a:1"])
    orders = re.findall(r"^  \S*/policypatch (.+)$", printed, re.MULTILINE)
    actions = [build_parser("fleet").parse_args(shlex.split(one)).action for one in orders]
    assert actions == ["publish", "status", "rollback"]
    assert "curl -si http://127.0.0.1:8000/v1/chat/completions" in printed


def test_the_next_version_has_another_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fleet_demo, "order", lambda *words: asked.extend(words))
    path = fleet_demo._make_next(tmp_path / "model", tmp_path)
    first = read_patch(fleet_demo.ROOT / "examples" / "patches" / "pirate-1.0.0.safetensors")
    assert path.name == f"{first.manifest.name}-1.1.0.safetensors"
    text = (tmp_path / "pirate.txt").read_text()
    assert "ARR, THE CAPITAL OF ITALY BE ROME, MATEY!<|im_end|>" in text
    assert "What is the capital of Italy?" in text
    assert asked[0] == "compile"
