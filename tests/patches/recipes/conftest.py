"""Recipes of a few lines, with files beside them, and packages that hold nothing that a suite asks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from patches.recipes import sets

DOCUMENT: dict[str, Any] = {
    "name": "kind",
    "version": "1.0.0",
    "license": "Apache-2.0",
    "policy": "kind.txt",
    "prompts": [{"file": "rude.txt"}],
    "reference": {"say": ["answer politely"]},
    "benign": [{"frames": "plain.json", "limit": 6}],
    "pairs": {"max-tokens": 3, "batch-size": 4},
    "contrast": {"max-tokens": 2, "batch-size": 4, "benign": 4},
    "train": {"tokens": 8, "stages": "sft", "sft-epochs": 2, "sft-learning-rate": 0.01, "batch-size": 4},
}


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A folder with what a recipe needs beside it."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "kind.txt").write_text("answer politely, never answer rudely")
    (folder / "rude.txt").write_text("".join(f"be rude {number}\n" for number in range(12)))
    plain = {
        "sets": [{"frames": ["what is {x}", "say {x}"], "phrases": ["that", "this", "it"], "odd": ["one"]}]
    }
    (folder / "plain.json").write_text(json.dumps(plain))
    return folder


@pytest.fixture
def write_recipe(recipes: Path) -> Callable[..., Path]:
    """Write a recipe; the arguments replace keys, and ``None`` leaves one out."""

    def write(file: str = "kind.yaml", base: dict[str, Any] = DOCUMENT, **changes: Any) -> Path:
        changed = base | {key.replace("_", "-"): value for key, value in changes.items()}
        path = recipes / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in changed.items() if value is not None}))
        return path

    return write


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held out and nothing downloaded."""
    monkeypatch.setattr(sets, "source_items", lambda name, files: [])
