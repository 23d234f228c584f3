"""Start and end of the server: what it refuses, what it prints, how it stops."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running_server import START_TIMEOUT_S

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="it is started and ended")]


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "serve", *arguments], capture_output=True, text=True, timeout=300
    )


def test_sigterm_lets_running_streams_finish_and_exits_zero(
    start_module_server: Any, tiny_model: Path, tiny_patches: Any
) -> None:
    server = start_module_server(tiny_model, "--dtype", "float32", "--max-model-len", "2048", is_fresh=True)
    server.wait_ready()
    server.install(tiny_patches.of_random_embeddings("random", 40))
    exit_code: list[int] = []
    with server.unread_stream([5, 6, 7], patch="random", num_tokens=150) as lines:
        stopper = threading.Thread(target=lambda: exit_code.append(server.process.wait()))
        stopper.start()
        server.process.terminate()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    stopper.join(120)
    assert exit_code == [0], server.log_tail()
    assert "leaked" not in server.log_tail()
    assert server.log_tail().rstrip().endswith("stopped")
    assert data[-1] == "[DONE]"
    choices = [json.loads(item)["choices"][0] for item in data[:-1]]
    finish_reasons = {choice["index"]: choice["finish_reason"] for choice in choices}
    assert set(finish_reasons.values()) == {"length"}


def test_a_missing_patch_folder_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    done = _serve("--model", str(tiny_model), "--patches", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith("policypatch serve: --patches:")


def test_a_flag_that_needs_another_launch_mode_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    done = _serve("--model", str(tiny_model), "--patches", str(tmp_path), "--headless")
    assert done.returncode == 2
    assert "--headless cannot be combined with policy patches" in done.stderr


def test_a_pooling_model_is_refused_before_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    done = _serve("--model", str(tiny_model), "--patches", str(tmp_path), "--runner", "pooling")
    assert done.returncode == 2
    assert "is a pooling model" in done.stderr


@pytest.mark.parametrize("flags", [(), ("--api-server-count", "2")], ids=["alone", "several-front-ends"])
def test_a_port_in_use_is_told_in_one_line(flags: tuple[str, ...], tiny_model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        here = ("--host", "127.0.0.1", "--port", port)
        done = _serve("--model", str(tiny_model), "--patches", str(tmp_path), *here, *flags)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"policypatch serve: --port: {port} is in use")
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--load-format", "runai_streamer"), "runai"),
        (("--num-gpu-blocks-override", "0"), "blocks"),
    ],
    ids=["worker", "engine"],
)
def test_what_ends_the_engine_at_its_start_is_told_in_one_line(
    start_module_server: Any, tiny_model: Path, flags: tuple[str, ...], reason: str
) -> None:
    server = start_module_server(tiny_model, "--dtype", "float32", *flags)
    assert server.process.wait(START_TIMEOUT_S) == 2, server.log_tail()
    text = server.log.read_text()
    assert "Traceback" not in text
    (line,) = [one for one in text.splitlines() if one.startswith("policypatch serve: ")]
    assert line.startswith("policypatch serve: vLLM's engine could not start: ")
    assert reason in line
    traces = Path(line.rpartition(" is in ")[2])
    assert "Traceback (most recent call last)" in traces.read_text()
    traces.unlink()


def test_a_flag_that_vllm_refuses_is_told_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    done = _serve("--model", str(tiny_model), "--patches", str(tmp_path), "--max-model-len", "999999")
    assert done.returncode == 2
    assert "max_model_len" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr + done.stdout


def test_unknown_flags_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    done = _serve("--model", str(tiny_model), "--patches", str(tmp_path), "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr
