"""Patches under a weight patch: what was made for other weights, and what becomes of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from patches.format import decode_patch
from patches.kinds.delta import effective_weights_digest
from server.admin.operator import Operator
from server.catalog.processes import NoOtherProcesses
from server.catalog.weights import WeightControl, Weights
from server.errors import NothingToRollBack, OrderRefused, PatchNotFound
from server.metrics.patches import PatchMetrics
from server.versions.activation import CanaryRules
from server.versions.selection import PatchRef, resolve_each
from tests.server.catalog.test_weights import Case, ScriptedWeights, case, put_delta
from tests.server.stand import Stand, put
from tests.server.test_audit import MemoryAudit
from tests.tiny_model import SMALLEST_MODEL

__all__ = ["case"]


async def test_patches_for_other_weights_leave_with_the_change_and_come_back(case: Case) -> None:
    await case.load(put_delta(case.folder), put(case.folder, "pirate"))
    assert case.operator.effects("no-harm", "1.0.0")[1].mismatched == ["pirate@1.0.0"]
    await case.operator.activate("no-harm", "1.0.0", "ops")
    assert "pirate" not in case.catalog.view.names
    assert case.catalog.view.mismatched == {("pirate", "1.0.0")}
    assert [row.is_mismatched for row in case.catalog.rows("pirate")] == [True]
    await case.catalog.load_file(put(case.folder, "french"))
    assert case.catalog.view.mismatched == {("pirate", "1.0.0"), ("french", "1.0.0")}
    await case.operator.rollback("no-harm", "ops")
    assert set(case.catalog.view.names) == {"pirate", "french"}


async def test_a_version_for_other_weights_can_neither_be_activated_nor_tried(case: Case) -> None:
    await case.load(put_delta(case.folder), put(case.folder, "pirate"))
    delta = case.catalog.residents.of("no-harm")[0].patch
    digest = effective_weights_digest(SMALLEST_MODEL.weights_digest, delta.digest)
    fitting = replace(SMALLEST_MODEL, weights_digest=digest)
    await case.catalog.load_file(put(case.folder, "pirate", "2.0.0", base_model=fitting))
    active = case.catalog.view.names["pirate"].active
    assert active is not None
    assert active.version == "1.0.0"
    with pytest.raises(OrderRefused, match="made for other weights"):
        await case.operator.activate("pirate", "2.0.0", "ops")
    trial = {"share": 0.5, "key": "user", "rules": CanaryRules()}
    with pytest.raises(OrderRefused, match="made for other weights"):
        await case.operator.start_canary("pirate", "2.0.0", "ops", **trial)
    await case.operator.activate("pirate", "1.0.0", "ops")
    await case.catalog.load_file(put(case.folder, "pirate", "1.1.0"))
    await case.operator.start_canary("pirate", "1.1.0", "ops", **trial)
    await case.operator.activate("no-harm", "1.0.0", "ops")
    with pytest.raises(OrderRefused, match="made for other weights"):
        await case.operator.end_canary("pirate", "promote", "ops")
    await case.operator.activate("pirate", "2.0.0", "ops")


async def test_a_bare_name_means_the_version_that_was_made_for_the_weights_in_force(tmp_path: Path) -> None:
    """Its file is there before the weights are, and takes nothing out of service."""
    case = Case(tmp_path)
    delta = decode_patch(put_delta(case.folder).read_bytes())
    digest = effective_weights_digest(SMALLEST_MODEL.weights_digest, delta.digest)
    under = put(case.folder, "pirate", "2.0.0", base_model=replace(SMALLEST_MODEL, weights_digest=digest))
    await case.load(put(case.folder, "pirate"), under, case.folder / delta.filename)

    def active(of: Case) -> str | None:
        named = of.catalog.view.names["pirate"]
        return named.active.version if named.active is not None else None

    assert active(case) == "1.0.0"
    assert case.operator.effects("no-harm", "1.0.0")[1].mismatched == ["pirate@1.0.0"]
    seen = []
    resume = case.engine.resume

    async def resumed() -> None:
        seen.append(active(case))
        await resume()

    case.engine.resume = resumed  # type: ignore[method-assign]
    await case.operator.activate("no-harm", "1.0.0", "ops")
    assert (active(case), seen) == ("2.0.0", ["2.0.0"])
    with pytest.raises(NothingToRollBack):
        await case.operator.rollback("pirate", "ops")
    await case.catalog.load_file(put(case.folder, "pirate", "3.0.0"))
    assert active(case) == "2.0.0"
    case.records.close()
    again = Case(tmp_path)
    await again.load()
    assert (again.in_force, active(again)) == ("no-harm@1.0.0", "2.0.0")
    await again.operator.rollback("no-harm", "ops")
    assert active(again) == "3.0.0"
    again.records.close()


async def test_each_version_is_told_from_those_that_serve(case: Case) -> None:
    """Also where the name is pinned to it, so that nothing else stands for it: trying again is no help."""
    path = put_delta(case.folder)
    digest = effective_weights_digest(SMALLEST_MODEL.weights_digest, decode_patch(path.read_bytes()).digest)
    under = replace(SMALLEST_MODEL, weights_digest=digest)
    await case.load(put(case.folder, "pirate"), path, put(case.folder, "pirate", "2.0.0", base_model=under))
    states = {row.patch.version: row.is_mismatched for row in case.catalog.rows("pirate")}
    assert states == {"1.0.0": False, "2.0.0": True}
    assert not any(row.is_previous for row in case.catalog.rows("pirate"))
    await case.operator.activate("pirate", "1.0.0", "ops")
    await case.operator.activate("no-harm", "1.0.0", "ops")
    for wish in (PatchRef("pirate"), PatchRef("pirate", "1.0.0")):
        with pytest.raises(PatchNotFound, match=r"made for other weights .*under no-harm@1\.0\.0"):
            resolve_each([wish], case.catalog.view, "X-Policy-Patch")
    (served,) = resolve_each([PatchRef("pirate", "2.0.0")], case.catalog.view, "X-Policy-Patch")
    assert served.version == "2.0.0"


async def test_a_start_refuses_only_what_fits_under_no_weight_patch(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """Files come in any order; what fits in the end was never wrong."""
    path = put_delta(case.folder)
    digest = effective_weights_digest(SMALLEST_MODEL.weights_digest, decode_patch(path.read_bytes()).digest)
    under = replace(SMALLEST_MODEL, weights_digest=digest)
    other = replace(SMALLEST_MODEL, weights_digest="sha256:" + "9" * 64)
    files = [
        put(case.folder, "french", base_model=under),
        put(case.folder, "pirate", base_model=other),
        path,
    ]
    await case.load(*files)
    refused = [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]
    assert len(refused) == 1
    assert refused[0].startswith("pirate-1.0.0.safetensors is refused (base_model_mismatch)")
    assert [failure.name for failure in case.catalog.failures()] == ["pirate"]


async def test_patches_for_other_weights_are_kept_where_the_operator_wants_it(tmp_path: Path) -> None:
    case = Case(tmp_path, keeps_mismatched=True)
    await case.load(put_delta(case.folder), put(case.folder, "pirate"))
    case.catalog.needs = lambda view: ["pirate"] if "pirate" in view.names else []
    effects = case.operator.effects("no-harm", "1.0.0")[1]
    assert (effects.mismatched, effects.kept, effects.lost) == ([], ["pirate@1.0.0"], [])
    await case.operator.activate("no-harm", "1.0.0", "ops")
    (pirate,) = case.catalog.view.names["pirate"].versions
    assert (case.catalog.view.kept, case.catalog.view.mismatched) == ({pirate.digest}, set())
    digest = case.catalog.weights.digest_under(case.catalog.weights.in_force)
    fitting = replace(SMALLEST_MODEL, weights_digest=digest)
    await case.catalog.load_file(put(case.folder, "pirate", "0.9.0", base_model=fitting))
    # What fits is what the bare name means, though it is older.
    active = case.catalog.view.names["pirate"].active
    assert active is not None
    assert active.version == "0.9.0"
    await case.operator.rollback("no-harm", "ops")
    assert set(case.catalog.view.kept) == {active.digest}
    case.records.close()


async def test_an_answer_under_a_patch_for_other_weights_says_so(stand: Stand) -> None:
    weights = WeightControl(ScriptedWeights(), keeps_mismatched=True)
    metrics = PatchMetrics(CollectorRegistry())
    patch = await stand.load("pirate")
    stand.catalog.weights = stand.catalog.publication.weights = Weights(
        SMALLEST_MODEL, weights, NoOtherProcesses(), metrics.weights
    )
    stand.decider.door = stand.catalog.weights.door
    audit = MemoryAudit()
    stand.decider.audit = audit
    assert "x-policy-patch-weights" not in (await stand.chat("pirate")).headers
    await stand.catalog.load_file(put_delta(stand.folder))
    await Operator(stand.catalog).activate("no-harm", "1.0.0", "ops")
    answered = await stand.chat("pirate")
    assert answered.headers["x-policy-patch-weights"] == "other"
    assert patch.digest in answered.text
    assert "x-policy-patch-weights" not in (await stand.chat()).headers
    assert [event.details.get("weights") for event in audit.events] == [None, "other", None]
    assert stand.value('policy_patch_mismatched_requests_total{patch="pirate"}') == 1
