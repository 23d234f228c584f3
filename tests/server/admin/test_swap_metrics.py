"""What changed, why and by whom, as the exposition shows it."""

import re
import time
from typing import Any

import pytest

from server.catalog.folder import PatchFolder
from server.errors import OrderRefused, PatchNotFound, StateNotSaved
from tests.server.admin.conftest import AdminStand
from tests.server.stand import Stand


def swaps(stand: Stand, cause: str, outcome: str = "ok", patch: str = "pirate") -> float | None:
    labels = f'cause="{cause}",outcome="{outcome}",patch="{patch}"'
    return stand.value(f"policy_patch_swaps_total{{{labels}}}")


def orders(stand: Stand) -> list[tuple[str, ...]]:
    """Action, by, outcome, patch and version of each order that the metrics remember."""
    pattern = r'^policy_patch_order_timestamp_seconds{action="(.*)",by="(.*)",outcome="(.*)",patch="(.*)",'
    return re.findall(pattern + r'version="(.*)"} ', stand.exposition(), re.MULTILINE)


async def test_a_file_that_takes_over_is_a_swap_and_is_timed(stand: Stand) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    assert swaps(stand, "folder") == 2
    assert stand.value('policy_patch_swap_seconds_count{cause="folder"}') == 2


async def test_what_a_start_loads_is_no_swap(stand: Stand) -> None:
    stand.put("pirate")
    async with PatchFolder(stand.folder, stand.catalog):
        assert swaps(stand, "folder") is None
        stand.put("pirate", "1.1.0")
        await stand.until(lambda: swaps(stand, "folder") == 1)


async def test_a_refused_file_is_a_refused_swap(stand: Stand) -> None:
    (stand.folder / "bad.safetensors").write_bytes(b"no")
    await stand.catalog.load_file(stand.folder / "bad.safetensors")
    assert swaps(stand, "folder", "refused", "unknown") == 1
    assert stand.value('policy_patch_swap_seconds_count{cause="folder"}') == 0


async def test_orders_are_counted_timed_and_remembered_with_who_gave_them(
    stand: Stand, admin: AdminStand
) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await admin.operator.activate("pirate", "1.0.0", "alice")
    await admin.operator.rollback("pirate", "deploy-bot")
    for cause in ("activate", "rollback"):
        assert swaps(stand, cause) == 1
        assert stand.value(f'policy_patch_swap_seconds_count{{cause="{cause}"}}') == 1
    assert orders(stand) == [
        ("activate", "alice", "done", "pirate", "1.0.0"),
        ("rollback", "deploy-bot", "done", "pirate", "1.1.0"),
    ]


async def test_an_order_that_is_refused_says_so_and_names_nothing_that_its_caller_wrote(
    stand: Stand, admin: AdminStand
) -> None:
    await stand.load("pirate", "1.0.0")
    with pytest.raises(PatchNotFound):
        await admin.operator.activate("invented", "9.9.9", "alice")
    with pytest.raises(OrderRefused):
        await admin.operator.end_canary("pirate", "promote", "alice")
    assert swaps(stand, "activate", "refused", "unknown") == 1
    assert swaps(stand, "promote", "refused") == 1
    assert ("promote", "alice", "failed", "pirate", "1.0.0") in orders(stand)
    assert "invented" not in stand.exposition()


async def test_an_order_that_the_server_could_not_carry_out_has_failed(
    stand: Stand, admin: AdminStand, monkeypatch: Any
) -> None:
    await stand.load("pirate", "1.0.0")

    async def full(*_: Any) -> None:
        raise StateNotSaved("no space left")

    monkeypatch.setattr(stand.catalog.publication, "commit", full)
    with pytest.raises(StateNotSaved):
        await admin.operator.activate("pirate", "1.0.0", "alice")
    assert swaps(stand, "activate", "failed") == 1


async def test_only_the_last_ten_orders_are_remembered(stand: Stand, admin: AdminStand) -> None:
    await stand.load("pirate", "1.0.0")
    for number in range(12):
        await admin.operator.activate("pirate", "1.0.0", f"key-{number}")
    assert [order[1] for order in orders(stand)] == [f"key-{number}" for number in range(2, 12)]


async def test_the_active_version_says_since_when(stand: Stand, admin: AdminStand) -> None:
    before = time.time()
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    series = 'policy_patch_active_since_timestamp_seconds{patch="pirate",version="%s"}'
    since = stand.value(series % "1.1.0")
    assert since is not None
    assert before <= since <= time.time()
    assert stand.value(series % "1.0.0") is None
    await admin.operator.activate("pirate", "1.1.0", "alice")
    assert stand.value(series % "1.1.0") == since, "pinned, not changed"
    await admin.operator.rollback("pirate", "alice")
    assert (stand.value(series % "1.0.0") or 0) > since


async def test_the_swaps_of_a_removed_patch_go_with_it(stand: Stand) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert "pirate" not in stand.exposition()
