"""``policypatch capacity``: what a server, and many of them, need for so many patches."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from patches.argument_values import num_bytes, share
from patches.canonical import parse_json
from server.commands.errors import CommandError
from server.commands.figures import columns
from server.commands.output import say, say_json
from server.memory.capacity import CONSTANTS, SHAPES, Figure, ModelShape, Plan, figures, in_words
from server.options import MemoryOptions

MAX_PATCHES, MAX_REPLICAS, MAX_TOKENS, MAX_PROCESSES = 100_000, 1_000, 4096, 64

DESCRIPTION = """\
Work out what patches take: disk, host and device memory, blocks of the KV cache, time at the start, the
catalog, metrics, and what goes to other processes and replicas. Nothing is loaded. The figures follow from
the model's shape and from constants that were measured; --constants lists them. docs/capacity.md explains."""

EPILOG = """\
examples:
  policypatch capacity --model llama-3-8b --patches 1000 --tokens 48 --gpu-memory 80GiB
  policypatch capacity --model ./smollm2 --patches 100000 --replicas 1000 --json
  policypatch capacity --model 32x8x128x4096 --patches 500 --kind steering
  policypatch capacity --constants"""


def _within(maximum: int, name: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= maximum):
            raise argparse.ArgumentTypeError(f"expected 1 to {maximum} {name}, got {text!r}")
        return int(text)

    return read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is planned."""
    shapes = ", ".join(SHAPES)
    parser.add_argument(
        "--model",
        metavar="SHAPE",
        help=f"a model folder, one of {shapes}, or LAYERSxKV_HEADSxHEAD_SIZExHIDDEN_SIZE",
    )
    group = parser.add_argument_group("patches")
    for flag, metavar, default, maximum, words in (
        ("--patches", "N", 1000, MAX_PATCHES, "patches"),
        ("--tokens", "K", 48, MAX_TOKENS, "virtual tokens"),
    ):
        group.add_argument(
            flag, metavar=metavar, type=_within(maximum, words), default=default, help=f"{words} ({default})"
        )
    group.add_argument(
        "--kind", choices=("prefix", "steering"), default="prefix", help="of all of them (prefix)"
    )
    group = parser.add_argument_group("servers")
    group.add_argument("--gpu-memory", metavar="SIZE", type=num_bytes, help="of one device, such as 80GiB")
    group.add_argument(
        "--gpu-memory-utilization", metavar="X", type=share, default=0.9, help="vLLM's share of it (0.9)"
    )
    group.add_argument(
        "--weights", metavar="SIZE", type=num_bytes, help="the model's (default: as its files)"
    )
    memory = MemoryOptions()
    for flag, size in (
        ("--patch-device-memory", memory.patch_device_memory),
        ("--patch-host-memory", memory.patch_host_memory),
    ):
        group.add_argument(
            flag,
            metavar="SIZE",
            type=num_bytes,
            default=size,
            help=f"as of `serve` ({size.human_readable()})",
        )
    group.add_argument(
        "--api-server-count",
        metavar="N",
        type=_within(MAX_PROCESSES, "processes"),
        default=1,
        help="processes of a server that answer HTTP (1)",
    )
    group.add_argument(
        "--replicas", metavar="R", type=_within(MAX_REPLICAS, "replicas"), default=1, help="servers alike (1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--constants", action="store_true", help="print what was measured, and by which command"
    )


def run(args: argparse.Namespace) -> int:
    """Print the figures, or the constants."""
    if args.constants:
        _print_constants(is_json=args.json)
        return 0
    if args.model is None:
        raise CommandError(
            "--model: expected a model's shape, got none; policypatch capacity --help lists some"
        )
    found = figures(_plan(args))
    if args.json:
        say_json({figure.name: figure.value for figure in found})
    else:
        _print_table(found)
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    return Plan(
        shape=_shape(args.model, args.weights),
        num_patches=args.patches,
        num_tokens=args.tokens if args.kind == "prefix" else 0,
        kind=args.kind,
        device_bytes=args.patch_device_memory,
        host_bytes=args.patch_host_memory,
        gpu_bytes=args.gpu_memory,
        gpu_utilization=args.gpu_memory_utilization,
        num_processes=args.api_server_count,
        num_replicas=args.replicas,
    )


def _shape(text: str, weights_bytes: int | None) -> ModelShape:
    if text in SHAPES:
        known = SHAPES[text]
        return ModelShape(*known.sizes, weights_bytes or known.weights_bytes)
    if Path(text).is_dir():
        return _shape_of(Path(text), weights_bytes)
    sizes = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split("x")]
    if len(sizes) != 4 or not all(0 < size <= 2**20 for size in sizes):
        raise CommandError(
            f"--model: expected a model folder, {', '.join(SHAPES)}, or four numbers such as 32x8x128x4096, "
            f"got {text[:80]!r}"
        )
    num_layers, num_kv_heads, head_size, hidden_size = sizes
    return ModelShape(num_layers, num_kv_heads, head_size, hidden_size, weights_bytes)


def _shape_of(folder: Path, weights_bytes: int | None) -> ModelShape:
    """Read the shape of the model in a folder."""
    try:
        config = parse_json((folder / "config.json").read_bytes())
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        sizes = (
            config["num_hidden_layers"],
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["hidden_size"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            f"--model: expected a config.json with a transformer's sizes in {folder}, got {error!r}; "
            "give the shape as LAYERSxKV_HEADSxHEAD_SIZExHIDDEN_SIZE"
        ) from error
    in_files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelShape(*sizes, weights_bytes or in_files or None)


def _print_table(found: Sequence[Figure]) -> None:
    for line in columns([(f.name, in_words(f.value, f.unit), f.meaning) for f in found]):
        say(line)


def _print_constants(*, is_json: bool) -> None:
    if is_json:
        say_json(
            {name: {"value": c.value, "unit": c.unit, "command": c.command} for name, c in CONSTANTS.items()}
        )
        return
    rows = [(name, f"{c.value:g} {c.unit}", c.meaning, c.command) for name, c in CONSTANTS.items()]
    for line in columns([("constant", "value", "meaning", "measured by"), *rows]):
        say(line)
