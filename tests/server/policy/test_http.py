"""What a policy shows and hides over HTTP, and what it leaves in the audit log."""

import hashlib
from typing import Any

import httpx
import pytest

from server.audit import AuditEvent
from server.policy.file import parse_policy
from server.policy.keys import KeyRing
from server.policy.rules import ALL, Policy, Rule
from tests.server.stand import Stand

RESTRICTED = parse_policy(
    b"""
version: 1
required: [safety]
alias: [pirate, sailor]
others: {allow: [pirate]}
keys:
  - {name: research, sha256: %s, allow: all, default: sailor}
tenants: {header: X-Tenant, trusted: [127.0.0.1], rules: {acme: {allow: [sailor]}}}
"""
    % hashlib.sha256(b"k").hexdigest().encode()
)
CLOSED = parse_policy(b"version: 1")

RESEARCH = {"Authorization": "Bearer k"}
ACME = {"X-Tenant": "acme"}
PIRATE = {"X-Policy-Patch": "pirate"}


@pytest.fixture
async def loaded(stand: Stand) -> Any:
    plain = ("safety", "pirate", "sailor", "secret")
    parts = [await stand.load(name, fill=float(index)) for index, name in enumerate(plain)]
    for index, other in enumerate(parts[1:]):
        chosen = [parts[0], other]
        components = [{"name": p.name, "version": p.version, "digest": p.digest} for p in chosen]
        origin = {"method": "compose", "components": components}
        await stand.load(".".join(p.name for p in chosen), origin=origin, fill=10.0 + index)
    stand.decider.policy = RESTRICTED
    return stand


async def names(stand: Stand, headers: dict[str, str]) -> set[str]:
    document = (await stand.client.get("/v1/patches", headers=headers)).json()
    return {card["name"] for card in document["data"]}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {"safety", "pirate", "safety.pirate"}),
        (ACME, {"safety", "sailor", "safety.sailor"}),
        (
            RESEARCH,
            {"safety", "pirate", "sailor", "secret", "safety.pirate", "safety.sailor", "safety.secret"},
        ),
        (RESEARCH | ACME, {"safety", "sailor", "safety.sailor"}),
        ({"X-Tenant": "unlisted"}, set()),
        ({"X-Tenant": "two, tenants"}, set()),
        ({"Authorization": "Bearer guess"}, {"safety", "pirate", "safety.pirate"}),
    ],
)
async def test_a_caller_is_shown_what_it_may_have(
    loaded: Any, headers: dict[str, str], expected: set[str]
) -> None:
    assert await names(loaded, headers) == expected
    for name in ("safety", "pirate", "sailor", "secret", "safety.secret"):
        response = await loaded.client.get(f"/v1/patches/{name}", headers=headers)
        assert response.status_code == (200 if name in expected else 404)


async def test_a_hidden_patch_and_an_absent_one_are_told_in_the_same_words(loaded: Any) -> None:
    hidden = (await loaded.client.get("/v1/patches/secret")).json()["error"]["message"]
    absent = (await loaded.client.get("/v1/patches/absent")).json()["error"]["message"]
    assert hidden.replace("secret", "absent") == absent


async def test_a_caller_that_may_have_nothing_is_shown_nothing(loaded: Any) -> None:
    loaded.decider.policy = CLOSED
    document = (await loaded.client.get("/v1/patches")).json()
    assert (document["data"], document["default_patch"], document["is_patch_required"]) == ([], None, True)


async def test_the_list_says_what_holds_for_the_caller(loaded: Any) -> None:
    mine = (await loaded.client.get("/v1/patches", headers=RESEARCH)).json()
    others = (await loaded.client.get("/v1/patches")).json()
    assert (mine["default_patch"], mine["is_patch_required"]) == ("sailor", True)
    assert (others["default_patch"], others["is_patch_required"]) == (None, True)


async def test_refused_files_are_shown_to_callers_whose_patches_they_would_be(loaded: Any) -> None:
    (loaded.folder / "broken.safetensors").write_bytes(b"no")
    await loaded.catalog.load_file(loaded.folder / "broken.safetensors")
    for name in ("pirate", "secret"):
        await loaded.load(name, "2.0.0", base_model=loaded.other_model(tokenizer_digest="sha256:" + "c" * 64))
    for headers, expected in ((RESEARCH, {"pirate", "secret", None}), ({}, {"pirate"}), (ACME, set())):
        document = (await loaded.client.get("/v1/patches", headers=headers)).json()
        assert {failure["name"] for failure in document["failures"]} == expected


