"""A condition is decided by the prompt's scores, however the prompt was computed, and only by them."""

from typing import Any

import pytest
import torch

from steering_kernels import MET, NOT_MET, UNDECIDED, Probe
from steering_kernels.reference import decide_reference, read_flags_reference, score_tokens_reference

#: Two probes, on two layers and on one; the first is what "any" needs.
PROBES = (Probe((0, 1), "mean", bias=0.25), Probe((1,), "last", bias=-0.5))


def scored(ops: Any, lab: Any, chunks: list[list[int]], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scores of a prompt of 21 tokens that was computed in these chunks, each beside tokens of others."""
    table, ledger = lab.conditions({2: (PROBES, 1, False)}, ops.device), lab.ledger(ops.device)
    requests = lab.requests([], ops.device)
    layers = [lab.states(21, dtype, seed=layer).to(ops.device) for layer in range(lab.NUM_LAYERS)]
    slots = lab.slots(requests, 0, 0, 21)
    for tokens in chunks:
        others = lab.states(len(tokens) % 3, dtype, seed=7).to(ops.device)
        rows = lab.rows([0] * len(others) + [2] * len(tokens), ops.device)
        step_slots = torch.cat([torch.full([len(others)], -1), slots[tokens]]).to(ops.device)
        for layer, states in enumerate(layers):
            hidden = torch.cat([others, states[tokens]])
            ops.score_tokens(hidden, hidden / 2, rows, table, ledger, step_slots, layer)
    return ledger.scores.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_scores_the_same_bits_however_its_prompt_was_cut_into_chunks(
    ops: Any, lab: Any, dtype: torch.dtype
) -> None:
    whole = list(range(21))
    scores = scored(ops, lab, [whole], dtype)
    assert scores[:, :2].isfinite().sum() == 2 * 21
    for chunks in (
        [whole[:1], whole[1:]],
        [whole[:16], whole[16:]],
        [[i] for i in whole],
        [whole, whole[5:]],
    ):
        assert torch.equal(scored(ops, lab, chunks, dtype).view(torch.int32), scores.view(torch.int32))


@pytest.mark.parametrize("size", [64, 576, 4096])
def test_a_sum_of_products_does_not_depend_on_the_number_of_rows(size: int) -> None:
    # What the torch implementation rests on, at the sizes of models.
    generator = torch.Generator().manual_seed(0)
    states, vector = torch.randn(512, size, generator=generator), torch.randn(size, generator=generator)
    whole = (states * vector).sum(-1)
    for num_tokens in (1, 2, 3, 7, 8, 64, 511):
        assert torch.equal((states[:num_tokens] * vector).sum(-1), whole[:num_tokens])
        assert torch.equal((states[-num_tokens:] * vector).sum(-1), whole[-num_tokens:])


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 8])
@pytest.mark.parametrize("has_residual", [True, False])
def test_scores_are_the_dot_products_summed_over_the_layers_of_a_probe(
    ops: Any, lab: Any, has_residual: bool, num_tokens: int
) -> None:
    rows = [0, 2, 2, 1, 2, 3, 0, 1][:num_tokens]
    conditions = {1: ((Probe((0, 2)),), 1, False), 2: (PROBES, 1, False)}
    ledgers = []
    for device, score in ((ops.device, ops.score_tokens), ("cpu", score_tokens_reference)):
        table, ledger = lab.conditions(conditions, device), lab.ledger(device)
        slots = torch.arange(num_tokens, device=device) * 3
        for layer in range(lab.NUM_LAYERS):
            hidden = lab.states(num_tokens, seed=layer).to(device)
            residual = lab.states(num_tokens, seed=9 + layer).to(device) if has_residual else None
            score(hidden, residual, lab.rows(rows, device), table, ledger, slots, layer)
        ledgers.append(ledger.scores.cpu())
    torch.testing.assert_close(*ledgers, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert ledgers[0].isfinite().any() == (num_tokens > 1)


def decided(lab: Any, device: Any, decide: Any, values: list[dict[str, int]], conditions: Any) -> Any:
    """What a step of these requests leaves behind, with a score in every slot."""
    table, ledger = lab.conditions(conditions, device), lab.ledger(device)
    scores = torch.randn(ledger.scores.shape, generator=torch.Generator().manual_seed(3))
    ledger.scores.copy_(scores)
    requests = lab.requests(values, device)
    rows = lab.rows([5] * sum(value["num"] for value in values), device)
    for layer in range(lab.NUM_LAYERS):
        decide(requests, table, ledger, rows, layer)
    return requests, ledger.pooled.cpu(), ledger.flags.cpu(), rows.tensor.cpu()


#: A whole prompt; one whose end is not in the step; one that goes on answering; one that was resumed: its
#: last prompt token and two answered ones are computed anew.
STEP = [
    {"num": 9, "start": 0, "row": 1, "first": 2, "stop": 9},
    {"num": 4, "start": 0, "row": 1, "first": 0, "stop": 9},
    {"num": 1, "start": 12, "row": 2, "first": 0, "stop": 12},
    {"num": 6, "start": 20, "row": 2, "first": 3, "stop": 24},
]


@pytest.mark.parametrize("num_tokens", [2, 7, 8, 300])
def test_the_last_tokens_of_a_prompt_are_averaged_and_never_a_prefix(
    ops: Any, lab: Any, num_tokens: int
) -> None:
    """The prompts of the step have 7 and 21 tokens behind a prefix of 2 and 3."""
    probes = (Probe((0,), "last", 0.5, num_tokens=num_tokens), Probe((1,), "mean"), Probe((1,), "last"))
    conditions = dict.fromkeys((1, 2), (probes, 1, False))
    requests, pooled, *_ = decided(lab, ops.device, ops.decide, STEP, conditions)
    scores = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
    for request in (0, 3):
        first, stop = STEP[request]["first"], STEP[request]["stop"]
        slots = lab.slots(requests, request, first, stop)
        found, own = pooled[slots[-1]], scores[slots]
        expected = [own[-num_tokens:, 0].mean() + 0.5, own[:, 1].mean(), own[-1, 2]]
        torch.testing.assert_close(found[:3], torch.stack(expected))
        assert found[3].isnan()


@pytest.mark.parametrize("num_needed", [1, 2])
@pytest.mark.parametrize("is_shadow", [False, True])
@pytest.mark.parametrize("threshold", [-9.0, 0.0, 9.0])
def test_a_request_is_decided_at_its_last_prompt_token_and_steered_from_there_on(
    ops: Any, lab: Any, threshold: float, is_shadow: bool, num_needed: int
) -> None:
    probes = (Probe((0, 1), "mean", 0.25, threshold), Probe((1,), "last", -0.5, -threshold))
    conditions = dict.fromkeys((1, 2), (probes, num_needed, is_shadow))
    requests, pooled, flags, rows = decided(lab, ops.device, ops.decide, STEP, conditions)
    _, *oracle = decided(lab, "cpu", decide_reference, STEP, conditions)
    torch.testing.assert_close(pooled, oracle[0], equal_nan=True)
    assert torch.equal(flags, oracle[1])
    assert torch.equal(rows, oracle[2])
    for request, (token, stop) in {0: (8, 9), 3: (17, 20)}.items():
        value = STEP[request]
        slot = lab.slots(requests, request, value["stop"] - 1, value["stop"])
        acts = int(flags[slot]) == MET and not is_shadow
        assert rows[token:stop].tolist() == [value["row"] if acts else 0] * (stop - token)
    assert (flags != UNDECIDED).sum() == 2
    # Prompt tokens before the last one, and requests that are not decided here, keep what they had.
    assert (rows[:8] == 5).all()
    assert (rows[9:17] == 5).all()


def test_any_and_all_of_two_probes_differ(ops: Any, lab: Any) -> None:
    met, missed = Probe((0,), "mean", threshold=-9.0), Probe((1,), "last", threshold=9.0)
    flags = {
        (num_needed, is_met): decided(lab, ops.device, ops.decide, STEP[:1], {1: (probes, num_needed, False)})
        for num_needed in (1, 2)
        for is_met, probes in ((True, (met, met)), (False, (met, missed)))
    }
    assert {case: int(result[2].max()) for case, result in flags.items()} == {
        (1, True): MET,
        (2, True): MET,
        (1, False): MET,
        (2, False): NOT_MET,
    }


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_leaves_no_request_alone(
    ops: Any, lab: Any, pool: Any, value: float
) -> None:
    """NaN, which a score is that was never computed, is above no threshold; it once meant not met."""
    probes = (Probe((0,), pool, threshold=9.0), Probe((0,), "mean", threshold=9.0))
    table = lab.conditions({1: (probes, 2, False)}, ops.device)
    ledger, requests = lab.ledger(ops.device), lab.requests(STEP[:1], ops.device)
    slots = lab.slots(requests, 0, 2, 9)
    ledger.scores[slots.to(ops.device), :2] = 1.0
    ledger.scores[slots[-1], 0] = value
    rows = lab.rows([5] * 9, ops.device)
    ops.decide(requests, table, ledger, rows, 0)
    assert int(ledger.flags[slots[-1]]) == MET
    assert not ledger.pooled[slots[-1], 0].isfinite()
    assert int(rows.tensor[8]) == 1


def test_a_decision_has_the_same_bits_whatever_else_is_in_the_step(ops: Any, lab: Any) -> None:
    conditions = {1: (PROBES, 1, False), 2: (PROBES, 2, False)}
    _, alone, *_ = decided(lab, ops.device, ops.decide, STEP[:1], conditions)
    requests, beside, *_ = decided(lab, ops.device, ops.decide, STEP, conditions)
    slot = lab.slots(requests, 0, 8, 9)
    assert torch.equal(alone[slot, :2], beside[slot, :2])
    # Two steps that cut the prompt elsewhere decide over the same slots.
    _, cut, *_ = decided(lab, ops.device, ops.decide, [STEP[0] | {"num": 1, "start": 8}], conditions)
    assert torch.equal(alone[slot, :2], cut[slot, :2])


def test_a_probe_is_decided_after_the_last_layer_of_all(ops: Any, lab: Any) -> None:
    table = lab.conditions({1: ((Probe((2,)), Probe((0,))), 1, False)}, ops.device)
    ledger, requests = lab.ledger(ops.device), lab.requests(STEP[:1], ops.device)
    ledger.scores.fill_(1.0)
    rows = lab.rows([5] * 9, ops.device)
    for layer in (0, 1):
        ops.decide(requests, table, ledger, rows, layer)
        assert not ledger.flags.any()
    ops.decide(requests, table, ledger, rows, 2)
    assert int(ledger.flags.sum()) == MET


@pytest.mark.parametrize("flag", [UNDECIDED, NOT_MET, MET])
@pytest.mark.parametrize("is_shadow", [False, True])
def test_later_steps_read_the_flag_where_the_prompt_ended(
    ops: Any, lab: Any, is_shadow: bool, flag: int
) -> None:
    values = [
        {"num": 3, "start": 0, "row": 1, "first": 0, "stop": 9},
        {"num": 2, "start": 9, "row": 1, "first": 0, "stop": 9},
        {"num": 1, "start": 5, "row": 0, "first": 0, "stop": 0},
        {"num": 2, "start": 30, "row": 2, "first": 4, "stop": 27},
    ]
    tensors = []
    for device, read_flags in ((ops.device, ops.read_flags), ("cpu", read_flags_reference)):
        table = lab.conditions(dict.fromkeys((1, 2), (PROBES, 1, is_shadow)), device)
        ledger, requests = lab.ledger(device), lab.requests(values, device)
        for request in (1, 3):
            stop = values[request]["stop"]
            ledger.flags[lab.slots(requests, request, stop - 1, stop).to(device)] = flag
        rows = lab.rows([0, 0, 0, 0, 0, 4, 0, 0], device)
        read_flags(requests, table, ledger, rows)
        tensors.append(rows.tensor.cpu())
    acts = flag == MET and not is_shadow
    assert tensors[0][:8].tolist() == ([0, 0, 0, 1, 1, 4, 2, 2] if acts else [0, 0, 0, 0, 0, 4, 0, 0])
    assert torch.equal(*tensors)


def test_a_request_is_steered_in_the_steps_after_its_decision(ops: Any, lab: Any) -> None:
    conditions = {1: ((Probe((0,), threshold=-9.0),), 1, False)}
    table, ledger = lab.conditions(conditions, ops.device), lab.ledger(ops.device)
    ledger.scores.fill_(1.0)
    requests = lab.requests(STEP[:1], ops.device)
    rows = lab.rows([0] * 9, ops.device)
    ops.read_flags(requests, table, ledger, rows)
    ops.decide(requests, table, ledger, rows, 0)
    assert rows.tensor[:9].tolist() == [0] * 8 + [1]
    lab.assign(requests, [STEP[0] | {"num": 1, "start": 9}])
    rows.assign(torch.zeros(1, dtype=torch.int32), is_conditional=True)
    assert rows.grouping(1).distinct == ()
    ops.read_flags(requests, table, ledger, rows)
    assert rows.grouping(1).distinct == (1,)
    ops.decide(requests, table, ledger, rows, 0)
    assert rows.tensor[:2].tolist() == [1, 0]


def test_a_row_whose_condition_was_cleared_scores_and_decides_nothing(ops: Any, lab: Any) -> None:
    table = lab.conditions({1: ((Probe((0,)),), 1, False)}, ops.device)
    table.clear(1)
    ledger, requests = lab.ledger(ops.device), lab.requests(STEP[:1], ops.device)
    rows = lab.rows([1] * 9, ops.device)
    slots = torch.arange(9, device=ops.device)
    ops.score_tokens(lab.states(9).to(ops.device), None, rows, table, ledger, slots, 0)
    ops.decide(requests, table, ledger, rows, 0)
    assert ledger.scores.isnan().all()
    assert not ledger.flags.any()
    assert rows.tensor[:9].tolist() == [1] * 9
