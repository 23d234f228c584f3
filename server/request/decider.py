"""Decides what each request gets; asked by the middleware, by routes, and by the gate for the engine client.

Invariants: a request is decided once, by one policy and one view; where this process is not in step with the
others, every request is refused; a caller that may have nothing learns nothing.

Every call is made on the event loop's thread, costs a few dictionary look-ups, and never blocks.
"""

import time
from collections.abc import Iterable, Sequence

from patches.headers import ADAPTER_HEADER, PATCH_HEADER
from server.admin.canary_watch import ArmReports
from server.audit import Audit, NullAudit
from server.catalog.door import Door
from server.catalog.served import Served
from server.errors import ALIAS_PARAM, NotInStep, PatchNotFound, PolicyPatchError, UnsupportedWithPatch
from server.policy.caller import Caller, Credentials, identify
from server.policy.decision import Asked, Decision, decide, may_use_base
from server.policy.reach import Reach, references_served
from server.policy.remembered import Decisions
from server.policy.rules import Policy
from server.policy.terms import Terms, terms_of
from server.request.lease import Leases
from server.request.prompt_routes import RouteKind
from server.request.scope import RequestScope, current_credentials
from server.request.trace import SELECT_SPAN
from server.versions.aliases import alias_wish
from server.versions.as_of import RevisionViews
from server.versions.canary_arms import CanaryViews, arm_of
from server.versions.revision import parse_revision_header
from server.versions.selection import BASE, OptOut, Selection, parse_policy_header
from server.versions.view import CatalogView

#: What stands between a model and a patch, also as it is written in East Asian text.
_COLONS = (":", "\uff1a")


