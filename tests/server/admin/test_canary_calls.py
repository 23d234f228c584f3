"""A canary over HTTP: who gets it, how it is told apart, how it ends by call, by rule, by restart."""

import re
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from server.admin.canary_watch import CanaryWatch
from tests.server.stand import Stand

ORDER = {"version": "1.1.0", "share": 0.2, "key": "header:X-User-Id"}


@pytest.fixture
async def trial(stand: Stand, admin: Any) -> CanaryWatch:
    """1.0.0 serves, 1.1.0 is held; the decider tells a watch whose clock a test sets."""
    await stand.load("pirate", "1.0.0")
    assert (await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0", hold=True)).status_code == 201
    watch = CanaryWatch(stand.catalog.record, admin.operator, stand.metrics.canary, admin.audit)
    stand.decider.canaries = watch
    return watch


async def start(admin: Any, **changes: Any) -> dict[str, Any]:
    answer = await admin.post("pirate/canary", **{**ORDER, **changes})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.usefixtures("trial")
async def test_a_share_of_the_users_gets_it_and_each_stays_with_one_version(admin: Any) -> None:
    await start(admin)
    arms = await admin.arms()
    shares = Counter(arms.values())
    assert set(shares) == {"pirate@1.0.0", "pirate@1.1.0"}
    assert 20 <= shares["pirate@1.1.0"] <= 60
    assert await admin.arms() == arms


@pytest.mark.usefixtures("trial")
async def test_headers_and_metrics_tell_the_arms_apart(stand: Stand, admin: Any) -> None:
    assert "x-policy-patch-arm" not in (await stand.chat("pirate")).headers
    await start(admin, share=1.0)
    response = await stand.chat("pirate")
    assert (response.headers["x-policy-patch"], response.headers["x-policy-patch-arm"]) == (
        "pirate@1.1.0",
        "canary",
    )
    response = await stand.chat("pirate@1.0.0")
    assert response.headers["x-policy-patch-arm"] == "stable"
    labels = '{arm="canary",outcome="ok",patch="pirate"}'
    assert stand.value(f"policy_patch_arm_requests_total{labels}") == 1
    labels = '{arm="canary",patch="pirate"}'
    assert stand.value(f"policy_patch_arm_first_token_seconds_count{labels}") == 1


async def test_a_request_that_names_the_version_is_no_trial_of_the_canary(
    stand: Stand, admin: Any, trial: CanaryWatch
) -> None:
    await start(admin, share=1e-9, promote_after_s=1e-6, min_requests=3)
    for _ in range(5):
        response = await stand.chat("pirate@1.1.0")
        assert response.headers["x-policy-patch-arm"] == "canary"
    await trial.settled()
    assert stand.catalog.record("pirate").canary is not None
    assert 'policy_patch_arm_requests_total{arm="canary"' not in stand.exposition()


@pytest.mark.usefixtures("trial")
async def test_a_canary_sticks_to_the_user_of_the_body(stand: Stand, admin: Any) -> None:
    await start(admin, key="user", share=0.5)
    answers = {}
    for i in range(40):
        for _ in range(2):
            response = await stand.chat("pirate", user=f"user-{i}")
            answers.setdefault(f"user-{i}", set()).add(response.headers["x-policy-patch"])
    assert all(len(versions) == 1 for versions in answers.values())
    assert len({next(iter(versions)) for versions in answers.values()}) == 2


@pytest.mark.usefixtures("trial")
async def test_the_default_patch_and_a_larger_body_take_part_too(stand: Stand, admin: Any) -> None:
    stand.use(default_patch="pirate")
    await start(admin, key="user", share=1.0)
    response = await stand.chat(padding="x" * (2 << 20))
    assert response.json()["tokens"]
    assert response.headers["x-policy-patch"] == "pirate@1.1.0"


@pytest.mark.usefixtures("trial")
async def test_promote_makes_it_active_for_everyone(admin: Any) -> None:
    await start(admin)
    document = (await admin.post("pirate/canary", end="promote")).json()
    assert (document["active"]["version"], document["canary"], document["is_pinned"]) == (
        "1.1.0",
        None,
        False,
    )
    assert set((await admin.arms(20)).values()) == {"pirate@1.1.0"}
    assert (await admin.post("pirate/rollback")).json()["active"]["version"] == "1.0.0"


@pytest.mark.usefixtures("trial")
async def test_abort_takes_it_from_everyone_and_it_stays_out(stand: Stand, admin: Any) -> None:
    await start(admin, share=1.0)
    document = (await admin.post("pirate/canary", end="abort")).json()
    assert (document["active"]["version"], document["canary"]) == ("1.0.0", None)
    await stand.catalog.load_file(stand.folder / "pirate-1.1.0.safetensors")
    assert set((await admin.arms(20)).values()) == {"pirate@1.0.0"}


async def test_too_many_errors_abort_it_without_a_call(stand: Stand, admin: Any, trial: CanaryWatch) -> None:
    await start(admin, share=1.0, max_error_rate=0.2, min_requests=5)
    stand.engine.fails_after = 1
    for _ in range(5):
        await stand.chat("pirate")
    await trial.settled()
    stand.engine.fails_after = None
    assert await admin.answers() == "pirate@1.0.0"
    record = await admin.get("pirate/history")
    assert (record["history"][0]["action"], record["history"][0]["by"]) == ("abort", "rules")
    assert "100.0% of 5 requests failed" in record["history"][0]["reason"]
    assert (admin.audit.events[-1].event, admin.audit.events[-1].decision) == ("canary.abort", "done")


async def test_a_slow_first_token_aborts_it(stand: Stand, admin: Any, trial: CanaryWatch) -> None:
    await start(admin, share=1.0, max_first_token_s=1e-9, min_requests=3)
    for _ in range(3):
        await stand.chat("pirate")
    await trial.settled()
    assert await admin.answers() == "pirate@1.0.0"


async def test_a_canary_that_keeps_the_rules_is_promoted(
    stand: Stand, admin: Any, trial: CanaryWatch
) -> None:
    await start(admin, share=1.0, promote_after_s=1e-6, min_requests=3, max_error_rate=0.1)
    for _ in range(3):
        await stand.chat("pirate")
    await trial.settled()
    assert (await admin.get("pirate/history"))["history"][0]["action"] == "promote"


async def test_what_never_reached_the_engine_promotes_nothing(
    stand: Stand, admin: Any, trial: CanaryWatch
) -> None:
    """Thirty tokenized texts or redirects once counted as thirty good answers."""
    await start(admin, share=1.0, promote_after_s=1e-6, min_requests=3, max_error_rate=0.1)
    for _ in range(4):
        await stand.post("/tokenize", model="demo:pirate")
        response = await stand.post("/v1/chat/completions/", "pirate")
        assert (response.status_code, "x-policy-patch" in response.headers) == (307, False)
        assert (await stand.chat("pirate", model="no-such")).status_code == 404
        assert (await stand.chat("pirate", breaks=True)).status_code == 500
    await trial.settled()
    assert stand.catalog.record("pirate").canary is not None
    assert "policy_patch_arm_requests_total{" not in stand.exposition()
    counted = re.findall(r'policy_patch_requests_total\{.*patch="pirate".*', stand.exposition())
    assert [line for line in counted if not line.endswith(" 0.0")] == []


async def test_a_clients_mistake_that_the_engine_finds_in_a_stream_judges_nothing(
    stand: Stand, admin: Any, trial: CanaryWatch
) -> None:
    """A stream of a pattern that is no pattern once aborted the canary for everyone."""
    await start(admin, share=1.0, max_error_rate=0.01, min_requests=3)
    stand.engine.fails_after, stand.engine.failure = 0, ValueError("regex: ((( is no pattern")
    for _ in range(5):
        await stand.chat("pirate", stream=True)
    await trial.settled()
    assert stand.catalog.record("pirate").canary is not None
    assert stand.value('policy_patch_requests_total{outcome="client_error",patch="pirate"}') == 5


async def test_a_generation_that_outlives_its_exchange_is_judged_when_it_ends(
    stand: Stand, admin: Any, trial: CanaryWatch
) -> None:
    await start(admin, share=1.0, promote_after_s=1e-6, min_requests=2, max_error_rate=0.1)
    stand.engine.may_start.clear()
    for _ in range(2):
        response = await stand.post("/v1/responses", "pirate")
        assert (response.status_code, response.headers["x-policy-patch"]) == (200, "pirate@1.1.0")
        assert stand.value('policy_patch_requests_total{outcome="ok",patch="pirate"}') == 0
    stand.engine.may_start.set()
    await stand.app.state.background
    await stand.until(lambda: stand.value('policy_patch_requests_total{outcome="ok",patch="pirate"}') == 2)
    await trial.settled()
    assert (await admin.get("pirate/history"))["history"][0]["action"] == "promote"


@pytest.mark.parametrize(
    "body", [b'{"user": "\\ud83d"}', b"[" * 60_000 + b"]" * 60_000], ids=["half", "deep"]
)
async def test_a_canary_reads_the_body_by_no_rules_of_its_own(
    stand: Stand, admin: Any, trial: CanaryWatch, body: bytes
) -> None:
    async def post() -> Any:
        headers = {"X-Policy-Patch": "pirate"}
        return await stand.client.post("/v1/responses", headers=headers, content=body)

    assert (await post()).status_code == 200
    await start(admin, key="user", share=0.5)
    assert (await post()).status_code == 200


async def test_a_clock_that_jumps_promotes_nothing(
    stand: Stand, admin: Any, trial: CanaryWatch, monkeypatch: Any
) -> None:
    """Seen on a server whose time of day went a day ahead: an hour's canary was promoted within seconds."""
    monkeypatch.setattr(admin.operator, "_clock", lambda: time.time() - 86_400)
    await start(admin, share=1.0, promote_after_s=3600, min_requests=3)
    for _ in range(5):
        await stand.chat("pirate")
    await trial.settled()
    assert stand.catalog.record("pirate").canary is not None


async def test_the_time_until_a_promotion_runs_from_the_first_request_that_was_watched(
    stand: Stand, admin: Any
) -> None:
    now_s = 5.0
    audit, metrics = admin.audit, stand.metrics.canary
    await stand.load("pirate", "1.0.0")
    await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0", hold=True)
    watch = CanaryWatch(stand.catalog.record, admin.operator, metrics, audit, clock=lambda: now_s)
    await start(admin, share=1.0, promote_after_s=60, min_requests=1)
    for at_s, is_running in ((5.0, True), (64.0, True), (65.0, False)):
        now_s = at_s
        watch.finished("pirate", "canary", "ok", 0.1)
        await watch.settled()
        assert (stand.catalog.record("pirate").canary is not None) is is_running


async def test_errors_of_the_stable_arm_abort_nothing(stand: Stand, admin: Any, trial: CanaryWatch) -> None:
    await start(admin, share=1e-9, max_error_rate=0.0, min_requests=1)
    stand.engine.fails_after = 1
    for _ in range(5):
        await stand.chat("pirate")
    await trial.settled()
    assert stand.catalog.record("pirate").canary is not None


@pytest.mark.usefixtures("trial")
async def test_files_change_nothing_while_it_runs(stand: Stand, admin: Any) -> None:
    await start(admin)
    await stand.load("pirate", "2.0.0")
    assert set((await admin.arms(40)).values()) == {"pirate@1.0.0", "pirate@1.1.0"}


@pytest.mark.usefixtures("trial")
async def test_it_outlives_its_file_and_deleting_it_ends_it(stand: Stand, admin: Any) -> None:
    await start(admin, share=1.0)
    await stand.catalog.forget_file(stand.folder / "pirate-1.1.0.safetensors")
    assert await admin.answers() == "pirate@1.1.0"
    await admin.delete("pirate/1.1.0")
    assert await admin.answers() == "pirate@1.0.0"
    assert (await admin.get("pirate/history"))["canary"] is None


@pytest.mark.usefixtures("trial")
async def test_a_missing_composition_with_the_canary_is_no_fault_of_the_caller(
    stand: Stand, admin: Any
) -> None:
    stable = stand.catalog.view.names["pirate"].active
    await start(admin, share=1.0)
    bias = await stand.load("bias", fill=3.0)
    parts = (stable.digest, bias.digest)
    stand.catalog.publication.view = replace(stand.catalog.view, compositions={parts: bias})
    response = await stand.chat("pirate, bias")
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"version": "9.9.9"}, (404, "patch_not_found")),
        ({"version": "1.0.0"}, (409, "order_refused")),
        ({"version": "1.1.0", "share": 0}, (400, "invalid_admin_call")),
        ({"version": "1.1.0", "share": 1.5}, (400, "invalid_admin_call")),
        ({"version": "1.1.0", "max_condition_met": 1.0}, (400, "invalid_admin_call")),
        (
            {"version": "1.1.0", "min_condition_met": 0.3, "max_condition_met": 0.2},
            (400, "invalid_admin_call"),
        ),
        ({"version": "1.1.0", "min_condition_met": 0.0}, (400, "invalid_admin_call")),
        ({"version": "1.1.0", "key": "header:"}, (400, "invalid_admin_call")),
        ({"version": "1.1.0", "key": "cookie"}, (400, "invalid_admin_call")),
        ({"version": "1.1.0", "end": "abort"}, (400, "invalid_admin_call")),
        ({"end": "promote"}, (409, "order_refused")),
        ({"end": "stop"}, (400, "invalid_admin_call")),
        ({}, (400, "invalid_admin_call")),
    ],
)
@pytest.mark.usefixtures("trial")
async def test_a_canary_that_makes_no_sense_is_refused(
    stand: Stand, admin: Any, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert stand.code(await admin.post("pirate/canary", **body)) == expected
    assert stand.catalog.record("pirate").canary is None


async def test_a_running_canary_says_its_share_and_how_far_its_rules_are_from_firing(
    stand: Stand, admin: Any, trial: CanaryWatch
) -> None:
    await start(admin, share=0.5, max_error_rate=0.5, min_requests=1000, promote_after_s=3600)
    assert stand.value('policy_patch_canary_given_ratio{patch="pirate",version="1.1.0"}') == 0
    found = await admin.arms()
    share = sum(version == "pirate@1.1.0" for version in found.values()) / len(found)
    assert stand.value('policy_patch_canary_wanted_ratio{patch="pirate",version="1.1.0"}') == 0.5
    assert stand.value('policy_patch_canary_given_ratio{patch="pirate",version="1.1.0"}') == share
    rules = {
        rule: (
            stand.value(f'policy_patch_canary_rule_limit{{patch="pirate",rule="{rule}"}}'),
            stand.value(f'policy_patch_canary_rule_value{{patch="pirate",rule="{rule}"}}'),
        )
        for rule in ("max_error_rate", "min_requests", "max_first_token_s")
    }
    num_judged = len(found) * share
    assert rules == {
        "max_error_rate": (0.5, 0),
        "min_requests": (1000, num_judged),
        "max_first_token_s": (None, None),
    }
    await admin.post("pirate/canary", end="abort")
    assert "policy_patch_canary_" not in stand.exposition()
