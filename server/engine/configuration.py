"""What vLLM's engine and its HTTP server are configured with: its own flags, and our connector.

Both come from vLLM's arguments; nothing is started here. Whatever is wrong with flags, model or machine, and
can be known before anything is loaded, is found here.
"""

import argparse
from typing import Any

from vllm import envs
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.model_executor.model_loader import get_model_loader
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.usage.usage_lib import UsageContext

from patches.base_model import BaseModel
from patches.fingerprint import fingerprint_model
from server.engine.block_pins import PINNED_NAMES_KEY, PINNED_SHARE_KEY
from server.engine.options import ServeOptions
from server.engine.start_errors import flags_judged
from server.engine.steering_hooks import COMPILE_KEY
from server.engine.steering_plan import SLOTS_KEY
from server.engine.support import require_supported_model, require_supported_on_cpu
from server.engine.weight_places import WEIGHTS_KEY
from server.engine.worker import use_patched_workers
from server.engine.worker_side import DEVICE_BYTES_KEY
from server.options import ServeFlags

_CONNECTOR = {
    "kv_connector": "PolicyPatchConnector",
    "kv_connector_module_path": "server.engine.connector",
    # Nothing is handed off either way; the producer role only spares the costs that vLLM adds for
    # consumers, whose loads are not ordered with the forward pass.
    "kv_role": "kv_producer",
    "kv_load_failure_policy": "fail",
}


def engine_config(
    options: ServeOptions, args: argparse.Namespace, *, process_count: int, process_rank: int
) -> VllmConfig:
    """Resolve vLLM's configuration with our connector in it.

    Args:
        options: Our flags.
        args: vLLM's.
        process_count: How many processes answer HTTP.
        process_rank: Which of them this one is; -1 for the one that only starts the others.

    Raises:
        UnsupportedSetup: the model cannot be served with patches.
    """
    with flags_judged():
        engine_args = AsyncEngineArgs.from_cli_args(args)
        engine_args.kv_transfer_config = _kv_transfer_config(options.flags)
        if options.flags.memory.steering_slots:
            engine_args.additional_config = {**engine_args.additional_config, **COMPILE_KEY}
        engine_args._api_process_count = process_count
        engine_args._api_process_rank = process_rank
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
        if not config.model_config.skip_tokenizer_init:
            # The engine client takes it from the same cache.
            cached_tokenizer_from_config(config.model_config)
        # The workers make another one of these; here it says whether there is one for the format.
        get_model_loader(config.load_config)
    use_patched_workers(config)
    require_supported_model(config)
    require_supported_on_cpu(config)
    return config


def fingerprint_of(config: VllmConfig) -> BaseModel:
    """Fingerprint the model as it is served: with the tokenizer, revision and overrides of vLLM's flags.

    Raises:
        ModelUnusable: its files can't be read, or there are no weights among them.
    """
    model_config = config.model_config
    return fingerprint_model(
        model_config.model,
        str(model_config.dtype).removeprefix("torch."),
        tokenizer=model_config.tokenizer,
        revision=model_config.revision,
        config=model_config.hf_config if model_config.hf_overrides else None,
        may_lack_weights=config.load_config.load_format == "dummy",
    )


def _kv_transfer_config(flags: ServeFlags) -> KVTransferConfig:
    memory = flags.memory
    extra: dict[str, Any] = {
        DEVICE_BYTES_KEY: int(memory.patch_device_memory),
        SLOTS_KEY: memory.steering_slots,
        WEIGHTS_KEY: flags.weights.weight_patches,
    }
    if memory.pin_blocks:
        extra |= {PINNED_SHARE_KEY: memory.pin_blocks_share, PINNED_NAMES_KEY: sorted(memory.pin_blocks)}
    return KVTransferConfig(**_CONNECTOR, kv_connector_extra_config=extra)


def http_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what vLLM's HTTP server is started with."""
    options = {
        "enable_ssl_refresh": args.enable_ssl_refresh,
        "host": args.host,
        "port": args.port,
        "log_level": args.uvicorn_log_level,
        "access_log": not args.disable_uvicorn_access_log,
        "timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        "ssl_keyfile": args.ssl_keyfile,
        "ssl_certfile": args.ssl_certfile,
        "ssl_ca_certs": args.ssl_ca_certs,
        "ssl_cert_reqs": args.ssl_cert_reqs,
        "ssl_ciphers": args.ssl_ciphers,
        "h11_max_incomplete_event_size": args.h11_max_incomplete_event_size,
        "h11_max_header_count": args.h11_max_header_count,
    }
    log_config = get_uvicorn_log_config(args)
    return options if log_config is None else options | {"log_config": log_config}
