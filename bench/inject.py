"""What writing prefixes into a paged KV cache costs, beside what copying as many bytes costs.

Unlike the other questions this one starts no server: it calls `prefix_kernels.write_prefix_kv` on caches of
its own. The floor is a plain copy of the same bytes from one contiguous tensor to another, measured in the
same rounds; no write can be faster. Caches of the processor, and of the GPU up to its L2, are flushed before
every sample, since in a server the model's weights flow through them between two writes.

On a GPU `device` is the time from the first byte of tables copied to the last one stored, with the host far
ahead, and `host` is what the call holds up the thread that launches. On a CPU they are one.
"""

import argparse
import statistics
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.load.timing import quantile
from bench.report.record import Record, append_record
from bench.run.device_timing import flush_buffer, measure
from bench.run.question import (
    RECORDS,
    Measure,
    Reporting,
    add_out_argument,
    main_of,
    options_of,
    question_parser,
)
from bench.servers.environment import describe_environment
from prefix_kernels import (
    LayerCache,
    PagedCaches,
    PrefixWrite,
    rotary_of_parameters,
    write_prefix_kv,
)
from prefix_kernels.dispatch import Implementation

QUESTION = "inject"

EPILOG = """\
examples:
  python -m bench.inject
  python -m bench.inject --patches 1,8 --tokens 50 --rounds 40 --out bench/out
  python -m bench.inject --layers 30 --kv-heads 3 --head-size 64 --dtype float32
"""


