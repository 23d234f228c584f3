"""Scores of weights: what S is, what its gradient becomes, and what a folder of them holds and refuses."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.canonical import JsonValue
from patches.critical import scorers
from patches.critical.gradient import gradient_of, linear_parameters, value_of
from patches.critical.margin import COMPLYING, REFUSING, RefusalMargin
from patches.critical.scorer import Questions
from patches.critical.scores import MANIFEST, Scores, read_scores, require_scores_of
from patches.errors import PatchExists, ScoresError
from patches.model import LoadedModel, load_model
from patches.train.data import Encoder
from tests.patches.critical.conftest import QUESTIONS, asked, scored

UP = "model.layers.0.mlp.up_proj.weight"


class Fixed:
    """An S that is given: a function of the network."""

    def __init__(self, part: Callable[[Any], torch.Tensor], num_parts: int = 1) -> None:
        self._part, self._num_parts = part, num_parts

    def __len__(self) -> int:
        return self._num_parts

    def part(self, network: Any, index: int) -> torch.Tensor:
        return self._part(network)

    def setup(self) -> Mapping[str, JsonValue]:
        return {"name": "fixed"}


def weight_of(network: Any, name: str = UP) -> torch.Tensor:
    found: torch.Tensor = dict(network.named_parameters())[name]
    return found


def test_s_is_the_margin_of_refusing_openings_on_harmful_prompts_less_that_on_benign_ones(
    model: LoadedModel,
) -> None:
    """Computed once more, row by row and without the tries."""
    encoder = Encoder(model.tokenizer)

    def mean_logprob(messages: Any, opening: str) -> float:
        sample = encoder.sample(messages, opening, is_finished=False)
        ids = torch.tensor([[*sample.prompt_ids, *sample.answer_ids]])
        with torch.no_grad():
            logprobs = model.network(ids).logits[0].log_softmax(-1)
        steps = [
            float(logprobs[len(sample.prompt_ids) - 1 + i, token])
            for i, token in enumerate(sample.answer_ids)
        ]
        return sum(steps) / len(steps)

    def margin(messages: Any) -> float:
        refusing, complying = (
            [mean_logprob(messages, opening) for opening in openings] for openings in (REFUSING, COMPLYING)
        )
        return sum(refusing) / len(refusing) - sum(complying) / len(complying)

    sides = [[margin(messages) for messages in side] for side in (QUESTIONS.harmful, QUESTIONS.benign)]
    expected = sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])
    assert value_of(model.network, RefusalMargin(model, QUESTIONS)) == pytest.approx(expected, abs=1e-4)


def test_a_score_is_sigma_times_the_gradients_magnitude(model: LoadedModel, tmp_path: Path) -> None:
    scores = scored(model, tmp_path / "scores")
    scorer = RefusalMargin(model, QUESTIONS)
    weights = linear_parameters(model.network)
    for weight in weights.values():
        weight.requires_grad_(True)
    sum(scorer.part(model.network, i) for i in range(len(scorer))).backward()  # type: ignore[union-attr]
    assert list(scores.tensors) == sorted(weights)
    for name, weight in weights.items():
        assert weight.grad is not None
        expected = weight.detach().std(unbiased=False) * weight.grad.abs()
        torch.testing.assert_close(scores.tensors[name].read(), expected, atol=1e-6, rtol=1e-4)


def test_the_gradient_says_how_s_changes_with_a_weight(model: LoadedModel) -> None:
    """A numerical derivative of the weight with the largest gradient."""
    scorer = RefusalMargin(model, QUESTIONS)
    gradient = gradient_of(model.network, scorer)[UP]
    place, step = int(gradient.abs().argmax()), 1e-2
    values = []
    for change in (-step, step):
        with torch.no_grad():
            weight_of(model.network).view(-1)[place] += change
            values.append(value_of(model.network, scorer))
            weight_of(model.network).view(-1)[place] -= change
    assert (values[1] - values[0]) / (2 * step) == pytest.approx(
        float(gradient.view(-1)[place]), rel=0.05, abs=1e-3
    )


def test_the_model_is_as_it_was_and_holds_no_gradient(model: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    gradient = gradient_of(model.network, RefusalMargin(model, QUESTIONS))
    assert set(gradient) == set(linear_parameters(model.network))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.network.parameters())


def test_embeddings_norms_and_the_output_layer_have_no_score(scores_folder: Path) -> None:
    names = set(read_scores(scores_folder).tensors)
    assert {name.split(".")[3] for name in names} == {"self_attn", "mlp"}
    assert len(names) == 14


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            lambda network: torch.tensor(1.0),
            "got a constant for part 1; compute it from the network's logits",
        ),
        (lambda network: weight_of(network).sum() * torch.nan, "expected a finite score, got nan for part 1"),
        (lambda network: weight_of(network).abs().sum().sub(1e9).sqrt(), "expected a finite score, got nan"),
        (
            lambda network: (weight_of(network) * 0).abs().sum().sqrt(),
            f"{UP}: expected a finite gradient, got NaN or infinite values",
        ),
    ],
)
def test_an_s_without_a_usable_gradient_is_refused(
    part: Callable[[Any], torch.Tensor], message: str, model: LoadedModel
) -> None:
    with pytest.raises(ScoresError, match=message):
        gradient_of(model.network, Fixed(part))


def test_memory_that_does_not_suffice_is_explained(model: LoadedModel) -> None:
    def part(network: Any) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(ScoresError, match="take --compute-dtype bfloat16, or shorter prompts"):
        gradient_of(model.network, Fixed(part))


def test_an_s_that_no_weight_changes_makes_no_scores(make_scores: Any, model: LoadedModel) -> None:
    zeros = {name: torch.zeros_like(w) for name, w in linear_parameters(model.network).items()}
    with pytest.raises(ScoresError, match="got a gradient of zeros"):
        make_scores(zeros)


def test_a_scorer_of_a_package_is_found_by_its_name(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name, value = "my-guard", "my_package:make"

        def load(self) -> Any:
            return lambda model, questions: Fixed(
                lambda network: weight_of(network).sum(), len(questions.harmful)
            )

    def points(group: str, name: str | None = None) -> list[Point]:
        assert group == "policypatch.safety_scorers"
        return [Point()] if name in (None, "my-guard") else []

    monkeypatch.setattr(scorers, "entry_points", points)
    assert scorers.scorer_names() == ["refusal-margin", "my-guard"]
    assert len(scorers.make_scorer("my-guard", model, QUESTIONS)) == 2
    with pytest.raises(ScoresError, match="scorer: expected one of refusal-margin, my-guard, got 'other'"):
        scorers.make_scorer("other", model, QUESTIONS)
    monkeypatch.setattr(Point, "load", lambda self: (_ for _ in ()).throw(ImportError("no my_package")))
    with pytest.raises(ScoresError, match="my-guard can't be loaded from my_package:make: no my_package"):
        scorers.make_scorer("my-guard", model, QUESTIONS)


def test_without_benign_prompts_s_is_the_margin_of_the_harmful_ones(model: LoadedModel) -> None:
    whole = RefusalMargin(model, Questions(asked("answer rudely"), []))
    assert len(whole) == 1
    assert whole.setup()["num_benign"] == 0


def test_scores_are_not_overwritten_unless_asked(model: LoadedModel, tmp_path: Path) -> None:
    first = scored(model, tmp_path / "scores")
    with pytest.raises(PatchExists, match="holds scores already"):
        scored(model, tmp_path / "scores")
    assert read_scores(tmp_path / "scores").digest == first.digest


def test_scores_belong_to_the_weights_that_they_are_of(
    scores_folder: Path, make_tiny_model: Callable[..., None], tmp_path: Path, model: LoadedModel
) -> None:
    scores = read_scores(scores_folder)
    make_tiny_model(tmp_path / "other", seed=1)
    require_scores_of(scores, model.base_model)
    with pytest.raises(ScoresError, match="expected scores of this model, got another's: weights_digest"):
        require_scores_of(scores, load_model(tmp_path / "other", dtype="bfloat16").base_model)


def cut(folder: Path) -> None:
    path = folder / "layer-001.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def flip(folder: Path) -> None:
    path = folder / "layer-001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps(document | changes))

    return change


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no manifest", lambda f: (f / MANIFEST).unlink(), "expected scores, with scores.json: No such file"),
    (
        "a missing file",
        lambda f: (f / "layer-000.safetensors").unlink(),
        "layer-000.safetensors: can't be read",
    ),
    ("a short file", cut, "layer-001.safetensors: expected sha256:.*; make the scores anew"),
    ("a changed file", flip, "layer-001.safetensors: expected sha256:.*; make the scores anew"),
    ("no JSON", lambda f: (f / MANIFEST).write_text("{"), "scores.json: expected JSON"),
    ("another format", edit(format="other"), "expected the format policypatch-scores"),
    ("a later version", edit(version=2), "expected version 1, got 2"),
    ("files elsewhere", edit(files={"../x": "sha256:0"}), "files: expected names of files beside it"),
    ("no model", edit(base_model={}), "base_model: the key 'architecture' is missing"),
]


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damaged_scores_are_refused(
    damage: Callable[[Path], Any], message: str, model: LoadedModel, tmp_path: Path
) -> None:
    folder = scored(model, tmp_path / "scores").folder
    damage(folder)
    with pytest.raises(ScoresError, match=message):
        read_scores(folder)


def test_scores_read_back_are_those_written(model: LoadedModel, tmp_path: Path) -> None:
    written: Scores = scored(model, tmp_path / "scores")
    read = read_scores(tmp_path / "scores")
    assert read == written
    assert read.num_weights == sum(w.numel() for w in linear_parameters(model.network).values())
