"""The front end of the server alone, for ``bench.catalog``: catalog, routes and metrics, no engine.

Workers answer at once and keep nothing, and a completion is an empty answer under its lease; all else is the
server's own code, over the server's own HTTP stack. What it measures of itself it tells on ``/bench/facts``.

    python -m bench.servers.catalog_only --model ./smollm2 --patches ./patches --port 8300
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from bench.load.loop_stops import LoopStops
from bench.load.timing import summarise
from patches.fingerprint import fingerprint_model
from server.app import install
from server.catalog.catalog import Catalog
from server.catalog.folder import PatchFolder
from server.catalog.refusals import ServedModel
from server.engine.thread_turns import take_turns
from server.memory.payload import Payload
from server.memory.tiers import TieredResidency
from server.metrics.page import MetricsPage
from server.metrics.patches import PatchMetrics
from server.options import MemoryOptions
from server.policy.rules import OPEN_POLICY
from server.request.decider import Decider
from server.request.gate import PatchGate
from server.request.lease import Leases
from server.request.prompt_routes import RouteKind
from server.request.scope import RequestScope

NUM_DECISIONS = 2000


class InstantWorkers:
    """Confirms everything and holds nothing; ``server.memory.residency.Workers``."""

    async def check(self, payload: Payload) -> int:
        """See ``Workers.check``."""
        return payload.nbytes

    async def load(self, payload: Payload, *, is_pinned: bool = False) -> int:
        """See ``Workers.load``."""
        return payload.nbytes

    async def unload(self, digest: str) -> None:
        """See ``Workers.unload``."""


def time_decisions(decider: Decider, names: Sequence[str]) -> list[float]:
    """Return the seconds of each of many selections among ``names``, from header to hold."""
    rng = random.Random(0)
    samples = []
    for name in rng.choices(names, k=NUM_DECISIONS):
        header = [name.encode()]
        started = time.perf_counter()
        scope = RequestScope(RouteKind.GENERATES)
        decider.open(scope, header)
        samples.append(time.perf_counter() - started)
        decider.close(scope)
    return samples


def build_app(
    decider: Decider, gate: PatchGate, catalog: Catalog, metrics: PatchMetrics, facts: dict[str, Any]
) -> FastAPI:
    """Build the app around a started catalog, in a running event loop, which it watches."""
    stops = LoopStops()
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {}

    @app.get("/bench/facts")
    async def tell() -> dict[str, Any]:
        names = list(catalog.view.names)
        return {
            **facts,
            "num_patches": len(names),
            "decide_s": asdict(summarise(time_decisions(decider, names))),
        }

    @app.post("/v1/completions")
    async def complete() -> dict[str, Any]:
        patch = gate.selection().patch
        assert patch is not None
        with gate.lease(patch) as lease:
            await lease.ready()
            lease.meter.tokens(1)
        return {"digest": patch.digest}

    @app.get("/bench/stops")
    async def tell_stops() -> dict[str, float]:
        return {"longest_s": stops.take()}

    install(app, catalog=catalog, decider=decider, metrics=metrics)
    return app


async def serve(model: Path, patches: Path, port: int) -> None:
    """Load the folder, then serve until a signal comes."""
    take_turns()
    registry = CollectorRegistry()
    metrics = PatchMetrics(registry)
    base_model = await asyncio.to_thread(fingerprint_model, model, "bfloat16")
    residency = TieredResidency(InstantWorkers(), MemoryOptions(), metrics.tiers)
    catalog = Catalog(residency, ServedModel(base_model, max_num_tokens=1024), metrics)
    leases = Leases(catalog, metrics)
    decider = Decider(catalog, OPEN_POLICY, leases, served_names=["bench"])
    started, used = time.perf_counter(), time.process_time()
    async with PatchFolder(patches, catalog):
        facts = {"start_s": time.perf_counter() - started, "start_cpu_s": time.process_time() - used}
        app = build_app(decider, PatchGate(decider, leases), catalog, metrics, facts)
        page = MetricsPage(app, metrics, registry)
        config = uvicorn.Config(page, host="127.0.0.1", port=port, log_level="warning")
        await uvicorn.Server(config).serve()


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.servers.catalog_only", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--patches", type=Path, required=True, metavar="DIR", help="folder of patches")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args(argv)
    asyncio.run(serve(args.model, args.patches, args.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
