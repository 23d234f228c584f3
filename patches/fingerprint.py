"""The fingerprint of a base model: what must be equal for a prefix to mean the same.

K/V is bound to the exact model that computed it: its shape, its weights, its rotary positions, the dtype it
runs in, and the tokenizer that the prefix was written with. ``fingerprint_model`` reads that from a model
folder in a second or so, whatever the model's size, and from nothing but the files, so loading a model in
another dtype changes only ``dtype``.

What stands where: the tokenizer's part in ``patches.tokenizer_digest``, the weights' part, which is
sampled, in ``patches.weights_digest``, each with its exact definition and limits. A chat template is no
part of it: it belongs to the requests, not to the model.

Rotary parameters are canonical: ``{"rope_theta": …, "rope_type": …, …}``, or one such object per kind of
attention layer where a model has several (Gemma 3). Both configuration forms that transformers reads
(``rope_parameters``, and ``rope_theta`` with ``rope_scaling``) give the same; empty keys, the old alias
``type`` and a ``partial_rotary_factor`` of 1 are left out. A model without rotary positions has ``{}``.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from patches.base_model import DTYPES, BaseModel
from patches.canonical import JsonValue, canonical_json, parse_json
from patches.errors import BaseModelMismatch, ModelUnusable
from patches.manifest import Manifest
from patches.model_files import model_folder, require_config
from patches.tokenizer_digest import tokenizer_digest
from patches.weights_digest import weights_digest


def fingerprint_model(
    model: str | os.PathLike[str],
    dtype: str,
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    config: Any = None,
    may_lack_weights: bool = False,
) -> BaseModel:
    """Compute the fingerprint of a model.

    Args:
        model: A local folder, or the id of a hub model that is in the local cache. Nothing is downloaded.
        dtype: The dtype the model runs in: ``bfloat16``, ``float16`` or ``float32``.
        tokenizer: Where the tokenizer is, if not beside the model.
        revision: The revision of a hub model.
        config: The model's transformers configuration, where the caller changed it after loading.
        may_lack_weights: The model runs with random weights, so that its folder needs none.

    Raises:
        ModelUnusable: The folder is not there, not readable, or its kind of model can't carry a prefix.
    """
    if dtype not in DTYPES:
        raise ModelUnusable(f"dtype: expected {' or '.join(DTYPES)}, got {dtype!r}")
    folder = model_folder(model, revision)
    tokenizer_folder = folder if tokenizer is None else model_folder(tokenizer, None)
    if config is None:
        config = _load_config(folder)
    shape = _shape_of(config, str(model))
    return BaseModel(
        **shape,
        rope=canonical_rope(config),
        dtype=dtype,
        tokenizer_digest=tokenizer_digest(tokenizer_folder),
        weights_digest=weights_digest(folder, may_lack_weights=may_lack_weights),
    )


def require_same_base_model(expected: BaseModel, actual: BaseModel) -> None:
    """Compare two fingerprints.

    Args:
        expected: One of them, such as the model's at hand.
        actual: The other, such as the patch's.

    Raises:
        BaseModelMismatch: They differ; every difference is named.
    """
    differences = []
    for key in BaseModel.__dataclass_fields__:
        wanted, got = getattr(expected, key), getattr(actual, key)
        if key == "rope":
            wanted, got = canonical_json(wanted), canonical_json(got)
        if wanted != got:
            differences.append(f"{key}: expected {wanted}, got {got}")
    if differences:
        raise BaseModelMismatch(differences)


def holds_exactly(dtype: str, other: str) -> bool:
    """Return whether every value of ``other`` is one of ``dtype`` too, so that K/V can be widened."""
    return dtype in (other, "float32")


def require_fits(model: BaseModel, patch: BaseModel) -> None:
    """Check that a patch can be used with a model: made for the same, or in a dtype that the model's holds.

    Args:
        model: The fingerprint of the model at hand.
        patch: The fingerprint that the patch carries.

    Raises:
        BaseModelMismatch: It can't; every difference is named, and what helps where it is the dtype alone.
    """
    if holds_exactly(model.dtype, patch.dtype):
        patch = replace(patch, dtype=model.dtype)
    try:
        require_same_base_model(model, patch)
    except BaseModelMismatch as error:
        if patch.dtype == model.dtype or len(error.differences) > 1:
            raise
        command = f"policypatch convert FILE --dtype {model.dtype} -o DIR"
        raise BaseModelMismatch([f"{error.differences[0]}; `{command}` makes a patch for it"]) from None


def require_patch_fits(model: BaseModel, manifest: Manifest) -> None:
    """Check that a patch can be used with a model; see ``require_fits``.

    Raises:
        BaseModelMismatch: It can't.
    """
    made_for = manifest.base_model
    is_bound = manifest.body.is_dtype_bound
    require_fits(model, made_for if is_bound else replace(made_for, dtype=model.dtype))


def canonical_rope(config: Any) -> dict[str, JsonValue]:
    """Return the rotary parameters of a transformers configuration in canonical form."""
    text_config = config.get_text_config()
    parameters = getattr(text_config, "rope_parameters", None)
    if not parameters:
        theta = getattr(text_config, "rope_theta", None)
        scaling = getattr(text_config, "rope_scaling", None) or {}
        parameters = {"rope_theta": theta, **scaling} if theta is not None else {}
    inner = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    rope = (
        {key: _canonical_rotation(value) for key, value in inner.items()}
        if inner
        else _canonical_rotation(parameters)
    )
    # One round trip makes 10000.0 and 10000, tuples and lists, the same.
    result = parse_json(canonical_json(rope))
    assert isinstance(result, dict)
    return result


def _canonical_rotation(parameters: dict[str, Any]) -> dict[str, JsonValue]:
    rotation = {key: value for key, value in parameters.items() if value is not None and key != "type"}
    if not rotation:
        return {}
    rotation.setdefault("rope_type", parameters.get("type") or "default")
    if rotation.get("partial_rotary_factor") == 1:
        del rotation["partial_rotary_factor"]
    return rotation


def _load_config(folder: Path) -> Any:
    require_config(folder)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelUnusable(f"model: the configuration of {folder} can't be read: {error}") from error


def _shape_of(config: Any, model: str) -> dict[str, Any]:
    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ModelUnusable(f"model: {model} is an encoder-decoder model, which can't carry a prefix")
    if getattr(text_config, "kv_lora_rank", None):
        raise ModelUnusable(
            f"model: {model} uses multi-head latent attention, which has no K/V heads to fill"
        )
    architectures = getattr(config, "architectures", None) or getattr(text_config, "architectures", None)
    num_heads = getattr(text_config, "num_attention_heads", None)
    num_layers = getattr(text_config, "num_hidden_layers", None)
    hidden_size = getattr(text_config, "hidden_size", None)
    if not (architectures and num_heads and num_layers and hidden_size):
        raise ModelUnusable(
            f"model: the configuration of {model} lacks one of architectures, num_attention_heads, "
            "num_hidden_layers, hidden_size; expected a decoder-only language model"
        )
    return {
        "architecture": str(architectures[0]),
        "num_layers": int(num_layers),
        "num_kv_heads": _num_kv_heads(text_config, int(num_heads)),
        "head_size": int(getattr(text_config, "head_dim", None) or hidden_size // num_heads),
        "hidden_size": int(hidden_size),
    }


def _num_kv_heads(text_config: Any, num_heads: int) -> int:
    if getattr(text_config, "multi_query", False) and not getattr(
        text_config, "new_decoder_architecture", False
    ):
        return 1
    for key in ("num_key_value_heads", "num_kv_heads"):
        if (value := getattr(text_config, key, None)) is not None:
            return int(value)
    return num_heads
