"""What the engine client may rely on."""

import asyncio
from typing import Any

import pytest

from server.errors import PatchForbidden, PatchNotFound, PatchNotReady, PolicyPatchError, UnsupportedWithPatch
from server.request.prompt_routes import RouteKind
from server.request.scope import RequestScope, current_scope
from server.versions.selection import BASE
from tests.server.stand import Stand


@pytest.fixture
def begin(stand: Stand) -> Any:
    """Begin a request as the middleware does, in this task's context."""

    def begin_one(header: bytes | None = None, kind: RouteKind = RouteKind.GENERATES) -> RequestScope:
        scope = RequestScope(kind)
        stand.decider.open(scope, [header] if header is not None else [])
        current_scope.set(scope)
        return scope

    return begin_one


def in_flight(stand: Stand) -> dict[str, int]:
    return {row.patch.reference: row.num_in_flight for row in stand.catalog.rows()}


@pytest.mark.parametrize(
    "ask",
    [
        lambda stand, patch: stand.gate.selection(),
        lambda stand, patch: stand.gate.lease(patch),
        lambda stand, patch: stand.gate.note_alias("demo:pirate"),
        lambda stand, patch: stand.gate.refuse_if_patched("pooling"),
    ],
)
async def test_outside_a_request_everything_fails(stand: Stand, ask: Any) -> None:
    patch = await stand.load()
    with pytest.raises(PolicyPatchError, match="no HTTP request"):
        ask(stand, patch)


async def test_the_decision_is_made_once(stand: Stand, begin: Any) -> None:
    old = await stand.load(fill=1.0)
    begin(b"pirate")
    first = stand.gate.selection()
    await stand.load(fill=2.0)
    stand.use(default_patch="other", require_patch=True)
    assert stand.gate.selection() is first
    assert first.patch == old


async def test_a_default_is_decided_once_too(stand: Stand, begin: Any) -> None:
    old = await stand.load(fill=1.0)
    stand.use(default_patch="pirate")
    begin()
    assert stand.gate.selection().patch == old
    await stand.load(fill=2.0)
    assert stand.gate.selection().patch == old


async def test_a_refusal_is_repeated(stand: Stand, begin: Any) -> None:
    stand.use(default_patch="pirate")
    begin()
    with pytest.raises(PatchNotReady) as first:
        stand.gate.selection()
    await stand.load()
    with pytest.raises(PatchNotReady) as second:
        stand.gate.selection()
    assert first.value is second.value


async def test_a_decision_for_what_is_no_longer_resident_is_no_decision(stand: Stand, begin: Any) -> None:
    """The view and the workers never disagree; where they did, no request may run on it."""
    patch = await stand.load()
    stand.catalog.residents[patch.digest].is_unloading = True
    stand.use(default_patch="pirate")
    scope = begin()
    for _ in range(2):
        with pytest.raises(PatchNotReady):
            stand.gate.selection()
    assert scope.selection is None


async def test_tasks_of_a_request_share_its_decision(stand: Stand, begin: Any) -> None:
    patch = await stand.load()
    begin(b"pirate")

    async def ask() -> Any:
        return stand.gate.selection().patch

    assert await asyncio.gather(*(asyncio.create_task(ask()) for _ in range(3))) == [patch] * 3


async def test_a_request_counts_once_however_many_generations_it_runs(stand: Stand, begin: Any) -> None:
    patch = await stand.load()
    scope = begin(b"pirate")
    assert in_flight(stand) == {"pirate@1.0.0": 1}
    with stand.gate.lease(patch), stand.gate.lease(patch):
        assert in_flight(stand) == {"pirate@1.0.0": 1}
    assert in_flight(stand) == {"pirate@1.0.0": 1}
    stand.decider.close(scope)
    assert in_flight(stand) == {"pirate@1.0.0": 0}


async def test_a_lease_outlives_its_request(stand: Stand, begin: Any) -> None:
    patch = await stand.load()
    scope = begin(b"pirate")
    with stand.gate.lease(patch):
        stand.decider.close(scope)
        assert in_flight(stand) == {"pirate@1.0.0": 1}
    assert in_flight(stand) == {"pirate@1.0.0": 0}


async def test_a_lease_after_its_request_takes_a_count_of_its_own(stand: Stand, begin: Any) -> None:
    patch = await stand.load()
    stand.decider.close(begin(b"pirate"))
    with stand.gate.lease(patch):
        assert in_flight(stand) == {"pirate@1.0.0": 1}
    assert in_flight(stand) == {"pirate@1.0.0": 0}


