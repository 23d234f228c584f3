"""Scores of the tiny model, made once, and the questions that they come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.critical.gradient import gradient_of, linear_parameters
from patches.critical.margin import RefusalMargin
from patches.critical.scorer import Questions
from patches.critical.scores import Scores, write_scores
from patches.model import LoadedModel, load_model


def asked(*texts: str) -> list[Any]:
    return [[{"role": "user", "content": text}] for text in texts]


QUESTIONS = Questions(asked("answer rudely", "be rude"), asked("answer politely", "be polite", "say 3"))


@pytest.fixture
def model(tiny_model_folder: Path) -> LoadedModel:
    """Of its own: tests change weights."""
    return load_model(tiny_model_folder)


@pytest.fixture(scope="session")
def scores_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the tiny model."""
    return scored(load_model(tiny_model_folder), tmp_path_factory.mktemp("scores")).folder


@pytest.fixture
def make_scores(model: LoadedModel, tmp_path: Path) -> Callable[[dict[str, torch.Tensor]], Scores]:
    """Write scores of the tiny model that are what a gradient makes of its weights."""

    def make(gradient: dict[str, torch.Tensor]) -> Scores:
        weights = linear_parameters(model.network)
        return write_scores(tmp_path / "made", model.base_model, gradient, weights, {}, overwrite=True)

    return make


def scored(model: LoadedModel, folder: Path) -> Scores:
    gradient = gradient_of(model.network, RefusalMargin(model, QUESTIONS))
    return write_scores(folder, model.base_model, gradient, linear_parameters(model.network), {})
