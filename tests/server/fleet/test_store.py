"""Stores: what is there is never written over, and only what was read is replaced."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from moto.server import ThreadedMotoServer

from server.fleet.publisher import Overtaken
from server.fleet.store import FolderStore, Store, StoreError, open_store
from tests.server.fleet.conftest import Fleet


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    httpx.put(
        f"{endpoint}/catalogs", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/x/us-east-1/s3"}
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        yield "s3://catalogs"
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_what_is_there_is_never_written_over(store: Store) -> None:
    assert store.read("targets/a") is None
    assert store.create("targets/a", b"one")
    assert not store.create("targets/a", b"two")
    found = store.read("targets/a")
    assert found is not None
    assert found.data == b"one"


def test_only_what_was_read_is_replaced(store: Store) -> None:
    assert store.swap("metadata/timestamp.json", b"1", None)
    assert not store.swap("metadata/timestamp.json", b"2", None)
    first = store.read("metadata/timestamp.json")
    assert first is not None
    assert store.swap("metadata/timestamp.json", b"2", first)
    assert not store.swap("metadata/timestamp.json", b"3", first)
    second = store.read("metadata/timestamp.json")
    assert second is not None
    assert second.data == b"2"


def test_a_fleet_is_published_into_it_and_of_two_publishers_one_is_refused(
    store: Store, fleet: Fleet
) -> None:
    fleet.store = store
    first = fleet.publish(tone="1.0.0")
    slow = fleet.publisher()
    before = slow.read()
    assert before.document == first
    second = fleet.publish(tone="1.1.0")
    with pytest.raises(Overtaken):
        slow.publish(before, replace(first, revision=2), {})
    fleet.publisher().stamp()
    assert fleet.publisher().read().document == second


@pytest.mark.parametrize("address", ["gs://bucket", "ftp://host/x"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(StoreError, match="expected a folder or s3://"):
        open_store(address)


def test_a_path_without_a_scheme_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), FolderStore)
