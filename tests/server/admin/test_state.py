"""The state folder: what survives a restart, and what happens where it can't be written or read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from server.catalog.catalog import Catalog
from server.catalog.control import CatalogControl
from server.catalog.folder import PatchFolder
from server.catalog.records import MAX_IDLE_NAMES, Records
from server.catalog.state_folder import CatalogState, StateError
from server.memory.residency import NullResidency
from server.metrics.patches import PatchMetrics
from server.versions.activation import NameRecord, Target
from tests.server.stand import Stand


@pytest.fixture
async def restarted(stand: Stand, records: Records, tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """Start again on the same folders; gives the new catalog."""
    opened: list[Records] = [records]

    async def restart() -> Catalog:
        opened[-1].close()
        opened.append(Records(CatalogState(tmp_path / "state"), keep_previous=1))
        metrics = PatchMetrics(CollectorRegistry())
        control = CatalogControl(opened[-1])
        catalog = Catalog(NullResidency(), stand.catalog.intake.model, metrics, control)
        async with PatchFolder(stand.folder, catalog):
            return catalog

    yield restart
    for used in opened:
        used.close()


async def test_pins_history_and_content_survive_a_restart_without_the_files(
    stand: Stand, admin: Any, restarted: Any
) -> None:
    old = await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await admin.post("pirate/activate", version="1.0.0")
    before = stand.catalog.record("pirate")
    for path in stand.folder.iterdir():
        path.unlink()
    catalog = await restarted()
    assert catalog.record("pirate") == before
    assert catalog.view.names["pirate"].active == old


async def test_a_rollback_is_possible_after_a_restart(stand: Stand, admin: Any, restarted: Any) -> None:
    old = await stand.load(fill=1.0)
    await stand.load(fill=2.0)
    catalog = await restarted()
    (kept,) = [row.patch for row in catalog.rows() if row.is_previous]
    assert kept == old


async def test_a_canary_goes_on_after_a_restart_without_its_file(
    stand: Stand, admin: Any, restarted: Any
) -> None:
    await stand.load("pirate", "1.0.0")
    await admin.put(stand.bytes(version="1.1.0"), "pirate/1.1.0", hold=True)
    await admin.post("pirate/canary", version="1.1.0", share=0.5, key="user", max_error_rate=0.1)
    before = stand.catalog.record("pirate")
    (stand.folder / "pirate-1.1.0.safetensors").unlink()
    catalog = await restarted()
    assert catalog.record("pirate") == before
    assert catalog.view.canaries["pirate"].patch.version == "1.1.0"
    assert catalog.view.names["pirate"].active.version == "1.0.0"


async def test_an_unpinned_name_follows_what_happened_to_the_folder_meanwhile(
    stand: Stand, admin: Any, restarted: Any
) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("sailor", "1.0.0")
    stand.put("pirate", "1.1.0")
    (stand.folder / "sailor-1.0.0.safetensors").unlink()
    catalog = await restarted()
    assert catalog.view.names["pirate"].active.version == "1.1.0"
    assert "sailor" not in catalog.view.names


async def test_a_version_that_was_rolled_back_from_stays_out_after_a_restart(
    stand: Stand, admin: Any, restarted: Any
) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await admin.post("pirate/rollback")
    catalog = await restarted()
    assert catalog.view.names["pirate"].active.version == "1.0.0"


async def test_content_that_was_rolled_back_to_keeps_its_version_after_a_restart(
    stand: Stand, admin: Any, restarted: Any
) -> None:
    old = await stand.load(fill=1.0)
    await stand.load(fill=2.0)
    await admin.post("pirate/rollback")
    catalog = await restarted()
    assert catalog.view.names["pirate"].versions == (old,)
    assert [failure.reason for failure in catalog.failures()] == ["conflict"]


async def test_a_state_that_can_not_be_written_refuses_orders_and_lets_files_go_on(
    stand: Stand, admin: Any, monkeypatch: Any
) -> None:
    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.catalog.state_folder.write_bytes_atomically", refuse)
    answer = await admin.post("pirate/rollback")
    assert stand.code(answer) == (500, "state_not_saved")
    assert "No space left" in answer.json()["error"]["message"]
    assert await admin.answers() == "pirate@1.1.0"
    await stand.load("pirate", "1.2.0")
    assert await admin.answers() == "pirate@1.2.0"
    monkeypatch.undo()
    assert (await admin.post("pirate/rollback")).status_code == 200


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "record": {}}', '{"format": 1, "record": 3}'])
async def test_a_record_that_can_not_be_read_ends_the_start(
    stand: Stand, admin: Any, restarted: Any, tmp_path: Path, text: str
) -> None:
    """Skipping it would let the name mean a version that an operator had ruled out."""
    await stand.load()
    (tmp_path / "state" / "names" / "pirate.json").write_text(text)
    with pytest.raises(StateError, match=r"pirate\.json: .*restore it"):
        await restarted()


async def test_a_record_of_a_canary_that_sticks_to_nothing_known_ends_the_start(
    stand: Stand, admin: Any, restarted: Any, tmp_path: Path
) -> None:
    """A newer release may have written it; drawing its callers anew would move them between versions."""
    await stand.load()
    await stand.load(version="1.1.0")
    await admin.post("pirate/activate", version="1.0.0")
    await admin.post("pirate/canary", version="1.1.0", key="user")
    path = tmp_path / "state" / "names" / "pirate.json"
    path.write_text(path.read_text().replace('"key": "user"', '"key": "planet"'))
    with pytest.raises(StateError, match=r"key: expected header:NAME.*got 'planet'"):
        await restarted()


async def test_a_record_with_a_digest_that_is_none_ends_the_start(
    stand: Stand, admin: Any, restarted: Any, tmp_path: Path
) -> None:
    """Digests become file names, so they are held to their grammar."""
    patch = await stand.load()
    path = tmp_path / "state" / "names" / "pirate.json"
    path.write_text(path.read_text().replace(patch.digest, "sha256:../../etc/passwd"))
    with pytest.raises(StateError, match="digest: expected"):
        await restarted()


async def test_a_copy_that_was_altered_is_refused_and_the_name_means_nothing_else(
    stand: Stand, admin: Any, restarted: Any, tmp_path: Path
) -> None:
    old = await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    await admin.post("pirate/activate", version="1.0.0")
    (stand.folder / "pirate-1.0.0.safetensors").unlink()
    copy = tmp_path / "state" / "patches" / f"{old.digest.removeprefix('sha256:')}.safetensors"
    copy.write_bytes(stand.bytes("pirate", "1.0.0", fill=9.0))
    catalog = await restarted()
    assert catalog.view.names["pirate"].active is None
    assert [failure.reason for failure in catalog.failures()] == ["unreadable"]


async def test_a_name_without_an_active_version_is_not_ready_and_its_versions_can_be_named(
    stand: Stand, admin: Any
) -> None:
    patch = await stand.load("pirate", "1.1.0")
    stand.catalog.publication.view = stand.catalog.view.with_name("pirate", [patch], None)
    assert stand.code(await stand.chat("pirate")) == (503, "patch_not_ready")
    assert await admin.answers("pirate@1.1.0") == "pirate@1.1.0"


async def test_two_servers_can_not_share_a_state_folder(records: Records, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="in use by another server"):
        Records(CatalogState(tmp_path / "state"))


async def test_copies_that_nothing_needs_are_removed(stand: Stand, admin: Any, tmp_path: Path) -> None:
    patches = [await stand.load(fill=float(i)) for i in range(5)]
    names = {path.stem for path in (tmp_path / "state" / "patches").iterdir()}
    assert names == {patch.digest.removeprefix("sha256:") for patch in patches[-2:]}


async def test_going_round_reads_and_lists_nothing_again(
    stand: Stand, admin: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """What a swap costs must not grow with the size of its patches: dozens a second are ordered."""
    versions = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    for version in versions:
        await stand.load("pirate", version)
    for version in versions:
        await admin.post("pirate/activate", version=version)

    def refuse(*_: Any) -> None:
        raise AssertionError("the copies are there already")

    monkeypatch.setattr("server.catalog.state_folder.read_patch_bytes", refuse)
    monkeypatch.setattr(CatalogState, "prune", refuse)
    for version in versions:
        answer = await admin.post("pirate/activate", version=version)
        assert answer.json()["active"]["version"] == version
    assert len(list((tmp_path / "state" / "patches").iterdir())) == len(versions)


async def test_the_copy_of_a_content_that_left_the_folder_goes_with_it(
    stand: Stand, admin: Any, tmp_path: Path
) -> None:
    versions = ("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    patches = {version: await stand.load("pirate", version) for version in versions}
    for version in versions:
        await admin.post("pirate/activate", version=version)
    await admin.delete("pirate/1.0.0")
    names = {path.stem for path in (tmp_path / "state" / "patches").iterdir()}
    assert names == {patches[version].digest.removeprefix("sha256:") for version in versions[1:]}


async def test_a_copy_of_an_order_that_could_not_be_saved_is_removed_later(
    stand: Stand, admin: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        await stand.load("pirate", version)
    for version in ("1.2.0", "1.1.0"):
        await admin.post("pirate/activate", version=version)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(CatalogState, "save", fail)
        assert (await admin.post("pirate/activate", version="1.0.0")).status_code == 500
    assert len(list((tmp_path / "state" / "patches").iterdir())) == 3
    await admin.delete("pirate/1.0.0")
    assert len(list((tmp_path / "state" / "patches").iterdir())) == 2


async def test_idle_names_are_forgotten_oldest_first_but_never_pins(tmp_path: Path) -> None:
    records = Records()
    for i in range(MAX_IDLE_NAMES + 3):
        target = Target("1.0.0", f"sha256:{i:064x}")
        await records.commit(f"p{i}", NameRecord(target, is_pinned=i == 0), {})
    await records.prune(records.names)
    assert "p0" in records.names
    assert "p1" not in records.names
    assert len(records.names) == MAX_IDLE_NAMES + 1


async def test_the_event_loop_turns_while_the_state_is_written(
    stand: Stand, admin: Any, monkeypatch: Any
) -> None:
    """A slow disk must not hold up answers."""
    import threading

    await stand.load("pirate", "1.0.0")
    await stand.load("pirate", "1.1.0")
    may_write = threading.Event()
    monkeypatch.setattr(
        "server.catalog.state_folder.write_bytes_atomically", lambda *_, **__: may_write.wait(30)
    )
    order = asyncio.create_task(admin.post("pirate/rollback"))
    await asyncio.sleep(0.05)
    assert await admin.answers() == "pirate@1.1.0"
    may_write.set()
    assert (await order).status_code == 200
    assert await admin.answers() == "pirate@1.0.0"
