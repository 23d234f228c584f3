"""Rules of a canary about how often the condition of a vector is met."""

from typing import Any

import pytest

from server.admin.canary_watch import CanaryWatch
from tests.server.stand import Stand, conditional_bytes

ORDER = {"version": "1.1.0", "share": 0.5, "key": "header:X-User-Id", "min_requests": 3}


@pytest.fixture
async def watch(stand: Stand, admin: Any) -> CanaryWatch:
    """Told of each request."""
    watch = CanaryWatch(stand.catalog.record, admin.operator, stand.metrics.canary, admin.audit)
    stand.decider.canaries = watch
    return watch


async def start_conditional(stand: Stand, admin: Any, **rules: float) -> None:
    """Try a vector with a condition beside another one; each user keeps an arm."""
    for version, fill in (("1.0.0", 0.25), ("1.1.0", 0.5)):
        data = conditional_bytes("safe", version, fill=fill)
        assert (await admin.put(data, f"safe/{version}", hold=version == "1.1.0")).status_code == 201
    answer = await admin.post("safe/canary", **{**ORDER, **rules})
    assert answer.status_code == 200, answer.text


async def ask_both(stand: Stand, margins: dict[str, float], num_users: int) -> None:
    """Ask as several users; ``margins`` says by arm how the condition is decided."""
    arm_of: dict[str, str] = {}
    for user in map(str, range(num_users)):
        headers = {"X-Policy-Patch": "safe", "X-User-Id": user}
        for _ in range(2):
            # The first answer tells the arm, whose condition nobody decided.
            stand.engine.margins = [margins[arm_of[user]]] if user in arm_of else []
            answer = await stand.client.post("/v1/chat/completions", headers=headers, json={})
            arm_of[user] = answer.headers["x-policy-patch-arm"]


@pytest.mark.parametrize(
    ("rules", "margins", "reason"),
    [
        ({"max_condition_met": 0.5}, {"canary": 1.0, "stable": -1.0}, "over 50.0%"),
        ({"min_condition_met": 0.5}, {"canary": -1.0, "stable": 1.0}, "under 50.0%"),
        ({"max_condition_change": 0.5}, {"canary": 1.0, "stable": -1.0}, "more than 50.0% apart"),
        ({"max_condition_met": 0.5}, {"canary": -1.0, "stable": 1.0}, None),
        ({"min_condition_met": 0.5}, {"canary": 1.0, "stable": -1.0}, None),
        ({"max_condition_change": 0.5}, {"canary": 1.0, "stable": 1.0}, None),
    ],
)
async def test_a_condition_that_is_met_otherwise_than_the_rule_says_aborts_it(
    stand: Stand,
    admin: Any,
    watch: CanaryWatch,
    rules: dict[str, float],
    margins: dict[str, float],
    reason: str | None,
) -> None:
    await start_conditional(stand, admin, **rules)
    await ask_both(stand, margins, num_users=24)
    await watch.settled()
    record = await admin.get("safe/history")
    assert (record["canary"] is None) is (reason is not None)
    if reason is not None:
        assert (record["history"][0]["action"], record["history"][0]["by"]) == ("abort", "rules")
        assert reason in record["history"][0]["reason"]


@pytest.mark.usefixtures("watch")
async def test_arms_and_rules_show_how_often_the_condition_is_met(stand: Stand, admin: Any) -> None:
    await start_conditional(stand, admin, max_condition_met=0.9, max_condition_change=0.9, min_requests=1000)
    value = 'policy_patch_canary_rule_value{patch="safe",rule="max_condition_met"}'
    assert stand.value(value) is None
    await ask_both(stand, {"canary": -1.0, "stable": -1.0}, num_users=24)
    assert stand.value(value) == 0
    counted = {
        arm: stand.value(f'policy_patch_arm_condition_total{{arm="{arm}",outcome="not_met",patch="safe"}}')
        for arm in ("canary", "stable")
    }
    assert sum(counted.values()) == 24
    assert all(counted.values())
    assert (await admin.get("safe/history"))["canary"]["max_condition_change"] == 0.9


@pytest.mark.parametrize("rule", ["min_condition_met", "max_condition_met", "max_condition_change"])
@pytest.mark.usefixtures("watch")
async def test_a_rule_about_the_condition_needs_versions_that_have_one(
    stand: Stand, admin: Any, rule: str
) -> None:
    await stand.load("pirate", "1.0.0")
    await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0", hold=True)
    answer = await admin.post("pirate/canary", **ORDER, **{rule: 0.5})
    assert stand.code(answer) == (409, "order_refused")
    error = answer.json()["error"]
    assert error["param"] == rule
    assert "expected a version with a condition, got pirate@1.1.0, which has none" in error["message"]
    assert stand.catalog.record("pirate").canary is None
