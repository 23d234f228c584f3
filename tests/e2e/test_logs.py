"""What a running server writes to its log, read from the shared server's own output."""

import json
import re
import subprocess
import time

import pytest

from tests.e2e.conftest import PatchMaker, RunningServer

pytestmark = [pytest.mark.e2e, pytest.mark.server("demo")]

#: As vLLM writes its own lines: process, level, time, file.
LINE = r"^\(APIServer pid=\d+\) {level} \d\d-\d\d \d\d:\d\d:\d\d \[[a-z_]+\.py:\d+\] {message}\r?$"


def wait_for_line(server: RunningServer, level: str, message: str, timeout_s: float = 60.0) -> None:
    pattern = LINE.format(level=level, message=message)
    deadline = time.monotonic() + timeout_s
    while not re.search(pattern, server.log.read_text(errors="replace"), re.MULTILINE):
        assert time.monotonic() < deadline, f"no line {pattern} in\n{server.log_tail()}"
        time.sleep(0.1)


def test_the_block_of_a_ready_server_holds_a_command_that_works(shared_server: RunningServer) -> None:
    deadline = time.monotonic() + 60
    while not (
        shown := re.search(r"^  try +(curl .*?)^─+$", log_of(shared_server), re.MULTILINE | re.DOTALL)
    ):
        assert time.monotonic() < deadline, shared_server.log_tail()
        time.sleep(0.1)
    assert f"  address   {shared_server.url}/v1, model base\n" in log_of(shared_server)
    done = subprocess.run(["sh", "-c", shown[1]], capture_output=True, text=True, timeout=300, check=True)
    _, _, body = done.stdout.partition("\n\n")
    assert json.loads(body)["choices"][0]["message"]["content"]


def log_of(server: RunningServer) -> str:
    return server.log.read_text(encoding="utf-8", errors="replace")


def test_what_becomes_of_a_patch_is_in_the_log_in_the_servers_format(
    shared_server: RunningServer, demo_patches: PatchMaker
) -> None:
    first, second = (demo_patches.of_token_ids("told", [200, 300, 17], v) for v in ("1.0.0", "1.0.1"))
    files = [shared_server.install(patch) for patch in (first, second)]
    wait_for_line(shared_server, "INFO", rf"patch told: 1\.0\.1 \({second.digest}\) is active")
    files[1].unlink()
    shared_server.wait_for_digest("told", first.digest)
    wait_for_line(shared_server, "WARNING", r"patch told: fell back from 1\.0\.1 to 1\.0\.0")
    files[0].unlink()
    wait_for_line(shared_server, "WARNING", "patch told: no version is active any more")


def test_a_file_name_cannot_forge_a_line(shared_server: RunningServer) -> None:
    file = shared_server.patches / "a\nb.safetensors"
    file.write_bytes(b"junk")
    try:
        wait_for_line(shared_server, "ERROR", r"a\\nb\.safetensors is refused \([a-z_]+\): .*")
        assert not re.search(r"^b\.safetensors", shared_server.log.read_text(), re.MULTILINE)
    finally:
        file.unlink()


def test_lines_of_the_worker_are_shown_too(shared_server: RunningServer) -> None:
    text = shared_server.log.read_text(errors="replace")
    assert re.search(
        r"^\((Worker|EngineCore)\S* pid=\d+\) INFO .*\] prefixes are written by ", text, re.MULTILINE
    )
