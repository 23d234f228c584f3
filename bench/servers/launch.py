"""How the servers under test are started: the same model, flags and environment, with and without patches.

vLLM is only ever started as a command. Every flag that decides speed is given explicitly to all servers, so
that no default of either can differ.
"""

import argparse
import importlib.metadata
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import CheckFailed
from bench.servers.environment import has_gpu
from bench.servers.makers import run_maker
from bench.servers.processes import ServerSpec, free_port

SERVED_NAME = "bench"
PATCH_NAME = "bench-policy"


@dataclass(frozen=True)
class PatchFacts:
    """What the bench has to know about the patch that it measures."""

    name: str
    digest: str
    num_tokens: int


@dataclass(frozen=True)
class EngineOptions:
    """What all servers are told. ``None`` means: by device."""

    model: str
    dtype: str = "bfloat16"
    load_format: str = "auto"
    max_model_len: int = 2048
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int | None = None
    is_eager: bool | None = None
    gpu_memory_utilization: float = 0.4
    extra_arguments: tuple[str, ...] = ()
    extra_environment: tuple[str, ...] = ()

    def resolved_block_size(self, is_gpu: bool) -> int:
        """Tokens in a KV block: vLLM's default on GPUs; the smallest that CPU attention takes on CPUs."""
        return self.block_size or (16 if is_gpu else 32)

    def arguments(self, is_gpu: bool) -> list[str]:
        """Return the flags for `vllm serve`, without model, host and port."""
        is_eager = (not is_gpu) if self.is_eager is None else self.is_eager
        arguments = [
            *("--served-model-name", SERVED_NAME),
            *("--dtype", self.dtype),
            *("--load-format", self.load_format),
            *("--max-model-len", str(self.max_model_len)),
            *("--max-num-seqs", str(self.max_num_seqs)),
            *("--max-num-batched-tokens", str(self.max_num_batched_tokens)),
            *("--block-size", str(self.resolved_block_size(is_gpu))),
            "--enable-prefix-caching",
            "--enforce-eager" if is_eager else "--no-enforce-eager",
            # Shows what came from the cache; a log line per request would be measured too.
            "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
        ]
        if is_gpu:
            arguments += ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        return [*arguments, *self.extra_arguments]

    def environment(self, is_gpu: bool) -> dict[str, str]:
        """Return the variables that all servers get on top of this process's.

        Raises:
            ValueError: an extra variable is not ``NAME=VALUE``.
        """
        environment = {"VLLM_NO_USAGE_STATS": "1"}
        if Path(self.model).is_dir():
            environment["HF_HUB_OFFLINE"] = "1"
        if not is_gpu:
            # GiB of cache; and one core kept free for the scheduler, where vLLM keeps two with a connector.
            # What `policypatch serve` sets by itself, for plain vLLM too. Imported here: a benchmark is a
            # client and shares only this default.
            from server.engine.cpu_defaults import cpu_environment

            environment |= cpu_environment({}, world_size=1)
        for entry in self.extra_environment:
            name, separator, value = entry.partition("=")
            if not name or not separator:
                raise ValueError(f"--env: expected NAME=VALUE, got {entry!r}")
            environment[name] = value
        return environment


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``EngineOptions``."""
    defaults = EngineOptions
    group = parser.add_argument_group("all servers")
    group.add_argument("--dtype", default=defaults.dtype, help="weights and K/V (default: %(default)s)")
    group.add_argument(
        "--load-format",
        default=defaults.load_format,
        help="`dummy` gives random weights: speed is real, answers mean nothing (default: %(default)s)",
    )
    for flag, default, meaning in (
        ("--max-model-len", defaults.max_model_len, "tokens of a prompt and its answer"),
        ("--max-num-seqs", defaults.max_num_seqs, "requests in a batch"),
        ("--max-num-batched-tokens", defaults.max_num_batched_tokens, "tokens in a step"),
    ):
        group.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    group.add_argument(
        "--block-size", type=int, help="tokens in a KV block (default: 16 on GPUs, 32 on CPUs)"
    )
    group.add_argument(
        "--enforce-eager",
        dest="is_eager",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="no graphs, no compilation (default: on CPUs only)",
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=defaults.gpu_memory_utilization,
        help="share of the GPU for each server (default: %(default)s)",
    )
    group.add_argument(
        "--extra-arg",
        dest="extra_arguments",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument for all servers, as --extra-arg=--flag; repeatable",
    )
    group.add_argument(
        "--env",
        dest="extra_environment",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more environment variable for all servers; repeatable",
    )


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """Read ``EngineOptions`` from parsed arguments."""
    return EngineOptions(
        model=args.model,
        dtype=args.dtype,
        load_format=args.load_format,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        block_size=args.block_size,
        is_eager=args.is_eager,
        gpu_memory_utilization=args.gpu_memory_utilization,
        extra_arguments=tuple(args.extra_arguments),
        extra_environment=tuple(args.extra_environment),
    )


def plain_server(
    options: EngineOptions, log_folder: Path, *, name: str = "plain", flags: Sequence[str] = ()
) -> ServerSpec:
    """Describe `vllm serve` as it is, or with some more ``flags`` under another ``name``.

    The CPU build's `vllm` command asks for the version of a distribution that has another name, and ends
    there. Where that is so, the module that `vllm serve` runs is started instead: it is the same server.
    """
    if _is_installed("vllm"):
        command = ["-m", "vllm.entrypoints.cli.main", "serve", options.model]
    else:
        command = ["-m", "vllm.entrypoints.launchers.api_server.entry", "--model", options.model]
    return _spec(name, [*command, *flags], options, log_folder)


def ours_server(options: EngineOptions, patches: Path, log_folder: Path) -> ServerSpec:
    """Describe `policypatch serve` with a folder of patches."""
    command = ["-m", "server", "serve", "--model", options.model, "--patches", str(patches)]
    return _spec("ours", command, options, log_folder)


def prepare_patch(
    options: EngineOptions, folder: Path, *, policy_text: Path, patch: Path | None, is_raw: bool
) -> PatchFacts:
    """Put the patch to measure into a folder: the given file, or one compiled from the policy text.

    Raises:
        BenchError: `policypatch compile` failed; the message ends with what it said.
        PatchError: the given file is no patch.
        OSError: the given file cannot be copied.
    """
    if patch is not None:
        return _facts(Path(shutil.copy(patch, folder)))
    arguments = ["server", "compile", "--model", options.model, "--text", str(policy_text)]
    arguments += ["--name", PATCH_NAME, "--version", "1.0.0", "--dtype", options.dtype, "-o", str(folder)]
    run_maker(
        "policypatch compile", [*arguments, *(["--raw"] if is_raw else [])], options.environment(has_gpu())
    )
    (made,) = folder.glob("*.safetensors")
    return _facts(made)


def require_same_environment(variables: Mapping[str, Mapping[str, str]]) -> None:
    """Check that servers agree in the variables that decide speed.

    Args:
        variables: those variables, by server.

    Raises:
        CheckFailed: they differ, so that a ratio would compare settings instead of servers.
    """
    names = sorted({name for found in variables.values() for name in found})
    findings = []
    for name in names:
        values = {server: found.get(name) for server, found in variables.items()}
        if len(set(values.values())) > 1:
            findings.append(f"{name}: expected one value, got {values}; set it for both with --env {name}=…")
    if findings:
        raise CheckFailed(findings)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _facts(path: Path) -> PatchFacts:
    # Imports torch, which takes seconds that `--help` should not.
    from patches.format import read_patch

    patch = read_patch(path)
    return PatchFacts(patch.manifest.name, patch.digest, patch.manifest.num_virtual_tokens)


def _spec(name: str, command: Sequence[str], options: EngineOptions, log_folder: Path) -> ServerSpec:
    is_gpu = has_gpu()
    port = free_port()
    return ServerSpec(
        name=name,
        command=[
            sys.executable,
            *command,
            *("--host", "127.0.0.1", "--port", str(port)),
            *options.arguments(is_gpu),
        ],
        port=port,
        log_path=log_folder / f"{name}.log",
        environment=options.environment(is_gpu),
    )
