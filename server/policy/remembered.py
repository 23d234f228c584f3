"""Decisions that were made before, as long as what they follow from stays as it is.

``decide`` is a pure function, and most requests of a server ask for the same few things. What it refuses is
decided anew each time: an error belongs to one request.
"""

from server.errors import PolicyPatchError
from server.policy.caller import Caller
from server.policy.decision import Asked, Decision, decide
from server.policy.rules import Policy
from server.versions.view import CatalogView

#: Then all are forgotten: what callers may write has no end.
MAX_DECISIONS = 1024


class Decisions:
    """Remembers what callers got for what they asked, under one policy and one view."""

    def __init__(self) -> None:
        self._policy: Policy | None = None
        self._view: CatalogView | None = None
        self._made: dict[tuple[Caller, Asked], Decision] = {}

    def decide(self, caller: Caller, asked: Asked, view: CatalogView, policy: Policy) -> Decision:
        """Return what ``decide`` does."""
        if self._policy is not policy or self._view is not view:
            self._policy, self._view = policy, view
            self._made.clear()
        decision = self._made.get((caller, asked))
        if decision is None:
            decision = decide(caller, asked, view, policy)
            if not isinstance(decision.outcome, PolicyPatchError):
                if len(self._made) >= MAX_DECISIONS:
                    self._made.clear()
                self._made[caller, asked] = decision
        return decision
