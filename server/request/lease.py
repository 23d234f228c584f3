"""What keeps the tensors of a patch while requests use it, and what ends such a use before its time.

Invariant: while any part of a request, its HTTP exchange or a generation of it, may still use a patch, the
catalog counts the request as in flight.
"""

import asyncio
from types import TracebackType
from typing import Any

from server.catalog.residents import Resident
from server.catalog.served import Served
from server.errors import PatchWithdrawn, PolicyPatchError
from server.metrics.patches import BASE_LABEL, PatchMetrics
from server.request.meter import Meter
from server.request.scope import RequestScope, reject
from server.request.trace import RESIDENCY_SPAN
from server.versions.composition import SelectedPatch

#: What vLLM raises, and answers with 400, where a request can't be run as it was sent. A stream has its
#: status 200 by then, so that the status tells nothing.
_MISTAKES = (ValueError, TypeError, OverflowError, NotImplementedError)


class Lease:
    """One generation under a patch: keeps the tensors."""

    __slots__ = (
        "_leases",
        "_residents",
        "_scope",
        "is_withdrawn",
        "meter",
        "patch",
        "waiting",
    )

    def __init__(self, leases: "Leases", scope: RequestScope, patch: SelectedPatch, meter: Meter) -> None:
        self.patch = patch
        #: What it takes, from now on.
        self.meter = meter
        self._leases = leases
        self._scope = scope
        #: One for each part.
        self._residents: tuple[Resident, ...] = ()
        #: The task that waits for the engine's next output, as long as it does. Who waits sets and clears it,
        #: with every token.
        self.waiting: asyncio.Task[Any] | None = None
        #: An operator dropped the patch: nothing more may be taken from the engine.
        self.is_withdrawn = False

    def __enter__(self) -> "Lease":
        try:
            self._leases.hold(self._scope)
        except PolicyPatchError as error:
            raise reject(error) from None
        self._residents = self._leases.residents(self.patch)
        for resident in self._residents:
            resident.uses.add(self)
        self.is_withdrawn = any(resident.is_withdrawn for resident in self._residents)
        self._scope.num_leases += 1
        self._scope.reached_engine = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        scope = self._scope
        for resident in self._residents:
            resident.uses.discard(self)
        # Cancellation and a closed generator are no Exceptions: they mean that the client went away.
        if (
            isinstance(error, _MISTAKES)
            and self.meter.token_s is None
            and not isinstance(error, PolicyPatchError)
        ):
            scope.note_mistake()
        elif isinstance(error, PolicyPatchError) or (isinstance(error, Exception) and not scope.is_mistaken):
            scope.has_failed = True
            if isinstance(error, PolicyPatchError) and scope.error is None:
                scope.error = error
        scope.num_leases -= 1
        if scope.judge_later is not None and scope.num_leases == 0:
            judge, scope.judge_later = scope.judge_later, None
            judge(_outcome(scope, kind))
        self._leases.release(scope)

    async def ready(self) -> None:
        """Wait until the patch can act on a request; other requests continue meanwhile.

        Raises:
            PatchNotReady: It is unavailable.
        """
        with self._scope.trace.span(RESIDENCY_SPAN):
            try:
                await self._leases.wait_ready(self.patch)
            except PolicyPatchError as error:
                raise reject(error) from None
        self.meter.sent()

    def require_not_withdrawn(self) -> None:
        """Return where the waiting task, which was cancelled, was so by someone else than ``withdraw``.

        Raises:
            PatchWithdrawn: It was not.
        """
        # A cancellation by anyone else takes precedence.
        if self.is_withdrawn and self.waiting is not None and self.waiting.uncancel() == 0:
            raise self.withdrawal() from None

    def decided(self, *, is_met: bool, margin: float) -> None:
        """Note whether the condition of the patch was met, and by how much."""
        self._scope.conditions.append((is_met, margin))

    def withdraw(self) -> None:
        """End this generation with an error; the engine notices as it does where a client goes away."""
        self.is_withdrawn = True
        if self.waiting is not None:
            self.waiting.cancel()

    def withdrawal(self) -> PatchWithdrawn:
        """Return the error that ends a generation whose patch was dropped, recorded as the answer."""
        error = PatchWithdrawn(f"patch '{self.patch.reference}' was withdrawn while it was answering")
        return reject(error)


def _outcome(scope: RequestScope, kind: type[BaseException] | None) -> str:
    if scope.has_failed:
        return "server_error"
    if scope.is_mistaken:
        return "client_error"
    return "ok" if kind is None else "cancelled"


class Leases:
    """Counts requests as in flight for what answers them, and hands out leases."""

    def __init__(self, catalog: Served, metrics: PatchMetrics) -> None:
        self._catalog = catalog
        self._metrics = metrics

    def lease(self, scope: RequestScope, patch: SelectedPatch) -> Lease:
        """Return a lease on ``patch``, which ``scope`` was decided for; it holds from entering it."""
        return Lease(self, scope, patch, Meter(self._metrics.use(patch.name), scope))

    def base_meter(self, scope: RequestScope) -> Meter:
        """Return what counts a generation of the base model, which begins now."""
        return Meter(self._metrics.use(BASE_LABEL), scope)

    def count_base(self, scope: RequestScope) -> None:
        """Count ``scope`` as running on the base model, until it holds a patch or is released."""
        scope.is_counted_as_base = True
        self._metrics.num_base_running += 1

    def hold(self, scope: RequestScope) -> None:
        """Count ``scope`` as in flight for its patch, once.

        Raises:
            PatchNotReady: The patch is not resident any more.
        """
        patch = scope.selection.patch if scope.selection is not None else None
        if patch is None or scope.holds_patch:
            return
        self._catalog.residents.acquire(patch)
        scope.holds_patch = True
        self._uncount_base(scope)

    def release(self, scope: RequestScope) -> None:
        """Stop counting ``scope`` once neither its HTTP exchange nor a generation of it is left."""
        if not scope.is_closed:
            return
        if not scope.num_generations and scope.passage is not None:
            scope.passage.leave()
        self._uncount_base(scope)
        if scope.num_leases == 0 and scope.holds_patch:
            assert scope.selection is not None
            assert scope.selection.patch is not None
            scope.holds_patch = False
            self._catalog.residents.release(scope.selection.patch)

    def residents(self, patch: SelectedPatch) -> tuple[Resident, ...]:
        """Return what the catalog knows of the parts of ``patch``, which is held."""
        return tuple(self._catalog.residents[part.digest] for part in patch.parts)

    async def wait_ready(self, patch: SelectedPatch) -> None:
        """Return once every worker holds ``patch``.

        Raises:
            PatchNotReady: They could not.
        """
        await self._catalog.residents.ready(patch)

    def _uncount_base(self, scope: RequestScope) -> None:
        if scope.is_counted_as_base:
            scope.is_counted_as_base = False
            self._metrics.num_base_running -= 1
