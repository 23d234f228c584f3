"""What the engine client asks about the request that it is running for, and nothing else.

Invariants: a request is decided once and keeps its version to the last token; without an HTTP request there
is no answer but an error; while any part of a request may still use a patch, the catalog counts it as in
flight.

Every call is made on the event loop's thread, costs a few dictionary look-ups, and never blocks.
"""

from collections.abc import Sequence
from typing import TypeVar

from server.admin.canary_watch import ArmReports
from server.audit import Audit, NullAudit
from server.catalog.residents import Resident
from server.catalog.served import Served
from server.errors import HEADER_PARAM, PolicyPatchError, UnsupportedWithPatch
from server.metrics.patches import PatchMetrics
from server.policy.caller import Caller, Credentials, identify
from server.policy.decision import Asked, decide, may_use_base
from server.policy.rules import Policy
from server.policy.terms import Terms, terms_of
from server.request.lease import Lease
from server.request.prompt_routes import RouteKind
from server.request.scope import RequestScope, current_credentials, current_scope
from server.versions.aliases import alias_wish
from server.versions.canary import USER_KEY
from server.versions.canary_arms import CanaryViews, arm_of
from server.versions.composition import SelectedPatch
from server.versions.selection import BASE, OptOut, Selection, parse_policy_header

AnyPolicyPatchError = TypeVar("AnyPolicyPatchError", bound=PolicyPatchError)


