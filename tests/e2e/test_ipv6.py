"""A server on IPv6, and every command that asks one, by an address in brackets."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from patches.format import write_patch
from server.cli import main

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="listens on IPv6, with admin calls there"),
    # Commands leave their sockets to the end of their process, which is this one here.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEY = "alice-knows-this-key"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return int(probe.getsockname()[1])


def write_inputs(folder: Path) -> None:
    """What `eval` and `pairs` read."""
    (folder / "prompts.txt").write_text("hello\nwhat is the sea\n")
    (folder / "policy.txt").write_text("Answer politely.\n")
    (folder / "items.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    (folder / "suite.yaml").write_text(
        "tasks: {plain: {measure: outputs, data: [{file: items.jsonl}], options: {max_tokens: 2}}}\n"
    )


def start(start_module_server: Any, tiny_model: Path, tmp_path: Path) -> tuple[Any, str]:
    """Start a server; gives it, and the address of its admin calls."""
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{KEY}\n")
    keys.chmod(0o600)
    admin = f"http://[::1]:{free_port()}"
    flags = ["--admin-key-file", str(keys), "--admin-listen", admin.removeprefix("http://")]
    # No address of IPv4: whatever falls back to one fails.
    sizes = ["--dtype", "float32", "--max-model-len", "512"]
    return start_module_server(tiny_model, *sizes, *flags, host="::1"), admin


def ask_in_every_way(run: Callable[..., str], url: str, model: Path) -> None:
    """Have each command that measures a server ask this one."""
    run(
        *("eval", "--model", model, "--url", f"{url}/v1", "--patch", "six"),
        *("--suite", "suite.yaml", "-o", "out"),
    )
    run(
        *("pairs", "--url", url, "--reference-url", url, "--reference-model", "base:six"),
        *("--prompts", "prompts.txt", "--max-tokens", "4", "-o", "pairs.jsonl"),
    )
    run(
        *("bench", "overhead", "--model", model, "--policy-text", "policy.txt", "--arms", "idle"),
        *("--ours-url", f"{url}/v1", "--rounds", 1, "--concurrency", 1, "--settle-s", 0, "--out", "bench"),
        *("--input-tokens", 16, "--output-tokens", 2, "--min-requests", 1, "--waves", 1),
    )


# Where this process has imported a benchmark already, runpy warns that it runs it a second time.
@pytest.mark.filterwarnings("ignore:'bench:RuntimeWarning")
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_every_command_reaches_a_server_on_ipv6(
    start_module_server: Any,
    tiny_model: Path,
    tiny_patches: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, admin = start(start_module_server, tiny_model, tmp_path)
    url = server.url
    files = [
        write_patch(tiny_patches.of_random_embeddings("six", 20, version=version, seed=seed), tmp_path)
        for seed, version in enumerate(("1.0.0", "1.1.0"))
    ]
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLICYPATCH_ADMIN_KEY", KEY)
    server.wait_ready()

    def run(*words: object) -> str:
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown.out

    for file in files:
        run("patches", "load", file, "--url", admin)
    run("patches", "activate", "six", "1.0.0", "--url", admin)
    run("patches", "canary", "six", "1.1.0", "--share", "0.5", "--url", admin)
    run("patches", "canary", "six", "--promote", "--url", admin)
    run("patches", "rollback", "six", "--url", admin)
    assert "six: 1.0.0 is active" in run("patches", "show", "six", "--url", admin)
    assert "six@1.0.0" in run("patches", "list", "--url", url)
    answer = httpx.post(
        f"{url}/v1/completions",
        json={"model": "base", "prompt": "hi", "max_tokens": 2},
        headers={"X-Policy-Patch": "six"},
    )
    assert (answer.status_code, answer.headers["x-policy-patch"]) == (200, "six@1.0.0")
    assert f"{url}/v1" in server.log.read_text()
    ask_in_every_way(run, url, tiny_model)
    run("patches", "rm", "six@1.1.0", "--url", admin)
    assert Path("pairs.jsonl").exists()
