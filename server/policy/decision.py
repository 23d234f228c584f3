"""Who gets which patch: one pure function of caller, wish, view and policy.

It never weakens: what is not available exactly as asked is an error, and the required patches are in front of
every answer or there is no answer. Only callers who may choose a name learn whether it exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from patches.headers import PATCH_HEADER
from server.errors import (
    ALIAS_PARAM,
    PatchForbidden,
    PatchNotReady,
    PolicyPatchError,
    UnsupportedWithPatch,
)
from server.policy.caller import Caller
from server.policy.rules import Policy, Rule
from server.versions.composition import SelectedPatch
from server.versions.selection import (
    BASE,
    OptOut,
    PatchRef,
    Selection,
    Source,
    Wish,
    composition_of,
    resolve_each,
)
from server.versions.view import CatalogView, ServedPatch, component_digests

_PARAMS: dict[Source, str] = {"header": PATCH_HEADER, "alias": ALIAS_PARAM}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for; the header wins over the alias."""

    header: Wish | None = None
    alias: Wish | None = None


NOTHING = Asked()


@dataclass(frozen=True, slots=True)
class Decision:
    """What a request gets, and why: a selection or an error."""

    outcome: Selection | PolicyPatchError
    #: What in the policy decided, such as ``keys.research.allow``; ``catalog`` where nothing in it did.
    rule: str
    #: A sentence for people.
    reason: str

    @property
    def selection(self) -> Selection:
        """The selection.

        Raises:
            PolicyPatchError: There is none.
        """
        if isinstance(self.outcome, PolicyPatchError):
            raise self.outcome from self.outcome.__cause__
        return self.outcome


@dataclass(slots=True)
class _Case:
    """One decision while it is made."""

    view: CatalogView
    #: What required patches are taken from: what holds now, whatever revision the request is decided by.
    newest: CatalogView
    policy: Policy
    rules: tuple[Rule, ...]
    source: Source
    #: Which rule speaks where no later one does.
    rule: str = field(default="catalog")

    @property
    def param(self) -> str:
        return _PARAMS.get(self.source, self.policy.default_label)

    @property
    def bounds(self) -> tuple[Rule, ...]:
        """Everything that has to allow what is named."""
        return (*self.rules, self.policy.alias) if self.source == "alias" else self.rules

    def exempts(self, rule: Rule) -> bool:
        """Return whether ``rule`` lets the required patches be named without listing them."""
        return rule is not self.policy.alias


def decide(
    caller: Caller, asked: Asked, view: CatalogView, policy: Policy, newest: CatalogView | None = None
) -> Decision:
    """Decide what answers a request. Never raises what a request can cause.

    Args:
        caller: Who asks.
        asked: For what.
        view: What names mean for this request.
        policy: What is allowed.
        newest: What names mean now, where ``view`` is as of an earlier revision: required patches are of it.
    """
    wish, source = (asked.header, "header") if asked.header is not None else (asked.alias, "alias")
    if policy.prepared_only and view.may_compose:
        view = replace(view, may_compose=False)
    newest = newest if newest is not None else view
    case = _Case(view, newest, policy, (), source if wish is not None else "default")  # type: ignore[arg-type]
    try:
        case.rules = caller.rules(policy)
        selection = _select(case, wish)
    except PolicyPatchError as error:
        return Decision(error, getattr(error, "rule", None) or case.rule, error.message)
    return Decision(selection, case.rule, _reason(case, selection))


def may_use_base(caller: Caller, policy: Policy) -> bool:
    """Return whether the base model may work for ``caller``; for what runs it without generating.

    Raises:
        PatchForbidden: No rule knows the caller.
    """
    return not policy.required and all(rule.allow_none for rule in caller.rules(policy))


def default_of(rules: Sequence[Rule], policy: Policy) -> tuple[Wish | None, str]:
    """Return what a request gets that names nothing, and which rule says so: tenant, then key, then all."""
    for rule in reversed(rules):
        if rule.default is not None:
            return rule.default, f"{rule.label}.default"
    return policy.default, policy.default_label


def _select(case: _Case, wish: Wish | None) -> Selection:
    policy = case.policy
    if wish is None:
        return _select_default(case)
    if isinstance(wish, OptOut):
        _require_base_allowed(case)
        return Selection(None, case.source)
    _require_names(case, wish)
    required = _required(case)
    case.rule = "catalog"
    chosen = resolve_each(wish, case.view, case.param)
    for ref, patch in zip(wish, chosen, strict=True):
        for rule in case.bounds:
            if not rule.allow.fits(patch) and not (case.exempts(rule) and patch in required):
                raise _not_allowed(case, ref, rule)
    selection = Selection(_compose(case, required, chosen), case.source)
    case.rule = " and ".join(f"{rule.label}.allow" for rule in case.rules)
    if policy.required:
        case.rule = f"required, {case.rule}"
    return selection


