"""The patches of a soak: many contents, of random K/V, with the names and versions that are asked for.

Made by a process of their own, which loads torch; a benchmark stays without it. Equal seeds give equal K/V,
so that two contents which differ in name or version only are known to answer alike.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError

_TIMEOUT_S = 600


@dataclass(frozen=True)
class Wanted:
    """One patch to make."""

    name: str
    version: str
    seed: int
    num_tokens: int


@dataclass(frozen=True)
class Content:
    """One patch that was made, outside of the folder that is served."""

    name: str
    version: str
    seed: int
    digest: str
    path: Path

    @property
    def reference(self) -> str:
        """What a request names to get exactly this."""
        return f"{self.name}@{self.digest}"


def make_contents(model: str, folder: Path, dtype: str, wanted: Sequence[Wanted]) -> list[Content]:
    """Write patches into ``folder``, in the order in which they are wanted.

    Raises:
        BenchError: they could not be made; the message ends with what was said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order = {"model": model, "dtype": dtype, "folder": str(folder), "wanted": [asdict(w) for w in wanted]}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.soak.contents"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"patches: not done after {_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-20:])
        raise BenchError(f"patches: ended with status {done.returncode}\n{said}")
    digests = json.loads(done.stdout.splitlines()[-1])
    return [
        Content(w.name, w.version, w.seed, digest, folder / _file_name(w))
        for w, digest in zip(wanted, digests, strict=True)
    ]


def _file_name(wanted: Wanted) -> str:
    return f"{wanted.name}-{wanted.version}-{wanted.seed}.safetensors"


def _make(order: dict[str, Any]) -> list[str]:
    from bench.servers.random_patch import random_patch
    from patches.fingerprint import fingerprint_model
    from patches.format import write_patch
    from patches.label import Label

    base_model = fingerprint_model(order["model"], order["dtype"], may_lack_weights=True)
    folder = Path(order["folder"])
    digests = []
    for fields in order["wanted"]:
        wanted = Wanted(**fields)
        patch = random_patch(
            base_model, wanted.num_tokens, Label(wanted.name, wanted.version), seed=wanted.seed
        )
        write_patch(patch, folder).rename(folder / _file_name(wanted))
        digests.append(patch.digest)
    return digests


def main() -> int:
    """Read the order from stdin; the last line of stdout is the list of digests."""
    print(json.dumps(_make(json.load(sys.stdin))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
