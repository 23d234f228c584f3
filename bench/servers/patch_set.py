"""Many patches for one model, of random values: how long a step takes does not depend on what they hold."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.servers.makers import run_maker


@dataclass(frozen=True)
class PatchFile:
    """One patch of a set."""

    name: str
    digest: str
    path: Path
    #: Bytes of its tensors.
    nbytes: int


def make_patch_set(
    model: str,
    folder: Path,
    *,
    count: int,
    num_tokens: int,
    dtype: str,
    name: str = "p",
    seed: int = 0,
    version: str = "1.0.0",
) -> list[PatchFile]:
    """Write ``count`` patches into ``folder``, named ``NAME-0`` and so on.

    Raises:
        BenchError: they could not be made; the message ends with what was said.
    """
    arguments = ["bench.servers.random_patch", "--model", model, "--dtype", dtype, "-o", str(folder)]
    arguments += ["--num-tokens", str(num_tokens), "--count", str(count), "--name", name]
    arguments += ["--seed", str(seed), "--version", version]
    return _made(run_maker("random patches", arguments), folder)


def make_vector_set(model: str, folder: Path, *, count: int, dtype: str, seed: int = 0) -> list[PatchFile]:
    """Write ``count`` steering patches into ``folder``, `v-0` and so on, and `met` and `unmet`.

    Raises:
        BenchError: they could not be made; the message ends with what was said.
    """
    arguments = ["bench.servers.random_vector", "--model", model, "--dtype", dtype, "-o", str(folder)]
    arguments += ["--count", str(count), "--seed", str(seed)]
    return _made(run_maker("random vectors", arguments), folder)


def _made(said: str, folder: Path) -> list[PatchFile]:
    made = json.loads(said)["patches"]
    return [
        PatchFile(patch["name"], patch["digest"], folder / patch["file"], patch["nbytes"]) for patch in made
    ]
