"""``deploy/haproxy.cfg`` in a real HAProxy before two servers that echo what they are sent."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from patches.headers import PATCH_HEADER
from server.request.prompt_routes import _KINDS
from tests.deploy.replica import Replica
from tests.haproxy import behind_haproxy, until


class Gateway:
    """HAProxy with the configuration, and a client of it."""

    def __init__(self, client: httpx.Client, replicas: tuple[Replica, Replica]) -> None:
        self.client = client
        self.replicas = replicas

    def asked(self, path: str = "/v1/chat/completions", **headers: str) -> dict[str, Any]:
        answer = self.client.post(
            path, headers={k.replace("_", "-"): v for k, v in headers.items()}, content=b"{}"
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers[PATCH_HEADER] == "pirate@1.0.0"
        told: dict[str, Any] = answer.json()
        return told


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with Replica("a") as a, Replica("b") as b, behind_haproxy(a.address, b.address) as client:
        yield Gateway(client, (a, b))


@pytest.mark.parametrize("path", sorted(_KINDS))
def test_header_and_alias_pass_on_every_route(gateway: Gateway, path: str) -> None:
    body = b'{"model": "smollm2:pirate"}'
    headers = [(PATCH_HEADER, "pirate"), (PATCH_HEADER, "safe-steer"), ("Authorization", "Bearer k")]
    told = gateway.client.post(path, headers=headers, content=body).json()
    sent = [value for name, value in told["headers"] if name == PATCH_HEADER.lower()]
    # Two lines stay two: which one counts is for the server to refuse.
    assert (sent, told["body"]) == (["pirate", "safe-steer"], body.decode())
    assert ["authorization", "Bearer k"] in told["headers"]


def test_a_tenant_that_a_caller_makes_up_does_not_pass(gateway: Gateway) -> None:
    assert "x-tenant" not in dict(gateway.asked(X_Tenant="acme")["headers"])


def test_a_conversation_stays_with_its_server_and_others_take_turns(gateway: Gateway) -> None:
    sessions = {f"s{i}": {gateway.asked(X_Session_Id=f"s{i}")["name"] for _ in range(4)} for i in range(12)}
    assert all(len(names) == 1 for names in sessions.values())
    assert set.union(*sessions.values()) == {"a", "b"}
    turns = collections.Counter(gateway.asked()["name"] for _ in range(20))
    assert set(turns) == {"a", "b"}


def test_a_server_that_is_out_of_step_gets_no_request_and_fails_none(gateway: Gateway) -> None:
    _, b = gateway.replicas
    b.is_in_step = False
    try:
        # Those that come before the gateway has noticed are sent on to the other server.
        names = [gateway.asked(X_Session_Id=f"s{i % 12}")["name"] for i in range(48)]
        assert set(names) == {"a"}
        time.sleep(1.5)
        before = b.num_asked
        for i in range(24):
            gateway.asked(X_Session_Id=f"s{i % 12}")
        assert b.num_asked == before
    finally:
        b.is_in_step = True
    until(lambda: any(gateway.asked(X_Session_Id=f"s{i}")["name"] == "b" for i in range(12)))
