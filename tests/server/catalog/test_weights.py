"""Weight patches in the catalog: one set of weights for each request, one state after every step.

The engine is a stand-in that remembers what it was told to write; tests/e2e/test_weights.py has a real one.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from patches.format import decode_patch, encode_patch
from patches.kinds.delta import ChangedTensor, DeltaBody, effective_weights_digest
from patches.manifest import Manifest
from server.admin.operator import Operator
from server.catalog.catalog import Catalog
from server.catalog.control import CatalogControl
from server.catalog.records import Records
from server.catalog.state_folder import CatalogState, StateError
from server.catalog.weights import WeightControl
from server.errors import NothingToRollBack, OrderRefused, StateNotSaved, WeightsBusy
from server.memory.weights import NullWeights, WeightsNotChanged
from server.metrics.patches import PatchMetrics
from server.versions.activation import CanaryRules
from tests.server.fake_engine import ScriptedResidency
from tests.server.stand import MODEL, Stand, put
from tests.server.test_audit import MemoryAudit
from tests.tiny_model import SMALLEST_MODEL


def put_delta(folder: Path, name: str = "no-harm", version: str = "1.0.0", fill: float = 1.0) -> Path:
    body = DeltaBody((ChangedTensor("model.layers.0.mlp.up_proj.weight", (8, 4), 1),))
    manifest = Manifest(name, version, SMALLEST_MODEL, body, {"method": "hdr"})
    tensors = {"values": torch.tensor([float(fill)]), "indices": torch.zeros(1, dtype=torch.int32)}
    path = folder / f"{name}-{version}.safetensors"
    path.write_bytes(encode_patch(manifest, tensors))
    return path


class ScriptedWeights(NullWeights):
    """Fails where a test says so, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str | None] = []
        self.fails = False

    async def write(self, digest: str | None, num_changed: int, *, timeout_s: float) -> None:
        self.calls.append(digest)
        if self.fails:
            raise WeightsNotChanged("worker 1 says no")
        await super().write(digest, num_changed, timeout_s=timeout_s)


class Case:
    """A catalog with weight patches, on a state folder, and an operator."""

    def __init__(self, folder: Path, timeout_s: float = 30, *, keeps_mismatched: bool = False) -> None:
        self.folder = folder / "patches"
        self.folder.mkdir(exist_ok=True)
        self.state = folder / "state"
        self.engine = ScriptedWeights()
        self.residency = ScriptedResidency()
        self.records = Records(CatalogState(self.state))
        metrics = PatchMetrics(CollectorRegistry())
        control = WeightControl(self.engine, timeout_s, keeps_mismatched=keeps_mismatched)
        self.catalog = Catalog(self.residency, MODEL, metrics, CatalogControl(self.records), weights=control)
        self.operator = Operator(self.catalog)

    async def load(self, *paths: Path) -> None:
        self.catalog.begin_start()
        for path in paths or sorted(self.folder.iterdir()):
            await self.catalog.load_file(path)
        await self.catalog.settle()

    @property
    def in_force(self) -> str | None:
        """What is in force, on which catalog, view and engine have to agree."""
        patch = self.catalog.weights.in_force
        assert self.engine.written == (patch.digest if patch is not None else None)
        assert self.catalog.view.weights == patch
        assert not self.engine.is_paused
        return patch.reference if patch is not None else None


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    yield made
    made.records.close()


async def test_no_file_puts_a_weight_patch_in_force(case: Case) -> None:
    await case.load(put_delta(case.folder))
    await case.catalog.load_file(put_delta(case.folder, version="2.0.0"))
    assert case.in_force is None
    assert "no-harm" not in case.catalog.view.names


async def test_activation_and_rollback_go_step_by_step_back_to_the_models_own_weights(case: Case) -> None:
    await case.load(put_delta(case.folder), put_delta(case.folder, version="2.0.0", fill=2))
    for version in ("1.0.0", "2.0.0"):
        await case.operator.activate("no-harm", version, "ops")
        assert case.in_force == f"no-harm@{version}"
    await case.operator.rollback("no-harm", "ops")
    assert case.in_force == "no-harm@1.0.0"
    assert (await case.operator.rollback("no-harm", "ops")).active is None
    assert case.in_force is None
    with pytest.raises(NothingToRollBack):
        await case.operator.rollback("no-harm", "ops")


