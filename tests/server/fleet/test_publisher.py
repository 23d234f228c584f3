"""Publishing: a revision holds whole or not at all, for one publisher at a time; standard clients read it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.exceptions import ExpiredMetadataError
from tuf.ngclient import Updater

from server.fleet.document import Document, Meaning, read_document
from server.fleet.publisher import Overtaken, Publisher
from server.fleet.roles import FleetError, make_folder
from server.fleet.store import FolderStore, Stored, StoreError
from tests.server.fleet.conftest import Fleet


def _read(url: str, root: bytes, folder: Path) -> tuple[Document, Updater]:
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    updater = Updater(
        str(folder), f"{url}/metadata/", str(folder / "targets"), f"{url}/targets/", bootstrap=root
    )
    updater.refresh()
    info = updater.get_targetinfo("catalog.json")
    assert info is not None
    return read_document(Path(updater.download_target(info)).read_bytes()), updater


def test_a_standard_client_reads_what_was_published(fleet: Fleet, url: str, tmp_path: Path) -> None:
    published = fleet.publish(tone="1.0.0", mood="2.0.0")
    document, updater = _read(url, fleet.folder.root, tmp_path / "client")
    assert document == published
    target = document.names["tone"].versions["1.0.0"].target
    info = updater.get_targetinfo(target)
    assert info is not None
    path = tmp_path / "tone"
    assert Path(updater.download_target(info, str(path))).read_bytes() == b"tone 1.0.0"


def test_each_revision_follows_the_one_before(fleet: Fleet, url: str, tmp_path: Path) -> None:
    for number, version in enumerate(("1.0.0", "1.1.0", "1.2.0"), start=1):
        assert fleet.publish(tone=version).revision == number
        document, _ = _read(url, fleet.folder.root, tmp_path / "client")
        assert document.names["tone"].meaning == Meaning(version)
    assert document.meanings(1) == {"tone": Meaning("1.0.0")}


class _CutOff(FolderStore):
    """Dies after so many writes."""

    def __init__(self, folder: Path, num_writes: int) -> None:
        super().__init__(folder)
        self.left = num_writes

    def create(self, path: str, data: bytes) -> bool:
        self._count()
        return super().create(path, data)

    def swap(self, path: str, data: bytes, before: Stored | None) -> bool:
        self._count()
        return super().swap(path, data, before)

    def _count(self) -> None:
        if not self.left:
            raise StoreError("power cut")
        self.left -= 1


@pytest.mark.parametrize("num_writes", range(6))
def test_a_publisher_that_is_cut_off_leaves_the_old_revision_or_the_new_one(
    fleet: Fleet, url: str, tmp_path: Path, num_writes: int
) -> None:
    fleet.publish(tone="1.0.0")
    whole = fleet.store
    fleet.store = _CutOff(tmp_path / "store", num_writes)
    try:
        fleet.publish(tone="1.1.0")
    except StoreError:
        is_cut_off = True
    else:
        is_cut_off = False
    # Patch, document, targets, snapshot; the fifth is the timestamp.
    assert is_cut_off == (num_writes < 5)
    document, _ = _read(url, fleet.folder.root, tmp_path / "client")
    assert document.names["tone"].meaning == Meaning("1.0.0" if is_cut_off else "1.1.0")
    fleet.store = whole
    after = fleet.publish(tone="1.2.0")
    document, _ = _read(url, fleet.folder.root, tmp_path / "client")
    assert document == after
    assert after.revision >= 2


def test_of_two_publishers_at_once_one_is_refused(fleet: Fleet, url: str, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    slow = fleet.publisher()
    before = slow.read()
    assert before.document is not None
    fast = fleet.publish(tone="1.1.0")
    with pytest.raises(Overtaken, match="meanwhile"):
        slow.publish(before, Document(1, 2, before.document.published_at), {})
    document, _ = _read(url, fleet.folder.root, tmp_path / "client")
    assert document == fast


def test_a_stamp_in_between_does_not_refuse_a_publisher(fleet: Fleet) -> None:
    first = fleet.publish(tone="1.0.0")
    publisher = fleet.publisher()
    before = publisher.read()
    fleet.publisher().stamp()
    publisher.publish(before, Document(1, 2, first.published_at), {})
    after = publisher.read()
    assert after.document is not None
    assert after.document.revision == 2
    assert after.timestamp is not None
    assert after.timestamp.signed.version == 3


def test_a_stamp_begins_the_lease_anew_and_downloads_nothing_new(
    fleet: Fleet, url: str, tmp_path: Path
) -> None:
    fleet.publish(tone="1.0.0")
    fleet.wrote.clear()
    ends = fleet.publisher().stamp()
    assert fleet.wrote == ["metadata/timestamp.json"]
    assert timedelta(seconds=595) < ends - datetime.now(UTC) <= timedelta(seconds=600)
    _read(url, fleet.folder.root, tmp_path / "client")


def test_a_lease_that_ran_out_is_refused_by_clients_and_taken_up_by_the_next_stamp(
    fleet: Fleet, url: str, tmp_path: Path
) -> None:
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    old = Publisher(fleet.folder, fleet.store, now=lambda: long_ago)
    fleet.publish(tone="1.0.0")
    old.stamp()
    with pytest.raises(ExpiredMetadataError):
        _read(url, fleet.folder.root, tmp_path / "client")
    fleet.publisher().stamp()
    _read(url, fleet.folder.root, tmp_path / "client")


def test_a_version_that_is_published_keeps_its_bytes(fleet: Fleet) -> None:
    document = fleet.publish(tone="1.0.0")
    publisher = fleet.publisher()
    with pytest.raises(FleetError, match="another content"):
        publisher.publish(publisher.read(), document, {"patches/tone-1.0.0.safetensors": b"something else"})


def test_a_catalog_never_names_a_file_that_is_not_there(fleet: Fleet) -> None:
    document = fleet.publish(tone="1.0.0")
    other = Fleet(fleet.folder, FolderStore(Path(fleet.folder.store) / "elsewhere"))
    publisher = other.publisher()
    with pytest.raises(FleetError, match="not in the store"):
        publisher.publish(publisher.read(), document, {})


@pytest.mark.parametrize("part", ["timestamp", "1.snapshot", "1.targets"])
def test_what_others_signed_is_refused(fleet: Fleet, tmp_path: Path, part: str) -> None:
    fleet.publish(tone="1.0.0")
    stranger = Fleet(make_folder(tmp_path / "other", "store", 600.0), FolderStore(tmp_path / "other-store"))
    stranger.publish(tone="1.0.0")
    theirs = (tmp_path / "other-store" / "metadata" / f"{part}.json").read_bytes()
    (tmp_path / "store" / "metadata" / f"{part}.json").write_bytes(theirs)
    with pytest.raises(FleetError, match=r"not signed|altered"):
        fleet.publisher().read()


def test_an_altered_catalog_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    path = next((tmp_path / "store" / "targets").glob("*.catalog.json"))
    path.write_bytes(path.read_bytes().replace(b"1.0.0", b"1.0.1"))
    with pytest.raises(FleetError, match="altered"):
        fleet.publisher().read()


def test_private_keys_are_the_owners_alone_and_a_fleet_is_never_made_twice(fleet: Fleet) -> None:
    keys = sorted((fleet.folder.folder / "keys").glob("*.key"))
    assert len(keys) == 6
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    with pytest.raises(FleetError, match="already"):
        make_folder(fleet.folder.folder, "store", 600.0)


def test_root_keys_may_be_away_while_revisions_are_published(fleet: Fleet) -> None:
    for path in (fleet.folder.folder / "keys").glob("root-*.key"):
        path.unlink()
    fleet.publish(tone="1.0.0")
    (fleet.folder.folder / "keys" / "targets.key").unlink()
    with pytest.raises(FleetError, match="key of targets"):
        fleet.publish(tone="1.1.0")
