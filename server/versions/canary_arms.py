"""Which version a bare name means for one request, while a canary runs."""

from dataclasses import replace
from types import MappingProxyType

from server.versions.canary import is_chosen
from server.versions.composition import SelectedPatch
from server.versions.sticky import Shown
from server.versions.view import CatalogView, NamedPatch, component_digests


class CanaryViews:
    """Knows the view of a request's arm. Views are made once for each set of canaries that a request gets."""

    def __init__(self) -> None:
        self._view = CatalogView()
        self._views: dict[frozenset[str], CatalogView] = {}

    def view_for(self, view: CatalogView, request: Shown) -> CatalogView:
        """Return the view in which names mean what they mean for one request.

        Args:
            view: What serves now.
            request: What a canary may stick to.
        """
        if not view.canaries:
            return view
        chosen = frozenset(
            name
            for name, arm in view.canaries.items()
            if is_chosen(arm.canary, name, arm.canary.sticks_to.value_of(request))
        )
        if not chosen:
            return view
        if self._view is not view:
            self._view, self._views = view, {}
        if chosen not in self._views:
            self._views[chosen] = _with_canaries(view, chosen)
        return self._views[chosen]


def arm_of(view: CatalogView, patch: SelectedPatch) -> tuple[str, str] | None:
    """Return which arm of which name answers with ``patch``; ``None`` where none with a canary takes part."""
    if not view.canaries:
        return None
    digests = {digest for part in patch.parts for digest in (part.digest, *component_digests(part.manifest))}
    for name, arm in view.canaries.items():
        if arm.patch.digest in digests:
            return name, "canary"
        active = view.names[name].active
        if active is not None and active.digest in digests:
            return name, "stable"
    return None


def _with_canaries(view: CatalogView, chosen: frozenset[str]) -> CatalogView:
    names = dict(view.names)
    for name in chosen:
        named = names[name]
        names[name] = NamedPatch(named.name, named.versions, named.by_version, view.canaries[name].patch)
    return replace(view, names=MappingProxyType(names))
