"""Who is calling: keys, tenants, and the connection that a tenant header came over."""

import hashlib
from typing import Any

import pytest

from server.errors import AmbiguousCaller, PatchForbidden
from server.policy.caller import Caller, Credentials, identify
from server.policy.connection import UNIX_PEER, TrustedPeers, peer_of
from server.policy.file import parse_policy
from server.policy.keys import KeyRing
from server.policy.rules import OPEN_POLICY, Policy

POLICY = parse_policy(
    b"""
version: 1
others: {}
keys:
  - {name: research, sha256: %s}
tenants: {header: X-Tenant, trusted: [10.1.0.0/16, "fd00::/8", unix]}
"""
    % hashlib.sha256(b"research-key").hexdigest().encode()
)


def caller(*headers: tuple[bytes, bytes], peer: str | None = "10.1.2.3") -> Caller:
    return identify(Credentials(headers, peer), POLICY)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], None),
        ([(b"authorization", b"Bearer research-key")], "research"),
        ([(b"authorization", b"bearer research-key")], "research"),
        ([(b"x-api-key", b"research-key")], "research"),
        ([(b"x-api-key", b"research-key"), (b"authorization", b"Bearer research-key")], "research"),
        ([(b"authorization", b"Bearer other")], None),
        ([(b"authorization", b"Bearer research-key ")], None),
        ([(b"authorization", b"Bearer  research-key")], None),
        ([(b"authorization", b"Bearer RESEARCH-KEY")], None),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Basic research-key")], None),
        ([(b"authorization", b"research-key")], None),
        ([(b"authorization", b"")], None),
        ([(b"authorization", b"Bearer \xff\x00")], None),
    ],
)
def test_a_key_is_known_by_its_hash(headers: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert caller(*headers) == Caller(key)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer research-key"), (b"authorization", b"Bearer research-key")],
        [(b"authorization", b"Bearer other"), (b"authorization", b"Bearer research-key")],
        [(b"x-api-key", b"other"), (b"x-api-key", b"research-key")],
        [(b"x-api-key", b"other"), (b"authorization", b"Bearer research-key")],
        [(b"x-api-key", b""), (b"authorization", b"Bearer research-key")],
    ],
)
def test_two_keys_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(AmbiguousCaller) as caught:
        caller(*headers)
    assert caught.value.status == 400


@pytest.mark.parametrize("tenant", ["acme", "a", "Acme", "acme.eu/7:b@c+d=e_f-g", "x" * 128])
def test_a_tenant_is_what_a_trusted_gateway_says(tenant: str) -> None:
    assert caller((b"x-tenant", b" " + tenant.encode() + b"\t")) == Caller(None, tenant)


@pytest.mark.parametrize(
    "values",
    [
        [b"acme", b"acme"],
        [b"acme", b"other"],
        [b"acme", b""],
        [b""],
        [b" "],
        [b"acme,other"],
        [b"acme, acme"],
        [b"acme other"],
        [b"acme\x00"],
        [b"acme\r\nx: y"],
        [b"-acme"],
        ["аcme".encode()],  # noqa: RUF001
        [b"x" * 129],
        [b'"acme"'],
    ],
)
def test_an_ambiguous_tenant_is_refused(values: list[bytes]) -> None:
    with pytest.raises(AmbiguousCaller) as caught:
        caller(*((b"x-tenant", value) for value in values))
    assert caught.value.param == "x-tenant"


@pytest.mark.parametrize("names", [[b"x_tenant"], [b"x_tenant", b"x-tenant"], [b"x-tenant", b"x_tenant"]])
def test_a_header_that_some_gateway_might_take_for_the_tenants_is_refused(names: list[bytes]) -> None:
    with pytest.raises(AmbiguousCaller):
        caller(*((name, b"acme") for name in names))


