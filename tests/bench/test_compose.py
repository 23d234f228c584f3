"""`policypatch bench compose` on a random model of a few kilobytes: what its figures are of."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.compose import WAYS, Batch, Reader, compare_distributions, main
from bench.report.record import read_records
from patches.compile import compile_patch
from patches.format import Patch, write_patch
from patches.label import Label
from patches.model import LoadedModel, load_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, and a tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {token: i for i, token in enumerate(["<unk>", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(model_folder, dtype="float32")


@pytest.fixture(scope="module")
def files(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("patches")
    paths = []
    for seed, name in enumerate(("one", "two", "three")):
        embeddings = torch.randn(3 + seed, 32, generator=torch.Generator().manual_seed(seed))
        patch: Patch = compile_patch(model, embeddings, Label(name, "1.0.0"), {"method": "trained"})
        paths.append(write_patch(patch, folder))
    return paths


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    status = main([*map(str, arguments), "--prompts", "2", "--output-tokens", "3"])
    return status, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_order_is_compared_in_every_way(
    model_folder: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, summary = run(capsys, "--model", model_folder, "--out", tmp_path, *files)
    assert status == 0
    records = read_records([Path(summary["records"])])
    names = ["one", "two", "three"]
    orders = [[a, b] for a in names for b in names if a != b]
    assert [(r.setup["order"], r.setup["way"]) for r in records] == [(o, way) for o in orders for way in WAYS]
    assert all(record.result["num_steps"] == 2 * 3 for record in records)
    # Whatever the model is, another prefix is another distribution.
    assert all(record.result["kl_mean"] > 1e-4 for record in records)
    assert "`three, two`" in (Path(summary["records"]).parent / "report.md").read_text()


def test_one_patch_may_be_asked_to_go_first(
    model_folder: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", model_folder, "--out", tmp_path, *files, "--first", "two"]
    _, summary = run(capsys, *arguments)
    orders = {tuple(record.setup["order"]) for record in read_records([Path(summary["records"])])}
    assert orders == {("two", "one"), ("two", "three")}


def test_prompts_of_different_length_do_not_disturb_each_other(model: LoadedModel, files: list[Path]) -> None:
    """Padding is masked and takes no positions, behind a prefix too."""
    from patches.format import read_patch

    reader, kv = Reader(model), read_patch(files[0]).kv
    short, long = reader.batch(["ab"]), reader.batch(["ab", "a longer prompt"])
    torch.testing.assert_close(reader.logits(kv, long, 1)[0], reader.logits(kv, short, 1)[0])
    assert torch.equal(reader.greedy(kv, long, 4)[0], reader.greedy(kv, short, 4)[0])


def test_an_answer_read_again_is_likeliest_at_each_token(model: LoadedModel, files: list[Path]) -> None:
    from patches.format import read_patch

    reader, kv = Reader(model), read_patch(files[1]).kv
    batch: Batch = reader.batch(["ab", "a longer prompt"])
    answers = reader.greedy(kv, batch, 4)
    assert torch.equal(reader.logits(kv, batch.followed_by(answers[:, :-1]), 4).argmax(-1), answers)


def test_a_divergence_by_hand() -> None:
    """p = (1/2, 1/2), q = (3/4, 1/4): KL = 1/2 log(2/3) + 1/2 log 2."""
    p, q = torch.zeros(1, 1, 2), torch.tensor([[[math.log(3.0), 0.0]]])
    result = compare_distributions(p, q)
    assert result["kl_mean"] == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)
    assert compare_distributions(p, p)["kl_mean"] == 0


def test_one_patch_is_no_composition(model_folder: Path, files: list[Path]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--model", str(model_folder), str(files[0])])
    assert exit_.value.code == 2


def test_a_file_that_is_no_patch_is_an_error_in_one_line(
    model_folder: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken-1.0.0.safetensors"
    broken.write_bytes(b"no")
    status, summary = run(capsys, "--model", model_folder, "--out", tmp_path, files[0], broken)
    assert status == 1
    assert summary["ok"] is False
