"""Several processes, one set of weights: requests are kept out of all of them while it changes."""

import asyncio
from typing import Any

import pytest

from server.catalog.weights import WeightControl
from server.errors import NotInStep, PatchNotReady, WeightsBusy
from server.request.prompt_routes import RouteKind
from server.request.scope import RequestScope, current_scope
from tests.server.catalog.test_weights import ScriptedWeights, put_delta
from tests.server.stand import put


@pytest.fixture
def weights() -> WeightControl:
    return WeightControl(ScriptedWeights(), drain_timeout_s=0.5)


@pytest.fixture
async def delta(fleet: Any) -> Any:
    """A weight patch that waits for its order, and a prefix for the model's own weights."""
    await fleet.stand.catalog.load_file(put(fleet.stand.folder, "pirate"))
    return await fleet.stand.catalog.load_file(put_delta(fleet.stand.folder))


async def told(process: Any) -> str:
    response = await process.chat()
    assert response.status_code == 200, response.text
    text: str = response.headers["x-policy-delta"]
    return text


@pytest.mark.usefixtures("delta")
async def test_every_process_answers_under_the_weights_that_are_in_force(fleet: Any) -> None:
    everyone = [fleet.stand, *fleet.processes]
    assert [await told(one) for one in everyone] == ["none"] * 3
    await fleet.operator.activate("no-harm", "1.0.0", "ops")
    assert [await told(one) for one in everyone] == ["no-harm@1.0.0"] * 3
    for process in fleet.processes:
        refused = await process.chat("pirate")
        assert fleet.stand.code(refused) == (404, "patch_not_found")
        assert "made for other weights" in refused.text
        named = await process.chat("no-harm")
        assert fleet.stand.code(named) == (400, "unsupported_with_patch")
    late = await _again(fleet)
    assert await told(late) == "no-harm@1.0.0"
    await fleet.operator.rollback("no-harm", "ops")
    assert [await told(one) for one in everyone[:2]] == ["none"] * 2
    assert await fleet.processes[0].version() == "pirate@1.0.0"


@pytest.mark.usefixtures("delta")
async def test_a_request_in_any_process_keeps_the_change_waiting(fleet: Any) -> None:
    process = fleet.processes[1]
    process.engine.may_go_on.clear()
    running = asyncio.create_task(process.chat())
    await fleet.stand.until(lambda: process.decider.door.num_inside == 1)
    with pytest.raises(WeightsBusy, match="1 requests were still running"):
        await fleet.operator.activate("no-harm", "1.0.0", "ops")
    assert fleet.stand.catalog.weights.in_force is None
    await fleet.stand.until(lambda: all(p.decider.door.is_open for p in fleet.processes))
    order = asyncio.create_task(fleet.operator.activate("no-harm", "1.0.0", "ops"))
    await fleet.stand.until(lambda: not process.decider.door.is_open)
    waiting = asyncio.create_task(told(fleet.processes[0]))
    process.engine.may_go_on.set()
    await order
    assert (await running).headers["x-policy-delta"] == "none"
    assert await waiting == "no-harm@1.0.0"


@pytest.mark.usefixtures("delta")
async def test_a_process_that_does_not_say_that_it_is_empty_forbids_the_change(fleet: Any) -> None:
    fleet.processes[1].follower.muted = {"close", "reset"}
    with pytest.raises(NotInStep, match="nothing was changed: front end 2"):
        await fleet.operator.activate("no-harm", "1.0.0", "ops")
    # What it took in before may still run, so that the next one waits until it is back.
    with pytest.raises(NotInStep, match="is not in step"):
        await fleet.operator.activate("no-harm", "1.0.0", "ops")
    assert await told(fleet.processes[0]) == "none"
    fleet.processes[1].follower.muted = set()
    await fleet.stand.until(lambda: fleet.processes[1].mirror.is_in_step)
    await fleet.operator.activate("no-harm", "1.0.0", "ops")
    assert await told(fleet.processes[1]) == "no-harm@1.0.0"


@pytest.mark.usefixtures("delta")
async def test_a_generation_does_not_begin_under_other_weights_than_its_request_entered_under(
    fleet: Any,
) -> None:
    """Its process missed the change, which no follower that is counted on can."""
    process = fleet.processes[1]
    scope = RequestScope(RouteKind.GENERATES)
    await process.decider.enter(scope)
    token = current_scope.set(scope)
    try:
        with process.engine.gate.generation():
            pass
        process.decider.door.weights = fleet.stand.catalog.residents.of("no-harm")[0].patch
        with pytest.raises(PatchNotReady, match="send it again"), process.engine.gate.generation():
            raise AssertionError("it began")
    finally:
        current_scope.reset(token)


async def _again(fleet: Any) -> Any:
    """Have a follower lose the leader and come back."""
    process = fleet.processes[1]
    process.follower._channel.close()
    await fleet.stand.until(lambda: not process.mirror.is_in_step)
    await fleet.stand.until(lambda: process.mirror.is_in_step)
    return process
