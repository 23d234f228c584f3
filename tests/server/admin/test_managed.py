"""A server that follows the catalog of its fleet takes no orders of its own."""

from typing import Any

import pytest
from starlette.requests import Request

from server.admin.access import AdminAccess
from server.audit import AuditEvent
from server.errors import ManagedByFleet


class _Kept:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)


def _request() -> Request:
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/patches/tone/rollback",
        "headers": [],
    }
    scope |= {"query_string": b"", "server": ("test", 80), "scheme": "http", "state": {}}
    return Request(scope)


def test_an_order_is_refused_and_written_down() -> None:
    kept = _Kept()
    access = AdminAccess(None, kept, is_managed=True)
    carried_out = False
    with (
        pytest.raises(ManagedByFleet, match="policypatch fleet"),
        access.order(_request(), "rollback", "alice", "tone"),
    ):
        carried_out = True
    assert not carried_out
    (event,) = kept.events
    assert (event.event, event.decision, event.code) == ("admin.rollback", "failed", "managed_by_fleet")


def test_other_servers_take_orders() -> None:
    kept = _Kept()
    with AdminAccess(None, kept).order(_request(), "rollback", "alice", "tone"):
        pass
    assert kept.events[0].decision == "done"