def _select_default(case: _Case) -> Selection:
    policy = case.policy
    if policy.require_choice:
        raise PatchForbidden(
            f"this server answers only what names its patch; name one, or 'none', in {PATCH_HEADER} or "
            "behind the model's name (a gateway may have dropped the header)",
            param=PATCH_HEADER,
            rule="require_choice",
        )
    wish, label = default_of(case.rules, policy)
    if isinstance(wish, OptOut) or (wish is None and not policy.required):
        case.source = "none"
        _require_base_allowed(case)
        case.rule = label if wish is not None else _labels(case, "allow_none")
        return BASE
    required = _required(case)
    if wish is None:
        label = "required"
    case.rule = label
    try:
        chosen = resolve_each(wish or (), case.view, label)
        patch = _compose(case, required, chosen)
    except PolicyPatchError as error:
        raise PatchNotReady(f"the default patch can't serve: {error.message}") from error
    if required and wish is not None:
        case.rule = f"required, {label}"
    return Selection(patch, "default")


def _require_base_allowed(case: _Case) -> None:
    named = case.source != "none"
    advice = "'none' is not allowed" if named else f"name one in {PATCH_HEADER}"
    text = f"this server requires a patch; {advice}"
    param = case.param if named else PATCH_HEADER
    message = f"{param}: {text}" if named else text
    if case.policy.required:
        raise PatchForbidden(message, param=param, rule="required")
    for rule in case.bounds:
        if not rule.allow_none:
            raise PatchForbidden(message, param=param, rule=f"{rule.label}.allow_none")
    case.rule = _labels(case, "allow_none")


def _require_names(case: _Case, wish: Sequence[PatchRef]) -> None:
    """Refuse by name, before anything is looked up, so that a refusal does not tell what is loaded."""
    required = {ref.name for ref in case.policy.required}
    for ref in wish:
        for rule in case.bounds:
            if not rule.allow.names(ref.name) and not (case.exempts(rule) and ref.name in required):
                raise _not_allowed(case, ref, rule)


def _not_allowed(case: _Case, ref: PatchRef, rule: Rule) -> PatchForbidden:
    return PatchForbidden(
        f"{case.param}: the policy of this server does not let you choose '{ref}'",
        param=case.param,
        rule=f"{rule.label}.allow",
    )


def _required(case: _Case) -> list[ServedPatch]:
    case.rule = "required"
    try:
        return resolve_each(case.policy.required, case.newest, "required")
    except PolicyPatchError as error:
        raise PatchNotReady(f"a required patch can't serve: {error.message}") from error


def _compose(case: _Case, required: Sequence[ServedPatch], chosen: Sequence[ServedPatch]) -> SelectedPatch:
    """Find the one patch that is ``required``, then ``chosen`` less what is required already."""
    in_front = [patch for patch in required if patch.vector is None]
    named = [patch for patch in chosen if patch.vector is None]
    digests = tuple(patch.digest for patch in in_front)
    if in_front and len(named) == 1 and component_digests(named[0].manifest)[: len(digests)] == digests:
        # A prepared composition that begins with the required ones holds them in front already.
        in_front = []
    vectors = [patch for patch in required if patch.vector is not None]
    patches = [*in_front, *vectors, *(patch for patch in chosen if patch not in (*in_front, *vectors))]
    try:
        return composition_of(patches, case.view, case.param)
    except UnsupportedWithPatch as error:
        if not required:
            raise
        names = ", ".join(patch.reference for patch in required)
        raise type(error)(
            f"{error.message}; this server puts {names} into every answer", param=error.param
        ) from None


def _labels(case: _Case, what: str) -> str:
    return " and ".join(f"{rule.label}.{what}" for rule in case.rules)


def _reason(case: _Case, selection: Selection) -> str:
    who = {"header": "the header names it", "alias": "the model alias names it"}.get(selection.source)
    if selection.patch is None:
        return (f"{who}" if who else "nothing is named") + ", and the base model is allowed"
    front = f"; {len(case.policy.required)} required in front" if case.policy.required else ""
    if who is None:
        return f"nothing is named, so the policy chooses{front}"
    return f"{who}, and it is allowed{front}"
