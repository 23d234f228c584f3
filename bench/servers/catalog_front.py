"""Starts ``bench.servers.catalog_only`` over a folder of links to patches that were made before."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.servers.patch_set import PatchFile
from bench.servers.processes import ServerSpec, free_port

#: A folder of a thousand patches is read in tens of seconds, and of a busy machine in minutes.
START_TIMEOUT_S = 900.0


def link_patches(patches: Sequence[PatchFile], folder: Path) -> None:
    """Make ``folder`` and put ``patches`` into it."""
    folder.mkdir()
    for patch in patches:
        # Links cost no disk; the catalog follows them, as it does those of a ConfigMap.
        (folder / patch.path.name).symlink_to(patch.path.resolve())


def front_end(model: str, patches: Path, log: Path) -> ServerSpec:
    """Describe the front end over a folder of patches."""
    port = free_port()
    command = [sys.executable, "-m", "bench.servers.catalog_only", "--model", model, "--port", str(port)]
    command += ["--patches", str(patches)]
    return ServerSpec("front end", command, port, log, {"HF_HUB_OFFLINE": "1"})
