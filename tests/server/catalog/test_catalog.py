"""What serves while files come, change and go. No watcher here: each change is a call."""

import asyncio
import logging
import os
from typing import Any

import pytest

from patches.format import read_patch
from server.errors import PatchNotReady
from server.memory.residency import ResidencyError
from server.versions.view import FileFailure, ServedPatch
from tests.server.stand import Stand


def active(stand: Stand, name: str = "pirate") -> Any:
    named = stand.catalog.view.names.get(name)
    return named.active if named is not None else None


def states(stand: Stand) -> dict[str, str]:
    """Version -> state of everything on the workers."""
    return {
        row.patch.version: "draining" if row.is_draining else "active" if row.is_active else "loaded"
        for row in stand.catalog.rows()
    }


async def test_a_loaded_file_is_served_and_resident(stand: Stand) -> None:
    served = await stand.load("pirate", "1.2.0")
    assert served == active(stand)
    assert stand.residency.resident == {served.digest: served.nbytes}
    assert (served.reference, served.num_tokens, served.nbytes) == ("pirate@1.2.0", 2, 64)


async def test_nothing_is_served_before_every_worker_holds_it(stand: Stand) -> None:
    stand.residency.may_load.clear()
    loading = asyncio.create_task(stand.load())
    await stand.until(lambda: stand.residency.calls)
    assert active(stand) is None
    assert stand.catalog.view.loading == {("pirate", "1.0.0")}
    stand.residency.may_load.set()
    assert await loading == active(stand)
    assert stand.catalog.view.loading == frozenset()


async def test_the_highest_semantic_version_is_active(stand: Stand) -> None:
    for version in ("1.9.0", "1.10.0", "1.10.0-rc.1", "1.2.0"):
        await stand.load("pirate", version)
    assert active(stand).version == "1.10.0"
    assert set(active_versions(stand)) == {"1.10.0", "1.10.0-rc.1", "1.9.0", "1.2.0"}


def active_versions(stand: Stand) -> list[str]:
    return [patch.version for patch in stand.catalog.view.names["pirate"].versions]


async def test_a_removed_active_version_gives_way_to_the_next_and_says_so(stand: Stand, caplog: Any) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    path = stand.folder / "pirate-1.1.0.safetensors"
    with caplog.at_level(logging.WARNING, "server.catalog"):
        await stand.catalog.forget_file(path)
    assert active(stand).version == "1.0.0"
    assert "fell back from 1.1.0 to 1.0.0" in caplog.text


async def test_the_last_version_takes_the_name_with_it(stand: Stand) -> None:
    await stand.load()
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert dict(stand.catalog.view.names) == {}
    assert stand.residency.resident == {}


