"""Requests by the policy's rule for their caller."""

import hashlib
import re

import pytest

from server.metrics.callers import MAX_CALLERS
from server.policy.file import parse_policy
from tests.server.stand import Stand

POLICY = b"""\
version: 1
others: {allow: all, allow_none: true}
keys:
  - {name: research, sha256: %s, allow: [pirate], allow_none: true}
tenants: {header: X-Tenant, trusted: [127.0.0.1], rules: {acme: {allow: [gone], allow_none: true}}}
""" % hashlib.sha256(b"k").hexdigest().encode()
RESEARCH, ACME = {"Authorization": "Bearer k"}, {"X-Tenant": "acme"}


def callers(stand: Stand, metric: str = "caller_requests") -> dict[str, float]:
    found = re.findall(
        rf'^policy_patch_{metric}_total{{caller="(.*?)"(?:,.*)?}} (.*)$', stand.exposition(), re.M
    )
    return {caller: float(value) for caller, value in found}


async def test_without_a_policy_file_callers_are_those_of_the_flags(stand: Stand) -> None:
    await stand.load()
    await stand.chat("pirate")
    assert callers(stand) == {"flags": 1}
    assert stand.value('policy_patch_caller_requests_total{caller="flags",outcome="ok"}') == 1


async def test_answers_without_a_patch_count_where_one_was_there(stand: Stand) -> None:
    await stand.chat()
    assert callers(stand, "unpatched_answers") == {}
    await stand.load()
    await stand.chat()
    await stand.chat("pirate")
    assert callers(stand, "unpatched_answers") == {"flags": 1}


async def test_callers_are_counted_by_the_rule_that_the_policy_file_has_for_them(stand: Stand) -> None:
    await stand.load()
    stand.decider.policy = parse_policy(POLICY)
    for headers in ({}, RESEARCH, ACME, ACME | RESEARCH, {"X-Tenant": "unlisted"}):
        await stand.client.post("/v1/chat/completions", headers=headers, json={})
    assert callers(stand) == {"others": 1, "keys.research": 1, "tenants.acme": 2, "unknown": 1}
    # What acme may choose is not served.
    assert callers(stand, "unpatched_answers") == {"others": 1, "keys.research": 1}


async def test_a_refused_request_says_which_patch_it_named(stand: Stand) -> None:
    await stand.load()
    stand.use(require_patch=True)
    await stand.chat("pirate@9.0.0")
    await stand.chat("invented")
    await stand.chat("Not A Name")
    await stand.chat()
    found = dict(re.findall(r"^policy_patch_denied_requests_total{(.*)} (.*)$", stand.exposition(), re.M))
    assert found == {
        'patch="pirate",reason="patch_not_found"': "1.0",
        'patch="unknown",reason="patch_not_found"': "1.0",
        'patch="unknown",reason="malformed_patch_name"': "1.0",
        'patch="none",reason="patch_forbidden"': "1.0",
    }
    assert callers(stand) == {"--require-patch": 4}


def test_thousands_of_rules_get_no_more_labels_than_are_allowed(stand: Stand) -> None:
    for number in range(MAX_CALLERS + 50):
        stand.metrics.callers.finished(f"tenants.t{number}", "ok")
    stand.metrics.callers.finished(None, "rejected")
    found = callers(stand)
    assert len(found) == MAX_CALLERS + 2
    assert (found["more"], found["unknown"]) == (50, 1)


@pytest.mark.parametrize("name", ['say "hi"', "two\nlines", "back\\slash"])
def test_odd_values_stay_one_label(stand: Stand, name: str) -> None:
    stand.metrics.serving.built(version="1", vllm="2", model=name)
    (line,) = [
        line for line in stand.exposition().splitlines() if line.startswith("policy_patch_build_info{")
    ]
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert f'model="{escaped}"' in line
