"""Where the tensors of each patch are: on disk, in the workers' host memory, in device slots.

This module moves them between disk and host memory; each worker fills its own device slots from its host
memory (``server.engine.prefix_store``), which takes a copy of a few MiB and no decision from outside. So a
request needs one thing before it may start: its prefix in every worker's host memory. ``ready`` sees to it.

Invariants: what requests in flight use is never taken out of host memory, nor what no file holds any more;
of one digest there is at most one load or unload at a time, however many requests wait for it; a load that
goes beyond the bound of host memory first takes out what is not in use, and what had to stay beyond it goes
as soon as its last request is over.

Only the event loop's thread calls in here.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patches.format import Patch
from server.memory.patch_source import PatchSource
from server.memory.payload import Payload
from server.memory.residency import ResidencyError, Workers
from server.metrics.tiers import TierMetrics
from server.options import MemoryOptions

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Content:
    """One content that the catalog knows."""

    digest: str
    name: str
    nbytes: int
    is_pinned: bool
    #: ``None`` where the file could not be kept open.
    source: PatchSource | None
    #: Every worker holds it, and it counts against the bound.
    is_warm: bool = False
    #: It was given up, and the workers may still hold it.
    is_stale: bool = False
    #: Reads it from disk and sends it to the workers.
    loading: "asyncio.Task[None] | None" = None
    #: Held while workers load or drop it, so that they never do both.
    order: asyncio.Lock = field(default_factory=asyncio.Lock)

    def can_go(self) -> bool:
        """Return whether it could be loaded again, and nothing keeps it."""
        return not self.is_pinned and self.source is not None and self.source.is_intact()


class TieredResidency:
    """Keeps in host memory what is used, least recently used out first; a ``residency.Residency``."""

    def __init__(self, workers: Workers, options: MemoryOptions, metrics: TierMetrics) -> None:
        self._workers = workers
        self._options = options
        self._metrics = metrics
        #: Least recently used first.
        self._contents: OrderedDict[str, _Content] = OrderedDict()
        self._num_warm: Counter[str] = Counter()
        self._host_bytes = 0
        self._must_stay: Callable[[str], bool] = lambda digest: False
        #: The loop itself holds tasks weakly.
        self._trims: set[asyncio.Task[None]] = set()

    def bind(self, must_stay: Callable[[str], bool]) -> None:
        """See ``Residency.bind``."""
        self._must_stay = must_stay

    async def load(self, patch: Patch, path: Path) -> int:
        """Ask every worker to confirm a patch, and load what will be wanted; see ``Residency.load``."""
        payload, digest, name = Payload.of(patch), patch.digest, patch.manifest.name
        nbytes = await self._workers.check(payload)
        try:
            source = PatchSource(path, digest)
        except OSError as error:
            logger.warning("%s: it stays in memory, since its file can't be kept open: %s", name, error)
            source = None
        prefix = _Content(digest, name, nbytes, name in self._options.pin_patch, source)
        if self._is_wanted(prefix):
            try:
                if payload.is_hollow:
                    payload = await self._read(prefix)
                await self._fill(prefix, payload)
            except BaseException:
                self._close(prefix)
                raise
        self._contents[digest] = prefix
        self._note()
        return nbytes

    def _is_wanted(self, prefix: _Content) -> bool:
        """Return whether to load before the first request.

        What is pinned, what could not be read again, and another version of a name that is in host memory:
        replacing a patch under load must not make its requests wait.
        """
        has_room = self._host_bytes + prefix.nbytes <= self._options.patch_host_memory
        return (
            prefix.is_pinned
            or prefix.source is None
            or self._num_warm[prefix.name] > 0
            or (self._options.preload and has_room)
        )

    def is_ready(self, digest: str) -> bool:
        """See ``Residency.is_ready``."""
        prefix = self._contents.get(digest)
        return prefix is not None and prefix.is_warm

    async def ready(self, digest: str) -> None:
        """Wait for a prefix that is in use; see ``Residency.ready``."""
        prefix = self._contents.get(digest)
        if prefix is None:
            raise ResidencyError(f"{digest}: it is not served any more")
        self._contents.move_to_end(digest)
        while not prefix.is_warm:
            if prefix.loading is None:
                prefix.loading = asyncio.create_task(self._fetch(prefix))
                prefix.loading.add_done_callback(_retrieve)
            # One request that goes away takes nothing from the others that wait.
            await asyncio.shield(prefix.loading)

    async def _fetch(self, prefix: _Content) -> None:
        started_s = time.monotonic()
        try:
            await self._fill(prefix, await self._read(prefix))
        finally:
            prefix.loading = None
        self._metrics.waited(time.monotonic() - started_s)

    @staticmethod
    async def _read(prefix: _Content) -> Payload:
        if prefix.source is None:
            raise ResidencyError(f"{prefix.digest}: no file holds it")
        return await asyncio.to_thread(prefix.source.read)

    async def _fill(self, prefix: _Content, payload: Payload) -> None:
        """Put a prefix on the workers, in place of what was not used for longest."""
        async with prefix.order:
            # Before anything waits: others who need room at the same time count with it.
            self._host_bytes += prefix.nbytes
            try:
                await self._drop_all(self._give_up_surplus())
                await self._clear(prefix)
                await self._workers.load(payload, is_pinned=prefix.is_pinned)
            except BaseException:
                self._host_bytes -= prefix.nbytes
                self._note()
                raise
            prefix.is_warm = True
            self._num_warm[prefix.name] += 1
            self._metrics.loaded("host")
            self._note()

    def idle(self, digest: str) -> None:
        """See ``Residency.idle``."""
        if self._host_bytes <= self._options.patch_host_memory:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # The loop has ended, so the process is ending, and the workers with it.
            return
        trim = loop.create_task(self._drop_all(self._give_up_surplus()))
        self._trims.add(trim)
        trim.add_done_callback(self._trims.discard)

    def _give_up_surplus(self) -> list[_Content]:
        """Release what is not in use, as far as host memory is beyond its bound."""
        victims = list(self._victims())
        for victim in victims:
            self._cool(victim)
            self._metrics.evicted("host")
        return victims

    async def _drop_all(self, victims: Sequence[_Content]) -> None:
        await asyncio.gather(*(self._drop(victim) for victim in victims))
        self._note()

    def _victims(self) -> Iterator[_Content]:
        surplus = self._host_bytes - self._options.patch_host_memory
        for prefix in self._contents.values():
            if surplus <= 0:
                return
            if prefix.is_warm and not self._must_stay(prefix.digest) and prefix.can_go():
                surplus -= prefix.nbytes
                yield prefix

    def _cool(self, prefix: _Content) -> None:
        """Release a prefix: from now on requests load it anew, after the workers dropped it."""
        prefix.is_warm, prefix.is_stale = False, True
        self._num_warm[prefix.name] -= 1
        self._host_bytes -= prefix.nbytes

    async def _drop(self, prefix: _Content) -> None:
        async with prefix.order:
            try:
                await self._clear(prefix)
            except Exception:
                # The load that needs the room continues: a worker that is in trouble will fail it as well.
                logger.exception("%s: the workers did not confirm that it is dropped", prefix.digest)

    async def _clear(self, prefix: _Content) -> None:
        # The first that has the lock does it: the drop of a prefix, or a load that needs it again meanwhile.
        if prefix.is_stale:
            await self._workers.unload(prefix.digest)
            prefix.is_stale = False

    async def unload(self, digest: str) -> None:
        """Forget a prefix that no request uses; see ``Residency.unload``."""
        prefix = self._contents.pop(digest, None)
        if prefix is None:
            raise ResidencyError(f"digest: {digest} is not resident")
        if prefix.loading is not None:
            # The requests that waited for it went away.
            await asyncio.wait({prefix.loading})
        try:
            async with prefix.order:
                if prefix.is_warm:
                    self._cool(prefix)
                await self._clear(prefix)
        finally:
            self._close(prefix)
            self._note()

    @staticmethod
    def _close(prefix: _Content) -> None:
        if prefix.source is not None:
            prefix.source.close()

    def _note(self) -> None:
        num_warm = self._num_warm.total()
        self._metrics.set_host(self._host_bytes, num_warm, max(0, len(self._contents) - num_warm))


def _retrieve(loading: "asyncio.Task[None]") -> None:
    # Where every request that waited went away, nothing else retrieves its exception.
    if not loading.cancelled() and (error := loading.exception()) is not None:
        logger.error("a prefix could not be loaded: %s", error)
