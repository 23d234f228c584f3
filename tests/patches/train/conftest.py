"""Toy pairs for the tiny model, and runs on them that take a second."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patches.label import Label
from patches.train.config import TrainConfig
from patches.train.data import PairSample, Sample
from patches.train.inputs import TrainInputs

POLICY = "answer politely, never answer rudely"

SMALL = TrainConfig(num_virtual_tokens=8, batch_size=4, sft_epochs=2, dpo_epochs=2, sft_learning_rate=0.05)


def row(number: int, **fields: Any) -> dict[str, Any]:
    answers = {
        "chosen": [{"role": "assistant", "content": f"politely {number}"}],
        "rejected": [{"role": "assistant", "content": f"rudely {number * 7}"}],
    }
    split = "validation" if number % 5 == 4 else "train"
    prompt = [{"role": "user", "content": f"say {number}"}]
    return {"id": str(number), "split": split, "prompt": prompt, **answers, **fields}


@pytest.fixture
def small() -> TrainConfig:
    """Eight virtual tokens, two epochs of two steps in each stage."""
    return SMALL


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    """A row of a pairs file."""
    return row


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Ten pairs, eight of them to learn from."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row(number)) for number in range(10)))
    return path


@pytest.fixture
def benign_file(tmp_path: Path) -> Path:
    path = tmp_path / "benign.jsonl"
    rows = [{"prompt": f"what is {n}", "completion": f"it is {n}"} for n in range(6)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def make_inputs(tiny_model_folder: Path, pairs_file: Path, tmp_path: Path) -> Callable[..., TrainInputs]:
    """Inputs of a run; the arguments replace parts of them."""

    def make(folder: str = "run", **parts: Any) -> TrainInputs:
        inputs = TrainInputs(
            str(tiny_model_folder), pairs_file, Label("kind", "1.0.0"), tmp_path / folder, init_text=POLICY
        )
        return replace(inputs, **parts)

    return make


@pytest.fixture
def samples() -> list[PairSample]:
    """Pairs of different lengths, as token ids."""
    return [
        PairSample(Sample((5, 6, 7), (8, 9, 1)), Sample((5, 6, 7), (10, 1))),
        PairSample(Sample((11, 12), (13, 1)), Sample((11, 12), (14, 15, 16, 1))),
        PairSample(Sample((3, 4, 5, 6, 20), (21, 22, 23)), Sample((3, 4, 5, 6, 20), (24,))),
    ]
