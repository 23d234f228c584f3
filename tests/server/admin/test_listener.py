"""A port or a Unix socket for admin calls alone."""

import socket
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.admin.listener import AdminListener, AdminListenError, bind_admin
from tests.server.stand import Stand

KEY = {"X-Admin-Key": "alice-knows-this-key"}


@pytest.mark.parametrize("kind", ["unix", "port"])
async def test_calls_arrive_and_need_a_key(stand: Stand, admin: Any, tmp_path: Path, kind: str) -> None:
    await stand.load()
    path = tmp_path / "admin.sock"
    listener = bind_admin(f"unix:{path}" if kind == "unix" else "127.0.0.1:0")
    where = path if kind == "unix" else None
    port = 0 if kind == "unix" else listener.getsockname()[1]
    transport = httpx.AsyncHTTPTransport(uds=str(where) if where else None)
    async with (
        AdminListener(admin.parts.app(stand.decider), listener),
        httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{port or 80}") as client,
    ):
        for _ in range(100):
            try:
                assert (await client.get("/v1/patches/pirate")).status_code == 401
                break
            except httpx.ConnectError:
                continue
        assert (await client.get("/v1/patches/pirate", headers=KEY)).json()["active_version"] == "1.0.0"
        assert (await client.post("/v1/chat/completions", json={}, headers=KEY)).status_code == 404


def test_only_the_owner_can_reach_the_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with bind_admin(f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_socket_that_a_killed_process_left_is_taken_over_but_not_a_live_one(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    bind_admin(f"unix:{path}").close()
    with bind_admin(f"unix:{path}") as listener:
        listener.listen()
        with pytest.raises(AdminListenError, match="in use"):
            bind_admin(f"unix:{path}")


def test_another_file_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("mine")
    with pytest.raises(AdminListenError):
        bind_admin(f"unix:{path}")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "address",
    [
        *("8001", "localhost", ":8001", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:" + "1" * 5000),
        *("::1:8040", "::1", "[::1]:0x50", "[::1", "[::1:8040", "::1]:8040", "[]:8040", "[127.0.0.1]:8040"),
    ],
)
def test_an_address_without_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(AdminListenError, match="expected HOST:PORT"):
        bind_admin(address)


def test_an_ipv6_address_in_brackets_is_listened_on() -> None:
    with bind_admin("[0:0:0:0:0:0:0:1]:0") as listener:
        assert listener.getsockname()[0] == "::1"


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AdminListenError, match="--admin-listen"):
            bind_admin(f"127.0.0.1:{taken.getsockname()[1]}")
