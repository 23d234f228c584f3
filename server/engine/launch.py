"""Starts the server: vLLM's own app and engine, with the patched engine client and our routes added."""

import argparse
import logging
import os
from collections.abc import Sequence
from typing import NoReturn

import uvloop
from prometheus_client import REGISTRY
from vllm import envs
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import decorate_logs

from patches.terminal import one_line
from server.admin.control import open_control
from server.audit import open_audit
from server.engine.address import bind_server
from server.engine.cpu_defaults import cpu_arguments, cpu_environment, is_cpu_build, offline_environment
from server.engine.front_end import FrontEnd
from server.engine.line_writer import streams_beside
from server.engine.logs import log_through_vllm
from server.engine.options import ServeOptions
from server.engine.processes import serve_together
from server.engine.releases import cli_env_setup, make_arg_parser, validate_parsed_serve_args
from server.engine.start_errors import engine_started, flags_judged
from server.engine.support import require_supported_arguments, require_supported_environment
from server.metrics.patches import PatchMetrics

logger = logging.getLogger(__name__)

#: Seconds that SIGTERM gives requests in flight, unless --shutdown-timeout says otherwise.
DRAIN_TIMEOUT_S = 30


class _EngineParser(FlexibleArgumentParser):
    """Ends on a mistake with one line; the usage of `vllm serve` has three hundred."""

    def error(self, message: str) -> NoReturn:
        """End with the message, and where the flags are explained."""
        said = one_line(" ".join(message.split()))
        text = f"{self.prog}: {said}; see `{self.prog} --help` and `--engine-help`\n"
        argparse.ArgumentParser.exit(self, 2, text)


def engine_parser() -> FlexibleArgumentParser:
    """Return the parser of `vllm serve`."""
    return make_arg_parser(_EngineParser(prog="policypatch serve"))


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
    if options.flags.log.log_format == "json":
        # A line of ours takes the place of uvicorn's.
        added += ["--logging-config.formatter", "json", "--disable-uvicorn-access-log"]
    args = engine_parser().parse_args([options.flags.patches.model, *added, *engine_arguments])
    args.model = options.flags.patches.model
    with flags_judged():
        validate_parsed_serve_args(args)
    configure_logging_from_args(args)
    require_supported_arguments(args)
    require_supported_environment(skips_model_names=envs.VLLM_SKIP_MODEL_NAME_VALIDATION)
    environment = offline_environment(options.flags.patches.model, os.environ)
    if is_cpu_build():
        # Each data-parallel rank reserves cores for itself.
        environment |= cpu_environment(os.environ, args.tensor_parallel_size * args.pipeline_parallel_size)
    os.environ.update(environment)
    # As `vllm serve` does: the engine is spawned, since a fork of a process with threads can hang.
    cli_env_setup()
    logger.info("defaults: %s", " ".join([*(f"{k}={v}" for k, v in environment.items()), *added]))
    return args


def serve(options: ServeOptions, engine_arguments: Sequence[str]) -> None:
    """Serve until a signal ends it.

    Raises:
        START_ERRORS: whoever starts the server can mend it.
        EngineFailed: vLLM's engine could not start.
    """
    decorate_logs("APIServer", skip_if_decorated=True)
    log_through_vllm()
    with streams_beside(options.flags.log.log_format == "json", is_first=True) as streams:
        args = resolve_arguments(options, engine_arguments)
        if (args.api_server_count or 1) > 1:
            serve_together(options, args)
            return
        metrics = PatchMetrics(REGISTRY)
        for stream in streams:
            stream.count_with(metrics.serving.log_dropped)
        _serve_alone(options, args, metrics)


def _serve_alone(options: ServeOptions, args: argparse.Namespace, metrics: PatchMetrics) -> None:
    with (
        open_audit(options.flags.policy.audit_log, metrics.control.audit_dropped) as audit,
        open_control(options.flags, metrics.control, audit) as control,
    ):
        with flags_judged():
            listen_address, sock = bind_server(args, reuse_port=False)
        with engine_started():
            uvloop.run(FrontEnd(options, args, metrics, listen_address, sock).lead(control))
