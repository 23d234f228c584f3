"""A server follows its fleet's catalog: each revision holds in one step, or what held goes on."""

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from server.errors import StateNotSaved
from server.fleet import changes
from server.fleet.changes import Names
from server.fleet.document import CanaryEntry, Document, Meaning, moment_of
from server.fleet.reader import CatalogReader
from server.fleet.roles import make_folder
from server.fleet.store import FolderStore
from server.versions.activation import NameRecord
from tests.server.fleet.conftest import Fleet
from tests.server.fleet.replica import Replica, replica_of, ship
from tests.server.stand import Stand, until


@pytest.fixture
def replica(stand: Stand, fleet: Fleet, tmp_path: Path) -> Replica:
    return replica_of(stand, fleet.folder.root, str(tmp_path / "store"), tmp_path / "copy")


async def test_nothing_is_decided_before_a_revision_holds(replica: Replica, fleet: Fleet) -> None:
    assert replica.stand.code(await replica.stand.chat()) == (503, "not_in_step")
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    assert (await replica.stand.chat()).status_code == 200


async def test_all_names_and_the_policy_move_in_one_step(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("mood", "1.0.0"), ("tone", "1.0.0"), policy=b"version: 1\ndefault: mood\n")
    await replica.sync.look()
    seen = set()
    is_over = False

    async def watch() -> None:
        while not is_over:
            default = replica.stand.decider.policy.default
            seen.add((replica.revision, *sorted(replica.active.items()), str(default)))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    ship(fleet, ("mood", "2.0.0"), ("tone", "2.0.0"), policy=b"version: 1\ndefault:   tone\n")
    await replica.sync.look()
    is_over = True
    await watching
    assert {row[:3] for row in seen} == {
        (1, ("mood", "1.0.0"), ("tone", "1.0.0")),
        (2, ("mood", "2.0.0"), ("tone", "2.0.0")),
    }
    assert len(seen) == 2


async def test_a_record_that_can_not_be_written_leaves_every_name_as_it_was(
    replica: Replica, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(fleet, ("mood", "1.0.0"), ("tone", "1.0.0"))
    await replica.sync.look()
    records = replica.stand.catalog.publication.records
    write = records.commit

    async def commit(name: str, record: NameRecord, sources: object) -> None:
        if name == "tone" and record.active is not None and record.active.version == "2.0.0":
            raise StateNotSaved("the disk is full")
        await write(name, record, sources)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "commit", commit)
    ship(fleet, ("mood", "2.0.0"), ("tone", "2.0.0"))
    await replica.sync.look()
    assert replica.active == {"mood": "1.0.0", "tone": "1.0.0"}
    assert records.record("mood").active == replica.stand.catalog.record("mood").active
    active = records.record("mood").active
    assert active is not None
    assert active.version == "1.0.0"
    assert replica.failures("state") == 1
    monkeypatch.undo()
    await replica.sync.look()
    assert replica.active == {"mood": "2.0.0", "tone": "2.0.0"}


