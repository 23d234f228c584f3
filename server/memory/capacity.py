"""Growth on paper: what a server, and many of them, need for so many patches.

Pure arithmetic on the shape of a model and on ``CONSTANTS``, each of which was measured, and says by which
command. ``tests/server/memory/test_capacity.py`` holds results to benchmark records within a fifth.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Constant:
    """One figure that was measured."""

    value: float
    unit: str
    meaning: str
    #: What measures it.
    command: str


_CATALOG = "policypatch bench catalog --model M --patches 1000"
_SCRAPE = "policypatch bench scrape --model M --patches 10,1000"
_TOOL = "python -m tools.catalog_memory FOLDER"
_TRAFFIC = "python -m tools.catalog_traffic"

CONSTANTS: Mapping[str, Constant] = {
    "file": Constant(800, "bytes", "of a patch file, beside its tensors", _TOOL),
    "start_patch": Constant(
        0.00045, "s", "processor time of a start, a patch", f"{_CATALOG} --virtual-tokens 1"
    ),
    "start_mib": Constant(0.0009, "s", "and for each MiB of it", f"{_CATALOG} --virtual-tokens 48"),
    "catalog": Constant(7200, "bytes", "that a process keeps of a patch in its catalog", _TOOL),
    "sync": Constant(910, "bytes", "for a patch to each further process of a server", _TOOL),
    "look": Constant(800, "bytes", "of a server's look at its fleet's catalog", _TRAFFIC),
    "revision": Constant(1_450, "bytes", "of a new revision of the catalog", _TRAFFIC),
    "named": Constant(370, "bytes", "of a revision, for each version that it names", _TRAFFIC),
    "page": Constant(31_400, "bytes", "of the metrics without a patch", _SCRAPE),
    "page_patch": Constant(4_000, "bytes", "of the metrics, for each patch that was used", _SCRAPE),
    "sent": Constant(5_800, "bytes", "of the metrics without a patch, gzipped", _SCRAPE),
    "sent_patch": Constant(248, "bytes", "of the metrics, for each patch that was used, gzipped", _SCRAPE),
}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how large its patches are."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    #: Of all weights, on one device; ``None`` where that is unknown.
    weights_bytes: int | None = None
    dtype: str = "bfloat16"

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Layers, KV heads, and the sizes of a head and of a hidden state."""
        return self.num_layers, self.num_kv_heads, self.head_size, self.hidden_size

    @property
    def token_bytes(self) -> int:
        """K and V of one token."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_size * _ITEM_BYTES[self.dtype]


#: Shapes by name.
SHAPES: Mapping[str, ModelShape] = {
    "smollm2-135m": ModelShape(30, 3, 64, 576, 269_000_000),
    "llama-3-8b": ModelShape(32, 8, 128, 4096, 16_060_000_000),
    "llama-3-70b": ModelShape(80, 8, 128, 8192, 141_100_000_000),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked."""

    shape: ModelShape
    num_patches: int = 1000
    #: Of each patch; 0 for steering patches.
    num_tokens: int = 48
    kind: str = "prefix"
    device_bytes: int = 2**30
    host_bytes: int = 4 * 2**30
    gpu_bytes: int | None = None
    gpu_utilization: float = 0.9
    block_size: int = 16
    num_steering_slots: int = 32
    num_processes: int = 1
    num_replicas: int = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """One result."""

    name: str
    value: float
    unit: str
    meaning: str


def payload_bytes(plan: Plan) -> int:
    """Return the bytes of one patch that workers hold, over all of them."""
    shape = plan.shape
    if plan.kind == "steering":
        return shape.num_layers * shape.hidden_size * 4
    return plan.num_tokens * shape.token_bytes


def file_bytes(plan: Plan) -> float:
    """Return the bytes of one file, with embeddings, as ``policypatch compile`` writes them."""
    embeddings = plan.num_tokens * plan.shape.hidden_size * _ITEM_BYTES[plan.shape.dtype]
    return payload_bytes(plan) + (embeddings if plan.kind == "prefix" else 0) + _value("file")


def start_s(num_patches: int, bytes_of_file: float) -> float:
    """Return the processor time that a start takes for so many files, in the process that reads them."""
    return num_patches * (_value("start_patch") + _value("start_mib") * bytes_of_file / _MIB)


def page_bytes(num_patches: int) -> float:
    """Return the size of the metrics where each of so many patches was used."""
    return _value("page") + num_patches * _value("page_patch")


