"""Who is calling: the key and the tenant that a request shows, judged by a policy. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.errors import AmbiguousCaller, PatchForbidden
from server.policy.connection import peer_of
from server.policy.rules import Policy, Rule, Tenants

MAX_TENANT_LENGTH = 128

TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request shows of its caller, unjudged."""

    #: Holds the key, so it is in no text that is made of this object.
    headers: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)
    peer: str | None = None

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> "Credentials":
        """Take them from an ASGI scope."""
        return cls(scope["headers"], peer_of(scope))

    def values(self, name: bytes) -> list[bytes]:
        """Return all values of a header, in order."""
        return [value for key, value in self.headers if key == name]


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller as a policy knows it."""

    #: Name of the listed key; ``None`` without one.
    key: str | None = None
    tenant: str | None = None

    def cache_partition(self, policy: Policy) -> str | None:
        """Return the part of the prefix cache for its prompts; ``None`` for the part that all others share.

        How fast an answer begins reveals whether its prompt was there already, so callers that a policy
        distinguishes must not find each other's.
        """
        if policy.share_cache or self == ANYONE:
            return None
        return json.dumps([self.key, self.tenant])

    def rules(self, policy: Policy) -> tuple[Rule, ...]:
        """Return every rule that binds this caller.

        Raises:
            PatchForbidden: No rule knows it, so it may have nothing.
        """
        rules = []
        if self.key is not None and self.key in policy.key_rules:
            rules.append(policy.key_rules[self.key])
        if self.tenant is not None and policy.tenants is not None:
            rule = policy.tenants.rules.get(self.tenant, policy.tenants.others)
            if rule is None:
                raise PatchForbidden("the policy of this server knows no such tenant", rule="tenants.others")
            rules.append(rule)
        if rules:
            return tuple(rules)
        if policy.others is None:
            raise PatchForbidden(
                "the policy of this server serves only callers whose key or tenant it lists", rule="others"
            )
        return (policy.others,)

    def rule_label(self, policy: Policy) -> str | None:
        """Return where in the policy the rule stands that speaks for it; ``None`` where none knows it."""
        try:
            return self.rules(policy)[-1].label
        except PatchForbidden:
            return None


ANYONE = Caller()


def identify(credentials: Credentials, policy: Policy) -> Caller:
    """Return who is calling.

    Raises:
        AmbiguousCaller: A key or a tenant is there twice, or is malformed.
        PatchForbidden: A tenant header comes from where none may come from, or is missing where it may not.
    """
    key = policy.key_ring.name_of(_presented_key(credentials)) if policy.key_ring else None
    tenant = _tenant(credentials, policy.tenants) if policy.tenants is not None else None
    return ANYONE if key is None and tenant is None else Caller(key, tenant)


def _presented_key(credentials: Credentials) -> bytes:
    authorization = credentials.values(b"authorization")
    api_key = credentials.values(b"x-api-key")
    if len(authorization) > 1 or len(api_key) > 1:
        raise AmbiguousCaller("Authorization: expected one key, got several", param="Authorization")
    keys = set(api_key)
    for value in authorization:
        # As vLLM's own authentication takes it apart, so that both always see the same key.
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            keys.add(key)
    if len(keys) > 1:
        raise AmbiguousCaller("Authorization and x-api-key: expected one key, got two", param="Authorization")
    return keys.pop() if keys else b""


def _tenant(credentials: Credentials, tenants: Tenants) -> str | None:
    name = tenants.header.decode("ascii")
    # Gateways differ in whether "_" and "-" are the same in a header's name: here nothing may hang on it.
    sent = [(key, value) for key, value in credentials.headers if key.replace(b"_", b"-") == tenants.header]
    if not sent:
        if tenants.is_required:
            raise PatchForbidden(
                f"the policy of this server serves only requests whose tenant a gateway names in {name}",
                param=name,
                rule="tenants.required",
            )
        return None
    if not tenants.trusted.trusts(credentials.peer):
        raise PatchForbidden(
            f"{name}: this address may not name a tenant; leave the header out",
            param=name,
            rule="tenants.trusted",
        )
    if len(sent) > 1 or sent[0][0] != tenants.header:
        raise AmbiguousCaller(f"{name}: expected one header line of exactly this name", param=name)
    text = sent[0][1].strip(b" \t").decode("latin-1")
    if not TENANT_PATTERN.fullmatch(text):
        raise AmbiguousCaller(
            f"{name}: expected one tenant of 1 to {MAX_TENANT_LENGTH} of A-Z, a-z, 0-9 and ._:@/+=-, "
            "beginning with a letter or digit",
            param=name,
        )
    return text
