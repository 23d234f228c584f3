"""Engines that `host_path.py` rehearses: tiny models with random weights, and a cache of a few blocks."""

import json
import shutil
from pathlib import Path
from typing import Any

from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from server.engine.configuration import _CONNECTOR
from server.engine.steering_hooks import COMPILE_KEY
from server.engine.steering_plan import SLOTS_KEY

BLOCK_SIZE = 16
NUM_BLOCKS = 48
SIZES = {
    "vocab_size": 49152,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
}
LLAMA = SIZES | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
#: A window of 32 is shorter than a prefix of 75: the sliding layers keep only its end.
HYBRID = SIZES | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 64,
    "rope_local_base_freq": 1e4,
}
QUICK: dict[str, Any] = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
#: name -> (model, patched, engine arguments). The first two differ in nothing but the connector.
#: Of scenarios that steer: fewer than vectors are asked for at a time.
NUM_SLOTS = 4
SCENARIOS: dict[str, tuple[dict[str, Any], bool, dict[str, Any]]] = {
    "default": (LLAMA, True, {}),
    "plain": (LLAMA, False, {}),
    "full-decode": (LLAMA, True, QUICK),
    "eager": (LLAMA, True, {"enforce_eager": True}),
    "triton": (LLAMA, True, QUICK | {"attention_backend": "TRITON_ATTN"}),
    "fp32": (LLAMA, True, QUICK | {"dtype": "float32"}),
    "fp8": (LLAMA, True, QUICK | {"kv_cache_dtype": "fp8"}),
    "uncached": (LLAMA, True, QUICK | {"enable_prefix_caching": False}),
    # Three groups take their blocks from one pool.
    "hybrid": (HYBRID, True, QUICK | {"num_gpu_blocks_override": 64}),
    # As `policypatch serve` starts it, and with graphs alone.
    "steering": (LLAMA, True, {"additional_config": COMPILE_KEY}),
    "steering-graphs": (LLAMA, True, QUICK | {"additional_config": COMPILE_KEY}),
}
STEERED = tuple(name for name in SCENARIOS if name.startswith("steering"))


def write_model(kit_model: Path, folder: Path, config: dict[str, Any]) -> None:
    """Make a model folder without weights."""
    for path in kit_model.glob("token*.json"):
        shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(config))


def engine_args(
    model: Path, arguments: dict[str, Any], *, is_patched: bool, num_slots: int = 0
) -> AsyncEngineArgs:
    """Configure as the launcher does, with a cache of a few blocks and a small token budget."""
    settings = {
        "model": str(model),
        "dtype": "bfloat16",
        "load_format": "dummy",
        "max_model_len": 512,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 64,
        "num_gpu_blocks_override": NUM_BLOCKS,
        "gpu_memory_utilization": 0.2,
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16],
    }
    args = AsyncEngineArgs(**(settings | arguments))
    if is_patched:
        extra = {SLOTS_KEY: num_slots}
        args.kv_transfer_config = KVTransferConfig(**_CONNECTOR, kv_connector_extra_config=extra)
        args.worker_cls = "watched_worker.WatchedWorker"
    else:
        args.worker_cls = "watched_worker.PlainWorker"
    return args
