"""The kind ``steering``: round trip, golden bytes, and everything that a file of it can get wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patches.canonical import canonical_json
from patches.errors import PatchFormatError
from patches.format import Patch, decode_patch, encode_patch, make_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from patches.manifest import decode_manifest, encode_manifest
from tests.tiny_model import BASE_MODEL

GOLDEN = Path(__file__).parents[1] / "golden"

MODEL = replace(BASE_MODEL, num_layers=4)
CONDITION = Condition(
    (Probe((0, 1), "mean", -1.5, 0.25), Probe((1,), "last", 0.0, 2.0)), combine="all", shadow=True
)
ANSWER = Steering("residual", "relative", 0.125, tokens="answer")

#: Body and digest, which it has for ever, of each golden file.
GOLDENS = {
    "format-2-steering.safetensors": (
        SteeringBody(Steering("mlp", "absolute", 2.5, opposed_gain=1, renormalise=False)),
        "sha256:e12e136bf4f8776f65b63d0f95f6a9eedd193ee073418cf2861a462a5c00acc7",
    ),
    "format-2-condition.safetensors": (
        SteeringBody(ANSWER, CONDITION),
        "sha256:1ed0573d7f1e9941a5351728d5024158d5e98f10fc1078ac2952b12f48ff0c8f",
    ),
}


def tensors_of(body: SteeringBody) -> dict[str, torch.Tensor]:
    """Values that every machine holds exactly; rows below the decision are zero, none is longer than 1."""
    first = body.condition.last_layer + 1 if body.condition is not None else 0
    vector = torch.zeros(MODEL.num_layers, MODEL.hidden_size)
    rows = torch.arange((MODEL.num_layers - first) * MODEL.hidden_size).reshape(-1, MODEL.hidden_size)
    vector[first:] = (rows % 7 - 3) / 16
    if body.condition is None:
        return {"vector": vector}
    probes = torch.arange(body.condition.num_rows * MODEL.hidden_size).reshape(-1, MODEL.hidden_size)
    return {"vector": vector, "probes": (probes % 5 - 2) / 8}


def steering_patch(body: SteeringBody, **tensors: torch.Tensor) -> Patch:
    manifest = Label("safe-steer", "1.0.0").manifest(MODEL, body, {"method": "icv"})
    return make_patch(manifest, tensors_of(body) | tensors)


def assert_refused(message: str, body: SteeringBody, **tensors: torch.Tensor) -> None:
    with pytest.raises(PatchFormatError) as refused:
        steering_patch(body, **tensors)
    assert message in str(refused.value)


@pytest.mark.parametrize(("body", "digest"), GOLDENS.values(), ids=list(GOLDENS))
def test_decoding_gives_back_what_was_encoded(body: SteeringBody, digest: str) -> None:
    patch = steering_patch(body)
    again = decode_patch(encode_patch(patch.manifest, patch.tensors))
    assert (again.manifest, again.digest) == (patch.manifest, patch.digest)
    assert again.tensors.keys() == patch.tensors.keys()
    assert all(torch.equal(again.tensors[name], patch.tensors[name]) for name in patch.tensors)


@pytest.mark.parametrize("filename", GOLDENS)
def test_golden_files_load_for_ever(filename: str, pytestconfig: pytest.Config) -> None:
    body, digest = GOLDENS[filename]
    patch = steering_patch(body)
    path = GOLDEN / filename
    if pytestconfig.getoption("--update-goldens"):
        path.write_bytes(encode_patch(patch.manifest, patch.tensors))
    data = path.read_bytes()
    assert decode_patch(data).digest == digest
    assert encode_patch(patch.manifest, patch.tensors) == data


@given(
    site=st.sampled_from(["residual", "mlp"]),
    strength=st.floats(1e-6, 1),
    gain=st.floats(0, 100),
    bias=st.floats(-1e6, 1e6),
    layers=st.sets(st.integers(0, MODEL.num_layers - 1), min_size=1),
    num_tokens=st.integers(1, 4096),
)
def test_any_valid_manifest_survives_the_round_trip(
    site: str, strength: float, gain: float, bias: float, layers: set[int], num_tokens: int
) -> None:
    read = tuple(sorted(layers))
    condition = Condition((Probe(read, "mean", bias, 0.5), Probe(read, "last", bias, 0.5, num_tokens)))
    body = SteeringBody(Steering(site, "relative", strength, gain, tokens="answer"), condition)
    manifest = Label("safe-steer", "1.0.0").manifest(MODEL, body, {"method": "trained"})
    assert decode_manifest(encode_manifest(manifest)) == manifest


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no steering", lambda m: m.pop("steering"), "the key 'steering' is missing"),
    ("virtual tokens", lambda m: m.update(num_virtual_tokens=4), "unknown key 'num_virtual_tokens'"),
    ("version 1", lambda m: m.update(format_version=1), "kind: expected 'prefix', got 'steering'"),
    ("method of a prefix", lambda m: m["origin"].update(method="text"), "origin.method: expected 'icv'"),
    ("unknown site", lambda m: m["steering"].update(site="attention"), "steering.site: expected 'residual'"),
    ("no strength", lambda m: m["steering"].update(strength=0), "steering.strength: expected more than 0"),
    (
        "negative",
        lambda m: m["steering"].update(strength=-0.1),
        "steering.strength: expected a number from 0",
    ),
    ("too strong", lambda m: m["steering"].update(strength=1.01), "expected a number from 0 to 1, got 1.01"),
    (
        "strength a bool",
        lambda m: m["steering"].update(strength=True),
        "expected a number from 0 to 1, got True",
    ),
    ("renormalise a number", lambda m: m["steering"].update(renormalise=1), "expected true or false, got 1"),
    ("inner key", lambda m: m["steering"].update(layers=[1]), "steering: unknown key 'layers'"),
    ("all tokens", lambda m: m["steering"].update(tokens="all"), "expected 'answer' beside a condition"),
    ("no probe", lambda m: m["condition"].update(probes=[]), "expected a list of 1 to 4 objects"),
    ("five", lambda m: m["condition"].update(probes=[m["condition"]["probes"][0]] * 5), "1 to 4 objects"),
    ("no layer", lambda m: m["condition"]["probes"][0].update(layers=[]), "expected 1 to 64 rising layers"),
    (
        "falling",
        lambda m: m["condition"]["probes"][0].update(layers=[1, 0]),
        "expected 1 to 64 rising layers",
    ),
    ("twice", lambda m: m["condition"]["probes"][0].update(layers=[1, 1]), "expected 1 to 64 rising layers"),
    (
        "no such layer",
        lambda m: m["condition"]["probes"][0].update(layers=[4]),
        "a list of integers from 0 to 3",
    ),
    (
        "layer a text",
        lambda m: m["condition"]["probes"][0].update(layers="1"),
        "a list of integers from 0 to 3",
    ),
    ("pool", lambda m: m["condition"]["probes"][0].update(pool="max"), "pool: expected 'mean' or 'last'"),
    (
        "threshold",
        lambda m: m["condition"]["probes"][0].update(threshold=1e9),
        "threshold: expected a number",
    ),
    (
        "tokens of a mean",
        lambda m: m["condition"]["probes"][0].update(num_tokens=16),
        "num_tokens: expected none beside the pool mean, got 16",
    ),
    # One digest for one meaning: a single last token is not written down.
    (
        "one token",
        lambda m: m["condition"]["probes"][1].update(num_tokens=1),
        "num_tokens: expected an integer from 2 to 4096",
    ),
    ("combine", lambda m: m["condition"].update(combine="one"), "combine: expected 'any' or 'all'"),
    ("shadow", lambda m: m["condition"].update(shadow="no"), "shadow: expected true or false"),
    ("condition null", lambda m: m.update(condition=None), "condition: expected an object, got None"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_a_bad_manifest_is_refused(change: Callable[[dict[str, Any]], object], message: str) -> None:
    document = json.loads(encode_manifest(steering_patch(SteeringBody(ANSWER, CONDITION)).manifest))
    change(document)
    with pytest.raises(PatchFormatError) as refused:
        decode_manifest(canonical_json(document))
    assert refused.value.reason == "bad_manifest"
    assert message in str(refused.value)


def test_a_vector_without_a_value_is_refused() -> None:
    body = SteeringBody(replace(ANSWER, tokens="all"))
    assert_refused("a row that is not zero", body, vector=torch.zeros(4, 8))
    assert_refused("NaN or infinity", body, vector=torch.full((4, 8), torch.nan))


def test_a_relative_row_longer_than_one_is_refused_and_an_absolute_one_is_not() -> None:
    body = SteeringBody(replace(ANSWER, tokens="all"))
    unit = torch.eye(8)[:4]
    steering_patch(body, vector=unit)
    assert_refused("rows of at most length 1", body, vector=unit * 1.01)
    steering_patch(SteeringBody(replace(body.steering, scale="absolute")), vector=unit * 50)


@pytest.mark.parametrize(
    ("steering", "length", "message"),
    [
        (Steering("mlp", "absolute", 1e6, renormalise=False), 1.0, "steps of at most 10000, got 1e+06"),
        (Steering("mlp", "absolute", 1.0), 3e37, "steps of at most 10000"),
        (Steering("residual", "absolute", 1000.0, opposed_gain=99), 1.0, "got 100000"),
        (
            Steering("residual", "relative", 1.0, renormalise=False),
            1.0,
            "to be at most 0.5",
        ),
        (
            Steering("residual", "relative", 0.3, opposed_gain=1, renormalise=False),
            1.0,
            "got 0.6",
        ),
    ],
)
def test_steps_that_could_leave_the_range_of_a_dtype_are_refused(
    steering: Steering, length: float, message: str
) -> None:
    """What is not finite stays in the cache's memory, where other requests could read it."""
    assert_refused(message, SteeringBody(steering), vector=torch.eye(8)[:4] * length)


