"""``/ready``: whether a gateway should send requests here."""

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from server.app import install
from server.errors import NotInStep
from server.metrics.patches import PatchMetrics
from tests.server.stand import Stand


async def test_a_server_without_a_policy_is_ready(stand: Stand) -> None:
    answer = await stand.client.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True})


async def test_a_server_is_ready_once_everything_that_its_policy_needs_is_served(stand: Stand) -> None:
    stand.use(default_patch="pirate", require_patch=True)
    refused = await stand.client.get("/ready")
    assert stand.code(refused) == (503, "patch_not_ready")
    assert refused.headers["retry-after"] == "1"
    # Anyone may ask.
    assert "pirate" not in refused.text
    await stand.load()
    assert (await stand.client.get("/ready")).status_code == 200


async def test_a_server_whose_engine_has_ended_is_not_ready(stand: Stand) -> None:
    async def ended() -> None:
        raise NotInStep("the engine has ended, and so will this process")

    app = FastAPI()
    metrics = PatchMetrics(CollectorRegistry())
    install(app, catalog=stand.catalog, decider=stand.decider, metrics=metrics, alive=ended)
    answer = TestClient(app).get("/ready")
    assert stand.code(answer) == (503, "not_in_step")