@dataclass(frozen=True)
class InjectOptions:
    """A model's shape, and how much of it is written; the defaults are an 8B Llama."""

    num_patches: tuple[int, ...] = (1, 8, 64)
    num_tokens: int = 48
    num_layers: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    block_size: int = 16
    dtype: str = "bfloat16"
    device: str = "auto"
    num_rounds: int = 20

    def __post_init__(self) -> None:
        for flag, number in (
            ("--patches", min(self.num_patches, default=0)),
            ("--tokens", self.num_tokens),
            ("--rounds", self.num_rounds),
        ):
            if number < 1:
                raise ValueError(f"{flag}: expected 1 or more, got {number}")

    @property
    def resolved_device(self) -> torch.device:
        """The device to measure on."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(name)

    @property
    def patch_bytes(self) -> int:
        """Bytes of K and V of one patch."""
        itemsize: int = getattr(torch, self.dtype).itemsize
        return self.num_layers * 2 * self.num_tokens * self.num_kv_heads * self.head_size * itemsize


@dataclass(frozen=True)
class Arm:
    """One way to move the bytes; ``None`` as implementation is the plain copy."""

    name: str
    implementation: Implementation | None = None
    is_moved: bool = False


def arms_of(device: torch.device) -> list[Arm]:
    """List what is compared: the floor first."""
    ways: list[Implementation] = ["triton", "torch"] if device.type == "cuda" else ["torch"]
    written = [Arm(way, way) for way in ways]
    return [Arm("copy"), *written, *(Arm(f"{way}, moved", way, is_moved=True) for way in ways)]


class Workload:
    """Caches, and prefixes to write into blocks that lie anywhere in them."""

    def __init__(self, options: InjectOptions, num_patches: int) -> None:
        device, dtype = options.resolved_device, getattr(torch, options.dtype)
        generator = torch.Generator().manual_seed(0)
        blocks_each = -(-options.num_tokens // options.block_size)
        num_blocks = 1 + 2 * num_patches * blocks_each
        shape = (num_blocks, options.block_size, options.num_kv_heads, 2 * options.head_size)
        # As vLLM's default on CUDA: tokens outside of heads ("NHD"), a tensor a layer.
        layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(options.num_layers)]
        self._caches = PagedCaches(tuple(LayerCache(kv.transpose(1, 2)) for kv in layers))
        kv_shape = (options.num_layers, 2, options.num_tokens, options.num_kv_heads, options.head_size)
        prefixes = [torch.randn(kv_shape).to(device, dtype) for _ in range(num_patches)]
        block_ids = 1 + torch.randperm(num_blocks - 1, generator=generator)
        offsets = torch.arange(options.num_tokens)
        self._writes = [
            (kv, ids[offsets // options.block_size] * options.block_size + offsets % options.block_size)
            for kv, ids in zip(prefixes, block_ids.view(-1, blocks_each)[:num_patches], strict=True)
        ]
        self._rotary = rotary_of_parameters({"rope_theta": 500000.0}, options.head_size)
        self._source = torch.zeros(num_patches * options.patch_bytes, dtype=torch.uint8, device=device)
        self._target = torch.empty_like(self._source)

    @property
    def num_bytes(self) -> int:
        """K and V of all patches; each byte is read once and written once."""
        return self._source.numel()

    def run(self, arm: Arm) -> None:
        """Move the bytes once."""
        if arm.implementation is None:
            self._target.copy_(self._source)
            return
        shift = 48 if arm.is_moved else 0
        writes = [PrefixWrite(kv, 0, slots, shift=shift) for kv, slots in self._writes]
        write_prefix_kv(self._caches, writes, self._rotary, implementation=arm.implementation)


def run_inject(options: InjectOptions, command: str, folder: Path) -> None:
    """Measure every way for every number of patches."""
    environment = describe_environment()
    device = options.resolved_device
    flush = flush_buffer(device)
    arms, run_id = arms_of(device), uuid.uuid4().hex[:12]
    shape = {k: v for k, v in asdict(options).items() if k not in ("num_patches", "device")}
    for num_patches in options.num_patches:
        workload = Workload(options, num_patches)
        print(f"bench inject: {num_patches} patches on {device.type}", file=sys.stderr, flush=True)
        samples: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
        # Interleaved; the first round compiles and warms up.
        for round_idx in range(options.num_rounds + 1):
            for arm in arms:
                sample = measure(partial(workload.run, arm), device, flush)
                if round_idx:
                    samples[arm.name].append(sample)
        floor_s = statistics.median(s["device_s"] for s in samples["copy"])
        for arm in arms:
            result = _result(samples[arm.name], workload.num_bytes, floor_s)
            setup = shape | {"command": command, "device": device.type}
            setup |= {"arm": arm.name, "num_patches": num_patches}
            append_record(folder / RECORDS, Record(QUESTION, run_id, setup, result, environment))


def _result(samples: Sequence[dict[str, float]], num_bytes: int, floor_s: float) -> dict[str, Any]:
    times = {key: [sample[key] for sample in samples] for key in ("device_s", "host_s")}
    median = statistics.median(times["device_s"])
    spreads = {
        key: {f"p{round(100 * q)}": quantile(values, q) for q in (0.2, 0.5, 0.8)}
        for key, values in times.items()
    }
    return {
        "num_bytes": num_bytes,
        "floor_s": floor_s,
        "floor_share": floor_s / median,
        "bytes_per_s": 2 * num_bytes / median,
        **spreads,
    }


def markdown_report(records: Sequence[Record]) -> str:
    """Render the table, and where it was measured."""
    setup, where = records[0].setup, records[0].environment
    lines = [
        f"# {QUESTION}",
        "",
        "| patches | MiB | way | µs (p20 to p80) | floor, µs | of the floor | GB/s moved | host, µs |",
        "| --: | --: | :-- | --: | --: | --: | --: | --: |",
    ]
    for record in records:
        r, s = record.result, record.setup
        device, host = ({k: 1e6 * v for k, v in r[key].items()} for key in ("device_s", "host_s"))
        lines.append(
            f"| {s['num_patches']} | {r['num_bytes'] / 2**20:.0f} | {s['arm']} "
            f"| {device['p50']:.1f} ({device['p20']:.1f} to {device['p80']:.1f}) | {1e6 * r['floor_s']:.1f} "
            f"| {r['floor_share']:.0%} | {r['bytes_per_s'] / 1e9:.1f} | {host['p50']:.1f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    lines += [
        "",
        f"- {setup['num_tokens']} tokens, {setup['num_layers']} layers, {setup['num_kv_heads']} KV heads of "
        f"{setup['head_size']}, {setup['dtype']}, blocks of {setup['block_size']}, "
        f"{setup['num_rounds']} rounds",
        f"- {where['cpu_model']}, {where['num_usable_cores']} cores, load {where['load_average_1m']:.1f}, "
        f"{'; '.join(where['gpus']) or 'no GPU'}; Python {where['python']}, {versions}",
        "",
    ]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line; defaults are those of ``InjectOptions``."""
    d = InjectOptions
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument(
        "--patches",
        dest="num_patches",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        default=d.num_patches,
        metavar="N,N",
        help="patches in one write (default: 1,8,64)",
    )
    for flag, name, meaning in (
        ("--tokens", "num_tokens", "tokens of a patch"),
        ("--layers", "num_layers", "layers"),
        ("--kv-heads", "num_kv_heads", "KV heads"),
        ("--head-size", "head_size", "elements of a head"),
        ("--block-size", "block_size", "tokens in a block"),
        ("--rounds", "num_rounds", "rounds that count"),
    ):
        default = getattr(d, name)
        parser.add_argument(
            flag, dest=name, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default=d.dtype, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default=d.device, help="(default: %(default)s)"
    )
    add_out_argument(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures.

    Raises:
        ValueError: a number is out of range.
    """
    options = options_of(InjectOptions, args)
    return lambda folder: run_inject(options, command, folder)


def summary_of(records: Sequence[Record]) -> dict[str, Any]:
    """Return the figures of the last line of stdout."""
    return {
        "floor_shares": {
            f"{r.setup['arm']} x{r.setup['num_patches']}": round(r.result["floor_share"], 3) for r in records
        }
    }


main = main_of(QUESTION, build_parser, prepare, Reporting(markdown_report, None, summary_of))

if __name__ == "__main__":
    sys.exit(main())