async def test_aliases_are_listed_where_the_caller_may_use_them(loaded: Any) -> None:
    @loaded.app.get("/aliases")
    async def aliases() -> Any:
        return list(loaded.decider.aliases("demo"))

    async def listed(headers: dict[str, str]) -> list[str]:
        answer: list[str] = (await loaded.client.get("/aliases", headers=headers)).json()
        return answer

    assert await listed({}) == ["demo:pirate"]
    assert await listed(RESEARCH) == ["demo:pirate", "demo:sailor"]
    assert await listed(ACME) == ["demo:sailor"]
    loaded.decider.policy = CLOSED
    assert await listed({}) == []


class MemoryAudit:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)


@pytest.mark.parametrize(
    ("headers", "decision", "principal", "tenant", "rule", "status"),
    [
        ({}, "defaulted", None, None, "required", 200),
        (RESEARCH, "defaulted", "research", None, "required, keys.research.default", 200),
        (PIRATE | RESEARCH, "allowed", "research", None, "required, keys.research.allow", 200),
        (RESEARCH | {"X-Policy-Patch": "none"}, "denied", "research", None, "required", 403),
        (RESEARCH | {"X-Policy-Patch": "Bad"}, "denied", "research", None, None, 400),
        ({"X-Policy-Patch": "secret"}, "denied", None, None, "others.allow", 403),
        (ACME | PIRATE, "denied", None, "acme", "tenants.acme.allow", 403),
        (RESEARCH | ACME, "defaulted", "research", "acme", "required, keys.research.default", 200),
        ({"X-Tenant": "nobody"}, "denied", None, "nobody", "tenants.others", 403),
        ({"X-Tenant": "a, b"}, "denied", None, None, None, 400),
    ],
)  # fmt: skip
async def test_the_audit_log_says_who_asked_and_which_rule_decided(
    loaded: Any,
    headers: dict[str, str],
    decision: str,
    principal: str | None,
    tenant: str | None,
    rule: str | None,
    status: int,
) -> None:
    loaded.decider.audit = MemoryAudit()
    response = await loaded.client.post("/v1/chat/completions", headers=headers, json={})
    (event,) = loaded.decider.audit.events
    assert (event.decision, event.principal, event.tenant, event.rule) == (decision, principal, tenant, rule)
    assert event.status == response.status_code == status


async def test_a_tenant_from_elsewhere_is_in_the_audit_log(loaded: Any) -> None:
    loaded.decider.audit = MemoryAudit()
    transport = httpx.ASGITransport(loaded.app, client=("192.0.2.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/v1/chat/completions", headers=ACME, json={})).status_code == 403
    (event,) = loaded.decider.audit.events
    assert (event.decision, event.rule, event.status) == ("denied", "tenants.trusted", 403)


async def test_a_request_is_judged_by_the_policy_that_holds_when_it_is_decided(loaded: Any) -> None:
    """A key that is taken out while a slow body is on its way must not be good for it any more."""

    async def slow_body() -> Any:
        yield b"{"
        loaded.decider.policy = CLOSED
        yield b"}"

    response = await loaded.client.post("/v1/chat/completions", headers=RESEARCH, content=slow_body())
    assert loaded.code(response) == (403, "patch_forbidden")
    assert loaded.engine.decisions == []


async def test_who_calls_is_asked_again_where_the_policy_changed_meanwhile(loaded: Any) -> None:
    """A key that changes hands while a body is on its way is that of its new owner."""
    loaded.decider.audit = MemoryAudit()
    digest = hashlib.sha256(b"k").digest()
    handed_on = Policy(
        key_ring=KeyRing({"sales": digest}), key_rules={"sales": Rule("keys.sales", ALL, allow_none=True)}
    )

    async def slow_body() -> Any:
        yield b"{"
        loaded.decider.policy = handed_on
        yield b"}"

    response = await loaded.client.post("/v1/chat/completions", headers=RESEARCH, content=slow_body())
    assert response.status_code == 200
    (event,) = loaded.decider.audit.events
    assert (event.principal, event.rule) == ("sales", "keys.sales.allow_none")


async def test_one_request_can_be_refused_for_its_key_and_count_as_such(loaded: Any) -> None:
    headers = [("Authorization", "Bearer k"), ("Authorization", "Bearer k")]
    response = await loaded.client.post("/v1/chat/completions", headers=headers, json={})
    assert loaded.code(response) == (400, "ambiguous_caller")
    assert loaded.value('policy_patch_rejected_requests_total{code="ambiguous_caller"}') == 1
