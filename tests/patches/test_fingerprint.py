"""The fingerprint: independent of how a model is stored, sensitive to what it is."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, Gemma3TextConfig, LlamaConfig

from patches.base_model import DTYPES, BaseModel
from patches.errors import BaseModelMismatch, ModelUnusable
from patches.fingerprint import canonical_rope, fingerprint_model, require_fits, require_same_base_model
from patches.tokenizer_digest import tokenizer_digest
from patches.weights_digest import weights_digest


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def test_the_shape_comes_from_the_configuration(tiny_model_folder: Path) -> None:
    found = fingerprint_model(tiny_model_folder, "float32")
    assert found.architecture == "LlamaForCausalLM"
    assert (found.num_layers, found.num_kv_heads, found.head_size, found.hidden_size) == (2, 2, 8, 32)
    assert found.rope == {"rope_theta": 10000, "rope_type": "default"}
    assert found.dtype == "float32"


def test_the_dtype_changes_nothing_but_itself(tiny_model_folder: Path) -> None:
    single = fingerprint_model(tiny_model_folder, "float32")
    assert replace(fingerprint_model(tiny_model_folder, "bfloat16"), dtype="float32") == single


def test_the_tokenizer_digest_ignores_the_chat_template(folder: Path) -> None:
    before = tokenizer_digest(folder)
    (folder / "chat_template.jinja").write_text("{{ 'other' }}")
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(model_max_length=5))
    assert tokenizer_digest(folder) == before


def test_both_forms_of_merges_have_one_digest(folder: Path) -> None:
    before = tokenizer_digest(folder)

    def join(document: dict[str, Any]) -> None:
        merges = document["model"]["merges"]
        assert merges
        assert isinstance(merges[0], list)
        document["model"]["merges"] = [" ".join(pair) for pair in merges]

    edit_json(folder / "tokenizer.json", join)
    assert tokenizer_digest(folder) == before


TOKENIZER_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "vocabulary": lambda d: d["model"]["vocab"].update({"zzz": 319}),
    "merge order": lambda d: d["model"]["merges"].reverse(),
    "special token": lambda d: d["added_tokens"][0].update(content="<|begin|>"),
    "special flag": lambda d: d["added_tokens"][0].update(special=False),
}


@pytest.mark.parametrize("change", TOKENIZER_CHANGES.values(), ids=TOKENIZER_CHANGES)
def test_another_tokenizer_has_another_digest(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    before = tokenizer_digest(folder)
    edit_json(folder / "tokenizer.json", change)
    assert tokenizer_digest(folder) != before


def test_a_unigram_vocabulary_keeps_its_order_and_scores(tmp_path: Path) -> None:
    def digest(vocabulary: list[list[Any]]) -> str:
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({"model": {"type": "Unigram", "vocab": vocabulary}})
        )
        return tokenizer_digest(tmp_path)

    assert (
        len(
            {
                digest([["a", -1.5], ["b", -2]]),
                digest([["b", -2], ["a", -1.5]]),
                digest([["a", -1], ["b", -2]]),
            }
        )
        == 3
    )


@pytest.mark.parametrize("filename", ["vocab.json", "merges.txt", "tokenizer.model", "tekken.json"])
def test_older_tokenizer_files_count_as_they_are(tmp_path: Path, filename: str) -> None:
    none = tokenizer_digest(tmp_path)
    (tmp_path / filename).write_text("{}")
    first = tokenizer_digest(tmp_path)
    (tmp_path / filename).write_text("{ }")
    assert len({none, first, tokenizer_digest(tmp_path)}) == 3


def test_a_damaged_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelUnusable, match=r"tokenizer: .*tokenizer\.json can't be read"):
        tokenizer_digest(folder)


ROPE_FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({"rope_theta": 10000.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000}}),
    "empty scaling": (
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 500000, "type": "default"}},
    ),
    "linear, old key": (
        {"rope_theta": 10000, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2}},
    ),
    "partial factor of one": (
        {"rope_theta": 10000},
        {"rope_parameters": {"rope_theta": 10000, "rope_type": "default", "partial_rotary_factor": 1.0}},
    ),
}


@pytest.mark.parametrize(("old", "new"), ROPE_FORMS.values(), ids=ROPE_FORMS)
def test_both_configuration_forms_give_the_same_rope(
    folder: Path, old: dict[str, Any], new: dict[str, Any]
) -> None:
    def rope(form: dict[str, Any]) -> dict[str, Any]:
        def change(config: dict[str, Any]) -> None:
            config.pop("rope_parameters", None)
            config.pop("rope_theta", None)
            config.update(form)

        edit_json(folder / "config.json", change)
        return canonical_rope(AutoConfig.from_pretrained(folder))

    found = rope(old)
    assert found == rope(new)
    assert set(found) <= {"rope_theta", "rope_type", "factor"}


def test_llama_3_scaling_is_part_of_the_rope() -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert canonical_rope(LlamaConfig(rope_parameters=dict(scaling))) == scaling


def test_a_hybrid_model_has_one_rope_for_each_kind_of_layer() -> None:
    assert canonical_rope(Gemma3TextConfig()) == {
        "full_attention": {"rope_theta": 1000000, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000, "rope_type": "default"},
    }


def test_a_model_without_rotary_positions_has_an_empty_rope() -> None:
    from transformers import GPT2Config

    assert canonical_rope(GPT2Config()) == {}


def test_every_difference_is_named(base_model: BaseModel) -> None:
    other = replace(base_model, dtype="float32", rope={"rope_theta": 5}, weights_digest="sha256:" + "9" * 64)
    with pytest.raises(BaseModelMismatch) as caught:
        require_same_base_model(base_model, other)
    assert [text.split(":")[0] for text in caught.value.differences] == ["rope", "dtype", "weights_digest"]
    assert "dtype: expected bfloat16, got float32" in str(caught.value)
    require_same_base_model(
        base_model, replace(base_model, rope={"rope_type": "default", "rope_theta": 10000.0})
    )


@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("made_for", DTYPES)
def test_a_patch_fits_a_model_that_computes_in_its_dtype_or_in_float32(
    base_model: BaseModel, served: str, made_for: str
) -> None:
    model, patch = replace(base_model, dtype=served), replace(base_model, dtype=made_for)
    if served in (made_for, "float32"):
        require_fits(model, patch)
        return
    with pytest.raises(BaseModelMismatch, match=f"policypatch convert FILE --dtype {served} -o DIR"):
        require_fits(model, patch)


def test_converting_is_not_advised_where_more_than_the_dtype_differs(base_model: BaseModel) -> None:
    stranger = replace(base_model, dtype="float32", weights_digest="sha256:" + "9" * 64)
    for patch in (stranger, replace(stranger, dtype=base_model.dtype)):
        with pytest.raises(BaseModelMismatch) as caught:
            require_fits(base_model, patch)
        assert "convert" not in str(caught.value)
    with pytest.raises(BaseModelMismatch) as caught:
        require_fits(replace(base_model, dtype="float32"), replace(stranger, dtype="bfloat16"))
    assert [text.split(":")[0] for text in caught.value.differences] == ["weights_digest"]


def test_another_model_of_the_same_shape_differs_in_its_weights(
    tiny_model_folder: Path, tmp_path: Path, make_tiny_model: Callable[..., None]
) -> None:
    make_tiny_model(tmp_path, seed=1)
    with pytest.raises(BaseModelMismatch) as caught:
        require_same_base_model(
            fingerprint_model(tiny_model_folder, "float32"), fingerprint_model(tmp_path, "float32")
        )
    assert [text.split(":")[0] for text in caught.value.differences] == ["weights_digest"]


def test_a_changed_configuration_counts(tiny_model_folder: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model_folder)
    config.rope_parameters["rope_theta"] = 5000.0
    found = fingerprint_model(tiny_model_folder, "float32", config=config)
    assert found.rope == {"rope_theta": 5000, "rope_type": "default"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(is_encoder_decoder=True), "encoder-decoder"),
        (lambda c: c.update(architectures=None), "lacks one of architectures"),
        (lambda c: c.update(model_type="unheard-of"), "can't be read"),
    ],
)
def test_a_model_that_cannot_carry_a_prefix_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_json(folder / "config.json", change)
    with pytest.raises(ModelUnusable, match=message):
        fingerprint_model(folder, "float32")


def test_a_model_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelUnusable, match="neither a folder nor a hub model in the local cache"):
        fingerprint_model("nobody/nothing", "float32")
    with pytest.raises(ModelUnusable, match=r"has no config\.json"):
        fingerprint_model(tmp_path, "float32")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelUnusable, match="got the file"):
        fingerprint_model(tmp_path / "model.gguf", "float32")
    with pytest.raises(ModelUnusable, match="dtype: expected bfloat16"):
        fingerprint_model(tmp_path, "int8")


def test_digests_of_a_given_model_are_frozen(tmp_path: Path) -> None:
    """A change to these definitions would cut every patch off from its model."""
    values = (torch.arange(20_000) % 251).to(torch.bfloat16).reshape(200, 100)
    tensors = {"model.a": values, "model.b": torch.arange(5, dtype=torch.float32)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    document = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u00e9": 3}, "merges": [["a", "b"]]},
        "added_tokens": [
            {"id": 4, "content": "<s>", "special": True},
            {"id": 5, "content": "x", "special": False},
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert (
        weights_digest(tmp_path) == "sha256:8b74b6b4cfdf0a8bdbd5a5056e273ca595de085690b2266e43f2c19f3edb05c7"
    )
    assert (
        tokenizer_digest(tmp_path)
        == "sha256:2bfade600fef4958429ff733a966f0f0c2cbdbcb1e4243af96eb4b0e83f6e9ae"
    )
