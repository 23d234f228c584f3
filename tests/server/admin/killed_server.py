"""Kills a catalog at every step that it takes on its state folder, and tells what the next start makes of it.

A program for ``test_crash.py``: ``python killed_server.py FOLDER ORDERS``. For each step there is a process
that gives orders and dies by SIGKILL right before that step, and another that starts anew. One JSON line per
step.
"""

import asyncio
import builtins
import json
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from patches.format import encode_patch
from patches.kinds.delta import ChangedTensor, DeltaBody
from patches.kinds.prefix import PrefixBody
from patches.manifest import Manifest
from server.admin.operator import Operator
from server.catalog.catalog import Catalog
from server.catalog.control import CatalogControl
from server.catalog.folder import PatchFolder
from server.catalog.records import Records
from server.catalog.refusals import ServedModel
from server.catalog.state_folder import CatalogState
from server.catalog.weights import WeightControl
from server.memory.residency import NullResidency
from server.memory.weights import NullWeights
from server.metrics.patches import PatchMetrics
from server.versions.activation import Target
from tests.tiny_model import SMALLEST_MODEL


def put(folder: Path, version: str, fill: float) -> None:
    manifest = Manifest("pirate", version, SMALLEST_MODEL, PrefixBody(2), {"method": "text"})
    data = encode_patch(
        manifest, {"embeddings": torch.full((2, 4), fill), "kv": torch.full((2, 2, 2, 1, 2), fill)}
    )
    (folder / f"pirate-{version}.safetensors").write_bytes(data)


def put_delta(folder: Path, version: str, fill: float) -> None:
    body = DeltaBody((ChangedTensor("model.layers.0.mlp.up_proj.weight", (8, 4), 1),))
    manifest = Manifest("no-harm", version, SMALLEST_MODEL, body, {"method": "hdr"})
    tensors = {"values": torch.tensor([fill]), "indices": torch.zeros(1, dtype=torch.int32)}
    (folder / f"no-harm-{version}.safetensors").write_bytes(encode_patch(manifest, tensors))


class KilledWeights(NullWeights):
    """Weights of an engine whose process may die before it is stopped, written, and resumed."""

    def __init__(self, count: Callable[[str], None]) -> None:
        super().__init__()
        self._count = count

    async def write(self, digest: str | None, num_changed: int, *, timeout_s: float) -> None:
        self._count("write")
        await super().write(digest, num_changed, timeout_s=timeout_s)
        self._count("written")

    async def resume(self) -> None:
        self._count("resume")
        await super().resume()


def shown(catalog: Catalog, weights: NullWeights) -> list[Any]:
    """What a caller could find out: the active content, whether it serves, and whether it is pinned."""
    if of_weights := catalog.residents.of("no-harm"):
        patch, record = catalog.weights.in_force, catalog.record("no-harm")
        digest = patch.digest if patch is not None else None
        # View, workers and record agree, and requests may enter.
        assert catalog.view.weights == patch
        assert weights.written == digest
        assert record.active == (patch and Target(patch.version, patch.digest))
        assert not weights.is_paused
        assert len(of_weights) == 2
        return [patch.version if patch else None, digest, record.is_pinned]
    record = catalog.record("pirate")
    named = catalog.view.names.get("pirate")
    active = named.active if named is not None else None
    return [active.version if active else None, active.digest if active else None, record.is_pinned]


#: Which orders are given, one after the other. The folder holds 1.0.0, 1.1.0 and 1.2.0.
ORDERS: dict[str, list[Callable[[Operator], Awaitable[Any]]]] = {
    "swaps": [
        lambda operator: operator.activate("pirate", "1.0.0", "alice"),
        lambda operator: operator.activate("pirate", "1.1.0", "alice"),
        lambda operator: operator.rollback("pirate", "alice"),
        lambda operator: operator.follow("pirate", "alice"),
    ],
    # The pin keeps two higher versions from serving: they must not by dying in the middle either.
    "removal": [
        lambda operator: operator.activate("pirate", "1.0.0", "alice"),
        lambda operator: operator.remove("pirate", None, "alice"),
    ],
    "weights": [
        lambda operator: operator.activate("no-harm", "1.0.0", "alice"),
        lambda operator: operator.activate("no-harm", "2.0.0", "alice"),
        lambda operator: operator.rollback("no-harm", "alice"),
        lambda operator: operator.rollback("no-harm", "alice"),
    ],
}


def die_at(step: int, state: Path, patches: Path) -> Callable[[str], None]:
    """Kill this process right before it does the ``step``-th thing to its state, or removes a patch.

    Returns:
        To be called before further steps.
    """
    seen = 0

    def count(event: str, *parts: object) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.write(2, f"{event}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, args: tuple[object, ...]) -> None:
        touched = [str(a) for a in args if isinstance(a, str | Path)]
        is_removal = event == "os.remove" and any(path.startswith(str(patches)) for path in touched)
        if is_removal or any(path.startswith(str(state)) for path in touched):
            count(event)

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count("fsync")
        fsync(descriptor)

    real_open = builtins.open

    def counted_open(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = real_open(file, mode, *args, **options)
        # Opened for writing, so perhaps cut to nothing, and nothing is written yet.
        if "w" in mode and (isinstance(file, int) or str(file).startswith(str(state))):
            count("opened")
        return opened

    os.fsync, builtins.open = counted_fsync, counted_open
    sys.addaudithook(audit)
    return count


async def serve(
    folder: Path,
    orders: list[Callable[[Operator], Awaitable[Any]]],
    out: int,
    count: Callable[[str], None] = lambda event: None,
) -> None:
    records = Records(CatalogState(folder / "state"), keep_previous=1)
    model, metrics = ServedModel(SMALLEST_MODEL, 64), PatchMetrics(CollectorRegistry())
    weights = KilledWeights(count)
    control = WeightControl(weights)
    catalog = Catalog(NullResidency(), model, metrics, CatalogControl(records), weights=control)
    async with PatchFolder(folder / "patches", catalog):
        os.write(out, json.dumps(shown(catalog, weights)).encode() + b"\n")
        operator = Operator(catalog)
        for order in orders:
            await order(operator)
            os.write(out, json.dumps(shown(catalog, weights)).encode() + b"\n")


def in_process(work: Callable[[int], None]) -> tuple[int, list[Any]]:
    """Run ``work`` in a child; gives its wait status and what it told."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            work(writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as told:
        lines = [json.loads(line) for line in told]
    return os.waitpid(child, 0)[1], lines


def run(folder: Path, step: int, orders: str) -> bool:
    """Die at ``step``, start anew, and print what both told; tells whether there was such a step."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "patches").mkdir(parents=True)
    for i, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        put(folder / "patches", version, float(i))
    for version in ("1.0.0", "2.0.0") if orders == "weights" else ():
        put_delta(folder / "patches", version, float(version[0]))

    def live(out: int) -> None:
        count = die_at(step, folder / "state", folder / "patches")
        asyncio.run(serve(folder, ORDERS[orders], out, count))

    status, confirmed = in_process(live)
    # The folder lost what it held, but for one file: pins are kept by the state alone.
    is_pinned = bool(confirmed) and confirmed[-1][2]
    if is_pinned and orders == "swaps":
        for version in ("1.0.0", "1.1.0"):
            (folder / "patches" / f"pirate-{version}.safetensors").unlink()
    again, told = in_process(lambda out: asyncio.run(serve(folder, [], out)))
    record = {"step": step, "status": status, "confirmed": confirmed, "again": again, "told": told}
    print(json.dumps(record), flush=True)
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    at = 1
    while run(Path(sys.argv[1]), at, sys.argv[2]):
        at += 1
