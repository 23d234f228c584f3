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
    # On the machine that made them the digests agree; another CPU may round bfloat16 otherwise.
    torch.testing.assert_close(made.kv.float(), patch.kv.float(), rtol=0.1, atol=0.25)
