"""One process that answers HTTP: alone, as the leader of several, or as a follower.

See ``server.frontends`` for how several stay one server.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vllm
from fastapi import FastAPI
from prometheus_client import REGISTRY
from starlette.middleware import Middleware
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http
from vllm.usage.usage_lib import UsageContext
from vllm.v1.metrics.prometheus import get_prometheus_registry

import server
from server.admin.canary_watch import CanaryWatch
from server.admin.control import Control
from server.admin.listener import AdminListener, bind_admin
from server.admin.operator import Operator
from server.admin.uploads import Uploads
from server.app import install
from server.audit import Audit
from server.catalog.catalog import Catalog
from server.catalog.checked_ahead import CheckedAhead
from server.catalog.door import Door
from server.catalog.folder import PatchFolder
from server.catalog.refusals import ServedModel
from server.catalog.trust_watch import TrustWatch
from server.engine.client import PatchedAsyncLLM
from server.engine.configuration import engine_config, fingerprint_of, http_options
from server.engine.context_length import hand_out_remaining_context
from server.engine.ending import end_soon
from server.engine.mistakes import hush_mistakes
from server.engine.model_registry import add_aliases
from server.engine.options import ServeOptions
from server.engine.ready import announce, announced
from server.engine.start_errors import flags_judged
from server.engine.stats import injection_logger_factory
from server.engine.support import (
    refused_kinds,
)
from server.engine.thread_turns import take_turns
from server.engine.tracing import tracing_of_engine, watched_exports
from server.engine.worker_setup import prepare_workers, tiered_residency, weight_control
from server.frontends.follower import FollowedResidents, Follower
from server.frontends.leader import FollowerPool
from server.frontends.mirror import Mirror, mirrored
from server.frontends.relay import FromFollowers, Relay
from server.frontends.step import Steps
from server.metrics.page import MetricsPage, no_others
from server.metrics.patches import PatchMetrics
from server.policy.reach import references_served
from server.policy.watch import PolicyWatch
from server.request.access_log import AccessLog
from server.request.decider import Decider
from server.request.gate import PatchGate
from server.request.lease import Leases
from server.routes.admin_app import Admin
from server.trust.trust import Trust

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one process stands among those of a server."""

    #: The leader has 0.
    index: int
    steps: Steps
    #: Where the leader's sockets are.
    folder: Path

    @property
    def address(self) -> Path:
        """Where followers hear what serves."""
        return self.folder / "lead"

    @property
    def relay_address(self) -> Path:
        """Where followers pass on what the leader answers."""
        return self.folder / "http"


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """What every process that answers HTTP has."""

    options: ServeOptions
    args: argparse.Namespace
    metrics: PatchMetrics
    listen_address: str
    sock: socket.socket
    #: As vLLM gives it to one of several API servers; empty for the only one.
    client: Mapping[str, Any] = field(default_factory=dict)
    #: ``None`` for the only process.
    seat: Seat | None = None

    async def lead(self, control: Control) -> None:
        """Serve until a signal ends it, and decide what serves."""
        _end_start_on_sigterm()
        take_turns()
        options, metrics = self.options, self.metrics
        checked = CheckedAhead(options.flags.patch_folder)
        config = self.engine_config()
        base_model = await asyncio.to_thread(fingerprint_of, config)
        engine = self._engine(config)
        try:
            may_compose = options.flags.patches.composition == "joined"
            layouts = await prepare_workers(engine, base_model, metrics, may_compose=may_compose)
            followers = self._followers()
            catalog = Catalog(
                tiered_residency(engine, len(layouts), options.flags.memory, metrics),
                ServedModel(base_model, config.model_config.max_model_len - 2, refused_kinds(layouts)),
                metrics,
                control.of_catalog(),
                may_compose=may_compose,
                processes=followers,
                weights=weight_control(engine, options.flags.weights),
            )
            catalog.intake.files.checked = checked
            decider, gate = self._gate(catalog, control.audit)
            decider.door = catalog.weights.door
            catalog.needs = lambda view: (
                n for n, served in references_served(decider.policy, view) if served
            )
            operator = Operator(catalog)
            decider.canaries = CanaryWatch(catalog.record, operator, metrics.canary, control.audit)
            engine.bind_gate(gate)
            if followers is not None:
                followers.bind(catalog.residents, _signer_of(control.trust))
                followers.canaries = decider.canaries
            async with (
                followers or contextlib.nullcontext(),
                PatchFolder(options.flags.patch_folder, catalog) as folder,
                TrustWatch(control.trust, catalog, metrics),
                self._policy_watch(decider, followers),
                self._followed_catalog(catalog, folder, decider),
            ):
                admin = Admin(
                    catalog, operator, Uploads(options.flags.patch_folder, folder, catalog), control.access
                )
                await asyncio.to_thread(admin.uploads.remove_leftovers)
                app, alive = await self._app(engine), engine.require_alive
                admin_here = admin if control.listener is None else None
                install(app, catalog=catalog, decider=decider, metrics=metrics, admin=admin_here, alive=alive)
                self._describe(app, catalog, decider, followers)
                access_log = self._add_access_log(app)
                await _init_state(app, engine, self.args, gate, decider)
                async with (
                    admin.listen(decider, control.listener, access_log),
                    self._relayed(app, followers),
                    self._announced(catalog, decider),
                ):
                    shutdown = await self._serve(app)
        finally:
            engine.shutdown(timeout=config.shutdown_timeout)
        await self._end(shutdown)

    async def follow(self, audit: Audit) -> None:
        """Serve until a signal ends it, as the leader decides."""
        assert self.seat is not None
        _end_start_on_sigterm()
        take_turns()
        options, seat = self.options, self.seat
        config = self.engine_config()
        engine = self._engine(config)
        try:
            residents = FollowedResidents(self.metrics)
            may_compose = options.flags.patches.composition == "joined"
            door = Door() if options.flags.weights.weight_patches else None
            mirror = Mirror(
                seat.index, seat.steps, residents, options.policy, may_compose=may_compose, door=door
            )
            decider, gate = self._gate(mirror, mirrored(audit, mirror.signer_of))
            mirror.bind(decider)
            decider.door = door
            engine.bind_gate(gate)
            follower = Follower(seat.index, seat.address, mirror, residents.residency, self.metrics)
            decider.canaries = follower
            async with follower:
                app = await self._app(engine)
                install(app, catalog=None, decider=decider, metrics=self.metrics, alive=engine.require_alive)
                relay = Middleware(Relay, address=seat.relay_address, is_in_step=lambda: mirror.is_in_step)
                app.user_middleware.insert(0, relay)
                self._add_access_log(app)
                await _init_state(app, engine, self.args, gate, decider)
                shutdown = await self._serve(app)
        finally:
            engine.shutdown(timeout=config.shutdown_timeout)
        await self._end(shutdown)

    def engine_config(self) -> VllmConfig:
        """Resolve vLLM's configuration for this process.

        Raises:
            UnsupportedSetup: the model cannot be served with patches.
        """
        return engine_config(
            self.options,
            self.args,
            process_count=self.client.get("client_count", 1),
            process_rank=self.client.get("client_index", 0),
        )

    def _engine(self, config: VllmConfig) -> PatchedAsyncLLM:
        addresses = {
            key: value
            for key, value in self.client.items()
            if key not in ("client_count", "client_index", "api_server_loads")
        }
        is_traced = self.args.otlp_traces_endpoint is not None
        dropped = self.metrics.serving.spans_dropped
        with watched_exports(dropped) if is_traced else contextlib.nullcontext():
            return self._engine_client(config, addresses)

    def _engine_client(self, config: VllmConfig, addresses: dict[str, Any]) -> PatchedAsyncLLM:
        args = self.args
        return PatchedAsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=None if args.disable_log_stats else [injection_logger_factory(self.metrics)],
            enable_log_requests=args.enable_log_requests,
            aggregate_engine_logging=args.aggregate_engine_logging,
            disable_log_stats=args.disable_log_stats,
            client_addresses=addresses or None,
            client_count=self.client.get("client_count", 1),
            client_index=self.client.get("client_index", 0),
        )

    def _gate(self, catalog: Catalog | Mirror, audit: Audit) -> tuple[Decider, PatchGate]:
        names = list(self.args.served_model_name or [self.args.model])
        leases = Leases(catalog, self.metrics)
        decider = Decider(catalog, self.options.policy, leases, served_names=names, audit=audit)
        decider.follows_fleet = self.options.flags.fleet.catalog is not None
        return decider, PatchGate(decider, leases)

    def _followers(self) -> FollowerPool | None:
        if self.seat is None:
            return None
        file = self.options.policy_file
        return FollowerPool(self.seat.steps, self.seat.address, file.data if file is not None else None)

    def _policy_watch(
        self, decider: Decider, followers: FollowerPool | None
    ) -> AbstractAsyncContextManager[object]:
        path, loaded = self.options.flags.policy.policy, self.options.policy_file
        if path is None or loaded is None:
            return contextlib.nullcontext()
        logger.info("policy file %s (%s) is in force", path, loaded.digest)
        control = self.metrics.control
        if followers is None:
            return PolicyWatch(path, loaded, decider, control, decider.audit)
        return PolicyWatch(path, loaded, decider, control, decider.audit, moved=followers.policy_moved)

    def _followed_catalog(
        self, catalog: Catalog, folder: PatchFolder, decider: Decider
    ) -> AbstractAsyncContextManager[object]:
        """Follow the catalog of the fleet while the context lasts, if there is one."""
        flags = self.options.flags
        if flags.fleet.catalog is None or flags.fleet.catalog_root is None:
            return contextlib.nullcontext()
        # Here, since its libraries take 0.2 s to import, which other servers need not wait for.
        from server.fleet.syncer import followed

        self.metrics.fleet.model = (self.args.served_model_name or [self.args.model])[0]
        return followed(
            catalog, folder, decider, self.metrics.fleet, decider.audit, flags.fleet, flags.fleet_folder
        )

    async def _app(self, engine: PatchedAsyncLLM) -> FastAPI:
        tasks = await engine.get_supported_tasks()
        hush_mistakes()
        with flags_judged():
            app = build_app(self.args, tasks, engine.model_config)
        # A hosting standard builds the stack early; starlette builds it again on the first request.
        app.middleware_stack = None
        return app

    def _relayed(self, app: FastAPI, followers: FollowerPool | None) -> AbstractAsyncContextManager[object]:
        """Answer what followers pass on, while the context lasts; for the app of a leader."""
        if self.seat is None or followers is None:
            return contextlib.nullcontext()
        return AdminListener(FromFollowers(app), bind_admin(f"unix:{self.seat.relay_address}"))

    def _add_access_log(self, app: FastAPI) -> Middleware:
        excluded = self.args.disable_access_log_for_endpoints or ""
        access_log = Middleware(
            AccessLog,
            is_written=self.options.flags.log.log_format == "json",
            tracing=tracing_of_engine() if self.args.otlp_traces_endpoint else None,
            excluded=[path.strip() for path in excluded.split(",")],
        )
        app.user_middleware.insert(0, access_log)
        return access_log

    def _describe(
        self, app: FastAPI, catalog: Catalog, decider: Decider, followers: FollowerPool | None
    ) -> None:
        """Describe in the metrics what serves, and answer ``/metrics`` for the whole server."""
        metrics, serving = self.metrics, self.metrics.serving
        model = (self.args.served_model_name or [self.args.model])[0]
        serving.built(version=server.__version__, vllm=vllm.__version__, model=model)
        serving.bind_references(lambda: references_served(decider.policy, catalog.view))
        if followers is not None:
            serving.bind_front_ends(lambda: followers.num_in_step(self.args.api_server_count))
        registry = get_prometheus_registry()
        if registry is not REGISTRY:
            # As a reader of the files that all processes write, it has no collector of ours yet.
            registry.register(metrics.catalog_collector)
        others = followers.figures if followers is not None else no_others
        page = Middleware(MetricsPage, metrics=metrics, registry=registry, others=others)
        app.user_middleware.insert(0, page)

    def _announced(self, catalog: Catalog, decider: Decider) -> AbstractAsyncContextManager[None]:
        def tell() -> None:
            announce(self.args, self.listen_address, catalog.view, decider.policy)

        return announced(self.sock, tell)

    async def _serve(self, app: FastAPI) -> Any:
        # Who is at the other end is told by the connection, never by what a header says.
        is_strict = self.options.policy_file is not None
        options: dict[str, Any] = {"proxy_headers": False} if is_strict else {}
        if "api_server_loads" in self.client:
            options["peer_loads"] = (self.client["api_server_loads"], self.client["client_index"])
        return await serve_http(app, sock=self.sock, **http_options(self.args), **options)

    async def _end(self, shutdown: Any) -> None:
        try:
            await shutdown
        finally:
            self.sock.close()


def _end_start_on_sigterm() -> None:
    def interrupt_start(*_: object) -> None:
        # What is interrupted may swallow the exception, as pyzmq does while vLLM waits for its engine.
        end_soon()
        raise KeyboardInterrupt

    # Until the HTTP server installs its own handler.
    signal.signal(signal.SIGTERM, interrupt_start)


def _signer_of(trust: Trust) -> Callable[[str], str | None]:
    def signer_of(digest: str) -> str | None:
        signature = trust.signature_of(digest)
        return signature.key.signer if signature is not None else None

    return signer_of


async def _init_state(
    app: Any, engine: PatchedAsyncLLM, args: argparse.Namespace, gate: PatchGate, decider: Decider
) -> None:
    tasks = await engine.get_supported_tasks()
    with flags_judged():
        await init_app_state(engine, app.state, args, tasks)
    hand_out_remaining_context(app.state, gate)
    add_aliases(app.state.openai_serving_models, gate, decider)
