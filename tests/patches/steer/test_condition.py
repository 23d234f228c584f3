"""Fitting a condition: sides that can be told apart, and the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patches.errors import CompileError, PairsError
from patches.format import Patch, make_patch, read_patch, write_patch
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.model import LoadedModel, load_model
from patches.steer.batch import SteeredRow, steered
from patches.steer.condition_rows import ConditionRows
from patches.steer.fit_condition import Options, candidate_layers, fit_condition, patch_with_condition
from patches.steer.prompt_sets import ReadSet, read_sets, without_doubles
from patches.steer.vector import vector_of
from patches.train.data import Encoder
from server.cli import main


def test_candidates_end_where_the_vector_begins() -> None:
    assert candidate_layers(19, 30) == [3, 6, 9, 12, 15, 18]
    assert candidate_layers(1, 2) == [0]
    with pytest.raises(CompileError, match="acts from layer 0 on"):
        candidate_layers(0, 30)


LAYERS = [3, 6, 9]


def read(name: str, role: str, num: int, shift: float, seed: int) -> ReadSet:
    """States that differ at layer 6 alone, in the mean over the prompt; hard ones by a second number."""
    states = torch.randn(num, 3, 3, 8, generator=torch.Generator().manual_seed(seed))
    states[:, 0, 1, 0] += shift
    states[:, 0, 1, 1] += 3.0 * (role == "hard")
    is_test = torch.arange(num) % 5 == 0 if role != "also" else torch.ones(num, dtype=torch.bool)
    return ReadSet(name, role, states, is_test)


SETS = [
    read("harmful", "positive", 300, 6.0, 0),
    read("everyday", "negative", 600, 0.0, 1),
    read("twins", "hard", 100, 5.0, 2),
    read("other", "also", 50, 6.0, 3),
]


def test_layers_and_pool_are_those_where_the_sides_differ() -> None:
    told: list[tuple[int, int]] = []
    fitted = fit_condition(SETS, LAYERS, Options(), lambda done, total: told.append((done, total)))
    (probe,) = fitted.condition.probes
    assert 6 in probe.layers
    assert probe.pool == "mean"
    assert fitted.auc.value > 0.99
    assert fitted.auc.low <= fitted.auc.value <= fitted.auc.high
    met = {one.name: one for one in fitted.sets}
    assert met["harmful"].met.value > 0.9
    assert met["other"].met.value > 0.9
    assert met["everyday"].met.low <= 0.02
    assert (met["harmful"].num_fitted, met["harmful"].num_tested, met["other"].num_fitted) == (240, 60, 0)
    assert told[-1][0] == told[-1][1]


def test_what_was_asked_for_is_not_chosen() -> None:
    options = Options(layers=(3, 9), pool="last", shadow=True)
    fitted = fit_condition(SETS, LAYERS, options, lambda done, total: None)
    (probe,) = fitted.condition.probes
    assert (probe.layers, probe.pool, fitted.condition.shadow) == ((3, 9), "last", True)
    assert fitted.probes.shape == (2, 8)


def test_a_larger_rate_lowers_the_line() -> None:
    few, many = (
        fit_condition(SETS, LAYERS, Options(rate, layers=(6,), pool="mean"), lambda done, total: None)
        for rate in (0.01, 0.3)
    )
    assert many.threshold.value < few.threshold.value
    met = {one.name: one.met.value for one in many.sets}
    assert 0.15 < met["everyday"] < 0.45


def test_hard_negatives_that_weigh_more_meet_it_less() -> None:
    light, heavy = (
        fit_condition(
            SETS, LAYERS, Options(0.1, hard_weight=weight, layers=(6,), pool="mean"), lambda a, b: None
        )
        for weight in (0.01, 30.0)
    )
    met = [{result.name: result.met.value for result in one.sets}["twins"] for one in (light, heavy)]
    assert met[0] > 0.9
    assert met[1] < 0.3


def test_a_rate_that_the_held_back_negatives_can_not_support_is_warned_of() -> None:
    """Of the 600 negatives 120 are held back: enough for one in 120, too few for one in 200."""
    few, enough = (
        fit_condition(SETS, LAYERS, Options(rate, layers=(6,), pool="mean"), lambda done, total: None)
        for rate in (0.005, 1 / 120)
    )
    assert enough.warning is None
    assert few.warning is not None
    assert "at least 200 held-back negatives for a rate of 0.005, got 120" in few.warning
    assert "about 1000 negatives in all" in few.warning


def test_a_side_of_which_no_prompt_is_held_back_is_refused() -> None:
    sets = [replace(one, is_test=one.is_test & (one.role != "negative")) for one in SETS]
    with pytest.raises(CompileError, match=r"expected negative ones .* got 600 and 0"):
        fit_condition(sets, LAYERS, Options(layers=(6,), pool="mean"), lambda done, total: None)


def test_options_out_of_range_are_refused() -> None:
    for rate, weight, message in ((0.0, 1.0, "false_positive_rate"), (0.1, 0.0, "hard_weight")):
        with pytest.raises(CompileError, match=message):
            Options(rate, weight)


def prompts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def test_a_prompt_counts_in_the_first_set_that_has_it(tmp_path: Path) -> None:
    texts = [f"answer {number}" for number in range(30)]
    (first,) = read_sets(prompts(tmp_path / "a.jsonl", texts), "positive")
    (second,) = read_sets(prompts(tmp_path / "b.jsonl", [*texts[:5], *(t + "?" for t in texts)]), "negative")
    kept, num_doubles = without_doubles([first, second])
    assert [len(one.prompts) for one in kept] == [30, 30]
    assert num_doubles == 5


def test_plain_text_is_a_set_of_its_own_and_is_never_to_be_met(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"prompt": "a question"}\n{"document": "some text"}\n')
    for role, of_text in (("negative", "text"), ("hard", "text"), ("also", "also")):
        chats, texts = read_sets(path, role)
        assert (chats.role, chats.is_text, texts.role, texts.is_text) == (role, False, of_text, True)
        assert texts.name == "mixed.jsonl, plain text"
    with pytest.raises(PairsError, match="document: expected prompts where the condition is to be met"):
        read_sets(path, "positive")


def test_no_line_is_drawn_by_plain_text() -> None:
    """Here it would raise the line: it looks like what the condition is for."""
    options = Options(0.1, layers=(6,), pool="mean")
    texts = replace(read("text", "text", 400, 6.0, 4), is_test=torch.ones(400, dtype=torch.bool))
    rows = ConditionRows([*SETS, replace(texts, is_test=~texts.is_test)], LAYERS)
    assert [len(side) for side in rows.sides(rows.fits, rows.fits)] == [240, 480]
    alone, beside = (
        fit_condition(sets, LAYERS, options, lambda done, total: None) for sets in (SETS, [*SETS, texts])
    )
    assert beside.threshold == alone.threshold
    assert (beside.num_negatives, beside.false_positives) == (alone.num_negatives, alone.false_positives)
    assert {one.name: one.met.value for one in beside.sets}["text"] > 0.9


def test_all_files_that_are_too_small_are_named_at_once(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = prompts(tmp_path / "few.jsonl", ["one", "two", "three"])
    same = prompts(tmp_path / "same.jsonl", ["again"] * 30)
    assert call("--negative", str(few), "--hard-negative", str(same)) == 2
    said = capsys.readouterr().err
    assert "at least 20 that differ in each file, got fewer in few.jsonl (3), same.jsonl (1); add" in said


def test_negatives_that_are_positives_too_leave_nothing_to_fit_to(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = prompts(tmp_path / "same.jsonl", [f"answer rudely, rudely {number} times" for number in range(20)])
    assert call("--negative", str(same)) == 2
    assert "expected negative ones to fit to, 5 at least, and to hold back, got 0" in capsys.readouterr().err


@pytest.fixture
def patch(tiny_model: LoadedModel, tmp_path: Path) -> Path:
    base = tiny_model.base_model
    vector = torch.zeros(base.num_layers, base.hidden_size)
    vector[1, 0] = 1
    body = SteeringBody(Steering("residual", "relative", 0.1))
    manifest = Label("safe", "0.1.0", license="MIT").manifest(base, body, {"method": "icv"})
    return write_patch(make_patch(manifest, {"vector": vector}), tmp_path)


@pytest.fixture
def call(patch: Path, tiny_model_folder: Path, tmp_path: Path) -> Callable[..., int]:
    rude = [f"answer rudely, rudely {number} times" for number in range(60)]
    kind = [f"the assistant is polite to user {number}" for number in range(60)]
    files = [prompts(tmp_path / "rude.jsonl", rude), prompts(tmp_path / "kind.jsonl", kind)]
    also = prompts(tmp_path / "also.jsonl", ["answer rudely, rudely 99 times"])

    def run(*flags: str) -> int:
        words = ["condition", "--patch", str(patch), "--model", str(tiny_model_folder), "--version", "0.2.0"]
        words += ["--positive", str(files[0]), "--negative", str(files[1]), "--also", str(also)]
        return main([*words, "-o", str(tmp_path / "out"), *flags])

    return run


def test_the_command_writes_a_patch_whose_condition_tells_the_sides_apart(
    call: Callable[..., int],
    patch: Path,
    tmp_path: Path,
    tiny_model: LoadedModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call() == 0
    made, first = read_patch(tmp_path / "out" / "safe-0.2.0.safetensors"), read_patch(patch)
    assert (made.manifest.name, made.manifest.license) == ("safe", "MIT")
    origin = made.manifest.origin["condition"]
    assert origin["added_to"] == first.digest
    assert [(one["set"], one["role"]) for one in origin["sets"]] == [
        ("rude.jsonl", "positive"),
        ("kind.jsonl", "negative"),
        ("also.jsonl", "also"),
    ]
    assert isinstance(made.manifest.body, SteeringBody)
    assert made.manifest.body.steering == replace(
        SteeringBody(Steering("residual", "relative", 0.1)).steering, tokens="answer"
    )
    acting, encoder = vector_of(made), Encoder(tiny_model.tokenizer)
    for text, is_met in (
        ("answer rudely, rudely 77 times", True),
        ("the assistant is polite to user 7", False),
    ):
        ids = encoder.prompt([{"role": "user", "content": text}])
        with torch.no_grad(), steered(tiny_model.network, [SteeredRow(acting, len(ids))]) as batch:
            tiny_model.network(torch.tensor([ids]))
        assert batch.scorings[0] is not None
        assert batch.scorings[0].is_met is is_met
    folder = tmp_path / "out" / "safe-0.2.0.condition"
    report = (folder / "report.md").read_text()
    assert "| rude.jsonl | to be met |" in report
    assert "area under the ROC curve" in report
    assert (folder / "roc.svg").read_text().startswith("<svg")
    assert json.loads((folder / "report.json").read_text())["curve"][0] == [0, 0]
    assert "rudely" not in report
    num_held_back = origin["negatives_tested"]
    assert origin["wanted_false_positive_rate"] == 0.02
    (negatives,) = (one for one in origin["sets"] if one["role"] == "negative")
    assert [origin["false_positive_rate"], origin["false_positive_rate_interval"], num_held_back] == [
        negatives["met"],
        negatives["met_interval"],
        negatives["tested"],
    ]
    printed = capsys.readouterr()
    assert "area under the ROC curve" in printed.out
    warning = f"at least 50 held-back negatives for a rate of 0.02, got {num_held_back}"
    assert f"warning: false_positive_rate: expected {warning}" in printed.err
    assert f"**Warning:** false_positive_rate: expected {warning}" in report


def test_plain_text_does_not_meet_a_condition_that_was_fitted_to_some(
    call: Callable[..., int], tmp_path: Path, tiny_model: LoadedModel
) -> None:
    """Without any, its first tokens do: they are unlike all that stands in a chat."""
    rude = [f"answer rudely, rudely {number} times" for number in range(60)]
    kind = [{"prompt": f"the assistant is polite to user {number}"} for number in range(60)]
    texts = [{"document": text} for text in rude]
    (tmp_path / "kind.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*kind, *texts]))
    assert call() == 0
    made = read_patch(tmp_path / "out" / "safe-0.2.0.safetensors")
    sets = {one["set"]: one for one in made.manifest.origin["condition"]["sets"]}
    of_text = sets["kind.jsonl, plain text"]
    assert (of_text["role"], of_text["met"]) == ("text", 0.0)
    # Each beginning once, in one of the two.
    ids = [tuple(tiny_model.tokenizer(text)["input_ids"]) for text in rude]
    lengths = [1, 2, 4, 8, 16, 32, 64]
    beginnings = {one[:length] for one in ids for length in [*lengths, len(one)]}
    assert of_text["fitted"] + of_text["tested"] == len(beginnings)


def test_the_vector_of_a_plain_steer_takes_a_condition(
    call: Callable[..., int], tiny_model_folder: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"chosen": "politely", "rejected": "rudely"}
    pairs.write_text("".join(json.dumps({"prompt": f"answer {i}", **row}) + "\n" for i in range(20)))
    words = [
        "steer",
        "--model",
        str(tiny_model_folder),
        "--pairs",
        str(pairs),
        "-o",
        str(tmp_path / "steered"),
    ]
    assert main([*words, "--name", "kind", "--version", "0.1.0"]) == 0
    assert call("--patch", str(tmp_path / "steered" / "kind-0.1.0.safetensors")) == 0
    assert (tmp_path / "out" / "kind-0.2.0.safetensors").is_file()


def test_a_second_call_reads_no_prompt_again(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call() == 0
    monkeypatch.setattr("patches.steer.prompt_sets.pooled_states", lambda *args: pytest.fail("read again"))
    assert call("--false-positive-rate", "0.2", "--shadow", "--version", "0.3.0") == 0


def test_a_damaged_file_of_states_is_made_anew(call: Callable[..., int], tmp_path: Path) -> None:
    assert call() == 0
    before = read_patch(tmp_path / "out" / "safe-0.2.0.safetensors")
    for kept in (tmp_path / "out" / "safe.states").glob("*.safetensors"):
        kept.write_bytes(b"damaged")
    assert call() == 0
    assert read_patch(tmp_path / "out" / "safe-0.2.0.safetensors").digest == before.digest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layers", "1"], "layers: expected layers before 1, where the vector begins, got 1"),
        (["--false-positive-rate", "2"], "false_positive_rate: expected more than 0 and less than 1, got 2"),
    ],
)
def test_a_mistake_is_named(
    flags: list[str], message: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags) == 2
    assert message in capsys.readouterr().err


def test_a_prefix_can_have_no_condition(
    make: Callable[..., Patch], tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_patch(make(), tmp_path)
    assert call("--patch", str(path)) == 2
    assert "pirate@1.0.0: expected a patch of the kind steering, got prefix" in capsys.readouterr().err


def test_two_files_of_one_name_are_refused(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    same = prompts(tmp_path / "other" / "rude.jsonl", ["a"])
    assert call("--also", str(same)) == 2
    assert "expected files whose names differ" in capsys.readouterr().err


def test_a_patch_of_another_model_is_refused(
    call: Callable[..., int],
    make_tiny_model: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other-model"
    make_tiny_model(other, seed=1)
    assert call("--model", str(other)) == 2
    assert "weights_digest" in capsys.readouterr().err


def test_the_condition_of_a_patch_is_replaced(patch: Path, tiny_model_folder: Path) -> None:
    fitted = fit_condition(
        [replace(one, states=one.states[..., :8].repeat(1, 1, 1, 4)) for one in SETS],
        LAYERS,
        Options(layers=(3,), pool="mean"),
        lambda done, total: None,
    )
    condition = replace(fitted.condition, probes=(replace(fitted.condition.probes[0], layers=(0,)),))
    fitted = replace(fitted, condition=condition)
    assert load_model(tiny_model_folder).base_model.hidden_size == 32
    once = patch_with_condition(read_patch(patch), fitted, Label("safe", "0.2.0"))
    twice = patch_with_condition(once, fitted, Label("safe", "0.3.0"))
    assert twice.manifest.body == once.manifest.body
    assert twice.manifest.origin["condition"]["added_to"] == once.digest
