"""Shows bad patch files to the catalog that a server has, in processes that may die of it.

The address space of a process is bounded, and so is the time for one file: a crash, a hang or a greedy
allocation shows as such and ends nothing else.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from bench.hostile.good_file import BASE_MODEL, NUM_TOKENS, good_file
from bench.hostile.mutations import FAMILIES, mutant
from server.catalog.catalog import Catalog
from server.catalog.folder import list_folder
from server.catalog.refusals import ServedModel
from server.memory.residency import NullResidency
from server.metrics.patches import PatchMetrics
from server.versions.view import FileFailure

#: Seconds after which a file counts as one that hangs the reader.
MAX_FILE_S = 10.0
#: What a process may take beyond what it has once everything is imported.
MAX_EXTRA_BYTES = 1 << 30


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    seed: int
    family: str
    #: ``refused``, or what must not be: ``loaded``, ``crashed``, ``hung``, ``disturbed`` (others stopped).
    result: str
    reason: str
    #: Processor time, of all threads.
    seconds: float = 0.0
    #: Resident memory at the worst moment, beyond what there was before.
    extra_bytes: int = 0


class Reader:
    """A catalog with one good patch, to which bad files are shown."""

    def __init__(self, folder: Path) -> None:
        self._good = good_file()
        self._good_path = folder / "good.safetensors"
        self._good_path.write_bytes(self._good)
        self._folder = folder / "patches"
        self._folder.mkdir()
        model = ServedModel(BASE_MODEL, NUM_TOKENS)
        self._catalog = Catalog(NullResidency(), model, PatchMetrics(CollectorRegistry()))
        served = asyncio.run(self._catalog.load_file(self._good_path))
        assert not isinstance(served, FileFailure), served
        self._view = self._catalog.view

    def show(self, seed: int) -> Outcome:
        """Put the file of a seed into the folder, load it, and take it away."""
        family, content = mutant(seed, self._good)
        path = self._folder / f"{seed}.safetensors"
        if callable(content):
            content(random.Random(seed), path, self._good_path)
        else:
            path.write_bytes(content)
        _forget_peak()
        before = _memory("VmRSS")
        started_s = time.process_time()
        try:
            list_folder(self._folder)
            loaded = asyncio.run(self._catalog.load_file(path))
        except Exception as error:
            return Outcome(seed, family, "crashed", f"{type(error).__name__}: {error}"[:200])
        finally:
            seconds = time.process_time() - started_s
            extra = max(0, _memory("VmHWM") - before)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        if not isinstance(loaded, FileFailure):
            result, reason = "loaded", loaded.digest
        elif loaded.reason == "internal":
            # What the catalog did not foresee, even though it went on.
            result, reason = "crashed", loaded.message
        elif self._catalog.view.names != self._view.names:
            result, reason = "disturbed", loaded.reason
        else:
            result, reason = "refused", loaded.reason
        asyncio.run(self._catalog.forget_file(path))
        return Outcome(seed, family, result, reason, seconds, extra)


def show_in_processes(seeds: Iterable[int]) -> Iterator[Outcome]:
    """Show the files of ``seeds`` in a process that is replaced when it dies or hangs."""
    context = multiprocessing.get_context("spawn")
    worker: Any = None
    connection: Connection | None = None
    for seed in seeds:
        if connection is None:
            connection, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs,), daemon=True)
            worker.start()
            theirs.close()
            connection.recv()
        result = "crashed"
        # A process that is gone can neither be sent to nor received from.
        with contextlib.suppress(EOFError, OSError):
            connection.send(seed)
            if connection.poll(MAX_FILE_S):
                yield connection.recv()
                continue
            result = "hung"
        worker.kill()
        worker.join()
        connection.close()
        connection = None
        yield Outcome(seed, FAMILIES[seed % len(FAMILIES)], result, f"exit code {worker.exitcode}")
    if connection is not None:
        connection.send(None)
        worker.join()


def _serve(connection: Connection) -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(Path(folder))
        limit = _memory("VmSize") + MAX_EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        connection.send(None)
        while (seed := connection.recv()) is not None:
            connection.send(reader.show(seed))


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _forget_peak() -> None:
    # "5" resets the high-water mark of resident memory (proc_pid_clear_refs(5)).
    Path("/proc/self/clear_refs").write_text("5")
