"""Directions from pairs, by hand and through the command."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from patches.errors import CompileError, PairsError
from patches.format import Patch, read_patch
from patches.kinds.steering import Steering, SteeringBody
from patches.model import LoadedModel
from patches.pairs.rows import PairRow, encode_row, read_pairs
from patches.steer.directions import METHODS, directions, fitted
from patches.steer.from_pairs import PairStates, agreement, states_of_pairs, usable_pairs
from patches.steer.hidden import LAST, LAST_FOUR, MEAN, _Collector, pooled_states
from patches.steer.layer_list import last_third, read_layers, written_layers
from server.cli import main

# Differences (3, 0) and (1, 0) at one layer.
CHOSEN = torch.tensor([[[4.0, 1.0]], [[1.0, 5.0]]])
REJECTED = torch.tensor([[[1.0, 1.0]], [[0.0, 5.0]]])


def test_directions_are_those_derived_by_hand() -> None:
    for how, expected in (("mean", [2.0, 0.0]), ("pc1", [1.0, 0.0]), ("pc1+mean", [3.0, 0.0])):
        torch.testing.assert_close(directions(CHOSEN, REJECTED, how)[0], torch.tensor(expected))


def test_a_principal_direction_points_where_the_mean_does() -> None:
    torch.testing.assert_close(directions(REJECTED, CHOSEN, "pc1")[0], torch.tensor([-1.0, 0.0]))


def test_the_principal_direction_spans_all_layers() -> None:
    """The paper's: one direction of length 1 over the layers together, so that the larger layer leads."""
    chosen, rejected = torch.tensor([[[3.0], [4.0]], [[6.0], [8.0]]]), torch.zeros(2, 2, 1)
    torch.testing.assert_close(directions(chosen, rejected, "pc1"), torch.tensor([[0.6], [0.8]]))


def test_the_sign_of_the_authors_direction_is_that_of_their_decomposition() -> None:
    torch.manual_seed(0)
    chosen, rejected = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    # Their code subtracts the direction from chosen to rejected; its sign is decided over the pairs.
    unsafe = (rejected - chosen).double().flatten(1)
    left, _, right = torch.linalg.svd(unsafe - unsafe.mean(0), full_matrices=False)
    sign = torch.sign(left[left[:, 0].abs().argmax(), 0])
    theirs = -(sign * right[0] + unsafe.mean(0)).reshape(2, 3)
    torch.testing.assert_close(
        directions(chosen, rejected, "pc1+mean").double(), theirs, atol=1e-6, rtol=1e-5
    )


def test_equal_answers_have_no_direction() -> None:
    with pytest.raises(CompileError, match="leave the same hidden states"):
        directions(CHOSEN, CHOSEN, "mean")
    with pytest.raises(CompileError, match="at least 2 for centred differences, got 1"):
        directions(CHOSEN[:1], REJECTED[:1], "pc1+mean")


def test_relative_rows_have_length_one_and_other_layers_none() -> None:
    vector = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    assert fitted(vector, "relative").norm(dim=1).tolist() == [1.0, 1.0, 0.0]
    assert fitted(vector, "absolute", [1]).tolist() == [[0, 0], [0, 2], [0, 0]]


def test_agreement_is_one_where_pairs_agree() -> None:
    assert agreement(PairStates(CHOSEN, REJECTED)) == [1.0]
    crossed = torch.eye(2)[:, None]
    assert agreement(PairStates(crossed, torch.zeros_like(crossed))) == [0.707]


def test_no_state_of_a_token_is_kept() -> None:
    """A model's states of all tokens of thousands of prompts are more than most machines hold."""
    collector = _Collector([0, 1], [MEAN, LAST])
    collector.before_pass(torch.arange(3)[None], torch.tensor([[True, True, True], [True, True, False]]))
    states = torch.arange(12.0).reshape(2, 3, 2)
    given = weakref.ref(collector.after_layer(0, states))
    expected = torch.stack([states[0].mean(0), states[0, 2], states[1, :2].mean(0), states[1, 1]])
    del states
    assert given() is None
    assert torch.equal(collector.pooled[0], expected.reshape(2, 2, 2))