async def test_new_content_under_the_same_path_replaces_the_old(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    new = await stand.load(fill=2.0)
    assert old.digest != new.digest
    assert active(stand) == new
    assert list(stand.residency.resident) == [new.digest]


async def test_the_new_content_is_resident_before_the_old_is_dropped(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    new = await stand.load(fill=2.0)
    assert stand.residency.calls == [("load", old.digest), ("load", new.digest), ("unload", old.digest)]


async def test_a_version_in_use_is_drained_and_dropped_with_its_last_user(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    stand.catalog.residents.acquire(old)
    stand.catalog.residents.acquire(old)
    new = await stand.load(fill=2.0)
    assert set(stand.residency.resident) == {old.digest, new.digest}
    stand.catalog.residents.release(old)
    await stand.catalog.residents.drained()
    assert old.digest in stand.residency.resident
    stand.catalog.residents.release(old)
    await stand.catalog.residents.drained()
    assert list(stand.residency.resident) == [new.digest]


async def test_a_version_that_was_dropped_cannot_be_acquired(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    await stand.load(fill=2.0)
    with pytest.raises(PatchNotReady):
        stand.catalog.residents.acquire(old)


async def test_a_version_that_is_being_dropped_cannot_be_acquired(stand: Stand) -> None:
    """Between the order to the workers and their answer the tensors may be gone on some of them."""
    patch = await stand.load()
    stand.residency.may_unload.clear()
    forgetting = asyncio.create_task(stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors"))
    await stand.until(lambda: ("unload", patch.digest) in stand.residency.calls)
    with pytest.raises(PatchNotReady):
        stand.catalog.residents.acquire(patch)
    stand.residency.may_unload.set()
    await forgetting


async def test_content_that_comes_back_while_it_drains_is_kept(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    stand.catalog.residents.acquire(old)
    await stand.load(fill=2.0)
    again = await stand.load(fill=1.0)
    assert again == old
    stand.catalog.residents.release(old)
    await stand.catalog.residents.drained()
    assert active(stand) == old
    assert list(stand.residency.resident) == [old.digest]
    assert [call for call in stand.residency.calls if call[1] == old.digest] == [("load", old.digest)]


async def test_content_that_comes_back_as_its_last_user_leaves_is_kept(stand: Stand) -> None:
    """The drain that the last release ordered runs after the file is back."""
    old = await stand.load(fill=1.0)
    stand.catalog.residents.acquire(old)
    await stand.load(fill=2.0)
    stand.residency.may_load.clear()
    other = asyncio.create_task(stand.load("other"))
    await stand.until(lambda: stand.residency.calls[-1][0] == "load" and len(stand.residency.calls) == 3)
    returning = asyncio.create_task(stand.load(fill=1.0))
    await asyncio.sleep(0)
    stand.catalog.residents.release(old)
    stand.residency.may_load.set()
    await asyncio.gather(other, returning)
    await stand.catalog.residents.drained()
    assert active(stand) == old
    assert old.digest in stand.residency.resident


async def test_two_files_with_the_same_content_share_one_residency(stand: Stand) -> None:
    patch = await stand.load()
    copy = stand.folder / "copy.safetensors"
    copy.write_bytes((stand.folder / "pirate-1.0.0.safetensors").read_bytes())
    assert await stand.catalog.load_file(copy) == patch
    assert stand.residency.calls == [("load", patch.digest)]
    await stand.catalog.forget_file(stand.folder / "pirate-1.0.0.safetensors")
    assert active(stand) == patch
    await stand.catalog.forget_file(copy)
    assert stand.residency.resident == {}


async def test_of_two_files_with_one_name_and_version_the_first_keeps_serving(stand: Stand) -> None:
    first = await stand.load(fill=1.0)
    rival = stand.folder / "rival.safetensors"
    rival.write_bytes(stand.bytes(fill=2.0))
    failure = await stand.catalog.load_file(rival)
    assert isinstance(failure, FileFailure)
    assert (failure.reason, failure.name, failure.version) == ("conflict", "pirate", "1.0.0")
    assert "pirate-1.0.0.safetensors" in failure.message
    assert active(stand) == first
    assert list(stand.residency.resident) == [first.digest]
    assert stand.value('policy_patch_load_failures_total{reason="conflict"}') == 1


@pytest.mark.parametrize("leaving", ["forgotten", "replaced by another version"])
async def test_the_rival_is_served_once_the_first_is_gone(stand: Stand, leaving: str) -> None:
    await stand.load(fill=1.0)
    rival = stand.folder / "rival.safetensors"
    rival.write_bytes(stand.bytes(fill=2.0))
    await stand.catalog.load_file(rival)
    first = stand.folder / "pirate-1.0.0.safetensors"
    if leaving == "forgotten":
        await stand.catalog.forget_file(first)
    else:
        first.write_bytes(stand.bytes(version="0.9.0"))
        await stand.catalog.load_file(first)
    assert active(stand).version == "1.0.0"
    assert stand.catalog.failures() == []


async def test_a_forgotten_rival_is_no_failure_any_more(stand: Stand) -> None:
    await stand.load(fill=1.0)
    rival = stand.folder / "rival.safetensors"
    rival.write_bytes(stand.bytes(fill=2.0))
    await stand.catalog.load_file(rival)
    await stand.catalog.forget_file(rival)
    assert stand.catalog.failures() == []


def corrupt(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


REFUSALS: dict[str, tuple[Any, str]] = {
    "truncated": (lambda stand: stand.bytes()[:-5], "truncated"),
    "empty": (lambda stand: b"", "truncated"),
    "corrupt": (lambda stand: corrupt(stand.bytes()), "digest_mismatch"),
    "no patch": (lambda stand: b"hello, this is no patch at all", "not_safetensors"),
    "wrong model": (
        lambda stand: stand.bytes(
            base_model=stand.other_model(num_layers=1, weights_digest="sha256:" + "c" * 64)
        ),
        "base_model_mismatch",
    ),
    "too long": (lambda stand: stand.bytes(num_tokens=65), "too_many_tokens"),
    "not compiled": (lambda stand: stand.bytes(has_kv=False), "not_compiled"),
}


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_bad_file_is_refused_and_changes_nothing_that_serves(
    stand: Stand, kind: str, caplog: Any
) -> None:
    make, _ = REFUSALS[kind]
    patch = await stand.load("pirate", "1.0.0", fill=1.0)
    path = stand.folder / "pirate-1.0.0.safetensors"
    path.write_bytes(make(stand))
    with caplog.at_level(logging.ERROR, "server.catalog"):
        failure = await stand.catalog.load_file(path)
    assert isinstance(failure, FileFailure)
    assert stand.catalog.failures() == [failure]
    assert active(stand) == patch
    assert list(stand.residency.resident) == [patch.digest]
    assert stand.value(f'policy_patch_load_failures_total{{reason="{failure.reason}"}}') == 1
    assert stand.value("policy_patch_refused_files") == 1
    assert f"is refused ({failure.reason})" in caplog.text


@pytest.mark.parametrize("kind", sorted(set(REFUSALS) - {"empty", "no patch", "truncated"}))
async def test_the_reason_of_a_refusal_is_exact(stand: Stand, kind: str) -> None:
    make, reason = REFUSALS[kind]
    path = stand.folder / "x.safetensors"
    path.write_bytes(make(stand))
    assert (await stand.catalog.load_file(path)).reason == reason


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_a_patch_of_a_narrower_dtype_is_served_under_the_digest_of_its_file(
    stand: Stand, dtype: str
) -> None:
    path = stand.put(base_model=stand.other_model(dtype=dtype))
    served = await stand.catalog.load_file(path)
    assert isinstance(served, ServedPatch)
    assert served.digest == read_patch(path).digest


async def test_the_longest_prefix_that_fits_is_served(stand: Stand) -> None:
    assert isinstance(await stand.load(num_tokens=64), ServedPatch)


async def test_a_refusal_never_tells_where_the_files_lie(stand: Stand) -> None:
    failure = await stand.catalog.load_file(stand.folder / "gone.safetensors")
    assert failure.reason == "unreadable"
    assert str(stand.folder) not in failure.message
    assert os.sep not in failure.file


async def test_a_file_that_gets_well_is_served_and_its_failure_forgotten(stand: Stand) -> None:
    path = stand.folder / "pirate-1.0.0.safetensors"
    path.write_bytes(stand.bytes()[:-5])
    await stand.catalog.load_file(path)
    await stand.load()
    assert stand.catalog.failures() == []
    assert stand.value("policy_patch_refused_files") == 0
    assert active(stand) is not None


async def test_a_lasting_failure_is_logged_once_and_keeps_its_time(stand: Stand, caplog: Any) -> None:
    path = stand.folder / "x.safetensors"
    path.write_bytes(b"no")
    with caplog.at_level(logging.ERROR, "server.catalog"):
        first = await stand.catalog.load_file(path)
        second = await stand.catalog.load_file(path)
    assert first.since_s == second.since_s
    assert caplog.text.count("is refused") == 1


async def test_a_worker_that_refuses_leaves_the_old_version_serving(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    stand.residency.refusals = 1
    failure = await stand.load(fill=2.0)
    assert failure.reason == "residency_failed"
    assert "worker 1 says no" in failure.message
    assert active(stand) == old
    assert stand.catalog.view.loading == frozenset()


async def test_an_unforeseen_failure_of_one_file_is_contained(stand: Stand, monkeypatch: Any) -> None:
    def explode(path: Any) -> Any:
        raise RecursionError("deep")

    monkeypatch.setattr("server.catalog.read_ahead.read_patch", explode)
    failure = await stand.load()
    assert (failure.reason, failure.message) == ("internal", "internal error: RecursionError")


@pytest.mark.parametrize("error", [ResidencyError("no"), RuntimeError("the engine is gone")])
async def test_a_drop_that_fails_is_counted_and_forgets_the_patch(
    stand: Stand, monkeypatch: Any, error: Exception
) -> None:
    async def refuse(digest: str) -> None:
        raise error

    await stand.load(fill=1.0)
    monkeypatch.setattr(stand.residency, "unload", refuse)
    new = await stand.load(fill=2.0)
    assert active(stand) == new
    assert stand.catalog.failures() == []
    assert states(stand) == {"1.0.0": "active"}
    assert stand.value('policy_patch_load_failures_total{reason="unload_failed"}') == 1


async def test_a_renamed_version_in_one_file_moves_from_name_to_name(stand: Stand) -> None:
    path = stand.folder / "x.safetensors"
    path.write_bytes(stand.bytes("pirate"))
    await stand.catalog.load_file(path)
    path.write_bytes(stand.bytes("sailor"))
    await stand.catalog.load_file(path)
    assert set(stand.catalog.view.names) == {"sailor"}


async def test_views_that_requests_hold_are_never_touched(stand: Stand) -> None:
    old = await stand.load(fill=1.0)
    view = stand.catalog.view
    await stand.load(fill=2.0)
    assert view.names["pirate"].active == old


async def test_changes_run_one_at_a_time(stand: Stand) -> None:
    """The second change begins when the first is settled, and so does the drop of a drained version."""
    drained = await stand.load("drained")
    stand.catalog.residents.acquire(drained)
    await stand.catalog.forget_file(stand.folder / "drained-1.0.0.safetensors")
    stand.residency.may_load.clear()
    first = asyncio.create_task(stand.load("first"))
    await stand.until(lambda: len(stand.residency.calls) == 2)
    second = asyncio.create_task(stand.load("second"))
    stand.catalog.residents.release(drained)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(stand.residency.calls) == 2
    stand.residency.may_load.set()
    await asyncio.gather(first, second)
    await stand.catalog.residents.drained()
    assert set(stand.catalog.view.names) == {"first", "second"}
    assert drained.digest not in stand.residency.resident


async def test_twenty_replacements_at_once_leave_the_last_one(stand: Stand) -> None:
    await asyncio.gather(*(stand.load(fill=float(fill)) for fill in range(20)))
    assert list(stand.residency.resident) == [active(stand).digest]


async def test_one_of_two_files_with_the_same_content_may_change_without_the_other(stand: Stand) -> None:
    patch = await stand.load()
    copy = stand.folder / "copy.safetensors"
    copy.write_bytes((stand.folder / "pirate-1.0.0.safetensors").read_bytes())
    await stand.catalog.load_file(copy)
    copy.write_bytes(stand.bytes("pirate", "0.9.0"))
    await stand.catalog.load_file(copy)
    assert states(stand) == {"1.0.0": "active", "0.9.0": "loaded"}
    assert active(stand) == patch


async def test_memory_may_not_give_up_what_is_in_use_or_what_no_file_holds(stand: Stand) -> None:
    patch = await stand.load()
    assert not stand.residency.must_stay(patch.digest)
    stand.catalog.residents.acquire(patch)
    assert stand.residency.must_stay(patch.digest)
    stand.catalog.residents.release(patch)
    assert not stand.residency.must_stay(patch.digest)
    stand.catalog.residents[patch.digest].paths.clear()
    assert stand.residency.must_stay(patch.digest)


async def test_a_prefix_that_can_not_be_had_is_a_503_and_nothing_is_answered(stand: Stand) -> None:
    patch = await stand.load()
    del stand.residency.resident[patch.digest]
    for body in ({}, {"stream": True}):
        response = await stand.chat("pirate", **body)
        assert stand.code(response) == (503, "patch_not_ready")
        assert response.headers["Retry-After"]
