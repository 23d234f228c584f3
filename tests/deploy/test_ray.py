"""What stands between Ray and a server: nothing of the server outlives its actor, however that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.cli import build_parser
from tests.haproxy import until

RAY = Path(__file__).resolve().parents[2] / "deploy" / "ray"
#: Starts a child that SIGTERM does not end, writes both numbers, and waits.
SERVER = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else signal.SIG_DFL)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, 1); time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(0 if sys.argv[2] == "ends" else 600)
sys.exit(7)
"""


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def started(tmp_path: Path, kind: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    told = tmp_path / "pids"
    command = [sys.executable, RAY / "guard.py", sys.executable, "-c", SERVER, told, kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    until(told.exists)
    return process, [int(pid) for pid in told.read_text().split()]


@pytest.mark.parametrize("kind", ["serves", "deaf"])
def test_where_the_actor_is_gone_its_server_and_all_that_it_started_are_killed(
    tmp_path: Path, kind: str
) -> None:
    process, pids = started(tmp_path, kind)
    assert all(lives(pid) for pid in pids)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)
    until(lambda: not any(lives(pid) for pid in pids))


def test_where_the_server_ends_its_child_is_killed_and_its_status_told(tmp_path: Path) -> None:
    process, pids = started(tmp_path, "ends")
    assert process.wait(30) == 7
    until(lambda: not any(lives(pid) for pid in pids))
    assert process.stdin is not None
    process.stdin.close()


def test_sigterm_ends_both(tmp_path: Path) -> None:
    process, pids = started(tmp_path, "serves")
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    until(lambda: not any(lives(pid) for pid in pids))
    assert process.stdin is not None
    process.stdin.close()


def test_whoever_cleans_up_outlives_the_actors_child_which_ray_kills(tmp_path: Path) -> None:
    process, pids = started(tmp_path, "deaf")
    process.kill()
    process.wait(30)
    assert process.stdin is not None
    process.stdin.close()
    until(lambda: not any(lives(pid) for pid in pids))


def test_where_the_guard_itself_is_killed_the_kernel_kills_the_server(tmp_path: Path) -> None:
    process, (server, child) = started(tmp_path, "serves")
    guard = int(Path(f"/proc/{server}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert guard != process.pid
    os.kill(guard, signal.SIGKILL)
    process.wait(30)
    until(lambda: not lives(server))
    os.kill(child, signal.SIGKILL)
    assert process.stdin is not None
    process.stdin.close()


def test_the_configuration_starts_a_server_that_follows_a_catalog() -> None:
    (application,) = yaml.safe_load((RAY / "serve.yaml").read_text())["applications"]
    module, _, builder = application["import_path"].partition(":")
    assert f"def {builder}(" in (RAY / f"{module}.py").read_text()
    args: dict[str, Any] = application["args"]
    parsed, of_vllm = build_parser("serve").parse_known_args(
        [*args["command"][1:], f"--patches={args['patches']}"]
    )
    assert (parsed.catalog, parsed.require_choice) == ("https://store.example", True)
    assert {word.split("=")[0] for word in of_vllm} == {"--served-model-name"}


def test_an_update_starts_the_new_replica_first() -> None:
    (application,) = yaml.safe_load((RAY / "serve.yaml").read_text())["applications"]
    (deployment,) = application["deployments"]
    assert deployment["max_surge_percent"] > 0
    assert "ConsistentHashRouter" in deployment["request_router_config"]["request_router_class"]
