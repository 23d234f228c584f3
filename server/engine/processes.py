"""Several processes that answer HTTP on one socket (``--api-server-count``), as vLLM starts them.

This process answers nothing: it starts engines and front ends, passes signals on, and ends everything where
one of them ends. The first front end leads, the others follow (``server.frontends``).
"""

import argparse
import contextlib
import copyreg
import functools
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, MutableSequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

import uvloop
from prometheus_client import REGISTRY, CollectorRegistry
from vllm import envs
from vllm.config import VllmConfig
from vllm.utils.system_utils import decorate_logs, set_process_title
from vllm.v1.engine.utils import bind_engine_zmq_listeners, launch_core_engines
from vllm.v1.executor import Executor
from vllm.v1.metrics.prometheus import setup_multiprocess_prometheus
from vllm.v1.utils import APIServerProcessManager, wait_for_completion_or_failure

from patches.terminal import one_line
from server.admin.control import open_control
from server.audit import open_audit
from server.engine.address import bind_server
from server.engine.configuration import engine_config, fingerprint_of
from server.engine.ending import end_process
from server.engine.front_end import FrontEnd, Seat
from server.engine.line_writer import streams_beside
from server.engine.logs import log_through_vllm
from server.engine.options import ServeOptions
from server.engine.start_errors import START_ERRORS, engine_started, flags_judged
from server.engine.support import UnsupportedSetup
from server.frontends.step import Steps, num_words
from server.metrics.patches import PatchMetrics

logger = logging.getLogger(__name__)

#: Exit code of a front end that a signal ended: the others must not go on without it.
_ENDED = 3


class FrontEndRefused(RuntimeError):
    """A front end found a mistake of whoever starts the server, and said which."""


def serve_together(options: ServeOptions, args: argparse.Namespace) -> None:
    """Serve with ``args.api_server_count`` processes until a signal ends it, or one of them ends.

    Raises:
        UnsupportedSetup, ModelUnusable: the model or a flag cannot be served with patches.
        AdminKeysError, AuditLogError, StateError, TrustError: a file or folder of control cannot be used.
        FrontEndRefused: a front end said why the start is refused.
        RuntimeError: a process failed.
    """
    if envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise UnsupportedSetup(
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING cannot be combined with --api-server-count: each process would "
            "have adapters of its own"
        )
    _require_usable(options)
    setup_multiprocess_prometheus()
    # Read-only mappings in the policy go to the other processes as what they are made of.
    copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))
    _exit_on_signals()
    with flags_judged():
        listen_address, sock = bind_server(args, reuse_port=True)
    config = engine_config(options, args, process_count=args.api_server_count, process_rank=-1)
    # The first front end does it again; what is wrong with the model is told before anything is started.
    fingerprint_of(config)
    words = multiprocessing.get_context("spawn").RawArray("q", num_words(args.api_server_count))
    with tempfile.TemporaryDirectory(prefix="policypatch-") as folder:
        target = functools.partial(_run_front_end, options, words, Path(folder))
        with engine_started():
            _run(config, args, {"listen_address": listen_address, "sock": sock, "target_server_fn": target})


def _read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


def _require_usable(options: ServeOptions) -> None:
    """Open what the front ends will open, so that a mistake is told before anything is started."""
    metrics = PatchMetrics(CollectorRegistry())
    with (
        open_audit(options.flags.policy.audit_log, lambda reason, number: None) as audit,
        open_control(options.flags, metrics.control, audit),
    ):
        return


