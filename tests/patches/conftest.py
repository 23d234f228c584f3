"""A tiny random model with a tiny tokenizer, and patches made by hand."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.base_model import BaseModel
from patches.format import Patch, make_patch
from patches.kinds.prefix import PrefixBody
from patches.label import Label
from patches.model import LoadedModel, load_model
from tests.tiny_model import BASE_MODEL, save_tiny_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, which only get into each other's way on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base_model() -> BaseModel:
    return BASE_MODEL


@pytest.fixture
def make() -> Callable[..., Patch]:
    """Make a small valid patch; the arguments replace parts of it."""

    def make_small(
        name: str = "pirate",
        version: str = "1.0.0",
        *,
        num_tokens: int = 3,
        base_model: BaseModel = BASE_MODEL,
        origin: dict[str, Any] | None = None,
        embeddings: bool = True,
        kv: bool = True,
        seed: int = 0,
        **notes: Any,
    ) -> Patch:
        manifest = Label(name, version, **notes).manifest(
            base_model, PrefixBody(num_tokens), origin or {"method": "text"}
        )
        rows = exact_values((num_tokens, base_model.hidden_size), seed)
        shape = (base_model.num_layers, 2, num_tokens, base_model.num_kv_heads, base_model.head_size)
        cache = exact_values(shape, seed + 1).to(getattr(torch, base_model.dtype))
        return make_patch(manifest, {"embeddings": rows if embeddings else None, "kv": cache if kv else None})

    return make_small


def exact_values(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values that every dtype holds exactly, equal on every machine and with every torch."""
    counter = torch.arange(math.prod(shape)).reshape(shape)
    return ((counter * 37 + seed * 11) % 101 - 50).float() / 16


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., None]:
    """Write a tiny random Llama and its tokenizer into a folder."""
    return save_tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to change."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder: Path) -> LoadedModel:
    return load_model(tiny_model_folder)
