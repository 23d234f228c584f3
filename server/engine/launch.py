"""Starts the server: vLLM's own app and engine, with the patched engine client and our routes added."""

import argparse
import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import REGISTRY
from vllm import envs
from vllm.config import KVTransferConfig, ModelConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import init_logger
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from patches.fingerprint import fingerprint_model
from patches.manifest import BaseModel
from server.admin import Admin
from server.audit import open_audit
from server.canary_watch import CanaryWatch
from server.catalog import Catalog
from server.control import Control, ControlOptions, open_control
from server.engine.block_pins import PINNED_NAMES_KEY, PINNED_SHARE_KEY
from server.engine.client import PatchedAsyncLLM
from server.engine.cpu_defaults import cpu_arguments, cpu_environment, is_cpu_build, offline_environment
from server.engine.model_registry import PatchModelRegistry
from server.engine.residency import RPC_TIMEOUT_S, WorkerResidency
from server.engine.stats import injection_logger_factory
from server.engine.support import (
    require_matching_rank_layout,
    require_movable_keys,
    require_supported_arguments,
    require_supported_environment,
    require_supported_model,
)
from server.engine.worker_side import DEVICE_BYTES_KEY
from server.folder import PatchFolder
from server.gate import PatchGate
from server.install import install
from server.metrics import PatchMetrics
from server.operator import Operator
from server.policy.file import PolicyFile
from server.policy.rules import Policy
from server.policy.watch import PolicyWatch
from server.shelf import Shelf
from server.tier_options import TierOptions
from server.tiers import TieredResidency
from server.trust_watch import TrustWatch

logger = init_logger("vllm.policypatch")

#: Seconds that SIGTERM gives requests in flight, unless --shutdown-timeout says otherwise.
DRAIN_TIMEOUT_S = 30

_CONNECTOR = {
    "kv_connector": "PolicyPatchConnector",
    "kv_connector_module_path": "server.engine.connector",
    # Nothing is handed off either way; the producer role only spares the costs that vLLM adds for
    # consumers, whose loads are not ordered with the forward pass.
    "kv_role": "kv_producer",
    "kv_load_failure_policy": "fail",
}


@dataclass(frozen=True)
class ServeOptions:
    """What ``policypatch serve`` adds to ``vllm serve``."""

    model: str
    patches: Path
    policy: Policy
    #: Where the policy was read from, and what it held; ``None`` where flags say it.
    policy_file: tuple[Path, PolicyFile] | None = None
    audit_log: Path | None = None
    control: ControlOptions = field(default_factory=ControlOptions)
    tiers: TierOptions = field(default_factory=TierOptions)
    #: ``exact``, or ``any`` where patches may be joined that nobody composed.
    composition: str = "exact"


def engine_parser() -> FlexibleArgumentParser:
    """Return the parser of `vllm serve`."""
    return make_arg_parser(FlexibleArgumentParser(prog="policypatch serve"))


def resolve_arguments(options: ServeOptions, engine_arguments: Sequence[str]) -> argparse.Namespace:
    """Parse vLLM's flags with our defaults added, and set the environment that goes with them.

    Raises:
        UnsupportedSetup: a flag cannot be combined with patches.
    """
    added = (
        []
        if any(a.startswith("--shutdown-timeout") for a in engine_arguments)
        else [
            "--shutdown-timeout",
            str(DRAIN_TIMEOUT_S),
        ]
    )
    if is_cpu_build():
        added += cpu_arguments(engine_arguments)
    args = engine_parser().parse_args([options.model, *added, *engine_arguments])
    args.model = options.model
    validate_parsed_serve_args(args)
    require_supported_arguments(args)
    require_supported_environment(skips_model_names=envs.VLLM_SKIP_MODEL_NAME_VALIDATION)
    environment = offline_environment(options.model, os.environ)
    if is_cpu_build():
        environment |= cpu_environment(os.environ, args.tensor_parallel_size * args.pipeline_parallel_size)
    os.environ.update(environment)
    # As `vllm serve` does: the engine is spawned, since a fork of a process with threads can hang.
    cli_env_setup()
    for name, value in environment.items():
        logger.info("default: %s=%s", name, value)
    for flag in added:
        logger.info("default: %s", flag)
    return args


def serve(options: ServeOptions, engine_arguments: Sequence[str]) -> None:
    """Serve until a signal ends it.

    Raises:
        UnsupportedSetup: the model or a flag cannot be served with patches.
        FolderError: the patch folder cannot be read.
        AdminKeysError, AuditLogError, StateError, TrustError: a file or folder of control cannot be used.
    """
    args = resolve_arguments(options, engine_arguments)
    metrics = PatchMetrics(REGISTRY)
    with (
        open_audit(options.audit_log, metrics.control.audit_dropped) as audit,
        open_control(options.control, metrics.control, audit) as control,
    ):
        uvloop.run(_serve(options, args, metrics, control))


