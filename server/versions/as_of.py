"""Views as of an earlier revision of the fleet's catalog. Pure.

A revision decides what bare names and canary arms mean, and nothing else: which contents there are, what is
required of everybody and what is revoked is always what holds now.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from server.errors import NotInStep, RevisionGone
from server.versions.revision import FleetMeaning
from server.versions.view import CanaryArm, CatalogView, NamedPatch


class RevisionViews:
    """Knows the view as of each earlier revision; made once for each view."""

    def __init__(self) -> None:
        self._view = CatalogView()
        self._views: dict[int, CatalogView] = {}

    def view_for(self, view: CatalogView, revision: int) -> CatalogView:
        """Return the view in which bare names mean what they meant in ``revision``.

        Raises:
            NotInStep: This server has not got so far.
            RevisionGone: It is not retained any more, or nothing of a fleet is served here.
        """
        fleet = view.fleet
        if fleet is None:
            raise RevisionGone("this server follows no catalog of a fleet, so it has no revisions")
        if revision == fleet.number:
            return view
        if revision > fleet.number:
            raise NotInStep(f"revision {revision} of the catalog is not in force here yet; try again")
        if self._view is not view:
            self._view, self._views = view, {}
        if revision not in self._views:
            if revision not in fleet.retained:
                kept = min(fleet.retained, default=fleet.number)
                raise RevisionGone(
                    f"revision {revision} of the catalog is not retained (from {kept} on are); begin anew "
                    "without it"
                )
            self._views[revision] = _as_of(view, fleet.retained[revision])
        return self._views[revision]


def _as_of(view: CatalogView, then: Mapping[str, FleetMeaning | None]) -> CatalogView:
    names, canaries = dict(view.names), dict(view.canaries)
    for name, meaning in then.items():
        canaries.pop(name, None)
        named = names.get(name)
        if named is None:
            continue
        by_digest = {patch.digest: patch for patch in named.versions}
        active = by_digest.get(meaning.active.digest) if meaning is not None else None
        names[name] = NamedPatch(name, named.versions, named.by_version, active)
        canary = meaning.canary if meaning is not None else None
        tried = by_digest.get(canary.target.digest) if canary is not None else None
        if canary is not None and tried is not None:
            canaries[name] = CanaryArm(tried, canary)
    return replace(view, names=MappingProxyType(names), canaries=MappingProxyType(canaries))
