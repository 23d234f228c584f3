"""Many patches for one model, of random K/V: how long a step takes does not depend on what they hold.

Made by a process of their own, which loads torch; a benchmark stays without it.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

_TIMEOUT_S = 1800


@dataclass(frozen=True)
class PatchFile:
    """One patch of a set."""

    name: str
    digest: str
    path: Path
    #: Bytes of its K/V.
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
    command = [
        sys.executable,
        "-m",
        "bench.random_patch",
        "--model",
        model,
        "--dtype",
        dtype,
        "-o",
        str(folder),
    ]
    command += ["--num-tokens", str(num_tokens), "--count", str(count), "--name", name, "--seed", str(seed)]
    command += ["--version", version]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"random patches: not done after {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-20:])
        raise BenchError(f"random patches: ended with status {done.returncode}\n{said}")
    made = json.loads(done.stdout.splitlines()[-1])["patches"]
    return [
        PatchFile(patch["name"], patch["digest"], folder / patch["file"], patch["nbytes"]) for patch in made
    ]
