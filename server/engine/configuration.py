"""What vLLM's engine and its HTTP server are configured with: its own flags, and our connector.

Both come from vLLM's arguments; nothing is started here.
"""

import argparse
from typing import Any

from vllm import envs
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.usage.usage_lib import UsageContext

from server.engine.block_pins import PINNED_NAMES_KEY, PINNED_SHARE_KEY
from server.engine.options import ServeOptions
from server.engine.start_errors import flags_judged
from server.engine.support import require_supported_model
from server.engine.worker_side import DEVICE_BYTES_KEY
from server.options import MemoryOptions

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
        engine_args.kv_transfer_config = _kv_transfer_config(options.flags.memory)
        engine_args.worker_extension_cls = "server.engine.worker_extension.PatchWorkerExtension"
        engine_args._api_process_count = process_count
        engine_args._api_process_rank = process_rank
        config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    require_supported_model(config)
    return config


def _kv_transfer_config(memory: MemoryOptions) -> KVTransferConfig:
    extra: dict[str, Any] = {DEVICE_BYTES_KEY: int(memory.patch_device_memory)}
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