def test_pooled_states_are_the_models_own(tiny_model: LoadedModel) -> None:
    rows = [(5, 6, 7, 8, 9, 10), (11,), (12, 13)]
    pooled = pooled_states(tiny_model.network, rows, [MEAN, LAST, LAST_FOUR])
    for row, found in zip(rows, pooled, strict=True):
        states: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda m, i, output, states=states: states.append(output[0]))
            for layer in tiny_model.network.get_decoder().layers
        ]
        with torch.no_grad():
            tiny_model.network(torch.tensor([row]))
        for hook in hooks:
            hook.remove()
        for layer, own in enumerate(states):
            torch.testing.assert_close(found[0, layer], own.mean(0), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[1, layer], own[-1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[2, layer], own[-4:].mean(0), atol=1e-4, rtol=1e-4)


def test_many_rows_are_read_in_parts_and_come_back_in_order(
    tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [tuple(range(5, 5 + length)) for length in (7, 1, 4, 2, 9)]
    whole, told = pooled_states(tiny_model.network, rows, [LAST]), []
    monkeypatch.setattr("patches.steer.hidden._MAX_TOKENS", 9)
    parts = pooled_states(tiny_model.network, rows, [LAST], lambda done, total: told.append((done, total)))
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("text", "layers"), [("all", [0, 1, 2, 3]), ("1-3", [1, 2, 3]), ("3, 0,1-1", [0, 1, 3]), ("2", [2])]
)
def test_layers_are_read_as_people_write_them(text: str, layers: list[int]) -> None:
    assert read_layers(text, 4) == layers
    assert read_layers(written_layers(layers), 4) == layers


@pytest.mark.parametrize(
    ("text", "got"), [("4", "got 4"), ("3-1", "got '3-1'"), ("", "got ''"), ("-1", "'-1'")]
)
def test_layers_that_are_not_there_are_refused(text: str, got: str) -> None:
    with pytest.raises(CompileError, match=got):
        read_layers(text, 4)


def pair(
    number: int, split: str | None = None, chosen: str = "politely", rejected: str = "rudely"
) -> PairRow:
    return PairRow(str(number), ({"role": "user", "content": f"answer {number}"},), chosen, rejected, split)


def test_pairs_of_the_test_split_and_equal_answers_are_left_out() -> None:
    rows = [
        pair(0),
        pair(1, "test"),
        pair(2, "validation"),
        pair(3, chosen="x", rejected=" x "),
        pair(4, chosen=" "),
    ]
    assert [row.id for row in usable_pairs(rows, None)] == ["0", "2"]
    assert len(usable_pairs(rows, 1)) == 1
    with pytest.raises(PairsError, match="none is left"):
        usable_pairs([pair(1, "test")], None)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(encode_row(pair(number)) + "\n" for number in range(4)))
    return path


@pytest.fixture
def steer(tiny_model_folder: Path, pairs: Path, tmp_path: Path) -> Callable[..., Patch]:
    def call(*flags: str) -> Patch:
        words = [
            "steer",
            "--model",
            str(tiny_model_folder),
            "--pairs",
            str(pairs),
            "-o",
            str(tmp_path / "out"),
        ]
        assert main([*words, "--name", "safe", "--version", "1.0.0", "--force", *flags]) == 0
        return read_patch(tmp_path / "out" / "safe-1.0.0.safetensors")

    return call


def body_of(patch: Patch) -> SteeringBody:
    assert isinstance(patch.manifest.body, SteeringBody)
    return patch.manifest.body