class Decider:
    """Decides for requests by the policy that holds and what the catalog serves."""

    def __init__(
        self,
        catalog: Served,
        policy: Policy,
        leases: Leases,
        *,
        served_names: Sequence[str] = (),
        audit: Audit | None = None,
    ) -> None:
        #: Replaced as a whole where a policy is reloaded; requests that are decided keep their decision.
        self.policy = policy
        #: Where every decision is written down.
        self.audit: Audit = audit if audit is not None else NullAudit()
        #: Receives how requests of names with a canary went.
        self.canaries: ArmReports | None = None
        #: Where requests enter; ``None`` where weights never change.
        self.door: Door | None = None
        self._catalog = catalog
        self._leases = leases
        self._served_names = tuple(served_names)
        #: Whether nothing may be decided before a revision of a fleet's catalog holds.
        self.follows_fleet = False
        self._canary_views = CanaryViews()
        self._revision_views = RevisionViews()
        self._canary_views_as_of = CanaryViews()
        self._decisions = Decisions()
        self._reach = Reach()

    def open(
        self, scope: RequestScope, header_values: Sequence[bytes], as_of_values: Sequence[bytes] = ()
    ) -> None:
        """Begin a request; what its headers name is decided at once.

        Raises:
            PolicyPatchError: The header can't be honoured on this route, the caller may have nothing, or this
                process is not in step.
        """
        kind = scope.kind
        if kind is not RouteKind.OTHER:
            self.require_in_step()
            # Before anything else is read of the request: a caller that may have nothing learns nothing.
            self._identify(scope, self.policy).rules(self.policy)
        scope.header = parse_policy_header(header_values)
        if as_of_values:
            scope.as_of = parse_revision_header(as_of_values)
        if not kind.is_generating:
            if isinstance(scope.header, tuple):
                raise unsupported("this route")
            if kind is RouteKind.ENCODES:
                self._require_base(scope, "this route")
        elif scope.header is not None:
            self.decide(scope)
        if kind.is_generating and not scope.holds_patch:
            self._leases.count_base(scope)

    def open_websocket(self, scope: RequestScope, header_values: Sequence[bytes]) -> None:
        """Begin a connection whose input never ends, which only the base model can answer.

        Raises:
            PolicyPatchError: A patch is named, or is what the caller gets.
        """
        scope.header = parse_policy_header(header_values)
        if isinstance(scope.header, tuple) or self.decide(scope).patch is not None:
            raise unsupported("realtime input over a WebSocket")

    def decide(self, scope: RequestScope) -> Selection:
        """Decide ``scope`` where that is still to be done, and count it as in flight.

        Raises:
            PolicyPatchError: What it asks for is unavailable to it; the same one however often it is asked.
        """
        if scope.selection is not None:
            return scope.selection
        if scope.error is not None:
            raise scope.error
        if scope.kind is RouteKind.NEUTRAL:
            # Its header was not even read.
            raise PolicyPatchError("this route was taken to touch no model, so no patch was decided for it")
        try:
            self.require_in_step()
            with scope.trace.span(SELECT_SPAN):
                return self._select(scope)
        except PolicyPatchError as error:
            scope.selection, scope.error = None, error
            raise

    def decide_base(self, scope: RequestScope, feature: str) -> None:
        """Decide that the base model answers ``scope``, which is not decided yet, for what has no patch.

        Raises:
            UnsupportedWithPatch: The request names a patch, or its caller has to have one.
            PatchForbidden: The caller may have nothing.
            NotInStep: This process is not in step.
        """
        self.require_in_step()
        self._require_base(scope, feature)
        if isinstance(scope.header if scope.header is not None else scope.alias, tuple):
            raise unsupported(feature)
        scope.selection = BASE

    def take_alias(self, scope: RequestScope | None, model: str) -> bool:
        """Decide on what ``model`` names behind a served name, if anything; a header wins over it.

        Returns:
            Whether it is an alias.

        Raises:
            PolicyPatchError: It is an alias of what is unavailable, of another patch than before, or
                there is no request.
        """
        if scope is not None and model not in self._served_names:
            scope.alias_text = model
        wish = alias_wish(model, self._served_names)
        if wish is None:
            return False
        if scope is None:
            raise PolicyPatchError("no HTTP request is being served here, so no patch can be chosen")
        if scope.kind is RouteKind.NEUTRAL:
            # As the header there: what touches no model needs no patch, and claims none.
            return True
        if scope.selection is None:
            scope.alias = wish
        elif scope.header is None and scope.alias != wish:
            raise PolicyPatchError("model: the alias changed while the request was running")
        self.decide(scope)
        return True

    def take_lost_model(self, scope: RequestScope, model: str, replaced_by: str | None) -> None:
        """Decide on a ``model`` that the route will not see, and so will not refuse either.

        Such routes take any name for the served model. One with a colon is a patch's alias that was written
        for another name, and the base model must not answer in its place.

        Args:
            scope: The request.
            model: What its body says.
            replaced_by: What the route will see in its place, and ask about; ``None`` where that is nothing.

        Raises:
            PatchNotFound: It may name a patch behind a model that is not served, and no header decides.
            UnsupportedWithPatch: It may name a patch, and something else takes its place.
            PolicyPatchError: As ``take_alias``.
        """
        may_name_patch = model not in self._served_names and any(colon in model for colon in _COLONS)
        if replaced_by is not None:
            if scope.header is None and may_name_patch and model != replaced_by:
                raise self._refused(
                    scope,
                    UnsupportedWithPatch(
                        f"model: {model!r} can't be used beside {ADAPTER_HEADER}, which takes its place; "
                        "leave one of the two out"
                    ),
                )
        elif not self.take_alias(scope, model) and may_name_patch and scope.header is None:
            served = ", ".join(self._served_names)
            message = f"model: expected one of {served}, or an alias of it, got {model!r}"
            raise self._refused(scope, PatchNotFound(message))

    def require_in_step(self) -> None:
        """Return where this process may decide.

        Raises:
            NotInStep: It does not know for sure what serves.
        """
        self._catalog.require_in_step()
        if self.follows_fleet and self._catalog.view.fleet is None:
            raise NotInStep("no revision of the fleet's catalog is in force here yet; try again")

    def require_current(self) -> None:
        """Return where this process decides by what the whole fleet is to serve.

        Raises:
            NotInStep: It does not know what serves, or a newer revision should be in force by now.
            CatalogStale: The lease of the catalog has run out.
        """
        self.require_in_step()
        if (fleet := self._catalog.view.fleet) is not None:
            fleet.require_current(time.monotonic())

    def needs(self) -> Iterable[tuple[str, bool]]:
        """Yield what the policy requires or has as a default, and whether it is served."""
        return references_served(self.policy, self._catalog.view)

    async def enter(self, scope: RequestScope) -> None:
        """Have ``scope`` enter, before anything is decided for it, once weights stay as they are."""
        if self.door is not None:
            scope.passage = await self.door.enter()

    @property
    def wants_user(self) -> bool:
        """Whether a canary sticks to the ``user`` of the body, which has to be read ahead then."""
        return any(arm.canary.sticks_to.needs_body for arm in self._catalog.view.canaries.values())

    def finished(self, scope: RequestScope, outcome: str) -> None:
        """Report to the canaries how a request went, unless it chose its arm by naming the version.

        A canary is tried on a share of what names the bare name; a caller of one version proves nothing.
        """
        if scope.arm is None or self.canaries is None:
            return
        name, arm = scope.arm
        wish = scope.header if scope.header is not None else scope.alias
        refs = wish if isinstance(wish, tuple) else ()
        if not any(ref.name == name and (ref.version or ref.digest) for ref in refs):
            self.canaries.finished(name, arm, outcome, scope.first_token_s, scope.is_met(name))

    def close(self, scope: RequestScope) -> None:
        """End the HTTP exchange of ``scope``; generations in the background may still run."""
        scope.is_closed = True
        self._leases.release(scope)

    def terms(self, credentials: Credentials) -> Terms:
        """Return what the policy lets a caller with these credentials know.

        Raises:
            NotInStep: This process does not know which policy is in force.
        """
        self.require_in_step()
        return terms_of(credentials, self.policy)

    def aliases(self, served_name: str) -> dict[str, int]:
        """Return the model names under which the current caller reaches the patches of ``served_name``.

        Returns:
            Name -> tokens of the prefix: of the active version, or of the longest where none is active.
        """
        terms = self.terms(current_credentials.get())
        aliases = {}
        for name, named in sorted(self._catalog.view.names.items()):
            if any(terms.reaches_by_alias(patch) for patch in named.versions):
                meant = named.versions if named.active is None else (named.active,)
                aliases[f"{served_name}:{name}"] = max(patch.num_tokens for patch in meant)
        return aliases

    def _select(self, scope: RequestScope) -> Selection:
        # One policy for the whole decision, and the one that holds now: a key that was taken out of the file
        # while the request's body was on its way is taken out.
        policy = self.policy
        caller = self._identify(scope, policy)
        now = self._catalog.view
        if now.fleet is not None or scope.as_of is not None:
            decision, view = self._decide_in_fleet(scope, caller, now, policy)
        else:
            decision, view = self._decide_now(scope, caller, now, policy), now
        scope.rule = decision.rule
        selection = decision.selection
        # An unlisted route that reaches the engine gets what the policy demands, and never what is named.
        is_closed = scope.kind is RouteKind.ENCODES or isinstance(scope.alias, tuple)
        if not scope.kind.is_generating and is_closed and selection.patch is not None:
            raise unsupported("this route")
        scope.selection = selection
        scope.arm = arm_of(view, selection.patch) if selection.patch is not None else None
        scope.is_unpatched = selection.patch is None and self._reach.has_patch(caller, now, policy)
        if now.kept and selection.patch is not None:
            scope.is_mismatched = any(part.digest in now.kept for part in selection.patch.parts)
        self._leases.hold(scope)
        scope.trace.describe(scope.known)
        return selection

    def _decide_now(self, scope: RequestScope, caller: Caller, now: CatalogView, policy: Policy) -> Decision:
        view = self._canary_views.view_for(now, scope)
        asked = Asked(scope.header, scope.alias)
        if view is now:
            return self._decisions.decide(caller, asked, now, policy)
        decision = decide(caller, asked, view, policy)
        if isinstance(decision.outcome, PolicyPatchError):
            # The caller may have no right to the canary, or a composition with it may be missing.
            decision = decide(caller, asked, now, policy)
        return decision

    def _decide_in_fleet(
        self, scope: RequestScope, caller: Caller, now: CatalogView, policy: Policy
    ) -> tuple[Decision, CatalogView]:
        """Decide by the revision that the request wants; return the view as of it, too."""
        fleet = now.fleet
        if fleet is not None and time.monotonic() >= fleet.lease_ends_s:
            fleet.require_lease(needs_patch=not may_use_base(caller, policy))
        scope.revision = fleet.number if fleet is not None else None
        if scope.as_of is None:
            return self._decide_now(scope, caller, now, policy), now
        then = self._revision_views.view_for(now, scope.as_of)
        if then is now:
            return self._decide_now(scope, caller, now, policy), now
        scope.revision = scope.as_of
        asked, newest = Asked(scope.header, scope.alias), self._canary_views.view_for(now, scope)
        view = self._canary_views_as_of.view_for(then, scope)
        decision = decide(caller, asked, view, policy, newest)
        if view is not then and isinstance(decision.outcome, PolicyPatchError):
            decision = decide(caller, asked, then, policy, newest)
        return decision, then

    def _identify(self, scope: RequestScope, policy: Policy) -> Caller:
        if scope.identified_by is policy and scope.caller is not None:
            # What a request shows of its caller never changes, and neither does a policy.
            return scope.caller
        scope.caller = caller = identify(scope.credentials, policy)
        scope.caller_class = caller.rule_label(policy)
        scope.cache_partition = caller.cache_partition(policy)
        scope.identified_by = policy
        return caller

    @staticmethod
    def _refused(scope: RequestScope, error: PolicyPatchError) -> PolicyPatchError:
        """Refuse ``scope`` for what its ``model`` says, and return the error to be raised."""
        error.param = ALIAS_PARAM
        scope.selection, scope.error = None, error
        return error

    def _require_base(self, scope: RequestScope, feature: str) -> None:
        policy = self.policy
        if not may_use_base(self._identify(scope, policy), policy):
            raise unsupported(feature)


def unsupported(feature: str) -> UnsupportedWithPatch:
    """Make the error for a route or an option that is unavailable with a patch."""
    return UnsupportedWithPatch(
        f"{feature} can't be used with a patch; leave {PATCH_HEADER} out, or send '{OptOut.NONE.value}' in it"
    )