async def test_a_revision_waits_for_its_instant_with_everything_loaded(
    replica: Replica, fleet: Fleet
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    ship(fleet, ("tone", "2.0.0"), effective_at=moment_of(time.time() + 0.6))
    await replica.sync.look()
    assert replica.active == {"tone": "1.0.0"}
    assert (await replica.stand.client.get("/ready")).status_code == 200
    # It is there already, for who names it.
    assert (await replica.stand.chat("tone@2.0.0")).headers["X-Policy-Patch"] == "tone@2.0.0"
    await until(lambda: replica.active == {"tone": "2.0.0"})
    assert replica.revision == 2
    assert (await replica.stand.client.get("/ready")).status_code == 200


async def test_what_is_coming_is_503_and_what_the_fleet_has_not_is_404(
    replica: Replica, fleet: Fleet
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    document = ship(fleet, ("tone", "2.0.0"))
    (fleet.store._folder / "targets" / "patches").rename(fleet.store._folder / "away")  # type: ignore[attr-defined]
    await replica.sync.look()
    assert replica.failures("http_error") == 1
    assert replica.stand.code(await replica.stand.chat("tone@2.0.0")) == (503, "patch_not_ready")
    assert replica.stand.code(await replica.stand.chat("tone@3.0.0")) == (404, "patch_not_found")
    assert replica.revision == document.revision - 1
    heard = replica.stand.catalog.view.fleet
    assert heard is not None
    await replica.sync.look()
    # To try again and again makes it due no later.
    assert replica.stand.catalog.view.fleet == heard


async def test_a_server_that_is_behind_is_not_ready(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    now = replica.stand.catalog.view.fleet
    assert now is not None
    await replica.stand.catalog.stand_at(replace(now, heard=2, due_s=time.monotonic() + 60))
    assert (await replica.stand.client.get("/ready")).status_code == 200
    await replica.stand.catalog.stand_at(replace(now, heard=2, due_s=time.monotonic() - 60))
    assert replica.stand.code(await replica.stand.client.get("/ready")) == (503, "not_in_step")
    # What it has is still right for who names a version.
    assert (await replica.stand.chat("tone@1.0.0")).status_code == 200


async def test_going_back_downloads_no_patch(
    replica: Replica, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    ship(fleet, ("tone", "2.0.0"))
    await replica.sync.look()
    downloads = []
    fetch = replica.reader.fetch

    def noted(target: str, path: Path) -> bool:
        is_new = fetch(target, path)
        downloads.append(target) if is_new else None
        return is_new

    monkeypatch.setattr(replica.reader, "fetch", noted)
    ship(fleet, change=lambda d, names: (d, changes.as_of(d, 1)))
    await replica.sync.look()
    assert replica.active == {"tone": "1.0.0"}
    assert replica.revision == 3
    assert downloads == []


async def test_a_canary_of_the_fleet_is_drawn_alike_and_ended_by_no_server_alone(
    replica: Replica, fleet: Fleet
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    canary = CanaryEntry("2.0.0", 1.0, "request", moment_of(fleet.at_s))

    def tried(d: Document, names: Names) -> tuple[Document, Names]:
        held = {"tone": replace(names["tone"], meaning=Meaning("1.0.0"))}
        return d, changes.with_canary(held, "tone", canary)

    ship(fleet, ("tone", "2.0.0"), change=tried)
    await replica.sync.look()
    answer = await replica.stand.chat("tone")
    assert (answer.headers["X-Policy-Patch"], answer.headers["X-Policy-Patch-Arm"]) == (
        "tone@2.0.0",
        "canary",
    )
    running = replica.stand.catalog.record("tone").canary
    assert running is not None
    assert list(running.rules.limits()) == [("min_requests", running.rules.min_requests)]
    ship(fleet, change=lambda d, names: (d, changes.canary_ended(names, "tone", is_promoted=False)))
    await replica.sync.look()
    assert (await replica.stand.chat("tone")).headers["X-Policy-Patch"] == "tone@1.0.0"


async def test_files_that_the_catalog_does_not_name_never_serve(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    replica.stand.folder = replica.folder / "patches"
    replica.stand.put("tone", "9.0.0")
    replica.stand.put("stranger", "1.0.0")
    ship(fleet, ("tone", "1.1.0"))
    await replica.sync.look()
    assert replica.active == {"tone": "1.1.0"}
    assert sorted(path.name for path in (replica.folder / "patches").iterdir()) == [
        "tone-1.0.0.safetensors",
        "tone-1.1.0.safetensors",
    ]
    assert (await replica.stand.chat("stranger")).status_code == 404


async def test_a_revoked_content_is_gone_whatever_revision_is_asked_for(
    replica: Replica, fleet: Fleet
) -> None:
    first = ship(fleet, ("tone", "1.0.0"))
    ship(fleet, ("tone", "2.0.0"))
    await replica.sync.look()
    digest = first.names["tone"].versions["1.0.0"].digest
    ship(fleet, change=lambda d, names: (replace(d, revoked=(digest,)), names))
    await replica.sync.look()
    assert replica.revision == 3
    assert (await replica.stand.chat("tone@1.0.0")).status_code == 404
    as_of = await replica.stand.client.post(
        "/v1/chat/completions", headers={"X-Policy-Patch": "tone", "X-Policy-Patch-As-Of": "1"}, json={}
    )
    assert as_of.status_code == 503
    assert "X-Policy-Patch-Digest" not in as_of.headers


async def test_keys_in_the_catalog_refuse_what_is_not_signed(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    key = (fleet.folder.folder / "keys" / "targets.pub").read_bytes()
    ship(
        fleet,
        ("tone", "2.0.0"),
        change=lambda d, names: (replace(d, trusted_keys=("keys/alice.pub",)), names),
        files={"keys/alice.pub": key},
    )
    await replica.sync.look()
    assert replica.failures("file_refused") == 1
    assert (replica.revision, replica.active) == (1, {"tone": "1.0.0"})
    assert not replica.stand.catalog.trust.is_signature_required


async def test_a_server_that_joins_before_an_instant_serves_what_held_before(
    replica: Replica, fleet: Fleet
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    ship(fleet, ("tone", "2.0.0"), effective_at=moment_of(time.time() + 0.6))
    await replica.sync.look()
    assert (replica.revision, replica.active) == (1, {"tone": "1.0.0"})
    await until(lambda: replica.active == {"tone": "2.0.0"})
    assert replica.revision == 2


def _left_by_an_earlier_process(replica: Replica, fleet: Fleet, tmp_path: Path) -> None:
    """Leave a copy of the catalog and its files, and take the store away."""
    document = ship(fleet, ("tone", "1.0.0"), policy=b"version: 1\nrequired: [tone]\nothers: {allow: all}\n")
    reader = CatalogReader(str(tmp_path / "store"), fleet.folder.root, replica.folder)
    reader.hear()
    assert document.policy is not None
    reader.fetch(document.policy, replica.folder / "policy.yaml")
    reader.fetch(
        document.names["tone"].versions["1.0.0"].target,
        replica.folder / "patches" / "tone-1.0.0.safetensors",
    )
    (tmp_path / "store").rename(tmp_path / "away")


async def test_a_restart_without_the_store_serves_what_was_heard_last(
    replica: Replica, fleet: Fleet, tmp_path: Path
) -> None:
    _left_by_an_earlier_process(replica, fleet, tmp_path)
    async with replica.sync:
        assert replica.failures("http_error") == 1
        assert (replica.revision, replica.active) == (1, {"tone": "1.0.0"})
        assert (await replica.stand.chat()).headers["X-Policy-Patch"] == "tone@1.0.0"


async def test_a_restart_without_the_store_or_a_file_waits(
    replica: Replica, fleet: Fleet, tmp_path: Path
) -> None:
    _left_by_an_earlier_process(replica, fleet, tmp_path)
    (replica.folder / "patches" / "tone-1.0.0.safetensors").unlink()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(replica.sync.__aenter__(), 0.5)
    assert replica.stand.code(await replica.stand.chat()) == (503, "not_in_step")


async def test_a_restart_without_the_store_waits_where_the_lease_is_over(
    replica: Replica, fleet: Fleet, tmp_path: Path
) -> None:
    _left_by_an_earlier_process(replica, fleet, tmp_path)
    (replica.folder / "lease").write_text(str(time.time() - 1))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(replica.sync.__aenter__(), 0.5)
    assert replica.stand.code(await replica.stand.chat()) == (503, "not_in_step")


async def test_the_lease_is_what_was_stamped(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    first = replica.stand.catalog.view.fleet
    assert first is not None
    assert 590 < first.lease_ends_s - time.monotonic() <= 600
    await replica.stand.catalog.stand_at(replace(first, lease_ends_s=time.monotonic() + 5))
    fleet.publisher().stamp()
    await replica.sync.look()
    second = replica.stand.catalog.view.fleet
    assert second is not None
    assert second.lease_ends_s - time.monotonic() > 590


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("metadata/timestamp.json", "malformed"),
        ("metadata/2.snapshot.json", "altered"),
        ("metadata/2.targets.json", "altered"),
        ("targets/*.catalog.json", "altered"),
        ("targets/patches/*tone-2.0.0*", "altered"),
    ],
)
async def test_what_was_altered_is_refused_and_what_served_goes_on(
    replica: Replica, fleet: Fleet, tmp_path: Path, path: str, reason: str
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    ship(fleet, ("tone", "2.0.0"))
    newest = max((tmp_path / "store").glob(path), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-3] + b"xyz")
    await replica.sync.look()
    assert replica.failures(reason) == 1
    assert replica.active == {"tone": "1.0.0"}
    assert reason in (await replica.stand.client.get("/v1/patches")).json()["fleet"]["problem"]
    assert (await replica.stand.chat("tone")).headers["X-Policy-Patch-Revision"] == "1"


async def test_an_old_store_is_refused_though_everything_in_it_was_signed(
    replica: Replica, fleet: Fleet, tmp_path: Path
) -> None:
    ship(fleet, ("tone", "1.0.0"))
    shutil.copytree(tmp_path / "store", tmp_path / "old")
    ship(fleet, ("tone", "2.0.0"))
    await replica.sync.look()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "old").rename(tmp_path / "store")
    await replica.sync.look()
    assert replica.failures("rolled_back") == 1
    assert replica.active == {"tone": "2.0.0"}


async def test_a_strangers_store_is_refused(replica: Replica, fleet: Fleet, tmp_path: Path) -> None:
    ship(fleet, ("tone", "1.0.0"))
    await replica.sync.look()
    folder = make_folder(tmp_path / "stranger", str(tmp_path / "their-store"), 600.0)
    theirs = Fleet(folder, FolderStore(tmp_path / "their-store"))
    ship(theirs, ("tone", "1.0.0"))
    ship(theirs, ("tone", "6.6.6"))
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "their-store").rename(tmp_path / "store")
    await replica.sync.look()
    assert replica.failures("unsigned") == 1
    assert replica.active == {"tone": "1.0.0"}


async def test_a_policy_that_is_none_keeps_the_old_revision(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("tone", "1.0.0"), policy=b"version: 1\nrequired: [tone]\nothers: {allow: all}\n")
    await replica.sync.look()
    ship(fleet, ("tone", "2.0.0"), policy=b"version: 1\nrequires: tone\n")
    await replica.sync.look()
    assert replica.failures("policy_refused") == 1
    assert replica.revision == 1
    answer = await replica.stand.chat()
    assert answer.headers.get("X-Policy-Patch") == "tone@1.0.0", answer.text


async def test_routers_are_told_which_aliases_are_in_memory(replica: Replica, fleet: Fleet) -> None:
    ship(fleet, ("tone", "1.0.0"), ("mood", "2.0.0"))
    stand = replica.stand
    await replica.sync.look()
    name = "policy_patch_resident_info"
    labels = {"waiting_lora_adapters": "", "running_lora_adapters": "base:mood,base:tone", "max_lora": "3"}
    assert stand.registry.get_sample_value(name, labels) is None
    stand.metrics.fleet.model = "base"
    at_s = stand.registry.get_sample_value(name, labels)
    assert at_s == pytest.approx(time.time(), abs=60)