def _exit_on_signals() -> None:
    def end(*_: object) -> None:
        # Once: the second signal must not break off what the first one began.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _run(config: VllmConfig, args: argparse.Namespace, front_end: dict[str, Any]) -> None:
    """Start engines and front ends, and wait until one of them ends."""
    log_stats = not args.disable_log_stats
    listeners = bind_engine_zmq_listeners(config, args.api_server_count)
    with contextlib.ExitStack() as stack:
        launching = launch_core_engines(config, Executor.get_class(config), log_stats, listeners.addresses)
        with launching as launch:
            manager = APIServerProcessManager(
                args=args,
                num_servers=args.api_server_count,
                input_listeners=listeners.inputs,
                output_listeners=listeners.outputs,
                stats_update_address=(
                    launch.coordinator.get_stats_publish_address() if launch.coordinator else None
                ),
                tensor_queue=launch.tensor_queue,
                **front_end,
            )
            stack.enter_context(_ended_together(config, manager, launch))
            stack.enter_context(_hangups_passed_on(manager.processes))
            launch.watched_frontend_processes = manager.processes
            stack.enter_context(_refusals_passed_on(manager.processes))
        try:
            wait_for_completion_or_failure(
                api_server_manager=manager,
                engine_manager=launch.engine_manager,
                coordinator=launch.coordinator,
            )
        except RuntimeError as error:
            if _has_refused(manager.processes):
                raise
            logger.error("the server ends: %s", error)
            raise SystemExit(1) from error


@contextlib.contextmanager
def _ended_together(config: VllmConfig, manager: APIServerProcessManager, launch: Any) -> Iterator[None]:
    """End what was started: front ends first, which finish what they answer."""
    timeout_s: float | None = None
    try:
        yield
    except SystemExit as end:
        if not end.code:
            timeout_s = config.shutdown_timeout
            logger.info("waiting up to %d seconds for requests in flight", timeout_s)
        raise
    finally:
        by_s = None if timeout_s is None else time.monotonic() + timeout_s
        for part in (manager, launch.engine_manager, launch.coordinator):
            if part is not None:
                part.shutdown(timeout=None if by_s is None else max(0.0, by_s - time.monotonic()))


@contextlib.contextmanager
def _refusals_passed_on(processes: list[BaseProcess]) -> Iterator[None]:
    """Make the exit code say what a front end said by its own: that the start is refused."""
    try:
        yield
    except RuntimeError as error:
        if _has_refused(processes):
            raise FrontEndRefused("a front end refused to start; see its line above") from error
        raise


def _has_refused(processes: list[BaseProcess]) -> bool:
    return any(process.exitcode == 2 for process in processes)


@contextlib.contextmanager
def _hangups_passed_on(processes: list[BaseProcess]) -> Iterator[None]:
    """Pass SIGHUP on, by which each front end opens its audit log anew."""

    def pass_on(*_: object) -> None:
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _run_front_end(
    options: ServeOptions,
    words: MutableSequence[int],
    folder: Path,
    listen_address: str,
    sock: Any,
    args: argparse.Namespace,
    client: dict[str, Any],
) -> None:
    """Be one front end; what ``APIServerProcessManager`` starts as a process of its own."""
    index: int = client["client_index"]
    set_process_title("APIServer", str(index))
    decorate_logs()
    log_through_vllm()
    if options.flags.policy.audit_log is None:
        # Without a log there is nothing to open anew.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    metrics = PatchMetrics(REGISTRY, is_shared=True)
    seat = Seat(index, Steps(words), folder)
    front_end = FrontEnd(options, args, metrics, listen_address, sock, client, seat)
    with streams_beside(options.flags.log.log_format == "json") as streams:
        for stream in streams:
            stream.count_with(metrics.serving.log_dropped)
        _run_to_its_end(front_end, options, metrics, index)
    end_process(_ENDED)


def _run_to_its_end(front_end: FrontEnd, options: ServeOptions, metrics: PatchMetrics, index: int) -> None:
    try:
        with open_audit(options.flags.policy.audit_log, metrics.control.audit_dropped) as audit:
            if index == 0:
                with open_control(options.flags, metrics.control, audit) as control:
                    uvloop.run(front_end.lead(control))
            else:
                uvloop.run(front_end.follow(audit))
    except START_ERRORS as error:
        print(one_line(f"policypatch serve: {error}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass
