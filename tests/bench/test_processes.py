"""Servers under test: ready when they say so, and gone with all their children."""

import os
import sys
import time
from pathlib import Path

import pytest

from bench.errors import ServerFailed
from bench.servers.processes import (
    ServerSpec,
    free_port,
    log_tail,
    require_running,
    running_server,
    speed_variables,
)

# Answers /health after a while, and starts a worker that ignores SIGTERM; prints the worker's process id.
SERVER = """
import http.server, os, signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('deaf', flush=True); time.sleep(60)"])
print("worker", worker.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.time() > START + 0.3 else 503)
        self.end_headers()
START = time.time()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def spec(folder: Path, script: str, **environment: str) -> ServerSpec:
    port = free_port()
    return ServerSpec("fake", [sys.executable, "-c", script, str(port)], port, folder / "log", environment)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has collected is dead all the same.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def worker_of(started: ServerSpec) -> int:
    return int(started.log_path.read_text().split("worker ")[1].split()[0])


def wait_for_words(path: Path, words: str) -> None:
    deadline = time.monotonic() + 10
    while words not in path.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_server_is_yielded_once_it_is_healthy_and_its_workers_die_with_it(tmp_path: Path) -> None:
    started = spec(tmp_path, SERVER)
    with running_server(started, start_timeout_s=20, stop_grace_s=0.5) as process:
        require_running(started, process)
        wait_for_words(started.log_path, "deaf")
        assert is_alive(worker_of(started))
    assert process.returncode is not None
    assert not is_alive(worker_of(started))


def test_server_dies_when_the_block_raises(tmp_path: Path) -> None:
    started = spec(tmp_path, SERVER)
    with (
        pytest.raises(KeyboardInterrupt),
        running_server(started, start_timeout_s=20, stop_grace_s=0.1) as process,
    ):
        raise KeyboardInterrupt
    assert process.returncode is not None
    assert not is_alive(worker_of(started))


def test_failed_start_shows_the_tail_of_the_log(tmp_path: Path) -> None:
    script = "for i in range(100): print('line', i)\nraise SystemExit(3)"
    with (
        pytest.raises(ServerFailed, match="ended with status 3") as failure,
        running_server(spec(tmp_path, script), start_timeout_s=20),
    ):
        pass
    assert "line 99" in str(failure.value)
    assert "line 59" not in str(failure.value)


def test_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = spec(tmp_path, "import time; print('busy', flush=True); time.sleep(60)")
    with (
        pytest.raises(ServerFailed, match=r"not ready after 1 s\n    busy"),
        running_server(started, start_timeout_s=1, stop_grace_s=1),
    ):
        pass


def test_command_that_does_not_exist_fails(tmp_path: Path) -> None:
    missing = ServerSpec("fake", ["/no/such/program"], 1, tmp_path / "log", {})
    with pytest.raises(ServerFailed, match="cannot run"), running_server(missing, start_timeout_s=1):
        pass


def test_server_that_dies_later_is_noticed(tmp_path: Path) -> None:
    started = spec(tmp_path, SERVER)
    with running_server(started, start_timeout_s=20, stop_grace_s=0.1) as process:
        process.kill()
        process.wait()
        with pytest.raises(ServerFailed, match="ended with status -9"):
            require_running(started, process)


def test_speed_variables_are_collected_from_the_whole_group(tmp_path: Path) -> None:
    started = spec(tmp_path, SERVER, OMP_NUM_THREADS="1", UNRELATED="x")
    with running_server(started, start_timeout_s=20, stop_grace_s=0.1) as process:
        found = speed_variables(process)
    assert found["OMP_NUM_THREADS"] == "1"
    assert "UNRELATED" not in found


def test_log_tail_of_an_empty_log_says_so(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert "empty" in log_tail(tmp_path / "log")
