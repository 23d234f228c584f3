"""What a policy says, as values: immutable, and compared by content.

A caller is bound by every rule that knows it: that of its key, that of its tenant, or ``others`` where
neither does. What one of them does not allow is not allowed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from server.errors import MalformedPatchName
from server.policy.connection import TrustedPeers
from server.policy.keys import KeyRing
from server.versions.selection import OptOut, PatchRef, Wish, parse_wish


class Content(Protocol):
    """One version of a patch: a served one, or a component of a composition."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def version(self) -> str:
        """Its semantic version."""

    @property
    def digest(self) -> str:
        """Its content digest."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Which patches may be chosen: all, or those that an entry fits."""

    is_all: bool = False
    entries: tuple[PatchRef, ...] = ()

    def names(self, name: str) -> bool:
        """Return whether some version of ``name`` can fit, loaded or not."""
        return self.is_all or any(entry.name == name for entry in self.entries)

    def fits(self, patch: Content) -> bool:
        """Return whether ``patch`` may be chosen: by content, however the request wrote it."""
        return self.is_all or any(
            entry.name == patch.name
            and entry.version in (None, patch.version)
            and entry.digest in (None, patch.digest)
            for entry in self.entries
        )


ALL = Allowance(is_all=True)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of caller may have."""

    #: Where it stands in the file: ``others``, ``keys.research``, ``tenants.acme``.
    label: str
    allow: Allowance = field(default_factory=Allowance)
    #: What a request gets that names nothing; ``None`` where the policy's own default holds.
    default: Wish | None = None
    #: Whether the base model may answer.
    allow_none: bool = False


@dataclass(frozen=True, slots=True)
class Tenants:
    """Callers that a gateway in front names in a header of its own."""

    #: In lower case, as ASGI has it.
    header: bytes
    trusted: TrustedPeers
    rules: Mapping[str, Rule]
    #: For tenants that have no rule; ``None`` refuses them.
    others: Rule | None = None
    #: Whether a request without the header is refused.
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that decides who gets which patch."""

    #: Always in front of whatever answers, in this order.
    required: tuple[PatchRef, ...] = ()
    #: What a request gets that names nothing, where no rule says otherwise; ``None`` for nothing.
    default: tuple[PatchRef, ...] | None = None
    #: What ``model: "<served name>:<patch>"`` may name, of what the caller may choose.
    alias: Rule = field(default_factory=lambda: Rule("alias", ALL, allow_none=True))
    #: For callers without a listed key and without a tenant; ``None`` refuses them.
    others: Rule | None = None
    key_ring: KeyRing = field(default_factory=KeyRing)
    key_rules: Mapping[str, Rule] = field(default_factory=lambda: MappingProxyType({}))
    tenants: Tenants | None = None
    #: Whether several patches need a prepared composition, even where the server could join them.
    prepared_only: bool = False
    #: Whether a request has to name what it wants, if only ``none``: what a gateway dropped is not guessed.
    require_choice: bool = False
    #: Whether callers that it distinguishes may find each other's prompts in the prefix cache.
    share_cache: bool = False
    #: What an operator calls its default: the flag, or the field of the file.
    default_label: str = "default"

    @classmethod
    def from_flags(
        cls, *, default_patch: str | None, require_patch: bool, require_choice: bool = False
    ) -> "Policy":
        """Read ``--default-patch``, ``--require-patch``, ``--require-choice``: one rule for every caller.

        Raises:
            MalformedPatchName: ``default_patch`` is no reference, or is ``none``.
        """
        others = Rule("--require-patch" if require_patch else "flags", ALL, allow_none=not require_patch)
        if default_patch is None:
            return cls(others=others, require_choice=require_choice)
        wish = parse_wish(default_patch, "--default-patch")
        if isinstance(wish, OptOut):
            raise MalformedPatchName("--default-patch: expected a patch, got 'none'; leave the flag out")
        label = "--default-patch"
        return cls(default=wish, others=others, default_label=label, require_choice=require_choice)

    def references(self) -> Iterable[tuple[str, tuple[PatchRef, ...]]]:
        """Yield everything that has to be loaded for this policy to work, with where it stands."""
        if self.required:
            yield "required", self.required
        if self.default is not None:
            yield self.default_label, self.default
        for rule in self.rules():
            if isinstance(rule.default, tuple):
                yield f"{rule.label}.default", rule.default

    def rules(self) -> Iterable[Rule]:
        """Yield every rule, in no special order."""
        if self.others is not None:
            yield self.others
        yield from self.key_rules.values()
        if self.tenants is not None:
            yield from self.tenants.rules.values()
            if self.tenants.others is not None:
                yield self.tenants.others


#: Every caller may have everything, and gets the base model where it names nothing.
OPEN_POLICY = Policy.from_flags(default_patch=None, require_patch=False)
