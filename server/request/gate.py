"""What the engine client asks about the request that it is running for, and nothing else.

Invariants: a request is decided once and keeps its version to the last token; without an HTTP request there
is no answer but an error.

Every call is made on the event loop's thread, costs a few dictionary look-ups, and never blocks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from server.errors import PatchNotReady, PolicyPatchError
from server.request.decider import Decider, unsupported
from server.request.lease import Lease, Leases
from server.request.meter import Meter
from server.request.scope import AnyPolicyPatchError, RequestScope, current_scope, reject
from server.versions.composition import SelectedPatch
from server.versions.selection import Selection


class PatchGate:
    """Answers for the current request; the decider has decided, or does so now."""

    def __init__(self, decider: Decider, leases: Leases) -> None:
        self._decider = decider
        self._leases = leases

    def selection(self) -> Selection:
        """Return the decision for the current request, the same one however often it is asked.

        To be asked by what runs the request next: under a lease, where the decision is a patch.

        Raises:
            PolicyPatchError: There is no current request, or what it asks for is unavailable to it.
        """
        scope = _require_scope()
        selection = self._decider.decide(scope)
        if selection.patch is None:
            scope.reached_engine = True
        return selection

    def num_prefix_tokens(self) -> int:
        """Return the length of the prefix in front of the current request's prompt; 0 where there is none.

        Raises:
            PolicyPatchError: What the request asks for is unavailable to it.
        """
        scope = current_scope.get()
        if scope is None or not scope.kind.is_generating:
            return 0
        patch = self.selection().patch
        return 0 if patch is None else patch.num_tokens

    def sent(self) -> None:
        """Note that a generation of the current request is on its way to the engine."""
        _require_scope().was_sent = True

    def mistaken(self) -> None:
        """Note that the current request can't be run as it was sent; what was not sent claims nothing."""
        _require_scope().note_mistake()

    def cache_partition(self) -> str | None:
        """Return the part of the prefix cache that the current request, which is decided, may use."""
        scope = _require_scope()
        weights = scope.passage.weights if scope.passage is not None else None
        if weights is None:
            return scope.cache_partition
        # K/V of other weights is reset when they change; should any be left, nothing finds it.
        return f"weights:{weights.digest}:{scope.cache_partition or ''}"

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Keep the weights as they are while a generation of the current request runs.

        Raises:
            PatchNotReady: They changed since the request was decided, which had left the door before.
        """
        scope = _require_scope()
        if scope.passage is not None and not scope.passage.is_current:
            again = self._decider.door.try_enter_again(scope.passage) if self._decider.door else None
            if again is None:
                raise reject(PatchNotReady("the weights change while the request waits; send it again"))
            scope.passage = again
        scope.num_generations += 1
        try:
            yield
        finally:
            scope.num_generations -= 1
            self._leases.release(scope)

    def weights(self) -> tuple[str | None] | None:
        """Return what the current request is answered under; ``None`` where weights never change.

        Returns:
            The digest of the weight patch in force, or ``None`` in its place for the model's own weights.
        """
        passage = _require_scope().passage
        if passage is None:
            return None
        return (passage.weights.digest if passage.weights is not None else None,)

    def note_alias(self, model: str) -> bool:
        """Read the current request's ``model``, and decide on what it names; a header wins over it.

        To be called where a route validates ``model``, which is before any answer starts.

        Returns:
            Whether ``model`` is an alias.

        Raises:
            PolicyPatchError: It is an alias of something that is unavailable.
        """
        try:
            return self._decider.take_alias(current_scope.get(), model)
        except PolicyPatchError as error:
            raise reject(error) from None

    def answering_alias(self) -> str | None:
        """Return the ``model`` of the current request, where it is an alias and no header overrules it."""
        scope = current_scope.get()
        is_alias = scope is not None and scope.alias is not None and scope.header is None
        return scope.alias_text if is_alias and scope is not None else None

    def lease(self, patch: SelectedPatch) -> Lease:
        """Keep ``patch`` resident while one generation of the current request runs; a context manager.

        Entering raises ``PatchNotReady`` where the patch is no longer resident.

        Raises:
            PolicyPatchError: There is no current request, or it was decided for another patch.
        """
        scope = _require_scope()
        if scope.selection is None or scope.selection.patch != patch:
            raise reject(PolicyPatchError(f"lease: the request was not decided for {patch.reference}"))
        return self._leases.lease(scope, patch)

    def base_meter(self) -> Meter:
        """Return what counts a generation of the current request on the base model; it begins now."""
        return self._leases.base_meter(_require_scope())

    def engine_trace(self) -> Mapping[str, str] | None:
        """Return the headers by which the engine joins the request's trace; ``None``: as they were sent."""
        return _require_scope().trace.engine_headers()

    def reject(self, error: AnyPolicyPatchError) -> AnyPolicyPatchError:
        """Record ``error`` as the answer to the current request and return it; see ``scope.reject``."""
        return reject(error)

    def refuse_if_patched(self, feature: str) -> None:
        """Raise where the current request names or requires a patch; for what never generates (``encode``).

        A default patch that the policy does not require is no reason to refuse: the base model answers.

        Raises:
            UnsupportedWithPatch: ``feature`` is unavailable with a patch.
            PatchForbidden: The caller may have nothing.
        """
        scope = _require_scope()
        try:
            if scope.selection is None:
                self._decider.decide_base(scope, feature)
            elif scope.selection.patch is not None:
                raise unsupported(feature)
            scope.reached_engine = True
        except PolicyPatchError as error:
            raise reject(error) from None


def _require_scope() -> RequestScope:
    scope = current_scope.get()
    if scope is None:
        raise PolicyPatchError("no HTTP request is being served here, so no patch can be chosen")
    return scope