def test_probes_whose_score_could_overflow_are_refused() -> None:
    """A score that is no number is above no threshold, so the vector would never act."""
    assert_refused(
        "rows of at most length 1e+06", SteeringBody(ANSWER, CONDITION), probes=torch.full((3, 8), 1e38)
    )


def test_rows_of_layers_that_have_not_seen_the_decision_are_refused() -> None:
    body = SteeringBody(ANSWER, CONDITION)
    assert_refused("zero rows up to layer 1", body, vector=torch.eye(8)[:4])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"vector": torch.ones(3, 8)}, "tensor vector: expected shape [4, 8], got [3, 8]"),
        ({"vector": torch.ones(4, 8).half()}, "tensor vector: expected dtype F32, got F16"),
        ({"probes": torch.ones(2, 8)}, "tensor probes: expected shape [3, 8], got [2, 8]"),
        ({"kv": torch.ones(1)}, "tensor 'kv': unknown name; expected vector or probes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    assert_refused(message, SteeringBody(ANSWER, CONDITION), **tensors)


def test_a_missing_tensor_is_named() -> None:
    body = SteeringBody(ANSWER, CONDITION)
    manifest = Label("safe-steer", "1.0.0").manifest(MODEL, body, {"method": "icv"})
    for kept, missing in (("vector", "probes"), ("probes", "vector")):
        with pytest.raises(PatchFormatError, match=f"tensors: expected {missing}, got {kept}"):
            make_patch(manifest, {kept: tensors_of(body)[kept]})


def test_probes_without_a_condition_are_refused() -> None:
    body = SteeringBody(replace(ANSWER, tokens="all"))
    assert_refused("tensor 'probes': unknown name", body, probes=torch.ones(1, 8))


def test_a_file_above_the_limit_of_the_kind_is_refused() -> None:
    large = replace(MODEL, num_layers=1, hidden_size=2**20)
    fits = Label("safe-steer", "1.0.0").manifest(large, SteeringBody(ANSWER), {"method": "icv"})
    assert len(encode_patch(fits, {"vector": torch.full((1, 2**20), 2.0**-11)})) < SteeringBody.max_file_bytes
    larger = replace(fits, base_model=replace(large, num_layers=4))
    with pytest.raises(PatchFormatError, match="at most 16777216 bytes") as refused:
        encode_patch(larger, {"vector": torch.full((4, 2**20), 2.0**-11)})
    assert refused.value.reason == "too_large"