@pytest.mark.parametrize(
    "peer",
    [None, "10.2.0.1", "127.0.0.1", "::1", "11.1.2.3", "::ffff:10.2.0.1", "", "testclient", "10.1.2.3:80"],
)
def test_a_tenant_from_elsewhere_is_refused_and_not_ignored(peer: str | None) -> None:
    """Ignored, a gateway on an address that nobody listed would lift every tenant's rule unnoticed."""
    with pytest.raises(PatchForbidden) as caught:
        caller((b"x-tenant", b"acme"), peer=peer)
    assert caught.value.rule == "tenants.trusted"
    assert caller(peer=peer) == Caller()


@pytest.mark.parametrize(
    "peer", ["10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3", "fd00::1", "fd12::1%eth0", UNIX_PEER]
)
def test_a_tenant_from_a_listed_address_is_believed(peer: str) -> None:
    assert caller((b"x-tenant", b"acme"), peer=peer).tenant == "acme"


def test_a_socket_is_trusted_only_where_it_is_listed() -> None:
    assert not TrustedPeers(POLICY.tenants.trusted.networks).trusts(UNIX_PEER)  # type: ignore[union-attr]


def test_forwarding_headers_are_never_read() -> None:
    names = (b"x-forwarded-for", b"x-real-ip", b"forwarded", b"true-client-ip")
    lies = [(name, b"10.1.2.3") for name in names]
    with pytest.raises(PatchForbidden):
        caller((b"x-tenant", b"acme"), *lies, peer="192.0.2.1")


def test_a_missing_tenant_is_refused_where_it_is_required() -> None:
    policy = parse_policy(b"version: 1\nothers: {}\ntenants: {header: X-T, trusted: [unix], required: true}")
    for peer in (UNIX_PEER, "192.0.2.1", None):
        with pytest.raises(PatchForbidden) as caught:
            identify(Credentials((), peer), policy)
        assert caught.value.rule == "tenants.required"


def test_without_keys_and_tenants_nobody_is_asked() -> None:
    twice = [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]
    assert identify(Credentials(twice, None), OPEN_POLICY) == Caller()


@pytest.mark.parametrize(
    ("scope", "peer"),
    [
        ({"client": ("10.0.0.1", 1), "server": ("x", 80)}, "10.0.0.1"),
        ({"client": None, "server": ("/run/socket", None)}, UNIX_PEER),
        # The client of a TCP connection is gone already.
        ({"client": None, "server": ("127.0.0.1", 8000)}, None),
        ({"client": None, "server": None}, None),
        ({"client": None, "server": ("", None)}, None),
        ({}, None),
        ({"client": ("unix", 0), "server": ("127.0.0.1", 80)}, None),
    ],
)
def test_the_other_end_of_a_connection(scope: dict[str, Any], peer: str | None) -> None:
    assert peer_of(scope) == peer


def test_credentials_do_not_print_the_key() -> None:
    assert "secret" not in repr(Credentials([(b"authorization", b"Bearer secret")]))


def test_key_rings_are_equal_where_they_hold_the_same_although_each_has_its_own_secret() -> None:
    one, other = KeyRing({"a": b"1" * 32}), KeyRing({"a": b"1" * 32})
    assert one == other
    assert one != KeyRing({"a": b"2" * 32})
    assert not KeyRing()
    assert one._index.keys() != other._index.keys()


def test_callers_that_a_policy_tells_apart_have_parts_of_the_prefix_cache_of_their_own() -> None:
    callers = [Caller(key, tenant) for key in (None, "a", "b") for tenant in (None, "a", "b")]
    parts = [one.cache_partition(POLICY) for one in callers]
    assert len(set(parts)) == len(callers)
    assert Caller().cache_partition(POLICY) is None


def test_a_policy_may_let_callers_share_the_prefix_cache() -> None:
    assert Caller("a", "b").cache_partition(Policy(share_cache=True)) is None
    assert parse_policy(b"version: 1\nshare_cache: true").share_cache
    assert not POLICY.share_cache
