"""A steering patch in the commands that read patches: shown, checked, and refused where it has no place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.compose import compose_patches
from patches.errors import KindMismatch
from patches.format import Patch, make_patch, read_patch, write_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.model import LoadedModel
from patches.peft_export import export_adapter
from patches.signing.signature import signature_path
from server.cli import main
from tests.tiny_model import BASE_MODEL

CONDITION = Condition((Probe((0,), "mean", -1.5, 0.25),), shadow=True)
BODY = SteeringBody(Steering("residual", "relative", 0.125, opposed_gain=1, tokens="answer"), CONDITION)


@pytest.fixture
def steering() -> Patch:
    manifest = Label("safe-steer", "1.0.0").manifest(BASE_MODEL, BODY, {"method": "icv", "num_pairs": 30})
    vector = torch.zeros(BASE_MODEL.num_layers, BASE_MODEL.hidden_size)
    vector[1] = 0.25
    return make_patch(manifest, {"vector": vector, "probes": torch.ones(1, BASE_MODEL.hidden_size)})


def test_inspect_says_how_and_when_it_acts(steering: Patch, tmp_path: Path, capsys: Any) -> None:
    path = write_patch(steering, tmp_path)
    assert main(["inspect", str(path)]) == 0
    card = capsys.readouterr().out
    for line in (
        "steering     relative, strength 0.125, at the residual site, opposed gain 1, renormalised",
        "acts         from the last prompt token on",
        "condition    any of 1; it only counts, nothing is steered",
        "  probe 1    mean of layers 0; met above 0.25, bias -1.5",
        "vector       float32 [2, 8]",
        "layers 1 to 1, longest 0.707",
        "probes       float32 [1, 8]",
    ):
        assert line in card
    assert "virtual tokens" not in card
    assert main(["inspect", "--json", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["manifest"]["condition"]["probes"] == [CONDITION.probes[0].document() | {"layers": [0]}]
    assert set(shown["tensors"]) == {"vector", "probes"}


def test_verify_takes_it_and_names_no_dtype(steering: Patch, tmp_path: Path, capsys: Any) -> None:
    assert main(["verify", str(write_patch(steering, tmp_path))]) == 0
    out = capsys.readouterr().out
    assert "good: safe-steer@1.0.0" in out
    assert "note" not in out


def test_verify_against_a_model_compares_all_but_the_dtype(
    steering: Patch, tiny_model: LoadedModel, tiny_model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    model = tiny_model.base_model
    tensors = {
        "vector": torch.eye(model.num_layers, model.hidden_size).flip(0),
        "probes": torch.ones(1, model.hidden_size),
    }
    body = replace(BODY, steering=replace(BODY.steering, tokens="all"), condition=None)
    of_model = Label("own", "1.0.0").manifest(model, body, {"method": "icv"})
    own = write_patch(make_patch(of_model, {"vector": tensors["vector"]}), tmp_path)
    command = ["verify", "--model", str(tiny_model_folder), "--dtype", "float16"]
    assert main([*command, str(own)]) == 0
    assert main([*command, str(write_patch(steering, tmp_path))]) == 1
    assert "base_model_mismatch" in capsys.readouterr().err


def test_it_is_neither_composed_nor_exported(
    steering: Patch, tiny_model: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(KindMismatch, match=r"safe-steer@1\.0\.0: expected a prefix .* got a steering"):
        compose_patches(tiny_model, [steering, steering], Label("both", "1.0.0"))
    with pytest.raises(KindMismatch, match="PEFT has no adapter for it"):
        export_adapter(steering, tmp_path / "adapter")
    assert main(["export", "--peft", str(write_patch(steering, tmp_path)), "-o", str(tmp_path / "out")]) == 2


def test_convert_copies_it_with_its_signature_and_goes_on(
    steering: Patch, tmp_path: Path, capsys: Any, make: Callable[..., Patch]
) -> None:
    path, after = write_patch(steering, tmp_path / "in"), write_patch(make("later"), tmp_path / "in")
    signature_path(path).write_text("signed")
    out = tmp_path / "out"
    assert main(["convert", str(path), str(after), "--dtype", "float16", "-o", str(out)]) == 0
    assert (out / path.name).read_bytes() == path.read_bytes()
    assert signature_path(out / path.name).read_text() == "signed"
    assert read_patch(out / after.name).manifest.base_model.dtype == "float16"
    assert f"{path} is for any dtype, and is copied as it is, with its signature" in capsys.readouterr().err


def test_convert_writes_over_no_other_signature(steering: Patch, tmp_path: Path, capsys: Any) -> None:
    path, out = write_patch(steering, tmp_path / "in"), tmp_path / "out"
    copy = write_patch(steering, out)
    signature_path(path).write_text("signed")
    signature_path(copy).write_text("signed by another")
    assert main(["convert", str(path), "--dtype", "float16", "-o", str(out)]) == 2
    assert "exists with different content" in capsys.readouterr().err
    assert signature_path(copy).read_text() == "signed by another"
