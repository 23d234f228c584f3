"""Keys are replaced while servers follow: they go on, and what the old keys sign counts no more."""

import fcntl
import shutil
from pathlib import Path

import pytest

from server.cli import main
from server.fleet import rotation
from server.fleet.publisher import Publisher
from server.fleet.reader import CatalogReader, SyncFailed
from server.fleet.roles import FleetError, FleetFolder
from server.fleet.rotation import KEYS, rotate
from server.fleet.store import TIMESTAMP, FolderStore, StoreError
from tests.server.fleet.conftest import Fleet


def heard(reader: CatalogReader) -> int:
    return reader.hear().document.revision


@pytest.fixture
def first_root(fleet: Fleet) -> bytes:
    """The root that servers were started with, before anything was replaced."""
    return fleet.folder.root


def test_ten_servers_follow_while_every_key_is_replaced(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes
) -> None:
    fleet.publish(tone="1.0.0")
    readers = [CatalogReader(url, first_root, tmp_path / f"server-{i}") for i in range(10)]
    assert [heard(reader) for reader in readers] == [1] * 10
    for revision, name in enumerate(KEYS, start=2):
        rotated = rotate(fleet.folder, fleet.store, [name])
        assert (rotated.root_version, rotated.revision) == (revision, revision)
        assert [heard(reader) for reader in readers] == [revision] * 10
    assert fleet.publish(tone="1.1.0").revision == 8
    assert [heard(reader) for reader in readers] == [8] * 10


