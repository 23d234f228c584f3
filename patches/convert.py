"""The same patch for a model that runs in another dtype.

A server widens K/V by itself, which is exact (``patches.fingerprint.holds_exactly``); any other change
rounds, and makes another patch with a digest of its own. Where the model and embeddings are at hand, K/V is
computed anew, as ``patches.compile`` would have; else each value is rounded once more. The origin says which,
and of what patch.
"""

from dataclasses import replace

import torch

from patches.base_model import BaseModel
from patches.compile import compile_embeddings
from patches.errors import CompileError
from patches.fingerprint import require_same_base_model
from patches.format import Patch, make_patch
from patches.kinds.delta import DeltaBody
from patches.model import LoadedModel


def convert_patch(patch: Patch, dtype: str, model: LoadedModel | None = None) -> Patch:
    """Make a patch for a model that runs in ``dtype``.

    Args:
        patch: For the same model in another dtype; one for this dtype is returned as it is, and so is a
            steering patch, which is served in any. The values of a delta are rounded.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        model: The base model in ``dtype``; without it, K/V is rounded.

    Raises:
        BaseModelMismatch: The patch belongs to another model.
        CompileError: A value lies beyond what ``dtype`` can hold, or the patch is a composition.
    """
    manifest = patch.manifest
    base_model = replace(manifest.base_model, dtype=dtype)
    if model is not None:
        require_same_base_model(model.base_model, base_model)
    if manifest.kind == "steering" or manifest.base_model.dtype == dtype:
        return patch
    if isinstance(manifest.body, DeltaBody):
        return _rounded_delta(patch, base_model)
    if manifest.components:
        raise CompileError(
            f"{manifest.name}@{manifest.version}: is a composition, which names its parts by digest; convert "
            "the parts, and compose them anew with `policypatch compose`"
        )
    embeddings = patch.embeddings
    if embeddings is not None and embeddings.dtype != getattr(torch, dtype):
        embeddings = embeddings.float()
    is_computed = model is not None and embeddings is not None
    kv = patch.kv
    if model is not None and embeddings is not None:
        kv = compile_embeddings(model.network, embeddings)
    elif kv is not None:
        kv = kv.to(getattr(torch, dtype))
    if kv is not None:
        for index, layer in enumerate(kv):
            _require_finite("kv", layer, dtype, f" in layer {index}")
    converted_from = {
        "digest": patch.digest,
        "dtype": manifest.base_model.dtype,
        "kv": "none" if kv is None else "computed" if is_computed else "rounded",
    }
    origin = {**manifest.origin, "converted_from": converted_from}
    converted = replace(manifest, base_model=base_model, origin=origin)
    return make_patch(converted, {"embeddings": embeddings, "kv": kv})


def _rounded_delta(patch: Patch, base_model: BaseModel) -> Patch:
    values = patch.tensors["values"].to(getattr(torch, base_model.dtype))
    _require_finite("values", values, base_model.dtype)
    before = patch.manifest
    converted_from = {"digest": patch.digest, "dtype": before.base_model.dtype, "values": "rounded"}
    origin = {**before.origin, "converted_from": converted_from}
    return make_patch(
        replace(before, base_model=base_model, origin=origin), {**patch.tensors, "values": values}
    )


def _require_finite(name: str, values: torch.Tensor, dtype: str, place: str = "") -> None:
    if not bool(torch.isfinite(values).all()):
        largest = torch.finfo(getattr(torch, dtype)).max
        raise CompileError(
            f"{name}: expected values of at most {largest:g}, which is what {dtype} holds, got a larger one"
            f"{place}; serve this model in bfloat16 or float32"
        )
