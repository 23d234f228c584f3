"""What a process keeps of a patch in its catalog, and what it sends of it to another process.

    python -m tools.catalog_memory FOLDER

Loads the patches of a folder, all for one model, with workers that hold nothing, and prints bytes a patch:
the file beside its tensors, the memory that Python has given out, and what a follower is told, as JSON.
"""

import argparse
import asyncio
import gc
import json
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from patches.format import find_content, is_patch_filename, read_patch_bytes
from server.catalog.catalog import Catalog
from server.catalog.folder import PatchFolder
from server.catalog.refusals import ServedModel
from server.frontends.messages import content_body, name_body
from server.memory.residency import NullResidency
from server.metrics.patches import PatchMetrics


def measure(folder: Path) -> Mapping[str, float]:
    """Return bytes a patch of ``folder``: ``file``, ``catalog`` and ``sync``."""
    paths = [path for path in folder.iterdir() if is_patch_filename(path.name)]
    data = read_patch_bytes(paths[0])
    content, _ = find_content(data)
    assert content is not None, f"{paths[0]}: expected a valid patch"
    file = len(data) - sum(tensor.nbytes for tensor in content.tensors.values())
    model = ServedModel(content.manifest.base_model, max_num_tokens=4096)
    return {"file": file, **asyncio.run(_loaded(folder, model))}


async def _loaded(folder: Path, model: ServedModel) -> Mapping[str, float]:
    metrics = PatchMetrics(CollectorRegistry())
    catalog = Catalog(NullResidency(), model, metrics)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    async with PatchFolder(folder, catalog):
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        view = catalog.view
        patches = [patch for named in view.names.values() for patch in named.versions]
        told = [*(content_body(patch, None) for patch in patches), *(name_body(view, n) for n in view.names)]
        sync = sum(len(json.dumps(body)) for body in told)
    return {"catalog": (after - before) / len(patches), "sync": sync / len(patches)}


def main() -> int:
    """Print what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of patches")
    for name, value in measure(parser.parse_args().folder).items():
        print(f"{name}: {value:.0f} bytes a patch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
