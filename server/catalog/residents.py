"""What the workers hold: which requests use each content, and how it is dropped once nothing keeps it.

The catalog says what is kept; this module says when the rest may be dropped. Invariant: tensors are dropped
only when no request uses them, and what is being dropped is given to no request.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from patches.format import Patch
from patches.kinds.delta import DeltaBody
from server.catalog.processes import NoOtherProcesses, OtherProcesses
from server.errors import NotInStep, PatchNotReady
from server.memory.residency import Residency, ResidencyError
from server.metrics.patches import PatchMetrics
from server.versions.activation import Target
from server.versions.composition import SelectedPatch
from server.versions.view import CatalogView, ServedPatch

logger = logging.getLogger(__name__)


class Use(Protocol):
    """One generation that uses a content."""

    def withdraw(self) -> None:
        """End it with an error, now."""


class Resident:
    """One content on the workers."""

    __slots__ = (
        "is_barred",
        "is_retired",
        "is_unloading",
        "is_withdrawn",
        "num_in_flight",
        "patch",
        "paths",
        "uses",
    )

    def __init__(self, patch: ServedPatch) -> None:
        self.patch = patch
        #: Files that hold this content now; without one it is drained, unless a record keeps it.
        self.paths: set[Path] = set()
        self.num_in_flight = 0
        #: Revoked, or no trusted signer vouches for it any more: no file and no order lets it serve.
        self.is_barred = False
        #: Nothing keeps it any more, and the log says so.
        self.is_retired = False
        self.is_unloading = False
        #: An operator took it from its requests: those that are about to use it get an error too.
        self.is_withdrawn = False
        #: The generations that run; a request in flight may have none yet, or several.
        self.uses: set[Use] = set()

    def withdraw(self) -> None:
        """End every request that uses it with an error."""
        self.is_withdrawn = True
        for use in tuple(self.uses):
            use.withdraw()

    @property
    def target(self) -> Target:
        """What records call it."""
        return Target(self.patch.version, self.patch.digest)


@dataclass(frozen=True, slots=True)
class ResidentRow:
    """What lists and scrapes say about one content on the workers."""

    patch: ServedPatch
    is_active: bool
    #: No longer served; the last request that uses it is running.
    is_draining: bool
    num_in_flight: int
    #: Kept for a rollback; the name and its versions mean something else.
    is_previous: bool
    #: The workers hold its tensors; else its file does.
    is_in_memory: bool
    #: It was made for other weights than those in force.
    is_mismatched: bool = False


class Residents:
    """What the workers hold. ``load`` and ``sweep`` are called while ``changes`` is held."""

    def __init__(
        self,
        residency: Residency,
        metrics: PatchMetrics,
        changes: asyncio.Lock,
        is_kept: Callable[[Resident], bool],
        processes: OtherProcesses | None = None,
    ) -> None:
        self._residency = residency
        self._metrics = metrics
        self._changes = changes
        self._is_kept = is_kept
        self._processes: OtherProcesses = processes or NoOtherProcesses()
        self._residents: dict[str, Resident] = {}
        #: Name -> digest -> the same: a change concerns one name, however many there are.
        self._by_name: dict[str, dict[str, Resident]] = {}
        #: Those of weight patches, which each file is held against.
        self._of_weights: dict[str, Resident] = {}
        self._drains: set[asyncio.Task[None]] = set()
        residency.bind(self._must_stay)

    def _must_stay(self, digest: str) -> bool:
        """Return whether memory has to keep a content: it is in use, or no file of the folder holds it."""
        resident = self._residents.get(digest)
        return resident is not None and (resident.num_in_flight > 0 or not resident.paths)

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __getitem__(self, digest: str) -> Resident:
        return self._residents[digest]

    def get(self, digest: str) -> Resident | None:
        """Return the content with this digest, if the workers hold it."""
        return self._residents.get(digest)

    def all(self) -> tuple[Resident, ...]:
        """List everything."""
        return tuple(self._residents.values())

    def of_weights(self) -> Collection[Resident]:
        """List the weight patches."""
        return self._of_weights.values()

    @property
    def names(self) -> Collection[str]:
        """The names of everything."""
        return self._by_name.keys()

    def of(self, *names: str) -> list[Resident]:
        """List the contents of some names."""
        return [r for name in dict.fromkeys(names) for r in self._by_name.get(name, {}).values()]

    def usable(self, name: str) -> tuple[tuple[Target, ...], tuple[Target, ...]]:
        """Return the contents of a name that can serve: those that files hold, and all of them."""
        usable = [r for r in self.of(name) if not r.is_unloading and not r.is_barred]
        return tuple(r.target for r in usable if r.paths), tuple(r.target for r in usable)

    def rows(self, view: CatalogView, *names: str) -> Iterator[ResidentRow]:
        """Describe everything, or what has one of ``names``, and what of it ``view`` serves."""
        for resident in self.of(*names) if names else self.all():
            patch = resident.patch
            named = view.names.get(patch.name)
            is_of_weights = patch.kind == DeltaBody.kind
            is_active = (
                view.weights == patch if is_of_weights else named is not None and named.active == patch
            )
            is_fitting = named is not None and patch in named.versions
            is_mismatched = not is_fitting and view.is_mismatched(patch.name, patch.version)
            is_served = is_fitting or is_of_weights or is_mismatched
            is_kept = self._is_kept(resident)
            yield ResidentRow(
                patch,
                is_active=is_active,
                is_mismatched=is_mismatched,
                is_draining=not is_kept,
                # Being in force holds it as a request would.
                num_in_flight=resident.num_in_flight - (view.weights == patch),
                is_previous=is_kept and not is_served,
                is_in_memory=self.is_ready(patch),
            )

    def acquire(self, patch: SelectedPatch) -> None:
        """Count one more user of ``patch``, of each part of a composition. Event loop thread only.

        Raises:
            PatchNotReady: It is not resident (any more).
        """
        residents = [self._residents.get(part.digest) for part in patch.parts]
        found = [resident for resident in residents if resident is not None and not resident.is_unloading]
        if len(found) < len(residents):
            raise PatchNotReady(f"patch '{patch.reference}' is no longer loaded; try again")
        for resident in found:
            resident.num_in_flight += 1

    def release(self, patch: SelectedPatch) -> None:
        """Count one user of ``patch`` less; the last one of a retired version frees its tensors."""
        for part in patch.parts:
            resident = self._residents[part.digest]
            assert resident.num_in_flight > 0, f"{part.reference} released more often than acquired"
            resident.num_in_flight -= 1
            if resident.num_in_flight:
                continue
            if self._is_kept(resident):
                self._residency.idle(part.digest)
            else:
                self._drain_soon(resident)

    def is_ready(self, patch: ServedPatch) -> bool:
        """Return whether every worker holds the tensors of ``patch`` now."""
        return self._residency.is_ready(patch.digest)

    async def ready(self, patch: SelectedPatch) -> None:
        """Return once every worker holds the tensors of ``patch``, which the caller has acquired.

        Raises:
            PatchNotReady: They are unavailable now.
        """
        try:
            for part in patch.parts:
                await self._residency.ready(part.digest)
        except ResidencyError as error:
            logger.error("%s could not be loaded for a request: %s", patch.reference, error)
            raise PatchNotReady(f"patch '{patch.reference}' could not be loaded; try again") from error

    async def load(self, path: Path, patch: Patch) -> Resident:
        """Ask every worker, and every process that decides, to confirm ``patch``, just read from ``path``.

        Raises:
            ResidencyError: One could not; no worker holds it then.
        """
        nbytes = await self._residency.load(patch, path)
        served = ServedPatch.of(patch.manifest, patch.digest, nbytes)
        try:
            await self._processes.confirm(served)
        except NotInStep as error:
            await self._residency.unload(patch.digest)
            raise ResidencyError(error.message) from error
        return self.add(served)

    def add(self, patch: ServedPatch) -> Resident:
        """Add a content that the workers can hold."""
        resident = self._residents[patch.digest] = Resident(patch)
        self._by_name.setdefault(patch.name, {})[patch.digest] = resident
        if patch.kind == DeltaBody.kind:
            self._of_weights[patch.digest] = resident
        self._metrics.patch_added(patch.digest, patch.name)
        return resident

    def forget(self, resident: Resident) -> None:
        """Take a content that nothing uses out of this list."""
        patch = resident.patch
        del self._residents[patch.digest]
        self._of_weights.pop(patch.digest, None)
        named = self._by_name[patch.name]
        del named[patch.digest]
        if not named:
            del self._by_name[patch.name]
        self._metrics.patch_removed(patch.digest)

    async def withdraw(self, residents: Collection[Resident]) -> None:
        """End every request that uses one of ``residents`` with an error, in every process."""
        for resident in residents:
            resident.withdraw()
        await self._processes.withdraw([resident.patch.digest for resident in residents])

    async def sweep(self, *names: str) -> None:
        """Drop what nothing keeps, once no request uses it."""
        for resident in self.of(*names):
            was_retired, resident.is_retired = resident.is_retired, not self._is_kept(resident)
            # What came back while it drained serves again as before.
            resident.is_withdrawn = resident.is_withdrawn and resident.is_retired
            if resident.is_retired and not resident.num_in_flight:
                await self._unload(resident)
            elif resident.is_retired and not was_retired:
                logger.info("%s drains: %d in flight", resident.patch.reference, resident.num_in_flight)

    async def drained(self) -> None:
        """Wait until nothing that is no longer used is left on the workers."""
        while self._drains:
            await asyncio.gather(*self._drains)

    def _drain_soon(self, resident: Resident) -> None:
        try:
            task = asyncio.get_running_loop().create_task(self._drain(resident))
        except RuntimeError:
            # The loop has ended, so the process is ending, and the workers with it.
            return
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def _drain(self, resident: Resident) -> None:
        async with self._changes:
            # While this waited, the same content may have come back, or been dropped by someone else.
            if not self._is_kept(resident) and not resident.num_in_flight and not resident.is_unloading:
                await self._unload(resident)

    async def _unload(self, resident: Resident) -> None:
        patch = resident.patch
        if (
            not await self._processes.let_go(patch.digest)
            or resident.num_in_flight
            or self._is_kept(resident)
        ):
            # The end of its last request drains it.
            return
        resident.is_unloading = True
        try:
            await self._residency.unload(patch.digest)
        except Exception:
            # Whatever the engine raises, this must stay right: nothing refers to these tensors any more.
            logger.exception("%s: the workers did not confirm that it is dropped", patch.reference)
            self._metrics.files.load_failed("unload_failed")
        self.forget(resident)
        logger.info("%s (%s) is unloaded", patch.reference, patch.digest)
