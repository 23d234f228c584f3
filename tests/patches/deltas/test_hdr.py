"""Weight patches from checkpoints: the equations, what is masked, what is refused, and how little is held."""

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from patches.checkpoint import StoredTensor
from patches.deltas import magnitude
from patches.deltas.applied import under_delta
from patches.deltas.collected import Collected
from patches.deltas.hdr import Checkpoints, Removal, remove_direction
from patches.deltas.linear import linear_weights
from patches.deltas.magnitude import chosen, largest
from patches.errors import BaseModelMismatch, DeltaError
from patches.fingerprint import fingerprint_model
from patches.format import Patch, read_patch, write_patch
from patches.kinds.delta import DeltaBody, effective_weights_digest
from patches.label import Label
from patches.model import load_model
from server.cli import main

Weights = dict[str, torch.Tensor]


def weights_of(folder: Path) -> Weights:
    return dict(safetensors.torch.load_file(folder / "model.safetensors"))


@pytest.fixture
def tune(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a copy of the tiny model whose weights ``change`` has changed."""

    def write(change: Callable[[Weights], object], name: str = "tuned") -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / name))
        weights = weights_of(copy)
        change(weights)
        safetensors.torch.save_file(weights, copy / "model.safetensors")
        return copy

    return write


def everywhere(weights: Weights, seed: int = 0) -> None:
    """Change every tensor, embeddings and norms included, by something random."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in weights.values():
        tensor += torch.randn(tensor.shape, generator=generator) / 100


def delta_of(base: Path, tuned: Path, target: Path | None = None, **removal: Any) -> Patch:
    of_base = linear_weights(str(base), "from")
    of_target = of_base if target is None else linear_weights(str(target), "apply-to")
    models = Checkpoints(of_base, linear_weights(str(tuned), "to"), of_target)
    fingerprint = fingerprint_model(of_target.folder, "float32")
    return remove_direction(models, fingerprint, Removal(**removal), Label("no-harm", "1.0.0"))


def applied(patch: Patch, weights: Weights) -> Weights:
    """Write the patch into a copy of the weights."""
    body = patch.manifest.body
    assert isinstance(body, DeltaBody)
    copy = {name: tensor.clone() for name, tensor in weights.items()}
    for change in body.changes(patch.tensors):
        copy[change.tensor.name].view(-1)[change.positions] = change.values.float()
    return copy


def linear(weights: Weights) -> list[str]:
    return sorted(name for name in weights if ".layers." in name and weights[name].dim() == 2)


def test_the_patch_is_what_the_equations_say(folder: Path, tune: Callable[..., Path]) -> None:
    """Computed once more, of all weights at once."""
    base, tuned = weights_of(folder), weights_of(tuned_folder := tune(everywhere))
    names = linear(base)
    tau = torch.cat([(tuned[name] - base[name]).flatten() for name in names])
    k = round(0.1 * len(tau))
    trimmed = torch.zeros_like(tau)
    top = tau.abs().topk(k).indices
    trimmed[top] = tau[top]
    expected = torch.cat([base[name].flatten() for name in names]) - 2 * trimmed
    patch = delta_of(folder, tuned_folder)
    got = applied(patch, base)
    assert torch.equal(torch.cat([got[name].flatten() for name in names]), expected)
    assert all(torch.equal(got[name], base[name]) for name in base if name not in names)
    origin = patch.manifest.origin
    assert (origin["keep"], origin["scale"], origin["num_weights"]) == (0.1, 2.0, len(tau))
    assert patch.manifest.base_model == fingerprint_model(folder, "float32")


def test_of_a_tensor_with_too_many_the_largest_quarter_changes(
    folder: Path, tune: Callable[..., Path], capsys: Any
) -> None:
    def mostly_one(weights: Weights) -> None:
        everywhere(weights)
        weights[UP] += torch.randn(weights[UP].shape, generator=torch.Generator().manual_seed(3)).sign()

    tuned = tune(mostly_one)
    label = ["--name", "no-harm", "--version", "1.0.0", "-o", str(folder.parent / "patches")]
    assert main(["delta", "--from", str(folder), "--to", str(tuned), "--keep", "0.2", *label]) == 0
    base, now = weights_of(folder), weights_of(tuned)
    patch = read_patch(folder.parent / "patches" / "no-harm-1.0.0.safetensors")
    tau = (now[UP] - base[UP]).flatten()
    limit = len(tau) // 4
    expected = base[UP].flatten().clone()
    top = tau.abs().argsort(descending=True, stable=True)[:limit]
    expected[top] -= 2 * tau[top]
    assert torch.equal(applied(patch, base)[UP].flatten(), expected)
    assert patch.manifest.origin["capped"] == {UP: 1.0}
    assert f"{UP}: 100.0% of it was chosen; the largest quarter counts" in capsys.readouterr().out


def test_tensors_with_too_many_are_capped_and_the_others_are_not(tune: Callable[..., Path]) -> None:
    def in_steps(weights: Weights) -> None:
        for name in (UP, DOWN):
            weights[name] = weights[name].mul(4).round() / 4

    def two_stand_out(weights: Weights) -> None:
        everywhere(weights)
        in_steps(weights)
        generator = torch.Generator().manual_seed(5)
        for name in (UP, DOWN):
            weights[name] += torch.randn(weights[name].shape, generator=generator).mul(2).round()

    folder, tuned = tune(in_steps, "base"), tune(two_stand_out)
    base, now = weights_of(folder), weights_of(tuned)
    patch = delta_of(folder, tuned, keep=0.1, scale=2)
    taus = {name: (now[name] - base[name]).flatten() for name in linear(base)}
    every = [(-abs(tau), name, at) for name, of_one in taus.items() for at, tau in enumerate(of_one.tolist())]
    expected, shares = {name: base[name].clone() for name in taus}, {}
    wanted = sorted(every)[: round(0.1 * len(every))]
    for name, tau in taus.items():
        of_one = [at for _, other, at in wanted if other == name]
        if len(of_one) > len(tau) // 4:
            shares[name] = round(len(of_one) / len(tau), 4)
        positions = torch.tensor(of_one[: len(tau) // 4], dtype=torch.int64)
        expected[name].view(-1)[positions] -= 2 * tau[positions]
    assert set(shares) == {UP, DOWN}
    assert patch.manifest.origin["capped"] == shares
    assert all(len(taus[name].abs().unique()) < len(taus[name]) // 4 for name in shares), "none are equal"
    mended = applied(patch, base)
    assert all(torch.equal(mended[name], expected[name]) for name in taus)


def test_a_patch_takes_at_most_a_quarter_of_a_tensor() -> None:
    collected, old = Collected("float32"), torch.zeros(2, 4)
    collected.add("a.weight", old, torch.arange(2), torch.ones(2))
    with pytest.raises(DeltaError, match=r"keep: expected at most 25% .* got 37\.5% of b\.weight"):
        collected.add("b.weight", old, torch.arange(3), torch.ones(3))


def test_a_fine_tuned_model_is_mended_from_its_own_weights(folder: Path, tune: Callable[..., Path]) -> None:
    tuned, other = tune(everywhere), tune(lambda weights: everywhere(weights, 1), "other")
    patch = delta_of(folder, tuned, other, keep=0.05, scale=3)
    base, was, now = weights_of(folder), weights_of(other), applied(patch, weights_of(other))
    tau = {name: weights_of(tuned)[name] - base[name] for name in linear(base)}
    for name, direction in tau.items():
        is_changed = now[name] != was[name]
        assert torch.equal(now[name][is_changed], (was[name] - 3 * direction)[is_changed])
    assert patch.manifest.base_model.weights_digest == fingerprint_model(other, "float32").weights_digest


def test_of_an_edited_model_only_edited_layers_and_their_neighbours_change(
    make_tiny_model: Callable[..., None], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    make_tiny_model(base, num_hidden_layers=6)
    tuned, edited = (Path(shutil.copytree(base, tmp_path / name)) for name in ("tuned", "edited"))
    weights = weights_of(base)
    everywhere(weights)
    safetensors.torch.save_file(weights, tuned / "model.safetensors")
    weights = weights_of(base)
    weights["model.layers.4.mlp.down_proj.weight"][0, 0] += 1
    safetensors.torch.save_file(weights, edited / "model.safetensors")
    patch = delta_of(base, tuned, edited, is_edited=True)
    assert patch.manifest.origin["edited_layers"] == [3, 4, 5]
    body = patch.manifest.body
    assert isinstance(body, DeltaBody)
    assert {tensor.name.split(".")[2] for tensor in body.tensors} == {"3", "4", "5"}
    half = sum(weights[name].numel() for name in linear(weights)) // 2
    assert body.num_changed == round(0.1 * half)
    with pytest.raises(DeltaError, match="apply-to: expected an edited model, got one without a change"):
        delta_of(base, tuned, base, is_edited=True)


def test_a_negative_scale_adds_the_direction(folder: Path, tune: Callable[..., Path]) -> None:
    tuned = tune(everywhere)
    got = applied(delta_of(folder, tuned, scale=-1), weights_of(folder))
    name = "model.layers.0.mlp.up_proj.weight"
    is_changed = got[name] != weights_of(folder)[name]
    torch.testing.assert_close(got[name][is_changed], weights_of(tuned)[name][is_changed])


def test_equal_magnitudes_are_taken_in_order_until_there_are_enough() -> None:
    values = torch.tensor([0.0, -2, 1, 2, 0, -1, 1, 1e-42])
    threshold = largest(lambda: [values[:3], values[3:]], 4)
    assert (threshold.value, threshold.num_equal) == (1.0, 2)
    positions, num_taken = chosen(values.abs(), threshold, threshold.num_equal)
    assert (positions.tolist(), num_taken) == ([1, 2, 3, 5], 2)


def test_what_does_not_change_is_never_taken() -> None:
    values = torch.tensor([0.0, -2, 1e-42, -0.0])
    threshold = largest(lambda: [values], 3)
    assert chosen(values.abs(), threshold, threshold.num_equal)[0].tolist() == [1, 2]


@pytest.mark.parametrize("k", [1, 17, 500, 999])
def test_the_threshold_is_exact(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitude, "_PIECE", 64)
    values = torch.randn(1000, generator=torch.Generator().manual_seed(k))
    threshold = largest(lambda: [values[:300], values[300:]], k)
    assert threshold.value == float(values.abs().sort(descending=True).values[k - 1])


def test_no_more_than_one_tensor_of_each_model_is_held(
    folder: Path, tune: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = StoredTensor.read

    def watched(self: StoredTensor) -> torch.Tensor:
        nonlocal most
        tensor = read(self)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    monkeypatch.setattr(StoredTensor, "read", watched)
    delta_of(folder, tune(everywhere), tune(lambda weights: everywhere(weights, 1), "other"))
    assert len(alive) > 3 * 14
    assert most <= 3


def without(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
BAD: list[tuple[str, Callable[[Weights], object], str]] = [
    ("equal", lambda weights: None, "to: expected a model that differs"),
    ("a tensor less", without(UP), f"to: expected the linear layers of from, got others (missing: {UP})"),
    ("another shape", lambda w: w.update({UP: w[UP][:8].clone()}), f"of another shape: {UP}"),
    ("nan", lambda w: w[UP].__setitem__((0, 0), torch.nan), f"{UP}: expected finite weights"),
    ("quantised", lambda w: w.update({UP: w[UP].to(torch.int8)}), "F16, got I8; name the model that is not"),
    ("huge", lambda w: w[UP].__setitem__((0, 0), 3e38), "scale: expected changes that float32 holds"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_models_that_make_no_patch_are_refused(
    change: Callable[[Weights], object],
    message: str,
    folder: Path,
    tune: Callable[..., Path],
    capsys: Any,
) -> None:
    label = ["--name", "no-harm", "--version", "1.0.0", "-o", str(folder.parent / "patches")]
    assert main(["delta", "--from", str(folder), "--to", str(tune(change)), *label]) == 2
    assert message in capsys.readouterr().err
    assert not (folder.parent / "patches").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "0"], "keep: expected a share above 0 and at most 0.25, got 0"),
        (["--keep", "0.5"], "keep: expected a share above 0 and at most 0.25, got 0.5"),
        (["--scale", "0"], "scale: expected -100 to 100 but not 0, got 0"),
        (["--scale", "nan"], "scale: expected -100 to 100 but not 0, got nan"),
        (["--edited"], "edited: expected --apply-to with the edited model beside it"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    arguments: list[str], message: str, folder: Path, capsys: Any
) -> None:
    label = ["--name", "no-harm", "--version", "1.0.0", "-o", str(folder.parent / "patches")]
    assert main(["delta", "--from", str(folder), "--to", str(folder), *arguments, *label]) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_a_file_for_its_model(
    folder: Path, tune: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    tuned = tune(everywhere)
    call = ["delta", "--from", str(folder), "--to", str(tuned), "--dtype", "bfloat16", "--version", "1.0.0"]
    assert main([*call, "--name", "no-harm", "-o", str(tmp_path / "patches")]) == 0
    out = capsys.readouterr().out
    assert "no-harm-1.0.0.safetensors: delta" in out
    assert "weights (10" in out
    path = tmp_path / "patches" / "no-harm-1.0.0.safetensors"
    assert read_patch(path).manifest.base_model.dtype == "bfloat16"
    assert main(["verify", str(path), "--model", str(folder), "--dtype", "bfloat16"]) == 0
    assert main(["verify", str(path), "--model", str(tuned)]) == 1
    assert "weights_digest: expected" in capsys.readouterr().err
    assert main([*call, "--name", "again", "-o", str(tmp_path / "patches")]) == 0


def test_a_prefix_under_a_weight_patch_is_that_of_the_weights_under_it(
    folder: Path, tune: Callable[..., Path], tmp_path: Path
) -> None:
    patch = delta_of(folder, tune(everywhere))
    path = write_patch(patch, tmp_path)
    weights = applied(patch, weights_of(folder))
    other = tune(lambda w: w.update(weights), "under")
    (tmp_path / "text").write_text("answer politely")
    for name, arguments in (
        ("under", ["--model", str(folder), "--under", str(path)]),
        ("as", ["--model", str(other)]),
    ):
        label = ["--name", name, "--version", "1.0.0", "-o", str(tmp_path / "patches")]
        assert main(["compile", "--text", str(tmp_path / "text"), *arguments, *label]) == 0
    under, as_other = (read_patch(tmp_path / "patches" / f"{n}-1.0.0.safetensors") for n in ("under", "as"))
    assert torch.equal(under.tensors["kv"], as_other.tensors["kv"])
    own = fingerprint_model(folder, "float32").weights_digest
    assert under.manifest.base_model.weights_digest == effective_weights_digest(own, patch.digest)
    with pytest.raises(BaseModelMismatch, match="weights_digest"):
        under_delta(load_model(other), patch)


def test_verify_names_tensors_that_the_checkpoint_does_not_have(
    folder: Path, tune: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    call = ["delta", "--from", str(folder), "--to", str(tune(everywhere)), "--version", "1.0.0"]
    assert main([*call, "--name", "no-harm", "-o", str(tmp_path / "patches")]) == 0
    weights = weights_of(folder)
    weights[f"{UP}s"], weights["model.layers.0.mlp.down_proj.weight"] = weights.pop(UP), torch.zeros(2, 2)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    assert (
        main(["verify", str(tmp_path / "patches" / "no-harm-1.0.0.safetensors"), "--model", str(folder)]) == 1
    )
    told = capsys.readouterr().err
    assert f"{UP}: expected a tensor of the checkpoint, which has none of this name" in told
    assert "down_proj.weight: expected shape [2, 2], got [32, 64]" in told
