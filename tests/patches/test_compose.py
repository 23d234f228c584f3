"""Composition: the parts' embeddings one after the other, K/V anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from patches.compile import compile_patch, compile_text, compile_token_ids
from patches.compose import compose_patches, composed_name
from patches.errors import BaseModelMismatch, CompileError, ComposeError
from patches.format import Patch
from patches.label import Label
from patches.manifest import Component
from patches.model import LoadedModel, load_model


@pytest.fixture
def parts(tiny_model: LoadedModel) -> list[Patch]:
    texts = {"toxicity": "never answer rudely", "bias": "answer politely"}
    return [compile_text(tiny_model, text, Label(name, "1.2.0")) for name, text in texts.items()]


LABEL = Label("toxicity.bias", "1.0.0")


def test_a_composition_equals_compiling_the_joined_embeddings(
    tiny_model: LoadedModel, parts: list[Patch]
) -> None:
    composed = compose_patches(tiny_model, parts, LABEL)
    rows = torch.cat([part.embeddings for part in parts if part.embeddings is not None])
    expected = compile_patch(tiny_model, rows, LABEL, composed.manifest.origin)
    assert composed.digest == expected.digest
    assert composed.manifest.num_virtual_tokens == sum(part.manifest.num_virtual_tokens for part in parts)


def test_the_first_part_keeps_its_kv_and_the_second_does_not(
    tiny_model: LoadedModel, parts: list[Patch]
) -> None:
    composed = compose_patches(tiny_model, parts, LABEL).kv
    first, second = parts[0].kv, parts[1].kv
    assert composed is not None
    assert first is not None
    assert second is not None
    n = first.shape[2]
    torch.testing.assert_close(composed[:, :, :n], first, rtol=0, atol=1e-5)
    assert not torch.allclose(composed[:, :, n:], second, atol=1e-2)


def test_the_manifest_names_the_parts_in_order(tiny_model: LoadedModel, parts: list[Patch]) -> None:
    composed = compose_patches(tiny_model, parts, LABEL)
    assert composed.manifest.components == (
        Component("toxicity", "1.2.0", parts[0].digest),
        Component("bias", "1.2.0", parts[1].digest),
    )
    assert composed.manifest.origin["method"] == "compose"


def test_the_order_matters(tiny_model: LoadedModel, parts: list[Patch]) -> None:
    forwards = compose_patches(tiny_model, parts, LABEL)
    backwards = compose_patches(tiny_model, parts[::-1], LABEL)
    assert forwards.digest != backwards.digest


def test_three_parts_and_a_part_that_is_itself_composed_are_possible(
    tiny_model: LoadedModel, parts: list[Patch]
) -> None:
    inner = compose_patches(tiny_model, parts, LABEL)
    outer = compose_patches(tiny_model, [inner, *parts], Label("all", "1.0.0"))
    assert [part.name for part in outer.manifest.components] == ["toxicity.bias", "toxicity", "bias"]
    assert inner.embeddings is not None
    assert outer.embeddings is not None
    assert torch.equal(outer.embeddings, torch.cat([inner.embeddings, inner.embeddings]))


def test_a_patch_without_embeddings_is_refused(
    tiny_model: LoadedModel, parts: list[Patch], make: Callable[..., Patch]
) -> None:
    with pytest.raises(ComposeError, match=r"pirate@1\.0\.0: has no embeddings"):
        compose_patches(tiny_model, [parts[0], make(embeddings=False)], LABEL)


def test_a_patch_of_another_model_is_refused_and_named(
    tiny_model: LoadedModel, parts: list[Patch], make: Callable[..., Patch]
) -> None:
    with pytest.raises(BaseModelMismatch) as caught:
        compose_patches(tiny_model, [parts[0], make("stranger")], LABEL)
    assert all(text.startswith("stranger: ") for text in caught.value.differences)
    assert "stranger: head_size: expected 8, got 4" in caught.value.differences


def test_one_patch_is_no_composition(tiny_model: LoadedModel, parts: list[Patch]) -> None:
    with pytest.raises(ComposeError, match="at least two"):
        compose_patches(tiny_model, parts[:1], LABEL)


def test_too_many_tokens_are_refused(tiny_model: LoadedModel, make: Callable[..., Patch]) -> None:
    with pytest.raises(ComposeError, match="at most 4096 virtual tokens in all, got 4100"):
        compose_patches(tiny_model, [make(num_tokens=2050, kv=False)] * 2, LABEL)
    half = compile_token_ids(tiny_model, [5] * 300, Label("half", "1.0.0"))
    with pytest.raises(CompileError, match="expected 1 to 511 tokens, got 600"):
        compose_patches(tiny_model, [half, half], LABEL)


def test_mixed_precision_is_joined_in_float32(tiny_model_folder: Path) -> None:
    """The wider dtype holds both parts exactly."""
    model = load_model(tiny_model_folder, dtype="bfloat16")
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    wide = compile_patch(model, rows, Label("wide", "1.0.0"), {"method": "trained"})
    thin = compile_patch(model, rows.bfloat16(), Label("thin", "1.0.0"), {"method": "trained"})
    composed = compose_patches(model, [wide, thin], LABEL)
    assert composed.embeddings is not None
    assert composed.kv is not None
    assert torch.equal(composed.embeddings, torch.cat([rows, rows.bfloat16().float()]))
    assert composed.kv.dtype == torch.bfloat16


def test_the_usual_name_joins_the_parts_names() -> None:
    assert composed_name(["toxicity", "bias"]) == "toxicity.bias"
    with pytest.raises(ComposeError, match="choose one"):
        composed_name(["a" * 40, "b" * 40])