def test_the_command_writes_the_mean_difference_of_each_layer(
    steer: Callable[..., Patch], pairs: Path, tiny_model: LoadedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = steer()
    states = states_of_pairs(tiny_model, read_pairs(pairs), "mean", None)
    mean = (states.chosen - states.rejected).mean(0)
    # The model has two layers; the last third is the last one.
    torch.testing.assert_close(patch.tensors["vector"][1], mean[1] / mean[1].norm())
    assert not bool(patch.tensors["vector"][0].any())
    assert body_of(patch).steering == Steering("residual", "relative", 0.02)
    assert patch.manifest.origin["layers"] == "1"
    assert patch.manifest.origin["icv"]["num_pairs"] == 4
    assert "safe-1.0.0.safetensors: steering, 0.0 MiB, sha256:" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_own_form(steer: Callable[..., Patch], method: str) -> None:
    patch = steer("--method", method)
    assert body_of(patch).steering == METHODS[method].form
    assert patch.manifest.origin["icv"]["form"] == method
    assert patch.manifest.origin["layers"] == ("0-1" if method in ("paper", "authors") else "1")
    if method == "paper":
        assert float(patch.tensors["vector"].norm()) == pytest.approx(1)


def test_every_part_of_the_form_can_be_chosen(steer: Callable[..., Patch]) -> None:
    patch = steer(
        "--layers",
        "1",
        "--site",
        "mlp",
        "--scale",
        "absolute",
        "--strength",
        "3",
        "--opposed-gain",
        "2",
        "--no-renormalise",
        "--tokens",
        "answer",
        "--num-pairs",
        "2",
        "--answer-tokens",
        "1",
    )
    assert body_of(patch).steering == Steering("mlp", "absolute", 3.0, 2.0, False, "answer")
    assert not bool(patch.tensors["vector"][0].any())
    assert patch.manifest.origin["layers"] == "1"


def test_an_absolute_mean_is_added_as_it_is(steer: Callable[..., Patch]) -> None:
    assert body_of(steer("--scale", "absolute")).steering.strength == 1.0


def test_a_relative_form_of_the_paper_is_no_stronger_than_the_default(steer: Callable[..., Patch]) -> None:
    assert body_of(steer("--method", "paper", "--scale", "relative")).steering.strength == 0.02


def test_all_layers_can_be_asked_for(steer: Callable[..., Patch]) -> None:
    assert steer("--layers", "all").manifest.origin["layers"] == "0-1"


@pytest.mark.parametrize(("num_layers", "layers"), [(1, "0"), (2, "1"), (30, "20-29"), (32, "22-31")])
def test_a_vector_acts_on_the_last_third_unless_told_otherwise(num_layers: int, layers: str) -> None:
    assert written_layers(last_third(num_layers)) == layers


@pytest.mark.parametrize(("num_pairs", "is_warned"), [(19, True), (20, False)])
def test_few_pairs_are_warned_of(
    steer: Callable[..., Patch],
    pairs: Path,
    num_pairs: int,
    is_warned: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs.write_text("".join(encode_row(pair(number)) + "\n" for number in range(num_pairs)))
    steer()
    assert (f"warning: pairs: expected at least 20, got {num_pairs}" in capsys.readouterr().err) is is_warned


def test_equal_calls_give_equal_digests(steer: Callable[..., Patch]) -> None:
    assert steer().digest == steer().digest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "7"], "layers: expected 0 to 1, which the model has, got 7"),
        (["--strength", "2"], "strength: expected a number from 0 to 1, got 2"),
        (["--num-pairs", "0"], "--num-pairs: expected at least 1, got 0"),
        (["--strengths", "0.1", "--strength", "0.1"], "--strengths: expected it, or --strength, got both"),
    ],
)
def test_a_mistake_is_named(
    flags: list[str], message: str, pairs: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["steer", "--model", str(tiny_model_folder), "--pairs", str(pairs), "-o", str(pairs.parent)]
    assert main([*words, "--name", "safe", "--version", "1.0.0", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_holds_no_pairs_is_named(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "answer"}) + "\n")
    words = ["steer", "--model", str(tiny_model_folder), "--pairs", str(path), "-o", str(tmp_path)]
    assert main([*words, "--name", "safe", "--version", "1.0.0"]) == 2
    assert "lacks chosen, rejected" in capsys.readouterr().err
