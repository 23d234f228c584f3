"""What a server of a fleet reads from the store: for a look, and for a revision beside its patch files.

    python -m tools.catalog_traffic

Publishes catalogs of two sizes to a store behind a web server of this machine, reads them as a server does,
and prints the bytes of the answers, without their headers.
"""

import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from bench.fleet import Requests, serving
from server.fleet import changes
from server.fleet.changes import Added
from server.fleet.document import VersionEntry
from server.fleet.orders import carry_out
from server.fleet.publisher import Publisher
from server.fleet.reader import CatalogReader
from server.fleet.roles import make_folder
from server.fleet.store import open_store

_FEW, _MANY = 10, 210


def measure() -> Mapping[str, float]:
    """Return bytes: ``look``, ``revision``, and ``named`` of a revision for each version that it names."""
    few, many = (_measure(number) for number in (_FEW, _MANY))
    named = (many["revision"] - few["revision"]) / (_MANY - _FEW)
    return {"look": few["look"], "revision": few["revision"] - _FEW * named, "named": named}


def _measure(num_names: int) -> Mapping[str, float]:
    requests = Requests()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_folder(folder / "fleet", str(folder / "store"), 600.0)
        with serving(folder / "store", requests) as url:
            publisher = Publisher(made, open_store(made.store))
            _publish(publisher, num_names, 1)
            with closing(CatalogReader(url, made.root, folder / "server")) as reader:
                reader.hear()
                before = requests.now()
                reader.hear()
                look = requests.since(before)["bytes"]
                _publish(publisher, 1, 2)
                before = requests.now()
                reader.hear()
            return {"look": look, "revision": requests.since(before)["bytes"] - look}


def _publish(publisher: Publisher, num_names: int, number: int) -> None:
    added, files = [], {}
    for i in range(num_names):
        name, version = f"safety-{i:03}", f"1.{number}.0"
        target = f"patches/{name}-{version}.safetensors"
        files[target] = target.encode()
        added.append(Added(name, version, VersionEntry("sha256:" + f"{i:064x}", target)))
    carry_out(publisher, publisher.read(), lambda d: (d, changes.with_versions(d.names, added)), files=files)


def main() -> int:
    """Print what is measured."""
    for name, value in measure().items():
        print(f"{name}: {value:.0f} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