def test_a_server_that_slept_through_three_roots_catches_up(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes
) -> None:
    fleet.publish(tone="1.0.0")
    sleeper = CatalogReader(url, first_root, tmp_path / "sleeper")
    assert heard(sleeper) == 1
    for names in (["timestamp"], ["root-1", "root-2"], ["targets", "snapshot"]):
        rotate(fleet.folder, fleet.store, names)
    assert heard(sleeper) == 4
    newcomer = CatalogReader(url, FleetFolder.read(fleet.folder.folder).root, tmp_path / "newcomer")
    assert heard(newcomer) == 4


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_what_a_replaced_key_signs_counts_no_more(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(tone="1.0.0")
    reader = CatalogReader(url, first_root, tmp_path / "server")
    rotate(fleet.folder, fleet.store, [role])
    assert heard(reader) == 2
    keys = fleet.folder.folder / "keys"
    (keys / "retired" / f"1.{role}.key").replace(keys / f"{role}.key")
    with pytest.raises(FleetError, match=f"{role}: not signed as the root says"):
        fleet.publish(tone="6.6.6")
    assert heard(reader) == 2
    # Whoever stole it does not ask.
    monkeypatch.setattr(Publisher, "_require_counting", lambda *_: None)
    fleet.publish(tone="6.6.6")
    with pytest.raises(SyncFailed) as refused:
        heard(reader)
    assert refused.value.reason == "unsigned"


def test_without_two_keys_of_root_nothing_is_replaced(fleet: Fleet, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    keys, stick = fleet.folder.folder / "keys", tmp_path / "stick"
    stick.mkdir()
    for name in ("root-2", "root-3"):
        (keys / f"{name}.key").rename(stick / f"{name}.key")
    with pytest.raises(FleetError, match="2 keys of root have to sign, and too few are here"):
        rotate(fleet.folder, fleet.store, ["timestamp"])
    assert fleet.publisher().stamp() is not None
    assert rotate(fleet.folder, fleet.store, ["timestamp"], [stick]).root_version == 2
    assert fleet.publisher().stamp() is not None


def test_two_calls_at_once_do_not_take_each_others_keys_for_leftovers(fleet: Fleet) -> None:
    fleet.publish(tone="1.0.0")
    with (fleet.folder.folder / ".rotating").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(FleetError, match="another call replaces keys here"):
            rotate(fleet.folder, fleet.store, ["timestamp"])
    assert rotate(fleet.folder, fleet.store, ["timestamp"]).root_version == 2


def test_signing_anew_replaces_no_key(fleet: Fleet, url: str, tmp_path: Path, first_root: bytes) -> None:
    fleet.publish(tone="1.0.0")
    assert main(["fleet", "rotate", str(fleet.folder.folder)]) == 0
    assert heard(CatalogReader(url, first_root, tmp_path / "server")) == 2
    assert not (fleet.folder.folder / "keys" / "retired").exists()


def test_keys_can_be_replaced_before_anything_is_published(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes
) -> None:
    assert rotate(fleet.folder, fleet.store, ["targets"]).revision is None
    fleet.publish(tone="1.0.0")
    assert heard(CatalogReader(url, first_root, tmp_path / "server")) == 1


class _Away(FolderStore):
    """Fails at one write, after it or before."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder)
        self.left = at

    def create(self, path: str, data: bytes) -> bool:
        self.left -= 1
        if self.left == 0:
            raise StoreError("away")
        return super().create(path, data)


@pytest.mark.parametrize("write", range(1, 7))
def test_a_rotation_that_is_cut_off_is_brought_to_an_end_by_the_next(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes, write: int
) -> None:
    fleet.publish(tone="1.0.0")
    try:
        rotate(fleet.folder, _Away(tmp_path / "store", write), ["timestamp", "targets", "root-1"])
    except StoreError:
        pass
    else:
        assert write == 6
    rotated = rotate(fleet.folder, fleet.store, ["snapshot"])
    reader = CatalogReader(url, first_root, tmp_path / "server")
    assert heard(reader) == rotated.revision
    assert fleet.publish(tone="1.1.0").revision == heard(reader)


def test_one_that_dies_after_the_new_root_leaves_keys_that_are_found(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(tone="1.0.0")
    settle, calls = rotation._settle, []

    def dies(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rotation, "_settle", dies)
    with pytest.raises(KeyboardInterrupt):
        rotate(fleet.folder, fleet.store, ["timestamp"])
    assert rotate(fleet.folder, fleet.store, []).root_version == 3
    assert heard(CatalogReader(url, first_root, tmp_path / "server")) == 2


def _dangling(fleet: Fleet) -> None:
    """Sign, with the stolen timestamp key, what is not there."""
    published = fleet.publisher().read()
    assert published.timestamp is not None
    signed = published.timestamp
    signed.signed.snapshot_meta.version = 99
    signed.signed.version = 10**9
    signed.signatures.clear()
    signed.sign(fleet.folder.signer("timestamp"))
    assert fleet.store.swap(TIMESTAMP, signed.to_bytes(), published.stamped)


@pytest.mark.parametrize("harm", ["dangling", "garbage", "lost"])
def test_whatever_became_of_the_timestamp_a_new_key_mends_it(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes, harm: str
) -> None:
    document = fleet.publish(tone="1.0.0")
    digest = document.names["tone"].versions["1.0.0"].digest
    assert main(["fleet", "revoke", str(fleet.folder.folder), digest, "--withdraw", "tone"]) == 0
    reader = CatalogReader(url, first_root, tmp_path / "server")
    assert heard(reader) == 2
    path = tmp_path / "store" / TIMESTAMP
    if harm == "dangling":
        _dangling(fleet)
    elif harm == "garbage":
        path.write_bytes(b"{}")
    else:
        path.unlink()
    with pytest.raises(FleetError, match="timestamp"):
        rotate(fleet.folder, fleet.store, ["targets"])
    assert rotate(fleet.folder, fleet.store, ["targets", "snapshot", "timestamp"]).revision == 3
    after = reader.hear().document
    assert (after.revision, after.revoked) == (3, (digest,))
    assert fleet.publisher().stamp() is not None


def test_where_the_timestamp_is_lost_nothing_revoked_is_forgotten(fleet: Fleet, tmp_path: Path) -> None:
    document = fleet.publish(tone="1.0.0")
    digest = document.names["tone"].versions["1.0.0"].digest
    assert main(["fleet", "revoke", str(fleet.folder.folder), digest, "--withdraw", "tone"]) == 0
    (tmp_path / "store" / TIMESTAMP).unlink()
    with pytest.raises(FleetError, match="fleet rotate"):
        fleet.publisher().stamp()
    assert fleet.publish(mood="1.0.0").revoked == (digest,)


def test_a_stamp_that_comes_in_between_is_taken_up(
    fleet: Fleet, url: str, tmp_path: Path, first_root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(tone="1.0.0")
    old = fleet.folder.signer("timestamp")
    anew, calls = rotation._signed_anew, []

    def late(*arguments: object) -> int:
        if not calls:
            calls.append(arguments)
            published = fleet.publisher().read(is_rotating=True)
            assert published.timestamp is not None
            published.timestamp.signed.version += 1
            published.timestamp.sign(old)
            assert fleet.store.swap(TIMESTAMP, published.timestamp.to_bytes(), published.stamped)
        return anew(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(rotation, "_signed_anew", late)
    rotated = rotate(fleet.folder, fleet.store, ["timestamp"])
    assert heard(CatalogReader(url, first_root, tmp_path / "server")) == rotated.revision


def test_an_older_copy_of_the_folder_replaces_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.publish(tone="1.0.0")
    copy = Path(shutil.copytree(fleet.folder.folder, tmp_path / "copy"))
    rotate(fleet.folder, fleet.store, ["timestamp"])
    for names in (["timestamp"], []):
        with pytest.raises(FleetError, match=r"timestamp\.pub: was replaced"):
            rotate(FleetFolder.read(copy), fleet.store, names)
    assert not fleet.store.read("metadata/3.root.json")