async def test_an_engine_that_does_not_write_leaves_everything_as_it_was(case: Case) -> None:
    await case.load(put_delta(case.folder), put_delta(case.folder, version="2.0.0", fill=2))
    await case.operator.activate("no-harm", "1.0.0", "ops")
    before = case.catalog.record("no-harm")
    case.engine.fails = True
    with pytest.raises(OrderRefused, match="worker 1 says no"):
        await case.operator.activate("no-harm", "2.0.0", "ops")
    assert (case.in_force, case.catalog.record("no-harm")) == ("no-harm@1.0.0", before)
    case.engine.fails = False
    await case.operator.activate("no-harm", "2.0.0", "ops")
    assert case.in_force == "no-harm@2.0.0"


async def test_a_record_that_is_not_written_takes_the_weights_back(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    await case.load(put_delta(case.folder))

    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(CatalogState, "save", full)
    with pytest.raises(StateNotSaved):
        await case.operator.activate("no-harm", "1.0.0", "ops")
    assert case.in_force is None
    assert case.engine.calls[-1] is None


async def test_requests_that_do_not_end_in_time_give_the_change_up(tmp_path: Path) -> None:
    case = Case(tmp_path, timeout_s=0.01)
    await case.load(put_delta(case.folder))
    door = case.catalog.weights.door
    assert door is not None
    inside = await door.enter()
    with pytest.raises(
        WeightsBusy, match=r"1 requests were still running after 0\.01 s; nothing was changed"
    ):
        await case.operator.activate("no-harm", "1.0.0", "ops")
    assert (case.in_force, case.engine.calls) == (None, [])
    inside.leave()
    await case.operator.activate("no-harm", "1.0.0", "ops")
    assert case.in_force == "no-harm@1.0.0"
    case.records.close()


async def test_what_is_in_force_is_so_after_a_restart_though_its_file_has_gone(
    case: Case, tmp_path: Path
) -> None:
    await case.load(path := put_delta(case.folder))
    await case.operator.activate("no-harm", "1.0.0", "ops")
    path.unlink()
    await case.catalog.forget_file(path)
    assert case.in_force == "no-harm@1.0.0"
    case.records.close()
    again = Case(tmp_path)
    await again.load()
    assert again.in_force == "no-harm@1.0.0"
    again.records.close()


async def test_a_server_does_not_start_with_other_weights_than_those_in_force(
    case: Case, tmp_path: Path
) -> None:
    await case.load(put_delta(case.folder))
    await case.operator.activate("no-harm", "1.0.0", "ops")
    case.records.close()
    for path in [*case.folder.iterdir(), *(case.state / "patches").iterdir()]:
        path.write_bytes(b"damaged")
    again = Case(tmp_path)
    with pytest.raises(StateError, match=r"no-harm@1\.0\.0 is in force and can't be loaded"):
        await again.load()
    again.records.close()


async def test_being_in_force_counts_as_no_request(case: Case) -> None:
    await case.load(put_delta(case.folder))
    await case.operator.activate("no-harm", "1.0.0", "ops")
    assert [(row.is_active, row.num_in_flight) for row in case.catalog.rows("no-harm")] == [(True, 0)]


async def test_the_audit_log_names_the_weights(stand: Stand) -> None:
    weights = WeightControl(ScriptedWeights())
    catalog = Catalog(stand.residency, MODEL, PatchMetrics(CollectorRegistry()), weights=weights)
    stand.decider.door = catalog.weights.door
    audit = MemoryAudit()
    stand.decider.audit = audit
    await catalog.load_file(put_delta(stand.folder))
    await stand.chat()
    await Operator(catalog).activate("no-harm", "1.0.0", "ops")
    await stand.chat()
    assert [event.details["delta"] for event in audit.events] == ["none", "no-harm@1.0.0"]


async def test_a_patch_for_the_model_under_a_weight_patch_serves_while_that_is_in_force(case: Case) -> None:
    """Also where its file comes first, and whatever is in force when it comes."""
    delta = decode_patch(put_delta(case.folder).read_bytes())
    digest = effective_weights_digest(SMALLEST_MODEL.weights_digest, delta.digest)
    under = put(case.folder, "french", base_model=replace(SMALLEST_MODEL, weights_digest=digest))
    other = replace(SMALLEST_MODEL, weights_digest="sha256:" + "9" * 64)
    await case.load(under, put(case.folder, "pirate", base_model=other), case.folder / delta.filename)
    assert [failure.name for failure in case.catalog.failures()] == ["pirate"]
    assert case.catalog.view.mismatched == {("french", "1.0.0")}
    await case.operator.activate("no-harm", "1.0.0", "ops")
    assert (set(case.catalog.view.names), case.catalog.view.mismatched) == ({"french"}, set())
    await case.operator.rollback("no-harm", "ops")
    assert case.catalog.view.mismatched == {("french", "1.0.0")}


async def test_what_the_policy_needs_forbids_the_change(case: Case) -> None:
    await case.load(put_delta(case.folder), put(case.folder, "pirate"))
    case.catalog.needs = lambda view: ["pirate"] if "pirate" in view.names else []
    assert case.operator.effects("no-harm", "1.0.0")[1].lost == ["pirate"]
    with pytest.raises(OrderRefused, match="the policy needs pirate, made for other weights"):
        await case.operator.activate("no-harm", "1.0.0", "ops")
    assert (case.in_force, case.engine.calls) == (None, [])


async def test_a_second_name_waits_until_the_first_is_rolled_back(case: Case) -> None:
    await case.load(put_delta(case.folder), put_delta(case.folder, "calm", fill=3))
    await case.catalog.load_file(put_delta(case.folder, version="2.0.0", fill=2))
    await case.operator.activate("no-harm", "1.0.0", "ops")
    with pytest.raises(OrderRefused, match=r"no-harm@1\.0\.0 is in force; roll it back first"):
        await case.operator.activate("calm", "1.0.0", "ops")
    with pytest.raises(OrderRefused, match="roll it back first"):
        await case.operator.remove("no-harm", None, "ops")
    with pytest.raises(OrderRefused, match="follows no folder"):
        await case.operator.follow("no-harm", "ops")
    with pytest.raises(OrderRefused, match="can have no canary"):
        await case.operator.start_canary(
            "no-harm", "2.0.0", "ops", share=0.1, key="user", rules=CanaryRules()
        )
    await case.operator.remove("calm", None, "ops")
    assert case.in_force == "no-harm@1.0.0"


async def test_a_name_is_that_of_weight_patches_or_of_others(case: Case) -> None:
    await case.load(put_delta(case.folder))
    (outcome,) = [await case.catalog.load_file(put(case.folder, "no-harm", "3.0.0"))]
    assert "give one of them another name" in getattr(outcome, "message", "")


async def test_every_request_is_answered_under_the_weights_that_it_entered_with(
    stand: Stand, open_stream: Callable[..., Any]
) -> None:
    """A request that runs keeps the change waiting, and one that comes meanwhile waits for the change."""
    engine = ScriptedWeights()
    weights = WeightControl(engine)
    catalog = Catalog(stand.residency, MODEL, PatchMetrics(CollectorRegistry()), weights=weights)
    stand.decider.door = catalog.weights.door
    await catalog.load_file(put_delta(stand.folder))
    stand.engine.may_go_on.clear()
    running = open_stream()
    _, headers = await running.start()
    assert headers["x-policy-delta"] == "none"
    order = asyncio.create_task(Operator(catalog).activate("no-harm", "1.0.0", "ops"))
    await stand.until(lambda: catalog.weights.door is not None and not catalog.weights.door.is_open)
    waiting = open_stream()
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine.calls == []
    assert stand.engine.num_running == 1
    stand.engine.may_go_on.set()
    assert await running.rest()
    await order
    _, headers = await waiting.start()
    assert headers["x-policy-delta"] == "no-harm@1.0.0"
    await waiting.rest()


async def test_a_refused_request_does_not_stay_inside(stand: Stand) -> None:
    catalog = Catalog(
        stand.residency, MODEL, PatchMetrics(CollectorRegistry()), weights=WeightControl(ScriptedWeights())
    )
    stand.decider.door = door = catalog.weights.door
    assert door is not None
    assert (await stand.chat("nobody")).status_code == 404
    assert (await stand.chat("not a name!")).status_code == 400
    assert (await stand.chat()).status_code == 200
    assert door.num_inside == 0
