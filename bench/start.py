"""How long does a start take, of a server over many patches and of a command that reads one file?

Servers are whole ones whose engine core computes nothing (``bench.servers.instant_executor``), over an empty
folder and over one with many patches, until ``/health`` answers. Commands are processes of their own, from
their start to their end; ``sha256sum`` of the same file is the yardstick. ``bench/README.md`` says what each
number means.
"""

import argparse
import asyncio
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import CheckFailed
from bench.run.question import Measure, main_of, question_parser
from bench.run.sweep import Cell, SweepRun, add_sweep_arguments, at_least_one, cells_along, model_name
from bench.servers.front_ends import instant, make_patches, server_spec
from bench.servers.launch import add_engine_arguments, engine_options
from bench.servers.patch_set import PatchFile
from bench.servers.processes import running_server
from bench.servers.processor_time import group_processor_s
from patches.base_model import BaseModel
from patches.container import write_header
from patches.digest import patch_digest
from patches.format import DIGEST_KEY, MANIFEST_KEY
from patches.kinds.prefix import PrefixBody
from patches.manifest import Manifest, encode_manifest

QUESTION = "start"
#: Series of cells.
SERVE, COMMAND = "serve", "command"
#: Tokens and layers of the large file: with 8 heads of 128 in bfloat16, 16 MiB a layer.
NUM_TOKENS = 4096
MIB_PER_LAYER = 16

EPILOG = """\
examples:
  policypatch bench start --model ./smollm2
  policypatch bench start --model ./smollm2 --patches 100 --file-mib 64 --rounds 3
"""


def write_large_file(path: Path, num_layers: int) -> None:
    """Write a valid patch file of ``MIB_PER_LAYER`` for each layer, all zeros."""
    no_digest = "sha256:" + 64 * "0"
    model = BaseModel(
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        num_kv_heads=8,
        head_size=128,
        hidden_size=4096,
        rope={},
        dtype="bfloat16",
        tokenizer_digest=no_digest,
        weights_digest=no_digest,
    )
    text = encode_manifest(Manifest("large", "1.0.0", model, PrefixBody(NUM_TOKENS), {"method": "text"}))
    shape = (num_layers, 2, NUM_TOKENS, 8, 128)
    values = bytes(num_layers * MIB_PER_LAYER * 2**20)
    digest = patch_digest(text, [("kv", "BF16", shape, values)])
    with path.open("wb") as file:
        file.write(write_header({MANIFEST_KEY: text, DIGEST_KEY: digest}, [("kv", "BF16", shape)]))
        file.write(values)


def commands(small: Path, large: Path) -> dict[str, Sequence[str]]:
    """Return what is run: a name, and the words of its command line."""
    ours = [sys.executable, "-m", "server"]
    return {
        "sha256sum": ["sha256sum", str(large)],
        "verify": [*ours, "verify", str(large)],
        "inspect": [*ours, "inspect", str(small)],
        "help": [*ours, "--help"],
    }


def run_command(words: Sequence[str]) -> Mapping[str, float]:
    """Run a command and return what it took.

    Raises:
        CheckFailed: it failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CheckFailed([f"{' '.join(words)}: expected status 0, got {process.returncode}"])
    return {"wall_s": time.perf_counter() - began, "processor_s": usage.ru_utime + usage.ru_stime}


@dataclasses.dataclass(frozen=True)
class Starts:
    """What the cells of a run are measured with."""

    args: argparse.Namespace
    folder: Path
    patches: Sequence[PatchFile]
    large: Path

    async def measure(self, cell: Cell, round_idx: int) -> Mapping[str, Any]:
        """Start a server, or run a command, once."""
        if cell.series == COMMAND:
            return run_command(commands(self.patches[0].path, self.large)[str(cell.x)])
        folder = self.folder / f"{round_idx}-{cell.x}"
        folder.mkdir()
        engine = instant(engine_options(self.args), 0.0)
        spec = server_spec("ours", engine, self.patches, int(cell.x), folder)
        began = time.perf_counter()
        with running_server(spec, start_timeout_s=900.0) as process:
            wall_s, (processor_s, _) = time.perf_counter() - began, group_processor_s(process.pid)
        return {"wall_s": wall_s, "processor_s": processor_s}


def run_start(args: argparse.Namespace, command: str, folder: Path) -> None:
    """Measure every cell once a round.

    Raises:
        BenchError: no number can be given.
    """
    setup = {
        **{"command": command, "model": model_name(args.model), "seed": args.seed},
        **{"num_virtual_tokens": 48, "file_mib": args.file_mib},
    }
    servers = cells_along((0, args.patches), (SERVE,))
    large = folder / "large.safetensors"
    write_large_file(large, max(1, args.file_mib // MIB_PER_LAYER))
    try:
        patches = make_patches(args.model, folder / "made", [], args.patches)
        # Places of their own on the axis: ratios are to an empty folder, and commands have none.
        named = enumerate(commands(large, large), start=len(servers))
        cells = (*servers, *(Cell(name, place, COMMAND) for place, name in named))
        run = SweepRun(QUESTION, cells, args.rounds, args.seed, setup, folder)
        asyncio.run(run.measure(Starts(args, folder, patches, large).measure))
    finally:
        large.unlink()


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--model", required=True, help="model folder; no weight of it is loaded")
    for flag, default, meaning in (
        ("--patches", 1000, "patches in the folder, beside none"),
        ("--file-mib", 1008, "size of the file that is verified"),
    ):
        parser.add_argument(
            flag, type=at_least_one, default=default, metavar="N", help=f"{meaning} ({default})"
        )
    add_sweep_arguments(parser)
    add_engine_arguments(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures."""
    return lambda folder: run_start(args, command, folder)


main = main_of(QUESTION, build_parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
