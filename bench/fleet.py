"""How long until every server of a fleet serves what was published, and how far apart are they?

Servers are catalogs that follow one store over HTTP, with workers that answer at once (``bench.servers.
fleet_replicas``), in two processes beside the store; one machine has to do for all of them. Each round
publishes a version at once, publishes one for an instant, and rolls one back. ``bench/README.md`` says what
each number means.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench.errors import CheckFailed
from bench.run.question import Measure, main_of, question_parser
from bench.run.sweep import SweepRun, add_sweep_arguments, at_least_one, cells_along, model_name
from bench.servers.fleet_publisher import Fleet

QUESTION = "fleet"
NUM_PROCESSES = 2
_TIMEOUT_S = 600.0
AT_ONCE, INSTANT, ROLLBACK = "at once", "at an instant", "rollback"

EPILOG = """\
examples:
  policypatch bench fleet --model ./smollm2
  policypatch bench fleet --model ./smollm2 --replicas 10 --patches 200 --rounds 3
"""


class Requests:
    """Counts what a store is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = {"metadata": 0, "patches": 0, "bytes": 0}

    def add(self, path: str, num_bytes: int) -> None:
        """Count one more; any thread."""
        with self._lock:
            self._counts["patches" if path.startswith("/targets/patches/") else "metadata"] += 1
            self._counts["bytes"] += num_bytes

    def since(self, before: Mapping[str, int]) -> dict[str, int]:
        """Return what came after ``before``."""
        return {name: count - before.get(name, 0) for name, count in self.now().items()}

    def now(self) -> dict[str, int]:
        """Return the counts."""
        with self._lock:
            return dict(self._counts)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, requests: Requests, **parts: Any) -> None:
        self._requests = requests
        super().__init__(*arguments, **parts)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_header(self, keyword: str, value: str) -> None:
        if keyword.lower() == "content-length":
            self._requests.add(self.path, int(value))
        super().send_header(keyword, value)


@contextlib.contextmanager
def serving(folder: Path, requests: Requests) -> Iterator[str]:
    """Serve a folder as a web server does; yield its address."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(_Handler, directory=str(folder), requests=requests)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Replicas:
    """What replicas have told: when each let which revision hold."""

    count: int
    #: Revision -> Unix time in seconds of each replica.
    held: dict[int, list[float]] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self, process: subprocess.Popen[str]) -> None:
        """Take what a process says until it ends."""
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            with self._changed:
                self.held.setdefault(told["revision"], []).append(told["at_s"])
                self._changed.notify_all()

    def wait(self, revision: int) -> list[float]:
        """Return when each replica let a revision hold, once all have.

        Raises:
            CheckFailed: not all did in time.
        """
        with self._changed:
            if self._changed.wait_for(lambda: len(self.held.get(revision, ())) == self.count, _TIMEOUT_S):
                return self.held[revision]
        there = len(self.held.get(revision, ()))
        raise CheckFailed([f"revision {revision}: on {there} of {self.count} after {_TIMEOUT_S:.0f} s"])


@contextlib.contextmanager
def following(args: argparse.Namespace, url: str, root: Path, folder: Path) -> Iterator[Replicas]:
    """Start the replicas."""
    replicas = Replicas(args.replicas)
    shares = [len(range(i, args.replicas, NUM_PROCESSES)) for i in range(NUM_PROCESSES)]
    with contextlib.ExitStack() as stack:
        first = 0
        for number, count in enumerate(shares):
            words = ["--model", args.model, "--catalog", url, "--root", str(root), "--folder", str(folder)]
            words += ["--first", str(first), "--count", str(count), "--poll", str(args.poll)]
            log = stack.enter_context((folder / f"replicas-{number}.log").open("w"))
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.servers.fleet_replicas", *words],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
            stack.callback(process.terminate)
            threading.Thread(target=replicas.read, args=(process,), daemon=True).start()
            first += count
        yield replicas


@dataclass(frozen=True)
class Orders:
    """What the cells of a run are measured with."""

    fleet: Fleet
    replicas: Replicas
    requests: Requests

    async def measure(self, kind: str) -> Mapping[str, Any]:
        """Carry one order out, and wait for every replica."""
        return await asyncio.to_thread(self._measure, kind)

    def _measure(self, kind: str) -> Mapping[str, Any]:
        files = self.fleet.make()
        if kind == ROLLBACK:
            self.replicas.wait(self.fleet.publish(files).revision)
        # Files of the version before go a moment after the new one holds.
        time.sleep(1.0)
        before, began_s = self.requests.now(), time.time()
        if kind == ROLLBACK:
            ordered = self.fleet.roll_back()
        else:
            ordered = self.fleet.publish(files, is_for_instant=kind == INSTANT)
        published_s = time.time()
        held_s = self.replicas.wait(ordered.revision)
        asked = self.requests.since(before)
        due_s = ordered.effective_s if ordered.effective_s is not None else published_s
        return {
            "last_s": max(held_s) - due_s,
            "apart_s": max(held_s) - min(held_s),
            "order_s": published_s - began_s,
            "patches_fetched": asked["patches"],
            "stored_bytes": asked["bytes"],
        }


def run_fleet(args: argparse.Namespace, command: str, folder: Path) -> None:
    """Measure every cell once a round.

    Raises:
        BenchError: no number can be given.
    """
    setup = {
        **{"command": command, "model": model_name(args.model), "seed": args.seed},
        **{"replicas": args.replicas, "patches": args.patches, "poll_s": args.poll},
        **{"num_virtual_tokens": args.virtual_tokens},
    }
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        fleet, requests = Fleet(args.model, args.patches, args.virtual_tokens, work), Requests()
        url = stack.enter_context(serving(fleet.store, requests))
        first = fleet.publish(fleet.make())
        replicas = stack.enter_context(following(args, url, fleet.root, work))
        replicas.wait(first.revision)
        cells = tuple(cells_along((AT_ONCE, INSTANT, ROLLBACK)))
        run = SweepRun(QUESTION, cells, args.rounds, args.seed, setup, folder)
        orders = Orders(fleet, replicas, requests)
        asyncio.run(run.measure(lambda cell, _: orders.measure(str(cell.x))))


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = question_parser(QUESTION, __doc__, EPILOG)
    parser.add_argument("--model", required=True, help="model folder; no weight of it is loaded")
    for flag, default, meaning in (
        ("--replicas", 50, "servers that follow"),
        ("--patches", 20, "names in the catalog"),
        ("--virtual-tokens", 4, "length of a patch"),
    ):
        help_text = f"{meaning} ({default})"
        parser.add_argument(flag, type=at_least_one, default=default, metavar="N", help=help_text)
    parser.add_argument("--poll", type=float, default=2.0, metavar="S", help="seconds between looks (2)")
    add_sweep_arguments(parser)
    return parser


def prepare(args: argparse.Namespace, command: str) -> Measure:
    """Return what measures."""
    return lambda folder: run_fleet(args, command, folder)


main = main_of(QUESTION, build_parser, prepare)


if __name__ == "__main__":
    sys.exit(main())
