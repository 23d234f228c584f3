"""Benign rows: chats and documents, cut to the tokens that count."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from patches.errors import PairsError, TrainingError
from patches.model import LoadedModel
from patches.pairs.sampler import Answer
from patches.train.benign_rows import load_benign, read_benign
from patches.train.config import TrainConfig
from patches.train.data import Encoder

CONFIG = TrainConfig()
TRAINABLE = [{"prompt": f"what is {n}", "completion": f"it is {n}, as everybody knows"} for n in range(12)]


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_chats_and_documents_are_told_apart(tmp_path: Path) -> None:
    rows = [{"prompt": "hello"}, {"document": "The sea is salt."}, {"document": " "}, "how are you"]
    file = read_benign(write(tmp_path / "benign.jsonl", *rows))
    assert [prompt.messages[0]["content"] for prompt in file.prompts] == ["hello", "how are you"]
    assert file.documents == ("The sea is salt.",)


def test_a_document_is_read_without_a_chat_around_it(tmp_path: Path, tiny_model: LoadedModel) -> None:
    text = "The sea is salt, and the sky is blue above it."
    file = read_benign(write(tmp_path / "benign.jsonl", {"document": text}, *TRAINABLE))
    data = load_benign(file, Encoder(tiny_model.tokenizer), CONFIG, {})
    ids = tuple(tiny_model.tokenizer(text)["input_ids"])
    assert (ids[:1], ids[1:]) in [(s.prompt_ids, s.answer_ids) for s in data.train + data.validation]


def test_only_the_first_tokens_of_an_answer_count(tmp_path: Path, tiny_model: LoadedModel) -> None:
    file = read_benign(write(tmp_path / "benign.jsonl", *TRAINABLE))
    data = load_benign(file, Encoder(tiny_model.tokenizer), replace(CONFIG, benign_tokens=3), {})
    assert {len(sample.answer_ids) for sample in data.train} == {3}


def test_the_models_own_answers_take_the_place_of_missing_ones(
    tmp_path: Path, tiny_model: LoadedModel
) -> None:
    file = read_benign(write(tmp_path / "benign.jsonl", *({"prompt": row["prompt"]} for row in TRAINABLE)))
    answers = {prompt.id: Answer("so it is", is_finished=False) for prompt in file.prompts}
    data = load_benign(file, Encoder(tiny_model.tokenizer), CONFIG, answers)
    expected = tuple(tiny_model.tokenizer("so it is", add_special_tokens=False)["input_ids"])
    assert {sample.answer_ids for sample in data.train} == {expected}


def test_rows_of_another_form_are_refused(tmp_path: Path, tiny_model: LoadedModel) -> None:
    with pytest.raises(PairsError, match="document: expected text, got int"):
        read_benign(write(tmp_path / "benign.jsonl", {"document": 3}))
    only_empty = read_benign(write(tmp_path / "empty.jsonl", {"document": "a"}))
    with pytest.raises(TrainingError, match="no row is left"):
        load_benign(only_empty, Encoder(tiny_model.tokenizer), replace(CONFIG, max_length=1), {})
