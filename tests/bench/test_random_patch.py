"""Random patches for models without weights."""

import json
from pathlib import Path

import pytest
import torch

from bench.servers.random_patch import main, random_patch
from patches.fingerprint import fingerprint_model, require_same_base_model
from patches.format import read_patch
from patches.label import Label

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with neither weights nor a tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_folder_without_weights_gets_a_patch_that_fits_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(model), "--num-tokens", "20", "-o", str(tmp_path / "out")]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    patch = read_patch(tmp_path / "out" / said["file"])
    assert (patch.digest, patch.manifest.num_virtual_tokens) == (said["digest"], 20)
    assert patch.kv is not None
    assert patch.kv.shape == (3, 2, 20, 2, 16)
    assert patch.kv.dtype == torch.bfloat16
    own = fingerprint_model(model, "bfloat16", may_lack_weights=True)
    require_same_base_model(patch.manifest.base_model, own)


def test_the_seed_decides_the_values(model: Path) -> None:
    base_model = fingerprint_model(model, "float32", may_lack_weights=True)
    digests = [random_patch(base_model, 4, Label("r", "1.0.0"), seed=seed).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--num-tokens", "4", "-o", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