async def _serve(
    options: ServeOptions, args: argparse.Namespace, metrics: PatchMetrics, control: Control
) -> None:
    def interrupt_start(*_: object) -> None:
        raise KeyboardInterrupt

    # Until the HTTP server installs its own handler, SIGTERM ends the start.
    signal.signal(signal.SIGTERM, interrupt_start)
    engine_args = AsyncEngineArgs.from_cli_args(args)
    engine_args.kv_transfer_config = _kv_transfer_config(options.tiers)
    engine_args.worker_extension_cls = "server.engine.worker_extension.PatchWorkerExtension"
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    require_supported_model(config)
    base_model = await asyncio.to_thread(_fingerprint, config.model_config)
    listen_address, sock = setup_server(args, reuse_port=False)
    engine = PatchedAsyncLLM.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=None if args.disable_log_stats else [injection_logger_factory(metrics)],
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    try:
        may_compose = options.composition == "any"
        num_workers = await _prepare_workers(engine, base_model, metrics, may_compose=may_compose)
        served_names = list(args.served_model_name or [args.model])
        residency = _residency(engine, num_workers, options.tiers, metrics)
        max_num_tokens = config.model_config.max_model_len - 2
        parts = control.of_catalog()
        catalog = Catalog(residency, base_model, max_num_tokens, metrics, **parts, may_compose=may_compose)
        gate = PatchGate(catalog, options.policy, metrics, served_names=served_names, audit=control.audit)
        operator = Operator(catalog)
        gate.canaries = CanaryWatch(catalog.record, operator, metrics.canary, control.audit)
        engine.bind_gate(gate)
        async with (
            PatchFolder(options.patches, catalog) as folder,
            TrustWatch(control.trust, catalog, metrics),
            _policy_watch(options, gate, metrics),
        ):
            app = build_app(args, await engine.get_supported_tasks(), engine.model_config)
            # A hosting standard builds the stack early; starlette builds it again on the first request.
            app.middleware_stack = None
            admin = Admin(catalog, operator, Shelf(options.patches, folder, catalog), control.desk)
            await asyncio.to_thread(admin.shelf.remove_leftovers)
            admin_here = admin if control.listener is None else None
            install(app, catalog=catalog, gate=gate, metrics=metrics, admin=admin_here)
            await _init_state(app, engine, args, gate)
            logger.info("serving on %s with %s", listen_address, _summary(catalog))
            # Who is at the other end is told by the connection, never by what a header says.
            proxies = {"proxy_headers": False} if options.policy_file is not None else {}
            async with admin.listen(gate, control.listener):
                shutdown = await serve_http(app, sock=sock, **_http_options(args), **proxies)
    finally:
        engine.shutdown(timeout=config.shutdown_timeout)
    try:
        await shutdown
    finally:
        sock.close()


async def _prepare_workers(
    engine: PatchedAsyncLLM, base_model: BaseModel, metrics: PatchMetrics, *, may_compose: bool
) -> int:
    """Check that every worker can hold prefixes, and move their keys where patches may be joined.

    Returns:
        How many workers there are.

    Raises:
        UnsupportedSetup: one cannot.
    """
    layout = await engine.collective_rpc("policy_patch_layout", timeout=RPC_TIMEOUT_S)
    require_matching_rank_layout(layout, base_model)
    metrics.prefixes.set_writers({answer["writer"] for answer in layout})
    if may_compose:
        problems = await engine.collective_rpc("policy_patch_enable_composition", timeout=RPC_TIMEOUT_S)
        require_movable_keys(problems)
    return len(layout)


def _fingerprint(model_config: ModelConfig) -> BaseModel:
    """Fingerprint the model as it is served: with the tokenizer, revision and overrides of vLLM's flags."""
    return fingerprint_model(
        model_config.model,
        str(model_config.dtype).removeprefix("torch."),
        tokenizer=model_config.tokenizer,
        revision=model_config.revision,
        config=model_config.hf_config if model_config.hf_overrides else None,
    )


def _kv_transfer_config(tiers: TierOptions) -> KVTransferConfig:
    extra: dict[str, Any] = {DEVICE_BYTES_KEY: tiers.device_bytes}
    if tiers.pinned_blocks:
        extra |= {
            PINNED_SHARE_KEY: tiers.pinned_blocks_share,
            PINNED_NAMES_KEY: sorted(tiers.pinned_blocks),
        }
    return KVTransferConfig(**_CONNECTOR, kv_connector_extra_config=extra)


def _residency(
    engine: PatchedAsyncLLM, num_workers: int, tiers: TierOptions, metrics: PatchMetrics
) -> TieredResidency:
    metrics.tiers.set_limits(device_bytes=tiers.device_bytes * num_workers, host_bytes=tiers.host_bytes)
    return TieredResidency(WorkerResidency(engine), tiers, metrics.tiers)


def _policy_watch(
    options: ServeOptions, gate: PatchGate, metrics: PatchMetrics
) -> AbstractAsyncContextManager[object]:
    if options.policy_file is None:
        return contextlib.nullcontext()
    path, loaded = options.policy_file
    logger.info("policy file %s (%s) is in force", path, loaded.digest)
    return PolicyWatch(path, loaded, gate, metrics.control, gate.audit)


def _summary(catalog: Catalog) -> str:
    names = sorted(catalog.view.names)
    return f"{len(names)} patches: {', '.join(names[:10])}" + (" ..." if len(names) > 10 else "")


async def _init_state(app: Any, engine: PatchedAsyncLLM, args: argparse.Namespace, gate: PatchGate) -> None:
    await init_app_state(engine, app.state, args, await engine.get_supported_tasks())
    models = app.state.openai_serving_models
    models.registry = PatchModelRegistry(models.registry, gate)


def _http_options(args: argparse.Namespace) -> dict[str, Any]:
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