def sent_bytes(num_patches: int) -> float:
    """Return what of them is sent, gzipped."""
    return _value("sent") + num_patches * _value("sent_patch")


def figures(plan: Plan) -> list[Figure]:
    """Return what one server needs, and what all replicas do."""
    n, r, one, file = plan.num_patches, plan.num_replicas, payload_bytes(plan), file_bytes(plan)
    sent = sent_bytes(n)
    return [
        Figure("patch_file", file, "bytes", "one patch file"),
        Figure("disk", n * file, "bytes", "the folder of one server"),
        Figure("host", min(n * one, plan.host_bytes), "bytes", "host memory, within --patch-host-memory"),
        Figure("host_patches", _fit(one, plan.host_bytes, n), "patches", "that are in host memory at a time"),
        *_device_figures(plan, one),
        *_block_figures(plan),
        Figure("start", start_s(n, file), "s", "processor time of a start, beside vLLM's"),
        Figure("catalog", n * _value("catalog") * plan.num_processes, "bytes", "catalogs of all processes"),
        Figure(
            "sync", n * _value("sync") * (plan.num_processes - 1), "bytes", "to further processes at a start"
        ),
        Figure("page", page_bytes(n), "bytes", "the metrics, each patch used"),
        Figure("sent", sent, "bytes", "one scrape, gzipped"),
        Figure("fleet_disk", r * n * file, "bytes", "folders of all replicas"),
        Figure("fleet_version", r * file, "bytes", "sent to all replicas for one new version"),
        Figure(
            "fleet_revision",
            r * (_value("revision") + n * _value("named")),
            "bytes",
            "sent to all replicas for one revision of a fleet's catalog, beside its patches",
        ),
        Figure("fleet_looks", r * _value("look") / 2, "bytes/s", "looks of all replicas at it, one in 2 s"),
        Figure("fleet_scrapes", r * sent / 15, "bytes/s", "scrapes of all replicas, one in 15 s"),
    ]


def _device_figures(plan: Plan, one: int) -> list[Figure]:
    if plan.kind == "steering":
        slots = plan.num_steering_slots
        return [Figure("device", slots * one, "bytes", "rows for --steering-slots vectors, on the devices")]
    # A slot holds a rank's part, and each device has its bound: counted here as on one device.
    return [
        Figure(
            "device",
            min(plan.num_patches * one, plan.device_bytes),
            "bytes",
            "slots, within --patch-device-memory",
        ),
        Figure(
            "device_patches",
            _fit(one, plan.device_bytes, plan.num_patches),
            "patches",
            "that have a slot at a time",
        ),
    ]


def _block_figures(plan: Plan) -> list[Figure]:
    """Return what vLLM's KV cache has room for, where device and weights are known."""
    block = plan.block_size * plan.shape.token_bytes
    whole, tail = divmod(plan.num_tokens, plan.block_size)
    rows = [
        Figure("block", block, "bytes", "one block of the KV cache"),
        Figure("shared_blocks", whole, "blocks", "of a patch, shared by its requests"),
        Figure("tail_tokens", tail, "tokens", "of a patch, copied for each request"),
    ]
    if plan.gpu_bytes is None or plan.shape.weights_bytes is None:
        return rows
    room = max(0.0, plan.gpu_bytes * plan.gpu_utilization - plan.shape.weights_bytes)
    blocks = int(room // block)
    hot = min(plan.num_patches * whole, blocks)
    return [
        *rows,
        Figure("blocks", blocks, "blocks", "of the KV cache at most: vLLM's activations take from it"),
        Figure("hot_blocks", hot, "blocks", "of them where every patch is in use"),
    ]


def _fit(one: int, room: int, count: int) -> int:
    return min(count, room // one) if one else count


def _value(name: str) -> float:
    return CONSTANTS[name].value


def in_words(value: float, unit: str) -> str:
    """Return a value for people: sizes in the unit that suits them, other figures in three digits."""
    if not unit.startswith("bytes"):
        return f"{value:,.0f} {unit}" if value >= 100 or float(value).is_integer() else f"{value:.3g} {unit}"
    power = min(4, int(math.log(value, 1024))) if value >= 1 else 0
    suffix = ("B", "KiB", "MiB", "GiB", "TiB")[power]
    return f"{value / 1024**power:.{0 if power == 0 else 2}f} {suffix}{unit.removeprefix('bytes')}"
