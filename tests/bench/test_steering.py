"""The question about vectors: who is asked for what, and what ends a run."""

from dataclasses import replace

import pytest
import torch

from bench import steering
from bench.errors import CheckFailed
from bench.servers.random_vector import random_vector
from patches.format import decode_patch, encode_patch
from patches.kinds.steering import SteeringBody
from patches.label import Label
from tests.tiny_model import BASE_MODEL

MODEL = replace(BASE_MODEL, num_layers=12)


def test_each_arm_asks_for_its_vectors() -> None:
    assert steering.names_of("idle", 3, 2) == [None, None, None]
    assert steering.names_of("one", 3, 2) == ["v-0", "v-0", "v-0"]
    assert steering.names_of("own", 3, 2) == ["v-0", "v-1", "v-0"]
    assert steering.names_of("unmet", 2, 2) == ["unmet", "unmet"]


@pytest.mark.parametrize(("arm", "num_tokens"), [("one", 0), ("met", 0), ("off", 1), ("idle", 4)])
def test_vectors_that_act_where_they_should_not_are_no_figure(arm: str, num_tokens: int) -> None:
    with pytest.raises(CheckFailed, match=f"{arm}: expected (some|no) steered tokens, got {num_tokens}"):
        steering.check_steered(arm, num_tokens)


def test_vectors_that_act_where_they_should_pass() -> None:
    for arm in steering.ARMS:
        steering.check_steered(arm, 8 if arm in steering.STEERED_ARMS else 0)


@pytest.mark.parametrize("condition", ["none", "met", "unmet"])
def test_random_vectors_are_valid_patches_and_the_same_each_time(condition: str) -> None:
    one, same = (random_vector(MODEL, Label("v", "1.0.0"), seed=3, condition=condition) for _ in range(2))
    assert one.digest == same.digest == decode_patch(encode_patch(one.manifest, one.tensors)).digest
    assert one.digest != random_vector(MODEL, Label("v", "1.0.0"), seed=4, condition=condition).digest
    body = one.manifest.body
    assert isinstance(body, SteeringBody)
    acting = one.tensors["vector"].norm(dim=1) > 0
    first = 0 if condition == "none" else 6
    assert torch.equal(acting, torch.arange(MODEL.num_layers) >= first)


def test_a_condition_is_out_of_reach_or_always_met() -> None:
    for condition, threshold in (("met", -1e6), ("unmet", 1e6)):
        body = random_vector(MODEL, Label("v", "1.0.0"), condition=condition).manifest.body
        assert isinstance(body, SteeringBody)
        assert body.condition is not None
        assert [probe.threshold for probe in body.condition.probes] == [threshold]
