"""What a caller may know: the patches that it may choose or is answered under, and its own default.

Naming a patch that is not among them is refused in the same words whether it is loaded or not, so what is
not listed can't be found out by asking either.
"""

from dataclasses import dataclass

from server.errors import PolicyPatchError
from server.policy.caller import Credentials, identify
from server.policy.decision import default_of
from server.policy.rules import Allowance, Content, Policy, Rule
from server.versions.selection import Wish
from server.versions.view import ServedPatch


@dataclass(frozen=True, slots=True)
class Terms:
    """The view that one caller has of a policy."""

    #: What binds the caller; empty where it may have nothing.
    rules: tuple[Rule, ...]
    alias: Rule
    required: Allowance
    #: What a request gets that names nothing.
    default: Wish | None
    is_patch_required: bool

    @property
    def is_unrestricted(self) -> bool:
        """Whether every patch may be chosen."""
        return bool(self.rules) and all(rule.allow.is_all for rule in self.rules)

    def sees(self, patch: ServedPatch) -> bool:
        """Return whether the caller may know of ``patch``."""
        parts = patch.manifest.components
        return self._knows(patch) or (bool(parts) and all(map(self._knows, parts)))

    def sees_name(self, name: str) -> bool:
        """Return whether the caller may know of some version of ``name``."""
        return bool(self.rules) and (
            self.required.names(name) or all(rule.allow.names(name) for rule in self.rules)
        )

    def reaches_by_alias(self, patch: ServedPatch) -> bool:
        """Return whether the caller may name ``patch`` behind the served model's name."""
        if not self.rules or not self.alias.allow.fits(patch):
            return False
        return self.required.fits(patch) or all(rule.allow.fits(patch) for rule in self.rules)

    def _knows(self, part: Content) -> bool:
        if not self.rules:
            return False
        given = Allowance(entries=self.default) if isinstance(self.default, tuple) else Allowance()
        return (
            self.required.fits(part) or given.fits(part) or all(rule.allow.fits(part) for rule in self.rules)
        )


def terms_of(credentials: Credentials, policy: Policy) -> Terms:
    """Return the terms of a caller; nothing is visible to one that the policy refuses."""
    required = Allowance(entries=policy.required)
    try:
        rules = identify(credentials, policy).rules(policy)
    except PolicyPatchError:
        return Terms((), policy.alias, required, None, is_patch_required=True)
    wish, _ = default_of(rules, policy)
    is_required = bool(policy.required) or not all(rule.allow_none for rule in rules)
    return Terms(rules, policy.alias, required, wish, is_patch_required=is_required)
