"""Which weight patch is in force: prepared beside what serves, written between two requests, and persisted.

The order of a change, which an operator's call causes: every worker prepares the patch while requests run;
the door closes, and the requests inside run to their end or the call fails; every worker writes; the record
is written down; requests see what is served under these weights; the door opens. Whatever goes wrong before
the record is written leaves weights, record and view as they were. A process that dies on the way finds
either record at its next start, and brings the weights in line before it serves.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patches.base_model import BaseModel
from patches.kinds.delta import DeltaBody, effective_weights_digest
from patches.manifest import Manifest
from server.catalog.door import Door, StillInside, together
from server.catalog.processes import OtherProcesses
from server.errors import OrderRefused, WeightsBusy
from server.memory.weights import EngineWeights, WeightsNotChanged
from server.metrics.weights import WeightMetrics
from server.versions.activation import NameRecord
from server.versions.view import ServedPatch

if TYPE_CHECKING:
    from server.catalog.residents import Residents

logger = logging.getLogger(__name__)

WEIGHTS_KIND = DeltaBody.kind


@dataclass(frozen=True, slots=True)
class WeightControl:
    """What weights are changed with."""

    engine: EngineWeights
    #: Seconds that requests inside may take to end.
    drain_timeout_s: float = 60.0
    #: Patches for other weights than those in force go on answering.
    keeps_mismatched: bool = False


@dataclass(frozen=True, slots=True)
class Effects:
    """What a change of weights would do to other patches."""

    #: References of what is served now, and was made for other weights.
    mismatched: list[str]
    #: References of what would go on to be served all the same, as an operator wants it.
    kept: list[str]
    #: What the policy needs of it: these forbid the change.
    lost: list[str]


class Weights:
    """Knows what is in force, and changes it while the lock on changes is held."""

    def __init__(
        self,
        base_model: BaseModel,
        control: WeightControl | None,
        processes: OtherProcesses,
        metrics: WeightMetrics,
    ) -> None:
        self._own_model = base_model
        self._control = control
        self._processes = processes
        self._metrics = metrics
        #: Requests pass it; ``None`` where weights never change.
        self.door = Door() if control is not None else None

    @property
    def in_force(self) -> ServedPatch | None:
        """The weight patch that is written."""
        return self.door.weights if self.door is not None else None

    def is_mismatched(self, manifest: Manifest, under: ServedPatch | None) -> bool:
        """Return whether a patch was made for other weights than those that ``under`` makes."""
        if manifest.kind == WEIGHTS_KIND:
            return False
        return manifest.base_model.weights_digest != self.digest_under(under)

    @property
    def keeps_mismatched(self) -> bool:
        """Whether patches for other weights than those in force go on answering."""
        return self._control is not None and self._control.keeps_mismatched

    def digest_under(self, under: ServedPatch | None) -> str:
        """Return the weights digest of the model under a weight patch, or of the model itself."""
        own = self._own_model.weights_digest
        return own if under is None else effective_weights_digest(own, under.digest)

    def require_allowed(self, name: str, record: NameRecord) -> None:
        """Check what an order would make of the record of weight patches.

        Raises:
            OrderRefused: It can't be carried out; nothing was changed.
        """
        if record.active is None:
            return
        if not record.is_pinned:
            raise OrderRefused(
                f"'{name}' is a weight patch, which follows no folder; activate a version of it"
            )
        if self.in_force is not None and self.in_force.name != name:
            raise OrderRefused(f"{self.in_force.reference} is in force; roll it back first")

    @asynccontextmanager
    async def changed_to(
        self, patch: ServedPatch | None, residents: "Residents"
    ) -> AsyncIterator[Callable[[], None]]:
        """Have every worker hold the weights that ``patch`` makes, from the body of the context on.

        Yields:
            To be called once nothing can be taken back; a body that raises before undoes the change.

        Raises:
            PatchNotReady: A worker could not prepare it.
            OrderRefused: The workers did not write it.
            WeightsBusy: Requests did not end in time.
        """
        assert self._control is not None
        assert self.door is not None
        before = self.in_force
        if patch is not None:
            # As a request: nothing drops it while it is in force.
            residents.acquire(patch)
        try:
            if patch is not None:
                await residents.ready(patch)
            async with self._closed():
                await self._write(patch)
                is_final = False

                def keep() -> None:
                    nonlocal is_final
                    is_final = True

                try:
                    yield keep
                finally:
                    if not is_final:
                        await self._write(before)
                    await self._control.engine.resume()
        finally:
            gone = before if self.in_force == patch else patch
            if gone is not None:
                residents.release(gone)
        logger.warning("weights: %s", f"{patch.reference} is in force" if patch else "the model's own")

    @asynccontextmanager
    async def _closed(self) -> AsyncIterator[None]:
        assert self._control is not None
        assert self.door is not None
        timeout_s = self._control.drain_timeout_s
        try:
            # Both at a time: what one waits for, the other needs not wait for again.
            with self._metrics.holding():
                async with together(self.door.closed(timeout_s), self._processes.closed(timeout_s)):
                    yield
        except StillInside as error:
            raise WeightsBusy(
                f"{error.num_inside} requests were still running after {timeout_s:g} s; nothing was changed"
            ) from None

    async def _write(self, patch: ServedPatch | None) -> None:
        assert self._control is not None
        assert self.door is not None
        body = patch.manifest.body if patch is not None else None
        num_changed = body.num_changed if isinstance(body, DeltaBody) else 0
        digest = patch.digest if patch is not None else None
        try:
            await self._control.engine.write(digest, num_changed, timeout_s=self._control.drain_timeout_s)
        except WeightsNotChanged as error:
            # Of an engine that has ended, what was is what holds: in the record.
            with contextlib.suppress(WeightsNotChanged):
                await self._control.engine.resume()
            raise OrderRefused(f"the weights were not changed: {error}") from error
        self.door.weights = patch
