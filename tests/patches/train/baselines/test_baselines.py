"""A baseline is a module and a row of the table: taking one out touches nothing else."""

import argparse
from pathlib import Path

import pytest

from patches.train.baselines import BASELINES, baseline_of_option
from server.commands import eval as eval_command
from server.commands import train

ROOT = Path(__file__).resolve().parents[4]
#: What PEFT and the models themselves call lora, which no baseline has to do with; adapters that are refused.
OTHERS = {
    ROOT / "patches" / "peft_import.py",
    ROOT / "patches" / "fingerprint.py",
    ROOT / "patches" / "critical" / "protect.py",
    ROOT / "server" / "commands" / "tune.py",
}


def test_no_code_but_its_own_module_names_a_baseline() -> None:
    files = {
        path
        for folder in ("patches", "server/commands", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent.name != "baselines"
    }
    named = [
        f"{path}: {name}"
        for path in files - OTHERS
        for name in BASELINES
        if name in path.read_text(encoding="utf-8").lower()
    ]
    assert files >= OTHERS
    assert named == []


def test_the_commands_do_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (train, eval_command):
        monkeypatch.setattr(command, "BASELINES", {})
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert "lora" not in parser.format_help().lower()


def test_each_baseline_is_found_by_its_option_and_has_its_module() -> None:
    for name, baseline in BASELINES.items():
        assert baseline_of_option(baseline.option) is baseline
        assert baseline.module().__name__.endswith(f".{name}")
