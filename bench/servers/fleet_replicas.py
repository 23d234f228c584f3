"""Many servers of a fleet in one process, for ``bench.fleet``: each follows a store, and has no engine.

Workers answer at once and keep nothing; all else is the server's own code. Each line of stdout is one JSON
object: which replica let which revision hold, and when.

    python -m bench.servers.fleet_replicas --model M --catalog URL --root FILE --folder DIR --count 5 --poll 2
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from bench.servers.catalog_only import InstantWorkers
from patches.base_model import BaseModel
from patches.fingerprint import fingerprint_model
from server.audit import AuditEvent
from server.catalog.catalog import Catalog
from server.catalog.folder import PatchFolder
from server.catalog.refusals import ServedModel
from server.fleet.syncer import followed
from server.memory.tiers import TieredResidency
from server.metrics.patches import PatchMetrics
from server.options import FleetOptions, MemoryOptions
from server.policy.rules import OPEN_POLICY
from server.request.decider import Decider
from server.request.lease import Leases


class Reports:
    """Prints when a revision holds; ``server.audit.Audit``."""

    def __init__(self, replica: int) -> None:
        self._replica = replica

    def record(self, event: AuditEvent) -> None:
        """Print what is about a revision."""
        if event.event == "catalog.revision" and event.details is not None:
            told = {"replica": self._replica, "revision": event.details["revision"], "at_s": time.time()}
            print(json.dumps(told), flush=True)


async def follow(replica: int, model: BaseModel, args: argparse.Namespace) -> None:
    """Follow the store until it is cancelled, beginning somewhere in the time between two looks."""
    await asyncio.sleep(random.Random(replica).uniform(0, args.poll))
    metrics = PatchMetrics(CollectorRegistry())
    residency = TieredResidency(InstantWorkers(), MemoryOptions(), metrics.tiers)
    catalog = Catalog(residency, ServedModel(model, max_num_tokens=1024), metrics)
    decider = Decider(catalog, OPEN_POLICY, Leases(catalog, metrics), served_names=["bench"])
    folder = args.folder / f"replica-{replica}"
    (folder / "patches").mkdir(parents=True)
    options = FleetOptions(catalog=args.catalog, catalog_root=args.root, catalog_poll=args.poll)
    async with PatchFolder(folder / "patches", catalog) as watched:
        audit = Reports(replica)
        async with followed(catalog, watched, decider, metrics.fleet, audit, options, folder):
            await asyncio.Event().wait()


async def run(args: argparse.Namespace) -> None:
    """Follow with every replica."""
    model = await asyncio.to_thread(fingerprint_model, args.model, "bfloat16")
    async with asyncio.TaskGroup() as group:
        for replica in range(args.first, args.first + args.count):
            group.create_task(follow(replica, model, args))


def main(argv: Sequence[str] | None = None) -> int:
    """Follow until a signal comes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.servers.fleet_replicas", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--catalog", required=True, help="as serve takes it")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="takes a folder for each replica")
    parser.add_argument("--first", type=int, default=0, help="number of the first replica")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--poll", type=float, required=True, help="seconds between looks")
    asyncio.run(run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
