"""The scheduler's half of steering, with vLLM's own requests and block hashes."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from server.engine.claim import PatchClaim, VectorClaim
from server.engine.steering_plan import PATIENCE_S, SteeringPlan
from server.engine.steering_report import Outcome

BLOCK, NUM_SLOTS = 4, 2
SHA256 = get_hash_fn_by_name("sha256")
MET, NOT_MET, SHADOWED = (
    Outcome(True, True, 0.5, (1.0,)),
    Outcome(False, False, -0.5, (0.0,)),
    Outcome(True, False, 0.5, (1.0,)),
)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def plan(clock: Clock) -> SteeringPlan:
    config = SimpleNamespace(
        cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256"),
        kv_transfer_config=SimpleNamespace(get_from_extra_config=lambda key, default: NUM_SLOTS),
    )
    return SteeringPlan(config, SimpleNamespace(hash_block_size=BLOCK), clock)  # type: ignore[arg-type]


def request_of(tokens: list[int], request_id: str = "r") -> Request:
    init_none_hash(SHA256)
    hasher = get_request_block_hasher(BLOCK, SHA256)
    return Request(
        request_id, tokens, SamplingParams(max_tokens=9), None, block_hasher=hasher, cache_salt="s"
    )


def add(plan: SteeringPlan, request: Request, digest: str = "v", num_prefix: int = 0, **how: bool) -> Request:
    plan.add(request, PatchClaim("whole", num_prefix, vector=VectorClaim(digest, **how)))
    return request


def step(**starts: int) -> Any:
    cached = SimpleNamespace(req_ids=[], num_computed_tokens=[], new_block_ids=[], resumed_req_ids=set())
    new = [SimpleNamespace(req_id=r, num_computed_tokens=n, block_ids=([7],)) for r, n in starts.items()]
    return SimpleNamespace(scheduled_new_reqs=new, scheduled_cached_reqs=cached)


def test_a_step_names_its_steered_requests_and_where_they_stand(plan: SteeringPlan) -> None:
    add(plan, request_of([1, 2, 3, 4, 5], "a"), num_prefix=2)
    add(plan, request_of([1, 2, 3], "b"), from_answer=True)
    add(plan, request_of([9], "idle"))
    steered = plan.of_step(step(a=2, b=0, other=0))
    assert {name: (one.first, one.start) for name, one in steered.items()} == {"a": (2, 2), "b": (2, 0)}


def test_blocks_of_the_prompt_are_those_of_any_prompt_under_the_vector(plan: SteeringPlan) -> None:
    """Up to the block that holds the last prompt token: nothing before it is steered."""
    short = add(plan, request_of([1, 2, 3, 4, 5]), from_answer=True)
    longer = add(plan, request_of([1, 2, 3, 4, 5, 6, 7, 8, 9]), from_answer=True)
    assert short.block_hashes == longer.block_hashes[:1] == request_of([1, 2, 3, 4]).block_hashes


@pytest.mark.parametrize("num_prompt", [5, 7, 8])
def test_a_prompt_does_not_find_blocks_that_were_an_answer(plan: SteeringPlan, num_prompt: int) -> None:
    """A conversation's next turn repeats the answer as prompt, where its tokens are not steered."""
    tokens = list(range(1, 17))
    answered = add(plan, request_of(tokens[:num_prompt], "first"), from_answer=True)
    answered.append_output_token_ids(tokens[num_prompt:])
    again = add(plan, request_of([*tokens, 17], "second"), from_answer=True)
    assert len(answered.block_hashes) == 4
    shared = set(answered.block_hashes) & set(again.block_hashes)
    assert shared == set(again.block_hashes[: (num_prompt - 1) // BLOCK])


def test_an_answer_finds_the_blocks_that_it_had_before_it_was_preempted(plan: SteeringPlan) -> None:
    """Token by token or all at once: the hashes are the same."""
    one, other = (add(plan, request_of([1, 2, 3, 4, 5], name), from_answer=True) for name in ("a", "b"))
    for token in (6, 7, 8, 9, 10, 11, 12):
        one.append_output_token_ids(token)
    other.append_output_token_ids([6, 7, 8, 9, 10, 11, 12])
    assert one.block_hashes == other.block_hashes
    assert len(one.block_hashes) == 3


def test_hashes_of_a_vector_that_acts_on_all_tokens_are_vllms_own(plan: SteeringPlan) -> None:
    steered, plain = add(plan, request_of([1, 2, 3, 4, 5])), request_of([1, 2, 3, 4, 5])
    for request in (steered, plain):
        request.append_output_token_ids([6, 7, 8])
    assert steered.block_hashes == plain.block_hashes


def test_a_vector_too_many_waits_until_the_last_request_of_another_has_ended(plan: SteeringPlan) -> None:
    first = [add(plan, request_of([1], name), "v") for name in ("a", "b")]
    add(plan, request_of([1], "c"), "w")
    add(plan, request_of([1], "late"), "x")
    for name in ("a", "b", "c"):
        assert plan.has_room(name)
        plan.admit(name)
    assert not plan.has_room("late")
    # A request that was preempted asks again.
    assert plan.has_room("a")
    plan.forget(first[0])
    assert not plan.has_room("late")
    plan.forget(first[1])
    assert plan.has_room("late")


def test_vectors_that_are_always_in_use_do_not_starve_another(plan: SteeringPlan, clock: Clock) -> None:
    requests = {name: add(plan, request_of([1], name), digest=name[0]) for name in ("a1", "b1", "c1", "a2")}
    for name in ("a1", "b1"):
        assert plan.has_room(name)
        plan.admit(name)
    assert not plan.has_room("c1")
    assert plan.has_room("a2"), "its vector has a row, and c1 has not waited long"
    clock.now_s = PATIENCE_S + 0.1
    assert not plan.has_room("a2")
    assert plan.has_room("a1"), "what was admitted and preempted comes back"
    plan.forget(requests["b1"])
    assert plan.has_room("c1")
    plan.admit("c1")
    assert plan.has_room("a2")


def test_a_request_that_went_away_while_it_waited_holds_nobody_up(plan: SteeringPlan, clock: Clock) -> None:
    requests = {name: add(plan, request_of([1], name), digest=name[0]) for name in ("a1", "b1", "c1", "a2")}
    plan.admit("a1")
    plan.admit("b1")
    assert not plan.has_room("c1")
    clock.now_s = PATIENCE_S + 0.1
    plan.forget(requests["c1"])
    assert plan.has_room("a2")


def test_a_request_without_a_vector_never_waits(plan: SteeringPlan) -> None:
    for name in ("a", "b"):
        add(plan, request_of([1], name), name)
        plan.admit(name)
    assert plan.has_room("plain")


def test_a_decided_request_is_steered_or_left_alone(plan: SteeringPlan) -> None:
    outcomes = {"met": MET, "not_met": NOT_MET, "shadowed": SHADOWED}
    for name in outcomes:
        add(plan, request_of([1, 2, 3], name), from_answer=True, is_conditional=True)
    before = plan.of_step(step(met=3, not_met=3, shadowed=3))
    assert [one.is_conditional for one in before.values()] == [True] * 3
    for name, outcome in outcomes.items():
        plan.decide(name, outcome)
    after = plan.of_step(step(met=4, not_met=4, shadowed=4))
    assert {name: one.is_conditional for name, one in after.items()} == {"met": False}


def test_a_prompt_that_is_computed_again_is_scored_again(plan: SteeringPlan) -> None:
    """Another request may find its blocks, and would find no scores in them."""
    request = add(plan, request_of([1, 2, 3]), from_answer=True, is_conditional=True)
    plan.decide("r", NOT_MET)
    assert plan.of_step(step(r=1))["r"].is_conditional
    assert plan.forget(request) == NOT_MET
    plan.decide("r", MET)
    assert plan.forget(request) is None
