"""The digest of a model's weights: independent of how they are stored, sensitive to what they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from patches.errors import ModelUnusable
from patches.fingerprint import fingerprint_model
from patches.weights_digest import weights_digest


def shard(folder: Path, num_shards: int) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    weight_map = {}
    for i in range(num_shards):
        part = names[i::num_shards]
        filename = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, folder / filename)
        weight_map.update(dict.fromkeys(part, filename))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_the_weights_digest_does_not_depend_on_sharding(folder: Path, num_shards: int) -> None:
    before = weights_digest(folder)
    shard(folder, num_shards)
    assert weights_digest(folder) == before


def test_shards_without_an_index_give_the_same_digest(folder: Path) -> None:
    before = weights_digest(folder)
    shard(folder, 3)
    (folder / "model.safetensors.index.json").unlink()
    assert weights_digest(folder) == before


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "one value": lambda t: t["model.norm.weight"].__setitem__(3, 7.0),
    "last value of a large tensor": lambda t: t["model.embed_tokens.weight"].__setitem__((-1, -1), 7.0),
    "dtype": lambda t: t.update({k: v.bfloat16() for k, v in t.items()}),
    "shape": lambda t: t.update({"model.norm.weight": t["model.norm.weight"].reshape(2, 16)}),
    "name": lambda t: t.update(other=t.pop("model.norm.weight")),
    "missing": lambda t: t.pop("model.norm.weight"),
    "swapped": lambda t: t.update(
        {
            "model.layers.0.self_attn.k_proj.weight": t["model.layers.1.self_attn.k_proj.weight"],
            "model.layers.1.self_attn.k_proj.weight": t["model.layers.0.self_attn.k_proj.weight"],
        }
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_have_another_digest(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    before = weights_digest(folder)
    rewrite(folder, change)
    assert weights_digest(folder) != before


def test_large_tensors_are_sampled_at_both_ends_and_between(tmp_path: Path) -> None:
    plain = torch.zeros(1_000_000)
    digests = set()
    for position in (0, 333_000, 666_500, 999_999):
        changed = plain.clone()
        changed[position] = 1
        safetensors.torch.save_file({"w": changed}, tmp_path / "model.safetensors")
        digests.add(weights_digest(tmp_path))
    safetensors.torch.save_file({"w": plain}, tmp_path / "model.safetensors")
    assert len(digests | {weights_digest(tmp_path)}) == 5


def test_weights_in_other_files_have_a_digest_without_being_unpickled(tmp_path: Path) -> None:
    empty = weights_digest(tmp_path, may_lack_weights=True)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    first = weights_digest(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 2'\ntR.")
    assert len({empty, first, weights_digest(tmp_path)}) == 3


@pytest.mark.parametrize("beside", [[], ["optimizer.pt", "training_args.bin"], ["weights.txt"]])
def test_a_folder_without_weights_is_refused_unless_they_are_random(folder: Path, beside: list[str]) -> None:
    (folder / "model.safetensors").unlink()
    for name in beside:
        (folder / name).write_bytes(b"x")
    with pytest.raises(ModelUnusable, match=r"has no weights; expected \*\.safetensors files"):
        fingerprint_model(folder, "float32")
    assert fingerprint_model(folder, "float32", may_lack_weights=True).num_layers == 2


def test_weights_that_cannot_be_read_are_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *_: Any) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelUnusable, match=r"^model: .*model\.safetensors can't be read: Permission denied"):
        weights_digest(folder)


def test_a_cut_off_weights_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelUnusable, match="cut off within the tensor"):
        weights_digest(folder)
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(ModelUnusable, match="cut off, or no safetensors file"):
        weights_digest(folder)


@pytest.mark.parametrize("weight_map", [{"a": "gone.safetensors"}, {"a": "../x.safetensors"}, {"a": 3}, []])
def test_a_bad_index_is_refused(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelUnusable, match="index"):
        weights_digest(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "a.safetensors")
    safetensors.torch.save_file({"x": torch.zeros(1)}, folder / "b.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnusable, match="safetensors hold the tensor 'x'"):
        weights_digest(folder)
