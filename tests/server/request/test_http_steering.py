"""Steering patches over HTTP: alone, beside a prefix, and where the server takes none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.format import encode_patch
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from server.versions.composition import STEERED_LABEL
from server.versions.view import FileFailure, ServedPatch
from tests.server.stand import Stand
from tests.tiny_model import SMALLEST_MODEL

HEADER = "x-policy-patch"


def steering_bytes(name: str, *, dtype: str = SMALLEST_MODEL.dtype, fill: float = 0.25) -> bytes:
    body = SteeringBody(Steering("residual", "relative", 0.1))
    model = replace(SMALLEST_MODEL, dtype=dtype)
    manifest = Label(name, "1.0.0").manifest(model, body, {"method": "icv"})
    return encode_patch(manifest, {"vector": torch.full((model.num_layers, model.hidden_size), fill)})


async def load(stand: Stand, name: str, **parts: Any) -> ServedPatch | FileFailure:
    path: Path = stand.folder / f"{name}-1.0.0.safetensors"
    path.write_bytes(steering_bytes(name, **parts))
    return await stand.catalog.load_file(path)


@pytest.fixture
async def safe(stand: Stand) -> Any:
    return await load(stand, "safe")


async def test_a_vector_answers_as_any_patch_does(stand: Stand, safe: Any) -> None:
    response = await stand.chat("safe")
    assert response.headers[HEADER] == "safe@1.0.0"
    assert response.headers["x-policy-patch-digest"] == safe.digest
    (card,) = (await stand.client.get("/v1/patches")).json()["data"]
    assert (card["versions"][0]["kind"], card["versions"][0]["num_virtual_tokens"]) == ("steering", 0)


async def test_prefix_and_vector_answer_together_in_any_order(stand: Stand, safe: Any) -> None:
    pirate = await stand.load("pirate", fill=1.0)
    digests = set()
    for wish in ("pirate, safe", "safe, pirate"):
        response = await stand.chat(wish)
        assert response.headers[HEADER] == "pirate@1.0.0, safe@1.0.0"
        digests.add(response.headers["x-policy-patch-digest"])
    assert len(digests) == 1
    assert digests.isdisjoint({pirate.digest, safe.digest})
    assert stand.value(f'policy_patch_requests_total{{outcome="ok",patch="{STEERED_LABEL}"}}') == 2


async def test_two_vectors_are_refused_before_the_engine_is_asked(stand: Stand, safe: Any) -> None:
    await load(stand, "calm")
    assert stand.code(await stand.chat("safe, calm")) == (400, "unsupported_with_patch")
    assert stand.engine.decisions == []


async def test_a_vector_serves_a_model_in_any_dtype(stand: Stand) -> None:
    """Its values are float32, and act in float32."""
    assert SMALLEST_MODEL.dtype != "float16"
    assert isinstance(await load(stand, "safe", dtype="float16"), ServedPatch)


async def test_a_server_that_cannot_steer_refuses_the_file_with_the_reason(stand: Stand) -> None:
    model = replace(stand.catalog.intake.model, refused_kinds={"steering": "the weights are quantised"})
    stand.catalog.intake.model = model
    failure = await load(stand, "safe")
    assert isinstance(failure, FileFailure)
    assert (failure.reason, failure.code) == ("kind_unsupported", "kind_unsupported")
    assert "the weights are quantised" in failure.message
    assert stand.code(await stand.chat("safe")) == (404, "patch_not_found")
    assert isinstance(await stand.load("pirate"), ServedPatch), "other kinds are served"
