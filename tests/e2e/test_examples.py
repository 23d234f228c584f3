"""The patches that come with the repository are what their recipe says, and fit the demo model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compile import compile_text
from patches.fingerprint import fingerprint_model, require_same_base_model
from patches.format import read_patch
from patches.label import Label
from patches.model import LoadedModel, load_model

pytestmark = [pytest.mark.e2e, pytest.mark.server("none")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted((EXAMPLES / "patches").glob("*.safetensors"))
TRAINED = [path for path in FILES if read_patch(path).manifest.origin["method"] == "trained"]
COMPILED = [path for path in FILES if path not in TRAINED]


def name_of(path: Path) -> str:
    return path.name


def units_in_the_last_place(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return how many bfloat16 steps lie between each two values; below 2^-10 a step is that of 2^-10."""
    a, b = one.flatten().double(), other.flatten().double()
    exponent = torch.maximum(a.abs(), b.abs()).clamp(min=2**-10).log2().floor()
    return (a - b).abs() / torch.exp2(exponent - 7)


@pytest.fixture(scope="module")
def demo_bf16(demo_model: Path) -> LoadedModel:
    return load_model(demo_model, dtype="bfloat16")


def test_there_is_one_patch_for_each_policy_and_the_script_makes_them_all() -> None:
    policies = {path.stem for path in (EXAMPLES / "policies").glob("*.txt")}
    script = (EXAMPLES / "make-patches.sh").read_text(encoding="utf-8")
    made = re.search(r"^for name in (.*); do$", script, re.MULTILINE)

    assert len(policies) >= 3
    assert {read_patch(path).manifest.name for path in COMPILED} == policies
    assert made is not None
    assert set(made[1].split()) == policies


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_example_patch_fits_the_demo_model(path: Path, demo_model: Path) -> None:
    require_same_base_model(fingerprint_model(demo_model, "bfloat16"), read_patch(path).manifest.base_model)


@pytest.mark.parametrize("path", COMPILED, ids=name_of)
def test_a_compiled_patch_is_what_its_text_compiles_to(path: Path, demo_bf16: LoadedModel) -> None:
    patch = read_patch(path)
    manifest = patch.manifest
    policy = (EXAMPLES / "policies" / f"{manifest.name}.txt").read_text(encoding="utf-8")
    label = Label(manifest.name, manifest.version, license=manifest.license)
    made: Any = compile_text(demo_bf16, policy, label, raw=True, keep_text=True)

    assert made.manifest == manifest
    assert torch.equal(made.embeddings, patch.embeddings)
    # K/V is computed in float64: another machine differs in few values, and in those by one unit.
    units = units_in_the_last_place(made.kv, patch.kv)
    assert units.max() <= 1
    assert (units > 0).sum() <= len(units) / 10_000


def test_a_unit_in_the_last_place_is_the_step_to_the_next_value() -> None:
    one = torch.tensor([1.0, -2.0, 0.75, 1e-6]).bfloat16()
    other = torch.tensor([1.0 + 2**-7, -2.0 - 2**-5, 0.75, -1e-6]).bfloat16()
    assert units_in_the_last_place(one, other).tolist() == pytest.approx([1, 2, 0, 0.26], abs=0.01)
