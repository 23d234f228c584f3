"""Disk, host memory and what moves between them, with workers that do what a test says."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from patches.format import read_patch
from server.catalog.checked_ahead import CheckedAhead
from server.memory.payload import Payload
from server.memory.residency import ResidencyError
from server.memory.tiers import TieredResidency
from server.metrics.tiers import TierMetrics
from server.options import MemoryOptions
from tests.server.stand import Stand


class FakeWorkers:
    """Holds what it is told to; loads wait, and fail, where a test wants it."""

    def __init__(self) -> None:
        self.held: dict[str, torch.Tensor] = {}
        self.pinned: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.may_unload = asyncio.Event()
        self.may_unload.set()
        self.refusals = 0

    def note(self, call: str, digest: str) -> None:
        self.calls.append((call, digest))

    def count(self, call: str) -> int:
        return sum(name == call for name, _ in self.calls)

    async def check(self, payload: Payload) -> int:
        self.note("check", payload.digest)
        return payload.nbytes

    async def load(self, payload: Payload, *, is_pinned: bool = False) -> int:
        digest = payload.digest
        self.note("load", digest)
        await self.may_load.wait()
        if self.refusals:
            self.refusals -= 1
            raise ResidencyError("worker 1 says no")
        assert digest not in self.held, "loaded twice"
        self.held[digest] = payload.tensors["kv"]
        if is_pinned:
            self.pinned.add(digest)
        return payload.nbytes

    async def unload(self, digest: str) -> None:
        self.note("unload", digest)
        await self.may_unload.wait()
        del self.held[digest]


#: Bytes of each patch that `Stand.serve` makes.
NBYTES = 64


class Tiers:
    """A residency over fake workers, with patch files."""

    def __init__(self, stand: Stand, **options: Any) -> None:
        self.stand = stand
        self.workers = FakeWorkers()
        self.registry = CollectorRegistry()
        self.residency = TieredResidency(self.workers, MemoryOptions(**options), TierMetrics(self.registry))
        self.in_use: set[str] = set()
        self.residency.bind(self.in_use.__contains__)
        self.paths: dict[str, Path] = {}

    async def serve(self, name: str, fill: float, version: str = "1.0.0") -> str:
        """Make a file and load it as the catalog does; gives its digest."""
        path = self.stand.put(name, version, fill=fill)
        patch = read_patch(path)
        nbytes = await self.residency.load(patch, path)
        assert nbytes == NBYTES
        self.paths[patch.digest] = path
        return str(patch.digest)

    async def use(self, digest: str) -> None:
        """Run one request."""
        self.in_use.add(digest)
        await self.residency.ready(digest)
        self.end(digest)

    def end(self, digest: str) -> None:
        """End the last request."""
        self.in_use.discard(digest)
        self.residency.idle(digest)

    def value(self, series: str) -> float:
        lines = generate_latest(self.registry).decode().splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == series)


@pytest.fixture
def tiers(stand: Stand) -> Callable[..., Tiers]:
    return lambda **options: Tiers(stand, **options)


async def test_what_nobody_uses_is_confirmed_but_not_loaded(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("pirate", 1.0)
    assert t.workers.calls == [("check", digest)]
    assert not t.residency.is_ready(digest)


async def test_a_patch_that_was_only_checked_is_read_before_workers_hold_it(tiers: Any) -> None:
    t = tiers(preload=True)
    path = t.stand.put(fill=3.0)
    ahead = CheckedAhead(t.stand.folder)
    ahead.join()
    patch = ahead.take(path)
    assert await t.residency.load(patch, path) == NBYTES
    assert bool((t.workers.held[patch.digest] == 3.0).all())


async def test_the_first_request_loads_the_files_content_and_later_ones_nothing(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("pirate", 3.0)
    for _ in range(3):
        await t.use(digest)
    assert t.workers.count("load") == 1
    assert bool((t.workers.held[digest] == 3.0).all())


async def test_concurrent_misses_of_one_patch_load_once(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("pirate", 1.0)
    t.workers.may_load.clear()
    waiting = [asyncio.create_task(t.use(digest)) for _ in range(20)]
    await t.stand.until(lambda: t.workers.count("load"))
    assert not any(task.done() for task in waiting)
    t.workers.may_load.set()
    await asyncio.gather(*waiting)
    assert t.workers.count("load") == 1


async def test_a_miss_holds_up_nobody_else(tiers: Any) -> None:
    t = tiers()
    slow, resident, quick = [await t.serve(name, fill) for name, fill in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    await t.use(resident)
    t.workers.may_load.clear()
    waiting = asyncio.create_task(t.use(slow))
    await t.stand.until(lambda: ("load", slow) in t.workers.calls)
    await asyncio.wait_for(t.use(resident), 5)
    other = asyncio.create_task(t.use(quick))
    # A second miss goes to the workers without waiting for the first.
    await t.stand.until(lambda: ("load", quick) in t.workers.calls)
    t.workers.may_load.set()
    await asyncio.gather(waiting, other)


async def test_a_request_that_goes_away_takes_nothing_from_the_others(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("pirate", 1.0)
    t.workers.may_load.clear()
    leaving, staying = (asyncio.create_task(t.use(digest)) for _ in range(2))
    await t.stand.until(lambda: t.workers.count("load"))
    leaving.cancel()
    t.workers.may_load.set()
    await staying
    assert leaving.cancelled()
    assert t.workers.count("load") == 1


async def test_a_failed_load_fails_all_that_waited_and_is_tried_again(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("pirate", 1.0)
    t.workers.refusals = 1
    outcomes = await asyncio.gather(*(t.use(digest) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ResidencyError] * 3
    await t.use(digest)
    assert t.workers.count("load") == 2
    assert t.value('policy_patch_tier_bytes{tier="host"}') == NBYTES


async def test_what_was_not_used_for_longest_makes_room(tiers: Any) -> None:
    t = tiers(patch_host_memory=2 * NBYTES)
    first, second, third = [await t.serve(f"p{i}", float(i)) for i in range(3)]
    await t.use(first)
    await t.use(second)
    await t.use(first)
    await t.use(third)
    assert set(t.workers.held) == {first, third}
    assert t.value('policy_patch_tier_evictions_total{tier="host"}') == 1
    assert t.value('policy_patch_tier_bytes{tier="host"}') == 2 * NBYTES
    assert t.value('policy_patch_tier_patches{tier="disk"}') == 1


async def test_what_is_in_use_is_never_taken_away(tiers: Any) -> None:
    t = tiers(patch_host_memory=NBYTES)
    first, second, third = [await t.serve(f"p{i}", float(i)) for i in range(3)]
    for digest in (first, second):
        t.in_use.add(digest)
        await t.residency.ready(digest)
    assert set(t.workers.held) == {first, second}
    t.in_use.clear()
    await t.use(third)
    assert set(t.workers.held) == {third}


async def test_what_had_to_stay_beyond_the_bound_goes_when_its_last_request_is_over(tiers: Any) -> None:
    t = tiers(patch_host_memory=NBYTES)
    digests = [await t.serve(f"p{i}", float(i)) for i in range(3)]
    for digest in digests:
        t.in_use.add(digest)
        await t.residency.ready(digest)
    assert t.value('policy_patch_tier_bytes{tier="host"}') == 3 * NBYTES
    for digest in digests:
        t.end(digest)
    await t.stand.until(lambda: len(t.workers.held) == 1)
    assert set(t.workers.held) == {digests[2]}
    assert t.value('policy_patch_tier_bytes{tier="host"}') == NBYTES
    assert t.value('policy_patch_tier_evictions_total{tier="host"}') == 2


async def test_a_pinned_name_is_loaded_at_once_and_stays(tiers: Any) -> None:
    t = tiers(patch_host_memory=NBYTES, pin_patch=frozenset({"safety"}))
    pinned = await t.serve("safety", 1.0)
    assert t.workers.pinned == set(t.workers.held) == {pinned}
    for i in range(3):
        await t.use(await t.serve(f"p{i}", float(i + 2)))
    assert pinned in t.workers.held


async def test_preloading_stops_at_the_bound_and_evicts_nothing(tiers: Any) -> None:
    t = tiers(patch_host_memory=2 * NBYTES, preload=True)
    digests = [await t.serve(f"p{i}", float(i)) for i in range(4)]
    assert list(t.workers.held) == digests[:2]
    assert t.workers.count("unload") == 0


async def test_a_new_version_of_what_is_in_memory_is_there_before_it_serves(tiers: Any) -> None:
    t = tiers()
    await t.use(await t.serve("pirate", 1.0))
    heir = await t.serve("pirate", 2.0, "1.1.0")
    assert t.residency.is_ready(heir)


async def test_a_new_version_that_workers_refuse_leaves_nothing_behind(tiers: Any) -> None:
    t = tiers()
    old = await t.serve("pirate", 1.0)
    await t.use(old)
    t.workers.refusals = 1
    with pytest.raises(ResidencyError):
        await t.serve("pirate", 2.0, "1.1.0")
    assert set(t.workers.held) == {old}
    assert t.value('policy_patch_tier_bytes{tier="host"}') == NBYTES


async def test_a_renamed_or_removed_file_can_still_be_read(tiers: Any) -> None:
    t = tiers(patch_host_memory=NBYTES)
    renamed, removed = await t.serve("a", 1.0), await t.serve("b", 2.0)
    t.paths[renamed].rename(t.paths[renamed].with_name("other.safetensors"))
    t.paths[removed].unlink()
    for digest in (renamed, removed, renamed, removed):
        await t.use(digest)
    assert t.workers.count("load") == 4


@pytest.mark.parametrize("rest", ["other", "cut", "gone"])
async def test_a_file_that_is_replaced_between_reading_and_opening_stays_in_memory(
    tiers: Any, rest: str
) -> None:
    """Seen under fifty renames a second: requests for what had just been read got 503 until the next swap."""
    t = tiers()
    path = t.stand.put("a", "1.0.0", fill=1.0)
    patch = read_patch(path)
    path.unlink()
    if rest != "gone":
        data = t.stand.bytes("a", "1.0.0", fill=5.0)
        path.write_bytes(data if rest == "other" else data[:20])
    await t.residency.load(patch, path)
    await t.use(patch.digest)
    assert bool((t.workers.held[patch.digest] == 1.0).all())


async def test_what_no_file_holds_any_more_stays_in_memory(tiers: Any) -> None:
    t = tiers(patch_host_memory=NBYTES)
    lost = await t.serve("a", 1.0)
    await t.use(lost)
    t.paths[lost].write_bytes(t.stand.bytes("a", "1.0.0", fill=5.0, num_tokens=3))
    await t.use(await t.serve("b", 2.0))
    assert lost in t.workers.held


async def test_a_file_that_was_overwritten_in_place_is_an_error_and_never_another_content(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("a", 1.0)
    t.paths[digest].write_bytes(t.stand.bytes("a", "1.0.0", fill=5.0))
    with pytest.raises(ResidencyError, match="overwritten"):
        await t.use(digest)
    assert t.workers.held == {}


async def test_a_request_for_what_is_being_dropped_loads_it_behind_the_drop(tiers: Any) -> None:
    t = tiers(patch_host_memory=NBYTES)
    first, second = await t.serve("a", 1.0), await t.serve("b", 2.0)
    await t.use(first)
    t.workers.may_unload.clear()
    evicting = asyncio.create_task(t.use(second))
    await t.stand.until(lambda: ("unload", first) in t.workers.calls)
    assert not t.residency.is_ready(first)
    t.in_use.add(first)
    again = asyncio.create_task(t.residency.ready(first))
    await asyncio.sleep(0.05)
    assert not again.done()
    t.workers.may_unload.set()
    await asyncio.gather(evicting, again)
    assert first in t.workers.held
    assert t.workers.calls.index(("unload", first)) < len(t.workers.calls) - 1 - t.workers.calls[::-1].index(
        ("load", first)
    )


async def test_forgetting_waits_for_a_load_that_nobody_wants_any_more(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("a", 1.0)
    t.workers.may_load.clear()
    request = asyncio.create_task(t.use(digest))
    await t.stand.until(lambda: t.workers.count("load"))
    request.cancel()
    forgetting = asyncio.create_task(t.residency.unload(digest))
    await asyncio.sleep(0)
    t.workers.may_load.set()
    await forgetting
    assert t.workers.held == {}
    assert t.value('policy_patch_tier_bytes{tier="host"}') == 0


async def test_what_is_forgotten_is_an_error_to_wait_for(tiers: Any) -> None:
    t = tiers()
    digest = await t.serve("a", 1.0)
    await t.residency.unload(digest)
    assert t.workers.count("unload") == 0
    with pytest.raises(ResidencyError):
        await t.residency.ready(digest)


async def test_any_order_of_requests_and_evictions_ends_right(tiers: Any) -> None:
    """Many requests over few places, with workers that take a moment: nothing twice, nothing beyond use."""
    t = tiers(patch_host_memory=3 * NBYTES)
    digests = [await t.serve(f"p{i}", float(i)) for i in range(8)]
    order = torch.randint(8, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    users = dict.fromkeys(digests, 0)

    async def request(i: int) -> None:
        digest = digests[i]
        users[digest] += 1
        t.in_use.add(digest)
        await t.residency.ready(digest)
        for _ in range(3):
            assert digest in t.workers.held
            await asyncio.sleep(0)
        users[digest] -= 1
        if not users[digest]:
            t.in_use.discard(digest)

    async def worker(part: list[int]) -> None:
        for i in part:
            await request(i)

    await asyncio.gather(*(worker(order[k::10]) for k in range(10)))
    await t.use(digests[0])
    assert t.value('policy_patch_tier_bytes{tier="host"}') == len(t.workers.held) * NBYTES
    assert t.workers.count("load") - t.workers.count("unload") == len(t.workers.held)
