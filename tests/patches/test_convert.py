"""Patches for a model that runs in another dtype, by the function and by the command."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.base_model import DTYPES, BaseModel
from patches.compile import compile_text
from patches.compose import compose_patches
from patches.convert import convert_patch
from patches.errors import BaseModelMismatch, CompileError
from patches.format import Patch, decode_patch, encode_patch, make_patch, read_patch, write_patch
from patches.label import Label
from patches.model import LoadedModel, load_model
from server.cli import main

TEXT = "answer politely, never answer rudely"
LABEL = Label("polite", "1.0.0", changelog="Is polite.")


@pytest.fixture(scope="module")
def models(tiny_model_folder: Path) -> dict[str, LoadedModel]:
    return {dtype: load_model(tiny_model_folder, dtype=dtype) for dtype in DTYPES}


def kv_of(patch: Patch) -> torch.Tensor:
    assert patch.kv is not None
    return patch.kv


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_a_patch_is_rounded_once_to_the_dtype_asked_for(
    make: Callable[..., Patch], base_model: BaseModel, source: str, target: str
) -> None:
    patch = make(base_model=replace(base_model, dtype=source), embeddings=False)
    if source == target:
        assert convert_patch(patch, target) is patch
        return
    converted = convert_patch(patch, target)
    assert converted.manifest.base_model == replace(base_model, dtype=target)
    assert torch.equal(kv_of(converted), kv_of(patch).to(getattr(torch, target)))
    assert converted.manifest.origin["converted_from"] == {
        "digest": patch.digest,
        "dtype": source,
        "kv": "rounded",
    }
    assert converted.digest != patch.digest
    again = decode_patch(encode_patch(converted.manifest, converted.tensors))
    assert again.digest == converted.digest


def test_name_version_notes_and_evaluation_stay(make: Callable[..., Patch]) -> None:
    patch = make(changelog="Is polite.", license="MIT", supersedes="0.9.0", evaluation={"score": 1})
    manifest = convert_patch(patch, "float16").manifest
    same = replace(patch.manifest, base_model=manifest.base_model, origin=manifest.origin)
    assert manifest == same


@pytest.mark.parametrize("target", ["bfloat16", "float16"])
def test_with_the_model_a_patch_becomes_what_compile_would_have_made(
    models: dict[str, LoadedModel], target: str
) -> None:
    wide = compile_text(models["float32"], TEXT, LABEL)
    expected = compile_text(models[target], TEXT, LABEL)
    converted = convert_patch(wide, target, models[target])
    assert torch.equal(kv_of(converted), kv_of(expected))
    assert converted.manifest.origin["converted_from"]["kv"] == "computed"  # type: ignore[index, call-overload]
    assert not torch.equal(kv_of(convert_patch(wide, target)), kv_of(expected))


def test_embeddings_of_the_former_dtype_are_kept_without_loss(models: dict[str, LoadedModel]) -> None:
    narrow = compile_text(models["bfloat16"], TEXT, LABEL)
    converted = convert_patch(narrow, "float16", models["float16"])
    assert converted.embeddings is not None
    assert narrow.embeddings is not None
    assert torch.equal(converted.embeddings, narrow.embeddings.float())


def test_a_prefix_without_embeddings_is_rounded_though_the_model_is_there(
    models: dict[str, LoadedModel],
) -> None:
    compiled = compile_text(models["float32"], TEXT, LABEL)
    bare = make_patch(compiled.manifest, {"kv": compiled.kv})
    converted = convert_patch(bare, "float16", models["float16"])
    assert torch.equal(kv_of(converted), kv_of(bare).half())
    assert converted.manifest.origin["converted_from"]["kv"] == "rounded"  # type: ignore[index, call-overload]


def test_embeddings_alone_are_converted_too(make: Callable[..., Patch]) -> None:
    patch = convert_patch(make(kv=False), "float16")
    assert patch.kv is None
    assert patch.manifest.origin["converted_from"]["kv"] == "none"  # type: ignore[index, call-overload]


@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_a_value_that_float16_cannot_hold_is_refused(make: Callable[..., Patch], value: float) -> None:
    patch = make()
    large = kv_of(patch).clone()
    large[1, 0, 2, 1, 3] = value
    patch = make_patch(patch.manifest, {"kv": large})
    with pytest.raises(CompileError, match=r"kv: expected values of at most 65504, .* layer 1; serve"):
        convert_patch(patch, "float16")
    assert torch.equal(kv_of(convert_patch(patch, "float32")), large.float())


def test_a_model_that_overflows_in_float16_is_refused(models: dict[str, LoadedModel]) -> None:
    wide = compile_text(models["float32"], TEXT, LABEL)
    assert wide.embeddings is not None
    huge = make_patch(wide.manifest, {"embeddings": wide.embeddings * 1e6, "kv": wide.kv})
    with pytest.raises(CompileError, match="kv: expected values of at most 65504"):
        convert_patch(huge, "float16", models["float16"])


def test_a_model_of_another_kind_is_refused(make: Callable[..., Patch], tiny_model: LoadedModel) -> None:
    with pytest.raises(BaseModelMismatch, match="head_size"):
        convert_patch(make(), "float32", tiny_model)
    same_dtype = make(base_model=replace(make().manifest.base_model, dtype="float32"))
    with pytest.raises(BaseModelMismatch, match="head_size"):
        convert_patch(same_dtype, "float32", tiny_model)


def test_a_composition_is_refused_since_its_parts_get_other_digests(
    models: dict[str, LoadedModel],
) -> None:
    part = compile_text(models["float32"], TEXT, LABEL)
    composed = compose_patches(models["float32"], [part, part], Label("both", "1.0.0"))
    with pytest.raises(CompileError, match=r"both@1\.0\.0: is a composition.*compose them anew"):
        convert_patch(composed, "bfloat16")


def test_narrow_patches_are_composed_for_a_model_in_float32(models: dict[str, LoadedModel]) -> None:
    part = compile_text(models["bfloat16"], TEXT, LABEL)
    composed = compose_patches(models["float32"], [part, part], Label("both", "1.0.0"))
    assert composed.manifest.base_model.dtype == "float32"
    assert [one.digest for one in composed.manifest.components] == [part.digest, part.digest]


def convert(*arguments: Any) -> int:
    return main(["convert", *map(str, arguments)])


def test_the_command_converts_every_file_and_says_what_it_wrote(
    make: Callable[..., Patch], base_model: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    first = write_patch(make("first"), source)
    second = write_patch(make("second", base_model=replace(base_model, dtype="float16")), source)
    Path(f"{first}.sig").touch()
    assert convert(first, second, "--dtype", "float16", "-o", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [first.name, second.name]
    assert read_patch(out / first.name).digest == convert_patch(read_patch(first), "float16").digest
    assert read_patch(out / second.name).digest == read_patch(second).digest
    captured = capsys.readouterr()
    assert f"{out / first.name}: 3 tokens" in captured.out
    assert f"{first} is signed, what was made of it is not" in captured.err
    assert f"{second} is for float16 already" in captured.err


def test_the_command_copies_a_patch_of_that_dtype_with_its_signature(
    make: Callable[..., Patch], tmp_path: Path
) -> None:
    path = write_patch(make(), tmp_path / "in")
    Path(f"{path}.sig").write_text("signed")
    out = tmp_path / "out"
    assert convert(path, "--dtype", read_patch(path).manifest.base_model.dtype, "-o", out) == 0
    assert (out / path.name).read_bytes() == path.read_bytes()
    assert Path(f"{out / path.name}.sig").read_text() == "signed"


def test_the_command_writes_over_nothing(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_patch(make(), tmp_path)
    before = path.read_bytes()
    assert convert(path, "--dtype", "float16", "-o", tmp_path) == 2
    assert "exists with different content" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert convert(path, "--dtype", "float16", "-o", tmp_path, "--force") == 0
    assert read_patch(path).manifest.base_model.dtype == "float16"


def test_the_command_computes_anew_with_the_model(
    models: dict[str, LoadedModel], tiny_model_folder: Path, tmp_path: Path
) -> None:
    path = write_patch(compile_text(models["float32"], TEXT, LABEL), tmp_path / "in")
    out = tmp_path / "out"
    assert convert(path, "--dtype", "bfloat16", "--model", tiny_model_folder, "-o", out) == 0
    expected = compile_text(models["bfloat16"], TEXT, LABEL)
    assert torch.equal(kv_of(read_patch(out / path.name)), kv_of(expected))


def test_the_command_names_the_file_that_it_cannot_convert(
    make: Callable[..., Patch], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = make()
    path = write_patch(make_patch(patch.manifest, {"kv": kv_of(patch) * 1e9}), tmp_path)
    assert convert(path, "--dtype", "float16", "-o", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"policypatch convert: {path}: kv: expected values of at most 65504")
    assert not (tmp_path / "out").exists()
