"""From a patch to a PEFT adapter.

Embeddings become PROMPT_TUNING; K/V becomes PREFIX_TUNING or CARTRIDGE, which both hold it flattened as
``[N, layers · 2 · kv_heads · head_size]``, per layer keys then values.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches.errors import AdapterError, PatchExists
from patches.manifest import require_kind

if TYPE_CHECKING:
    import torch

    from patches.format import Patch

#: What ``--as`` takes.
KINDS = ("prompt-tuning", "prefix-tuning", "cartridge")


def export_adapter(
    patch: "Patch",
    folder: Path,
    kind: str | None = None,
    *,
    base_model: str | None = None,
    overwrite: bool = False,
) -> str:
    """Write a patch as a PEFT adapter folder.

    Args:
        patch: The patch.
        folder: Gets ``adapter_config.json`` and ``adapter_model.safetensors``; made where it does not exist.
        kind: One of ``KINDS``; ``prompt-tuning`` where the patch has embeddings, else ``prefix-tuning``.
        base_model: Folder or hub id of the base model, which ``AutoPeftModelForCausalLM`` loads beside the
            adapter; a patch knows its base model by content only.
        overwrite: Replace an adapter that is already there.

    Returns:
        The kind.

    Raises:
        AdapterError: The patch lacks the tensor that the kind needs, or PEFT is not installed.
        KindMismatch: It is a steering patch.
        PatchExists: The folder already holds an adapter.
        OSError: The folder can't be written.
    """
    from safetensors.torch import save_file

    require_kind(patch.manifest, "prefix", "PEFT has no adapter for it")
    kind = kind or ("prompt-tuning" if patch.embeddings is not None else "prefix-tuning")
    if kind not in KINDS:
        raise AdapterError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    rows = _rows_of(patch, kind)
    config = _config_of(patch, kind, base_model)
    if (folder / "adapter_model.safetensors").exists() and not overwrite:
        raise PatchExists(
            f"{folder} already holds an adapter; choose another folder, or overwrite it on purpose"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Both files are complete before either appears.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter.") as name:
        temporary = Path(name)
        save_file({"prompt_embeddings": rows}, temporary / "adapter_model.safetensors", {"format": "pt"})
        config.save_pretrained(str(temporary))
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    return kind


def _rows_of(patch: "Patch", kind: str) -> "torch.Tensor":
    if kind == "prompt-tuning":
        if patch.embeddings is None:
            raise AdapterError(
                "patch: has no embeddings, so it can't be prompt tuning; "
                "export it as prefix-tuning or cartridge"
            )
        return patch.embeddings.contiguous()
    if patch.kv is None:
        raise AdapterError(f"patch: has no K/V, so it can't be {kind}; export it as prompt-tuning")
    # [L, 2, N, H, D] -> [N, L, 2, H, D] -> [N, L·2·H·D]
    return patch.kv.permute(2, 0, 1, 3, 4).reshape(patch.manifest.num_virtual_tokens, -1).contiguous()


def _config_of(patch: "Patch", kind: str, base_model: str | None) -> Any:
    try:
        from peft import CartridgeConfig, PrefixTuningConfig, PromptTuningConfig, TaskType
    except ImportError:
        raise AdapterError("PEFT is not installed; install policypatch[train] to export adapters") from None
    model = patch.manifest.base_model
    common = {
        "task_type": TaskType.CAUSAL_LM,
        "num_virtual_tokens": patch.manifest.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "num_layers": model.num_layers,
        "inference_mode": True,
        "base_model_name_or_path": base_model,
    }
    if kind == "prompt-tuning":
        return PromptTuningConfig(token_dim=model.hidden_size, **common)
    heads = {"token_dim": model.num_kv_heads * model.head_size, "num_attention_heads": model.num_kv_heads}
    if kind == "prefix-tuning":
        return PrefixTuningConfig(**heads, **common)
    return CartridgeConfig(num_frozen_tokens=0, **heads, **common)
