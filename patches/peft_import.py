"""From a PEFT adapter to a patch.

Prompt tuning and p-tuning give embeddings, for which K/V is computed here; prefix tuning and Cartridge
*are* K/V, so the patch has no embeddings. PEFT itself loads the adapter and flattens what it flattens; only
``adapter_model.safetensors`` is ever read, since unpickling ``adapter_model.bin`` could run code.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from patches.base_model import BaseModel
from patches.canonical import JsonValue, parse_json
from patches.compile import compile_patch, stack_cache
from patches.errors import AdapterError
from patches.format import Patch, make_patch
from patches.kinds.prefix import MAX_NUM_VIRTUAL_TOKENS, PrefixBody
from patches.label import Label
from patches.model import LoadedModel
from patches.text import read_text

EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING")
KV_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLE_FILE = "adapter_model.bin"
_TENSOR = "prompt_embeddings"
_MAX_CONFIG_BYTES = 1024 * 1024
_ADVICE = {
    "LORA": "a LoRA adapter changes weights; vLLM serves it with --enable-lora",
    "MULTITASK_PROMPT_TUNING": "it needs a task id with each request; export one task as PROMPT_TUNING",
    "CPT": "its tokens carry their own loss types; export them as PROMPT_TUNING",
}


def import_adapter(model: LoadedModel, folder: Path, label: Label) -> Patch:
    """Make a patch from a PEFT adapter folder.

    Args:
        model: The base model that the adapter was trained for.
        folder: Has ``adapter_config.json`` and ``adapter_model.safetensors``.
        label: Name, version and notes.

    Raises:
        AdapterError: The adapter is of another kind, for another model, damaged, or stored as a pickle.
        CompileError: The model can't carry a prefix.
    """
    config = _read_config(folder)
    _check_weights(folder, config, model.base_model)
    peft_type = str(config["peft_type"])
    origin: dict[str, JsonValue] = {
        "method": "peft",
        "peft_type": peft_type,
        "adapter_digest": "sha256:" + hashlib.sha256((folder / _WEIGHTS_FILE).read_bytes()).hexdigest(),
    }
    prompt = _flattened_prompt(model.network, folder)
    if peft_type in EMBEDDING_TYPES:
        return compile_patch(model, prompt[0].detach().clone(), label, origin)
    num_tokens = int(config["num_virtual_tokens"])
    kv = stack_cache(prompt, num_tokens, model.base_model.num_layers)
    return make_patch(label.manifest(model.base_model, PrefixBody(num_tokens), origin), {"kv": kv})


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"adapter: {folder} has no {_CONFIG_FILE}; expected the folder of a PEFT adapter")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {_MAX_CONFIG_BYTES} bytes")
        config = parse_json(read_text(path))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise AdapterError(f"adapter: {path} can't be read: {error}") from None
    _check_config(config)
    return config


def _check_config(config: dict[str, Any]) -> None:
    peft_type, task_type = config.get("peft_type"), config.get("task_type")
    if peft_type not in (*EMBEDDING_TYPES, *KV_TYPES):
        expected = ", ".join((*EMBEDDING_TYPES, *KV_TYPES))
        advice = f"; {_ADVICE[peft_type]}" if isinstance(peft_type, str) and peft_type in _ADVICE else ""
        raise AdapterError(
            f"adapter.peft_type: expected one of {expected}, got {str(peft_type)[:40]!r}{advice}"
        )
    if task_type not in ("CAUSAL_LM", None):
        raise AdapterError(
            f"adapter.task_type: expected CAUSAL_LM, got {str(task_type)[:40]!r}; only "
            "decoder-only language models can be patched"
        )
    if config.get("num_transformer_submodules") not in (1, None):
        raise AdapterError(
            "adapter.num_transformer_submodules: expected 1; this one is for an encoder-decoder model"
        )
    num_tokens = config.get("num_virtual_tokens")
    if type(num_tokens) is not int or not 1 <= num_tokens <= MAX_NUM_VIRTUAL_TOKENS:
        shown = str(num_tokens)[:40]
        raise AdapterError(f"adapter.num_virtual_tokens: expected 1 to {MAX_NUM_VIRTUAL_TOKENS}, got {shown}")


def _check_weights(folder: Path, config: dict[str, Any], base_model: BaseModel) -> None:
    path = folder / _WEIGHTS_FILE
    if not path.is_file():
        if (folder / _PICKLE_FILE).exists():
            raise AdapterError(
                f"adapter: {_PICKLE_FILE} is a pickle, which could run code and is never loaded; save the "
                "adapter with safe_serialization=True"
            )
        raise AdapterError(f"adapter: {folder} has no {_WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"adapter: {path} can't be read: {error}") from None
    if set(shapes) != {_TENSOR}:
        names = ", ".join(sorted(shapes)[:5]) or "none"
        raise AdapterError(
            f"adapter: expected one tensor {_TENSOR}, got {names}; "
            "adapters that change weights can't be patches"
        )
    width = base_model.hidden_size
    if config["peft_type"] in KV_TYPES:
        width = base_model.num_layers * 2 * base_model.num_kv_heads * base_model.head_size
    expected = (config["num_virtual_tokens"], width)
    got = shapes[_TENSOR]
    if got != expected:
        raise AdapterError(
            f"adapter: expected {_TENSOR} of shape {list(expected)} for this model, got {list(got)}; "
            "was it trained for another base model?"
        )


def _flattened_prompt(network: Any, folder: Path) -> Any:
    """Return the prompt of the adapter, which PEFT loads.

    Returns:
        ``[1, N, hidden_size]`` embeddings in the adapter's dtype, or a cache in the model's dtype.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise AdapterError("PEFT is not installed; install policypatch[train] to import adapters") from None
    try:
        adapter = PeftModel.from_pretrained(network, str(folder), torch_device=str(network.device))
        adapter.eval()
        with torch.no_grad():
            return adapter.get_prompt(batch_size=1)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise AdapterError(f"adapter: PEFT can't load {folder}: {error}") from error