async def test_a_lease_after_its_request_fails_where_the_patch_is_gone(stand: Stand, begin: Any) -> None:
    patch = await stand.load()
    stand.decider.close(begin(b"pirate"))
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    with pytest.raises(PatchNotReady), stand.gate.lease(patch):
        pass


async def test_a_lease_on_another_patch_than_the_decided_is_refused(stand: Stand, begin: Any) -> None:
    await stand.load("pirate")
    other = await stand.load("sailor")
    begin(b"pirate")
    with pytest.raises(PolicyPatchError, match="not decided for sailor"):
        stand.gate.lease(other)
    begin()
    with pytest.raises(PolicyPatchError, match="not decided for sailor"):
        stand.gate.lease(other)


async def test_an_alias_cannot_change_within_a_request(stand: Stand, begin: Any) -> None:
    await stand.load("pirate")
    await stand.load("sailor")
    begin()
    assert stand.gate.note_alias("demo:pirate")
    assert stand.gate.note_alias("demo:pirate")
    assert not stand.gate.note_alias("demo")
    with pytest.raises(PolicyPatchError, match="alias changed"):
        stand.gate.note_alias("demo:sailor")


async def test_an_alias_that_comes_after_the_decision_is_refused(stand: Stand, begin: Any) -> None:
    await stand.load()
    begin()
    assert stand.gate.selection() is BASE
    with pytest.raises(PolicyPatchError, match="alias changed"):
        stand.gate.note_alias("demo:pirate")


@pytest.mark.parametrize(
    ("header", "policy", "is_refused"),
    [
        (None, {}, False),
        (b"none", {}, False),
        (b"pirate", {}, True),
        (None, {"default_patch": "pirate"}, False),
        (None, {"default_patch": "pirate", "require_patch": True}, True),
        (None, {"require_patch": True}, True),
    ],
)
async def test_what_never_generates_is_refused_with_a_named_or_required_patch(
    stand: Stand, begin: Any, header: bytes | None, policy: dict[str, Any], is_refused: bool
) -> None:
    await stand.load()
    stand.use(**policy)
    begin(header)
    if is_refused:
        with pytest.raises(UnsupportedWithPatch, match="pooling can't be used"):
            stand.gate.refuse_if_patched("pooling")
    else:
        stand.gate.refuse_if_patched("pooling")
        assert stand.gate.selection().patch is None


async def test_an_unlisted_route_that_reaches_the_engine_gets_the_policy_all_the_same(
    stand: Stand, begin: Any
) -> None:
    patch = await stand.load()
    stand.use(default_patch="pirate", require_patch=True)
    begin(kind=RouteKind.OTHER)
    assert stand.gate.selection().patch == patch
    stand.use(require_patch=True)
    begin(kind=RouteKind.OTHER)
    with pytest.raises(PatchForbidden):
        stand.gate.selection()


async def test_a_refused_header_leaves_nothing_counted(stand: Stand, begin: Any) -> None:
    await stand.load()
    with pytest.raises(PatchNotFound):
        begin(b"unknown")
    with pytest.raises(UnsupportedWithPatch):
        begin(b"pirate", RouteKind.ENCODES)
    assert in_flight(stand) == {"pirate@1.0.0": 0}
    assert stand.value('policy_patch_requests_running{patch="none"}') == 0


async def test_a_generation_that_is_cancelled_is_no_failure(stand: Stand, begin: Any) -> None:
    patch = await stand.load()
    scope = begin(b"pirate")
    with pytest.raises(asyncio.CancelledError), stand.gate.lease(patch):
        raise asyncio.CancelledError
    assert not scope.has_failed
    with pytest.raises(RuntimeError), stand.gate.lease(patch):
        raise RuntimeError
    assert scope.has_failed


async def test_the_first_tokens_time_is_observed_once_and_later_ones_by_the_token(
    stand: Stand, begin: Any
) -> None:
    patch = await stand.load()
    begin(b"pirate")
    with stand.gate.lease(patch) as lease:
        lease.meter.tokens(0)
        lease.meter.tokens(1)
        lease.meter.tokens(1)
        lease.meter.tokens(4)
    assert stand.value('policy_patch_time_to_first_token_seconds_count{patch="pirate"}') == 1
    assert stand.value('policy_patch_inter_token_latency_seconds_count{patch="pirate"}') == 5
