"""Which signers count, as callers and the audit log learn it; orders that go below a signed bound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.admin.operator import Operator
from server.audit import AuditEvent
from server.trust.audit import SignerAudit
from tests.server.stand import Stand

Publish = Callable[..., Path]


class Events(list[AuditEvent]):
    """Keeps what is recorded."""

    def record(self, event: AuditEvent) -> None:
        self.append(event)


@pytest.fixture
def events(strict: Any) -> Events:
    """Everything that the catalog and the gate write down."""
    kept = Events()
    strict.catalog.publication.audit = strict.decider.audit = SignerAudit(kept, strict.catalog.trust)
    return kept


async def test_callers_learn_who_signed_what(strict: Any, publish: Publish) -> None:
    await strict.catalog.load_file(publish(minimum_version="1.0.0"))
    document = (await strict.client.get("/v1/patches")).json()
    assert document["data"][0]["versions"][0]["signer"] == "alice"
    assert document["trust"] == {
        "is_signature_required": True,
        "signers": ["alice"],
        "num_revoked": 0,
        "minimum_versions": {"pirate": "1.0.0"},
        "problems": [],
    }


async def test_the_audit_log_names_the_signer(strict: Any, publish: Publish, events: Events) -> None:
    patch = await strict.catalog.load_file(publish())
    assert (await strict.chat("pirate")).status_code == 200
    assert [(e.event, e.digest, e.details["signer"]) for e in events] == [
        ("folder.activate", patch.digest, "alice"),
        ("request", patch.digest, "alice"),
    ]


async def test_a_server_without_keys_names_no_signer(stand: Stand) -> None:
    events = Events()
    stand.decider.audit = SignerAudit(events, stand.catalog.trust)
    await stand.load()
    await stand.chat("pirate")
    await stand.chat()
    assert [dict(event.details) for event in events] == [{}, {}]


async def test_an_operator_may_go_below_a_signed_bound(strict: Any, publish: Publish, notary: Any) -> None:
    await strict.catalog.load_file(publish(version="2.0.0", minimum_version="2.0.0"))
    old = publish(version="1.0.0")
    assert (await strict.catalog.load_file(old)).reason == "below_minimum_version"
    record = await Operator(strict.catalog).activate("pirate", "1.0.0", "alice")
    assert record.active is not None
    assert record.active.version == "1.0.0"
    assert (await strict.chat("pirate")).headers["x-policy-patch"] == "pirate@1.0.0"
    # It is this version only, and it is remembered.
    assert (await strict.catalog.load_file(publish(version="1.1.0"))).reason == "below_minimum_version"
    strict.catalog.intake.trust = notary.trust()
    assert (await strict.catalog.load_file(old)).version == "1.0.0"


async def test_no_operator_may_bring_back_what_was_revoked(
    strict: Any, publish: Publish, notary: Any
) -> None:
    old = await strict.catalog.load_file(publish(version="1.0.0"))
    await strict.catalog.load_file(publish(version="2.0.0", minimum_version="2.0.0"))
    notary.revoke(old.digest)
    strict.catalog.trust.refresh()
    await strict.catalog.recheck()
    with pytest.raises(LookupError):
        await Operator(strict.catalog).activate("pirate", "1.0.0", "alice")
    assert [p.version for p in strict.catalog.view.names["pirate"].versions] == ["2.0.0"]
