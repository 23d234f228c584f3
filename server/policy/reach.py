"""What of a policy could serve now, for the metrics: whether a caller could have a patch. Decides nothing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from server.errors import PolicyPatchError
from server.policy.caller import Caller
from server.policy.rules import Policy, Rule
from server.versions.selection import resolve_each
from server.versions.view import CatalogView


class Reach:
    """Remembers the answer for each kind of caller, as long as policy and served names stay as they are."""

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._names: Mapping[str, Any] = {}
        self._answers: dict[tuple[str, ...], bool] = {}

    def has_patch(self, caller: Caller, view: CatalogView, policy: Policy) -> bool:
        """Return whether something is served that every rule of ``caller``, whom the policy knows, allows."""
        if self._policy is not policy or self._names is not view.names:
            self._policy, self._names, self._answers = policy, view.names, {}
        rules = caller.rules(policy)
        key = tuple(rule.label for rule in rules)
        if key not in self._answers:
            self._answers[key] = _has_any(rules, view)
        return self._answers[key]


def _has_any(rules: Sequence[Rule], view: CatalogView) -> bool:
    return any(
        all(any(map(rule.allow.fits, named.versions)) for rule in rules) for named in view.names.values()
    )


def references_served(policy: Policy, view: CatalogView) -> Iterator[tuple[str, bool]]:
    """Yield what the policy requires or has as a default, and whether something served fulfils it."""
    for label, references in policy.references():
        for reference in references:
            try:
                resolve_each((reference,), view, label)
            except PolicyPatchError:
                yield str(reference), False
            else:
                yield str(reference), True
