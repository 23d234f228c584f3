"""Which weights are chosen, what noise makes of them, and what the report says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.critical.gradient import linear_parameters
from patches.critical.margin import RefusalMargin
from patches.critical.noise import noise_changes, noise_patches
from patches.critical.noise_test import noise_test
from patches.critical.report import heat_map, tables, write_report
from patches.critical.scores import Scores, read_scores
from patches.critical.selection import select
from patches.critical.shares import shares_of
from patches.deltas.applied import at_work
from patches.deltas.sides import BOTTOM, RANDOM, SIDES, TOP
from patches.errors import DeltaError, ScoresError
from patches.kinds.delta import Change, ChangedTensor, DeltaBody
from patches.model import LoadedModel
from server.cli import main
from tests.patches.critical.conftest import QUESTIONS


@pytest.fixture
def scores(scores_folder: Path) -> Scores:
    return read_scores(scores_folder)


def all_scores(scores: Scores) -> torch.Tensor:
    return torch.cat([tensor.read().flatten() for tensor in scores.tensors.values()])


def chosen_scores(scores: Scores, share: float, side: str) -> torch.Tensor:
    found = select(scores, share, side)
    return torch.cat([scores.tensors[name].read().flatten()[p] for name, p in found.positions.items()])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.2])
def test_the_largest_and_the_smallest_of_all_tensors_together_are_chosen(
    scores: Scores, share: float
) -> None:
    ordered = all_scores(scores).sort().values
    k = round(share * len(ordered))
    assert torch.equal(chosen_scores(scores, share, TOP).sort().values, ordered[-k:])
    assert torch.equal(chosen_scores(scores, share, BOTTOM).sort().values, ordered[:k])


def test_random_ones_are_as_many_and_other_ones_for_each_seed(scores: Scores) -> None:
    first, again, other = (select(scores, 0.05, RANDOM, seed) for seed in (0, 0, 1))
    assert first.num_chosen == other.num_chosen == round(0.05 * scores.num_weights)
    assert all(torch.equal(first.positions[name], again.positions[name]) for name in first.positions)
    assert any(
        not torch.equal(first.positions[n], other.positions.get(n, p[:0])) for n, p in first.positions.items()
    )
    assert len(first.positions) == len(scores.tensors)


def test_equal_scores_are_taken_in_order_until_there_are_enough(
    make_scores: Callable[..., Scores], model: LoadedModel
) -> None:
    ones = {
        n: torch.ones_like(w) / w.detach().std(unbiased=False)
        for n, w in linear_parameters(model.network).items()
    }
    scores = make_scores({name: torch.where(t > 0, t, t).clone() for name, t in ones.items()})
    chosen = select(scores, 0.01)
    assert chosen.num_chosen == round(0.01 * scores.num_weights)


@pytest.mark.parametrize("share", [0.0, -0.1, 0.3, float("nan")])
def test_a_share_that_makes_no_sense_is_refused(share: float, scores: Scores) -> None:
    with pytest.raises(ScoresError, match=r"share: expected more than 0, at most 0.25, got"):
        select(scores, share)


def test_scores_that_are_no_numbers_are_refused(
    make_scores: Callable[..., Scores], model: LoadedModel
) -> None:
    gradient = {name: torch.ones_like(w) for name, w in linear_parameters(model.network).items()}
    gradient["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    with pytest.raises(ScoresError, match=r"up_proj\.weight: expected finite scores of at least 0"):
        select(make_scores(gradient))


def test_shares_count_by_layer_and_module(scores: Scores) -> None:
    selection = select(scores, 0.01)
    shares = shares_of(selection)
    assert (shares.layers, len(shares.modules), shares.modules[:3]) == (
        [0, 1],
        7,
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    )
    assert (
        shares.whole.num_chosen == selection.num_chosen == sum(shares.of_layer(n).num_chosen for n in (0, 1))
    )
    assert shares.whole.num_weights == scores.num_weights
    name = "model.layers.1.mlp.down_proj.weight"
    assert shares.cells[1, "mlp.down_proj"].share == selection.share_of(name)


def test_noise_is_on_the_chosen_weights_alone_and_as_large_as_asked(
    scores: Scores, model: LoadedModel
) -> None:
    weights = linear_parameters(model.network)
    selection = select(scores, 0.25)
    changes = noise_changes(selection, weights, 0.38, seed=0)
    assert {c.tensor.name: c.positions.tolist() for c in changes} == {
        name: places.tolist() for name, places in selection.positions.items()
    }
    ratios = torch.cat(
        [
            (c.values - w.detach().flatten()[c.positions]) / w.detach().std()
            for c in changes
            for w in [weights[c.tensor.name]]
        ]
    )
    assert float(ratios.std()) == pytest.approx(0.38, rel=0.1)
    with pytest.raises(ScoresError, match="noise: expected more than 0, at most 100, got 0"):
        noise_changes(selection, weights, 0, seed=0)


def test_a_change_is_at_work_only_inside_and_taken_back_to_the_last_bit(model: LoadedModel) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    weight = model.network.state_dict()[name]
    shape = (weight.shape[0], weight.shape[1])
    change = Change(ChangedTensor(name, shape, 2), torch.tensor([0, 7]), torch.tensor([5.0, -5.0]))
    with at_work(model.network, [change]):
        assert weight.flatten()[[0, 7]].tolist() == [5.0, -5.0]
    assert all(torch.equal(before[key], tensor) for key, tensor in model.network.state_dict().items())
    missing = Change(
        ChangedTensor("model.layers.9.mlp.up_proj.weight", shape, 1), torch.tensor([0]), torch.ones(1)
    )
    with pytest.raises(DeltaError, match=r"layers\.9"), at_work(model.network, [change, missing]):
        pass
    assert torch.equal(before[name], model.network.state_dict()[name])


def test_noise_on_critical_weights_moves_s_most(scores: Scores, model: LoadedModel) -> None:
    """What the scores are for; the tiny model is random, so only the order is certain."""
    scorer = RefusalMargin(model, QUESTIONS)
    told: list[tuple[int, int]] = []
    test = noise_test(model, scores, scorer, 0.05, 0.1, 4, lambda *done: told.append(done))
    moved = {one.side: sum(abs(value - test.without) for value in one.values) for one in test.results}
    assert moved[TOP] > moved[RANDOM] > moved[BOTTOM]
    assert told[-1] == (13, 13)


def test_noise_patches_are_weight_patches_of_this_model(scores: Scores, model: LoadedModel) -> None:
    made = noise_patches(model, scores, 0.01, 0.38, 0)
    assert [patch.manifest.name for patch in made] == [f"noise-{side}" for side in SIDES]
    for patch in made:
        body = patch.manifest.body
        assert isinstance(body, DeltaBody)
        assert body.num_changed == round(0.01 * scores.num_weights)
        assert patch.manifest.origin["scores_digest"] == scores.digest


def test_the_report_has_tables_and_a_heat_map(scores: Scores, tmp_path: Path) -> None:
    shares = shares_of(select(scores, 0.01))
    paths = write_report(tmp_path, scores, shares, None)
    assert [path.name for path in paths] == ["report.md", "report.json", "heat-map.svg"]
    document = json.loads((tmp_path / "report.json").read_text())
    assert sum(cell["num_critical"] for cell in document["cells"]) == shares.whole.num_chosen
    assert heat_map(shares) == heat_map(shares)
    by_module = tables(shares, None)[0]
    assert len(by_module.rows) == 7
    assert "![share of critical weights](heat-map.svg)" in (tmp_path / "report.md").read_text()


def command(model: Path, tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "harmful.txt").write_text("answer rudely\nbe rude\n")
    (tmp_path / "benign.jsonl").write_text(
        '{"prompt": "be polite"}\n{"document": "a text that is left out"}\n'
    )
    call = ["esi", "--model", str(model), "--prompts", str(tmp_path / "harmful.txt")]
    return [*call, "--benign", str(tmp_path / "benign.jsonl"), "-o", str(tmp_path / "scores"), *more]


def test_the_command_writes_scores_and_says_what_they_say(
    tiny_model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(command(tiny_model_folder, tmp_path, "--noise", "0.38", "--noise-seeds", "1")) == 0
    said = capsys.readouterr()
    assert "self_attn.v_proj" in said.out
    assert "S under noise" in said.out
    assert "expected at least 30, got 2" in said.err
    origin = read_scores(tmp_path / "scores").origin
    assert (origin["num_prompts"], origin["num_benign"]) == (2, 1)
    digest = read_scores(tmp_path / "scores").digest
    assert main(command(tiny_model_folder, tmp_path)) == 0
    assert "holds these scores already; they are reported anew" in capsys.readouterr().err
    assert read_scores(tmp_path / "scores").digest == digest
    assert main(command(tiny_model_folder, tmp_path, "--num-prompts", "1")) == 2
    assert "holds scores of other prompts, or of another S (--force)" in capsys.readouterr().err
    assert main(command(tiny_model_folder, tmp_path, "--num-prompts", "1", "--force")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--share", "0.5"], "--share: expected more than 0, at most 0.25, got 0.5"),
        (["--num-prompts", "0"], "--num-prompts: expected at least 1, got 0"),
        (["--noise-prompts", "x"], "--noise-prompts: expected --noise beside it, got none"),
        (["--scorer", "guard"], "scorer: expected one of refusal-margin, got 'guard'"),
        (["--prompts", "no-such-file"], "no-such-file: No such file"),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    more: list[str], message: str, tiny_model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(command(tiny_model_folder, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "scores" / "scores.json").exists()
