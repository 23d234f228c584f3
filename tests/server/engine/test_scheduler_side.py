"""The scheduler's half of the connector, with vLLM's own request type and hand-made blocks."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.request import Request, RequestStatus

from server.engine.claim import PatchClaim, PrefixPart
from server.engine.scheduler_side import SchedulerSide

DIGEST = "sha256:" + "a" * 64
BLOCK = 16
NUM_SLOTS = 2


def _side(*block_sizes: int) -> SchedulerSide:
    groups = [
        SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=size)) for size in block_sizes or (BLOCK,)
    ]
    config = SimpleNamespace(
        cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256"),
        kv_transfer_config=SimpleNamespace(get_from_extra_config=lambda key, default: NUM_SLOTS),
    )
    caches = SimpleNamespace(kv_cache_groups=groups, hash_block_size=BLOCK)
    return SchedulerSide(config, caches)  # type: ignore[arg-type]


def _request(num_prefix: int | None = 40, request_id: str = "r", **params: Any) -> Request:
    extra = {} if num_prefix is None else {"kv_transfer_params": PatchClaim(DIGEST, num_prefix).to_params()}
    sampling = SamplingParams(max_tokens=4, extra_args=extra, **params)
    return Request(request_id, [0] * ((num_prefix or 0) + 5), sampling, None)


def _blocks(*groups: list[int | None]) -> Any:
    blocks = [[SimpleNamespace(block_id=b or 0, is_null=b is None) for b in group] for group in groups]
    return SimpleNamespace(blocks=tuple(blocks))


def _scheduled(new: list[tuple[str, int, Any]] = (), resumed: list[tuple[str, int, Any]] = ()) -> Any:  # type: ignore[assignment]
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=r, num_computed_tokens=n, block_ids=b) for r, n, b in new],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[r for r, _, _ in resumed],
            num_computed_tokens=[n for _, n, _ in resumed],
            new_block_ids=[b for _, _, b in resumed],
            resumed_req_ids={r for r, _, _ in resumed},
        ),
    )


@pytest.mark.parametrize(("num_computed", "expected"), [(0, 40), (16, 24), (32, 8), (40, 0), (48, 0)])
def test_the_prefix_covers_what_the_cache_does_not(num_computed: int, expected: int) -> None:
    side, request = _side(), _request()
    side.on_new_request(request)
    assert side.num_matched_tokens(request, num_computed) == expected


def test_requests_without_a_patch_are_left_alone() -> None:
    side, request = _side(), _request(None)
    side.on_new_request(request)
    side.after_alloc(request, _blocks([1]), 0)
    assert side.num_matched_tokens(request, 0) == 0
    assert not side.build_plan(_scheduled([("r", 0, ([1],))]))
    assert side.take_stats().is_empty()


def test_a_request_that_skips_the_prefix_cache_is_made_to_read_it() -> None:
    side, request = _side(), _request(skip_reading_prefix_cache=True)
    assert request.skip_reading_prefix_cache
    side.on_new_request(request)
    assert not request.skip_reading_prefix_cache


def test_only_the_missing_tail_is_planned() -> None:
    side, request = _side(), _request()
    side.on_new_request(request)
    side.after_alloc(request, _blocks([5, 6, 7, 8]), 8)
    (load,) = side.build_plan(_scheduled([("r", 40, ([5, 6, 7, 8],))])).loads
    assert (load.spans[0].first, load.spans[0].block_ids) == (32, (7,))


def test_a_sliding_window_group_skips_the_blocks_behind_its_window() -> None:
    side, request = _side(BLOCK, BLOCK), _request()
    side.on_new_request(request)
    side.after_alloc(request, _blocks([1, 2, 3], [None, None, 9]), 40)
    (load,) = side.build_plan(_scheduled([("r", 40, ([1, 2, 3], [0, 0, 9]))])).loads
    assert [(span.first, span.block_ids) for span in load.spans] == [(0, (1, 2, 3)), (32, (9,))]


def test_groups_may_have_blocks_of_different_sizes() -> None:
    side, request = _side(16, 32), _request()
    side.on_new_request(request)
    side.after_alloc(request, _blocks([1, 2, 3], [4, 5]), 40)
    (load,) = side.build_plan(_scheduled([("r", 40, ([1, 2, 3], [4, 5]))])).loads
    assert [span.block_ids for span in load.spans] == [(1, 2, 3), (4, 5)]


def test_a_plan_is_handed_out_once() -> None:
    side, request = _side(), _request()
    side.on_new_request(request)
    side.after_alloc(request, _blocks([1, 2, 3]), 40)
    assert side.build_plan(_scheduled([("r", 40, ([1, 2, 3],))])).loads
    assert not side.build_plan(_scheduled())


@pytest.mark.parametrize("kind", ["new", "resumed"])
def test_a_request_inside_its_prefix_is_failed_until_it_ends(kind: str) -> None:
    side, request = _side(), _request()
    side.on_new_request(request)
    plan = side.build_plan(_scheduled(**{kind: [("r", 16, ([5, 6],))]}))
    assert plan.unbacked_block_ids == {5, 6}
    assert side.build_plan(_scheduled()).unbacked_block_ids == {5, 6}
    side.forget(request)
    assert not side.build_plan(_scheduled())


def test_finished_requests_leave_nothing_behind() -> None:
    side, request = _side(), _request()
    side.on_new_request(request)
    side.after_alloc(request, _blocks([1, 2, 3]), 40)
    side.forget(request)
    assert not side.build_plan(_scheduled())
    assert side.num_matched_tokens(request, 0) == 0


def test_written_and_shared_tokens_are_counted_apart() -> None:
    side = _side()
    for number, num_external in enumerate([40, 8]):
        request = _request(request_id=str(number))
        side.on_new_request(request)
        side.after_alloc(request, _blocks([1, 2, 3]), num_external)
    data = side.take_stats().data
    assert (data["injected"], data["shared"]) == ({DIGEST: 48}, {DIGEST: 32})
    assert side.take_stats().is_empty()


@pytest.mark.parametrize(
    ("num_external", "injected", "shared"),
    [(40, {"a": 24, "b": 16}, {}), (30, {"a": 14, "b": 16}, {"a": 10}), (8, {"b": 8}, {"a": 24, "b": 8})],
)
def test_tokens_of_several_parts_are_counted_for_each(
    num_external: int, injected: dict[str, int], shared: dict[str, int]
) -> None:
    side = _side()
    parts = (PrefixPart("a", 24), PrefixPart("b", 16))
    params = SamplingParams(
        max_tokens=4, extra_args={"kv_transfer_params": PatchClaim(DIGEST, 40, parts).to_params()}
    )
    request = Request("r", [0] * 45, params, None)
    side.on_new_request(request)
    side.after_alloc(request, _blocks([5, 6, 7]), num_external)
    (load,) = side.build_plan(_scheduled([("r", 40, ([5, 6, 7],))])).loads
    assert (load.digest, load.parts) == (DIGEST, parts)
    stats = side.take_stats().data
    assert (stats["injected"], stats["shared"]) == (injected, shared)


@pytest.mark.parametrize(
    ("is_pinned", "status", "num_pinned"),
    [
        (True, RequestStatus.FINISHED_STOPPED, 2),
        (True, RequestStatus.FINISHED_LENGTH_CAPPED, 2),
        (True, RequestStatus.FINISHED_ABORTED, 0),
        (True, RequestStatus.FINISHED_ERROR, 0),
        (False, RequestStatus.FINISHED_STOPPED, 0),
    ],
)
def test_whole_blocks_of_a_pinned_prefix_are_kept_when_a_request_ends_well(
    is_pinned: bool, status: RequestStatus, num_pinned: int
) -> None:
    side, pool = _side(), BlockPool(33, enable_caching=True, hash_block_size=BLOCK)
    side.bind_pool(pool, 0.5, max_model_len=64)
    claim = PatchClaim(DIGEST, 40, is_pinned=is_pinned)
    params = SamplingParams(max_tokens=4, extra_args={"kv_transfer_params": claim.to_params()})
    request = Request("r", [0] * 45, params, None, block_hasher=lambda _: [b"1", b"2"])
    side.on_new_request(request)
    pool.cache_full_blocks(request, pool.get_new_blocks(2), 0, 2, BLOCK, 0)
    assert side.take_stats().data["pins"] == {"limit": 16}
    request.status = status
    side.forget(request)
    assert side.take_stats().data["pins"] == ({"blocks": num_pinned} if num_pinned else {})
    side.reset()
    assert side.take_stats().data["pins"] == ({"blocks": -num_pinned} if num_pinned else {})
