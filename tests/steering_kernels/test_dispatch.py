"""The choice, and that the public operations reach what was chosen."""

import importlib.util
from typing import Any

import pytest
import torch

import steering_kernels
from steering_kernels import Form, Probe, choose_implementation


def test_a_cpu_is_served_by_torch_and_a_cuda_device_by_triton() -> None:
    pytest.importorskip("triton")
    assert choose_implementation(torch.device("cpu")).implementation == "torch"
    assert choose_implementation(torch.device("cuda")).implementation == "triton"


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "expected Triton to be installed"), ("xpu", "expected cpu or cuda, got xpu")],
)
def test_a_device_that_can_not_be_served_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, device: str, message: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=message):
        choose_implementation(torch.device(device))


def test_the_public_operations_score_decide_and_steer_on_the_cpu(lab: Any) -> None:
    table = lab.table([Form("residual", relative=0.5), Form("mlp", relative=0.5)])
    conditions = lab.conditions({1: ((Probe((0,), threshold=-1e9),), 1, False)})
    ledger, states = lab.ledger(), lab.states(9)
    requests = lab.requests([{"num": 9, "start": 0, "row": 1, "first": 0, "stop": 9}])
    rows, scored = lab.rows([0] * 9), lab.rows([1] * 9)
    rows.assign(torch.zeros(9, dtype=torch.int32), is_conditional=True)
    steering_kernels.read_flags_(requests, conditions, ledger, rows)
    hidden, residual = states.clone(), states.clone()
    slots = lab.slots(requests, 0, 0, 9)
    steering_kernels.score_tokens_(hidden, residual, scored, conditions, ledger, slots, 0)
    steering_kernels.decide_(requests, conditions, ledger, rows, 0)
    steering_kernels.steer_residual_(hidden, residual, rows, table, 1)
    assert torch.equal(residual[:8], states[:8])
    assert torch.equal(hidden[:8], states[:8])
    assert not torch.allclose(residual[8], 2 * states[8])
    assert not hidden[8].any()
    output = states.clone()
    steering_kernels.steer_output_(output, lab.rows([2, 0]), table, 1)
    assert torch.equal(output[1:], states[1:])
    assert not torch.allclose(output[0], states[0])