class PatchGate:
    """Decides for requests and hands out leases on patches."""

    def __init__(
        self,
        catalog: Served,
        policy: Policy,
        metrics: PatchMetrics,
        *,
        served_names: Sequence[str] = (),
        audit: Audit | None = None,
    ) -> None:
        #: Replaced as a whole where a policy is reloaded; requests that are decided keep their decision.
        self.policy = policy
        #: Where every decision is written down.
        self.audit: Audit = audit if audit is not None else NullAudit()
        self._catalog = catalog
        self._metrics = metrics
        self._served_names = tuple(served_names)
        #: Told how requests of names with a canary went.
        self.canaries: ArmReports | None = None
        self._canary_views = CanaryViews()

    def selection(self) -> Selection:
        """Give the decision for the current request, the same one however often it is asked.

        Raises:
            PolicyPatchError: There is no current request, or it can't have what it asks for.
        """
        return self.decide(_require_scope())

    def cache_partition(self) -> str | None:
        """Name the part of the prefix cache that the current request, which is decided, may use."""
        return _require_scope().cache_partition

    def note_alias(self, model: str) -> bool:
        """Read the current request's ``model``, and decide on what it names; a header wins over it.

        To be called where a route validates ``model``, which is before any answer starts.

        Returns:
            Whether ``model`` is an alias.

        Raises:
            PolicyPatchError: It is an alias of something that can't be had.
        """
        scope = current_scope.get()
        if scope is not None and model not in self._served_names:
            scope.alias_text = model
        try:
            wish = alias_wish(model, self._served_names)
        except PolicyPatchError as error:
            raise self.reject(error) from None
        if wish is None:
            return False
        if scope is None:
            scope = _require_scope()
        if scope.selection is None:
            scope.alias = wish
        elif scope.header is None and scope.alias != wish:
            raise self.reject(PolicyPatchError("model: the alias changed while the request was running"))
        self.decide(scope)
        return True

    def lease(self, patch: SelectedPatch) -> Lease:
        """Keep ``patch`` resident while one generation of the current request runs; a context manager.

        Entering raises ``PatchNotReady`` where the patch is no longer resident.

        Raises:
            PolicyPatchError: There is no current request, or it was decided for another patch.
        """
        scope = _require_scope()
        if scope.selection is None or scope.selection.patch != patch:
            raise self.reject(PolicyPatchError(f"lease: the request was not decided for {patch.reference}"))
        return Lease(self, scope, patch, self._metrics.latency(patch.name))

    async def wait_ready(self, patch: SelectedPatch) -> None:
        """Return once every worker holds ``patch``. For leases.

        Raises:
            PatchNotReady: They can't.
        """
        await self._catalog.residents.ready(patch)

    def reject(self, error: AnyPolicyPatchError) -> AnyPolicyPatchError:
        """Record ``error`` as the answer to the current request and give it back: ``raise gate.reject(...)``.

        vLLM's handlers turn exceptions into answers of their own, on streams with status 200. As long as
        nothing of the body is sent, the middleware replaces such an answer by the recorded error.
        """
        scope = current_scope.get()
        if scope is not None and scope.error is None:
            scope.error = error
        return error

    def refuse_if_patched(self, feature: str) -> None:
        """Raise where the current request names or requires a patch; for what never generates (``encode``).

        A default patch that the policy does not require is no reason to refuse: the base model answers.

        Raises:
            UnsupportedWithPatch: ``feature`` can't be had with a patch.
            PatchForbidden: The caller may have nothing.
        """
        scope = _require_scope()
        if scope.selection is None:
            self._catalog.require_in_step()
            wish = scope.header if scope.header is not None else scope.alias
            try:
                self._require_base(scope, feature)
            except PolicyPatchError as error:
                raise self.reject(error) from None
            if isinstance(wish, tuple):
                raise self.reject(unsupported(feature))
            scope.selection = BASE
        elif scope.selection.patch is not None:
            raise self.reject(unsupported(feature))

    def open(self, scope: RequestScope, header_values: Sequence[bytes]) -> None:
        """Begin a request; what its header names is decided at once. For the middleware.

        Raises:
            PolicyPatchError: The header can't be honoured on this route, the caller may have nothing, or this
                process is not in step.
        """
        kind = scope.kind
        if kind is not RouteKind.OTHER:
            self._catalog.require_in_step()
            # Before anything is read of the request: who may have nothing learns nothing.
            self._identify(scope, self.policy).rules(self.policy)
        scope.header = parse_policy_header(header_values)
        if not kind.is_generating:
            if isinstance(scope.header, tuple):
                raise unsupported("this route")
            if kind is RouteKind.ENCODES:
                self._require_base(scope, "this route")
        elif scope.header is not None:
            self.decide(scope)
        if kind.is_generating and not scope.holds_patch:
            scope.is_counted_as_base = True
            self._metrics.num_base_running += 1

    def open_websocket(self, scope: RequestScope, header_values: Sequence[bytes]) -> None:
        """Begin a connection whose input never ends, which only the base model can answer.

        Raises:
            PolicyPatchError: A patch is named, or is what the caller gets.
        """
        scope.header = parse_policy_header(header_values)
        if isinstance(scope.header, tuple) or self.decide(scope).patch is not None:
            raise unsupported("realtime input over a WebSocket")

    def decide(self, scope: RequestScope) -> Selection:
        """Decide ``scope`` where that is still to be done, and count it as in flight. For the middleware."""
        if scope.selection is not None:
            return scope.selection
        if scope.error is not None:
            raise scope.error
        # One policy for the whole decision, and the one that holds now: a key that was taken out of the file
        # while the request's body was on its way is taken out.
        try:
            self._catalog.require_in_step()
            policy = self.policy
            caller = self._identify(scope, policy)
            now = self._catalog.view
            view = self._canary_views.view_for(now, scope.sticky_value)
            asked = Asked(scope.header, scope.alias)
            decision = decide(caller, asked, view, policy)
            if view is not now and isinstance(decision.outcome, PolicyPatchError):
                # The caller may have no right to the canary, or a composition with it may be missing.
                decision = decide(caller, asked, now, policy)
            scope.rule = decision.rule
            selection = decision.selection
            if scope.kind is RouteKind.ENCODES and selection.patch is not None:
                raise unsupported("this route")
            scope.selection = selection
            scope.arm = arm_of(now, selection.patch) if selection.patch is not None else None
            self.hold(scope)
        except PolicyPatchError as error:
            scope.selection, scope.error = None, error
            raise
        return selection

    @property
    def wants_user(self) -> bool:
        """Whether a canary sticks to the ``user`` of the body, which has to be read ahead then."""
        return any(arm.canary.key == USER_KEY for arm in self._catalog.view.canaries.values())

    def finished(self, scope: RequestScope, outcome: str) -> None:
        """Tell the canaries how a request went. For the middleware."""
        if scope.arm is not None and self.canaries is not None:
            self.canaries.finished(*scope.arm, outcome, scope.first_token_s)

    def terms(self, credentials: Credentials) -> Terms:
        """Tell what the policy lets who shows ``credentials`` know.

        Raises:
            NotInStep: It can't be told which policy is in force.
        """
        self._catalog.require_in_step()
        return terms_of(credentials, self.policy)

    def aliases(self, served_name: str) -> list[str]:
        """List the model names under which the current caller reaches the patches of ``served_name``."""
        terms = self.terms(current_credentials.get())
        return [
            f"{served_name}:{name}"
            for name, named in sorted(self._catalog.view.names.items())
            if any(terms.reaches_by_alias(patch) for patch in named.versions)
        ]

    def _identify(self, scope: RequestScope, policy: Policy) -> Caller:
        scope.caller = caller = identify(scope.credentials, policy)
        scope.cache_partition = caller.cache_partition(policy)
        return caller

    def _require_base(self, scope: RequestScope, feature: str) -> None:
        policy = self.policy
        if not may_use_base(self._identify(scope, policy), policy):
            raise unsupported(feature)

    def hold(self, scope: RequestScope) -> None:
        """Count ``scope`` as in flight for its patch, once. For leases."""
        patch = scope.selection.patch if scope.selection is not None else None
        if patch is None or scope.holds_patch:
            return
        self._catalog.residents.acquire(patch)
        scope.holds_patch = True
        self._uncount_base(scope)

    def close(self, scope: RequestScope) -> None:
        """End the HTTP exchange of ``scope``. For the middleware."""
        scope.is_closed = True
        self._uncount_base(scope)
        self.release_if_idle(scope)

    def residents(self, patch: SelectedPatch) -> tuple[Resident, ...]:
        """Give what the catalog knows of the parts of ``patch``, which is held. For leases."""
        return tuple(self._catalog.residents[part.digest] for part in patch.parts)

    def release_if_idle(self, scope: RequestScope) -> None:
        """Stop counting ``scope`` once neither its HTTP exchange nor a generation of it is left."""
        if scope.is_closed and scope.num_leases == 0 and scope.holds_patch:
            assert scope.selection is not None
            assert scope.selection.patch is not None
            scope.holds_patch = False
            self._catalog.residents.release(scope.selection.patch)

    def _uncount_base(self, scope: RequestScope) -> None:
        if scope.is_counted_as_base:
            scope.is_counted_as_base = False
            self._metrics.num_base_running -= 1


def unsupported(feature: str) -> UnsupportedWithPatch:
    """Make the error for a route or an option that can't be had with a patch."""
    return UnsupportedWithPatch(
        f"{feature} can't be used with a patch; leave {HEADER_PARAM} out, or send '{OptOut.NONE.value}' in it"
    )


def _require_scope() -> RequestScope:
    scope = current_scope.get()
    if scope is None:
        raise PolicyPatchError("no HTTP request is served here, so it can't be told which patch applies")
    return scope
