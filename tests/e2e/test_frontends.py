"""Two processes that answer on one port: they serve one catalog, or refuse."""

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from patches.format import Patch, encode_patch

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="two processes; they are ended"),
    pytest.mark.feature("two API servers"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 24
NUM_STREAMS = 16
POLICY = list(range(1000, 1040))
PROMPT = list(range(300, 340))
KEY = "a-key-of-the-operator"
BODY = {
    "model": "base",
    "prompt": PROMPT,
    "temperature": 0,
    "max_tokens": NUM_TOKENS,
    "return_token_ids": True,
}


@pytest.fixture(scope="module")
def server(start_module_server: Any, tiny_model: Any, tmp_path_factory: Any) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("control")
    keys = folder / "keys"
    keys.write_text(f"ops:{KEY}\n")
    keys.chmod(0o600)
    flags = ["--dtype", "float32", "--max-model-len", "512", "--api-server-count", "2", "--preload"]
    flags += ["--shutdown-timeout", "120"]
    control = ["--admin-key-file", str(keys), "--state", str(folder / "state"), "--keep-previous", "0"]
    started = start_module_server(tiny_model, *flags, *control, is_fresh=True)
    started.wait_ready()
    yield started
    started.terminate()


@pytest.fixture(scope="module")
def versions(tiny_patches: Any) -> list[Patch]:
    return [tiny_patches.of_token_ids("hot", POLICY[i:], version=f"1.{i}.0") for i in range(4)]


@pytest.fixture(scope="module")
def expected(tiny_patches: Any, versions: list[Patch], generate: Any) -> dict[str | None, list[int]]:
    """Digest -> the tokens that the prefix in front of the prompt gives; ``None`` is the base model."""
    network = tiny_patches.model.network
    answers: dict[str | None, list[int]] = {
        patch.digest: generate(network, [[*POLICY[i:], *PROMPT]], NUM_TOKENS)[0].token_ids
        for i, patch in enumerate(versions)
    }
    answers[None] = generate(network, [PROMPT], NUM_TOKENS)[0].token_ids
    assert len({tuple(tokens) for tokens in answers.values()}) == len(answers), "they prove nothing"
    return answers


@dataclass(frozen=True)
class Line:
    """A connection that stays open, and the process at its other end."""

    client: httpx.Client
    process: psutil.Process

    def ask(self, patch: str | None = "hot") -> httpx.Response:
        headers = {} if patch is None else {"X-Policy-Patch": patch}
        return self.client.post("/v1/completions", json=BODY, headers=headers)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(f"/v1/patches/{path}", json=body, headers={"X-Admin-Key": KEY})


def owner_of(port: int, processes: list[psutil.Process]) -> psutil.Process:
    """Find the process whose connection leads to this port."""
    for process in processes:
        if any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):
            return process
    raise AssertionError(f"nobody took the connection from {port}")


@contextlib.contextmanager
def lines(server: Any) -> Iterator[dict[str, Line]]:
    """Connect until there is a line to each process: ``leader`` and ``follower``."""
    tree = psutil.Process(server.process.pid).children()
    processes = sorted((p for p in tree if "APIServer" in " ".join(p.cmdline())), key=lambda p: p.pid)
    assert len(processes) == 2, [p.cmdline() for p in tree]
    found: dict[str, Line] = {}
    with contextlib.ExitStack() as stack:
        while len(found) < 2:
            client = stack.enter_context(server.idle_client())
            with client.stream("GET", "/version") as response:
                port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
                process = owner_of(port, processes)
                response.read()
            found[("leader", "follower")[processes.index(process)]] = Line(client, process)
        yield found


def put(server: Any, patch: Patch, name: str = "hot") -> None:
    """Rename content into the one file of ``hot``."""
    staged: Path = server.patches / f".{name}.staged"
    staged.write_bytes(encode_patch(patch.manifest, patch.tensors))
    staged.rename(server.patches / f"{name}.safetensors")


def digest_of(response: httpx.Response) -> str | None:
    assert response.status_code == 200, response.text
    return response.headers.get("X-Policy-Patch-Digest")


def tokens_of(response: httpx.Response) -> list[int]:
    tokens: list[int] = response.json()["choices"][0]["token_ids"]
    return tokens


def test_both_processes_answer_as_transformers_does(
    server: Any, versions: list[Patch], expected: dict[str | None, list[int]]
) -> None:
    put(server, versions[0])
    server.wait_for_digest("hot", versions[0].digest)
    with lines(server) as to:
        for line in to.values():
            for name, digest in (("hot", versions[0].digest), (None, None), ("hot", versions[0].digest)):
                response = line.ask(name)
                assert digest_of(response) == digest
                assert tokens_of(response) == expected[digest]
            assert line.ask("unknown").status_code == 404
        cards = [line.client.get("/v1/patches/hot").json() for line in to.values()]
        assert [card["versions"][0]["digest"] for card in cards] == [versions[0].digest] * 2
    # Counted in two processes, read from either.
    assert server.metric("policy_patch_requests_total", patch="hot", outcome="ok") == 4
    assert server.metric("policy_patch_requests_total", patch="none", outcome="ok") == 2
    assert server.metric("policy_patch_time_to_first_token_seconds_count", patch="hot") == 4
    assert server.metric("policy_patch_time_to_first_token_seconds_count", patch="none") == 2
    assert server.metric("policy_patch_prompt_tokens_total", patch="hot") == 4 * len(PROMPT)
    assert server.metric("policy_patch_generation_tokens_total", patch="hot") == 4 * NUM_TOKENS
    assert server.metric("policy_patch_generation_tokens_total", patch="none") == 2 * NUM_TOKENS
    assert server.metric("policy_patch_inter_token_latency_seconds_count") == 6 * (NUM_TOKENS - 1)
    assert server.metric("policy_patch_denied_requests_total", patch="unknown", reason="patch_not_found") == 2
    assert server.metric("policy_patch_caller_requests_total", caller="flags", outcome="ok") == 6
    assert server.metric("policy_patch_unpatched_answers_total", caller="flags") == 2
    # Of the whole server: not one for each process.
    assert server.metric("policy_patch_build_info") == 1
    assert 0 < time.time() - server.metric("policy_patch_start_timestamp_seconds") < 3600
    assert server.metric("policy_patch_front_ends", state="in_step") == 2
    assert server.metric("policy_patch_front_ends", state="out_of_step") == 0
    assert server.metric("policy_patch_active_info", patch="hot") == 1
    assert server.metric("policy_patch_folder_readable") == 1
    assert server.metric("policy_patch_state_saved") == 1


def test_the_server_says_once_that_it_is_ready(server: Any) -> None:
    with lines(server) as to:
        assert all(line.ask(None).status_code == 200 for line in to.values())
    deadline = time.monotonic() + 60
    while not (told := server.log.read_text(errors="replace").count("policypatch is ready")):
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.1)
    assert told == 1


def test_swaps_under_load_fail_no_request_and_mix_no_versions(
    server: Any, versions: list[Patch], expected: dict[str | None, list[int]]
) -> None:
    is_over = threading.Event()
    answers: list[tuple[str | None, list[int]]] = []

    def ask_on(_: int) -> None:
        with server.new_client() as client:
            while not is_over.is_set():
                response = client.post("/v1/completions", json=BODY, headers={"X-Policy-Patch": "hot"})
                answers.append((digest_of(response), tokens_of(response)))

    def wait_for_answer(digest: str) -> None:
        num_before, deadline = len(answers), time.monotonic() + 60
        while digest not in {found for found, _ in answers[num_before:]}:
            assert time.monotonic() < deadline, "nobody got the new version"
            time.sleep(0.02)

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        running = [pool.submit(ask_on, i) for i in range(NUM_STREAMS)]
        try:
            for patch in (*versions[1:], *versions, versions[0]):
                put(server, patch)
                server.wait_for_digest("hot", patch.digest)
                wait_for_answer(patch.digest)
        finally:
            is_over.set()
        for stream in running:
            stream.result()
    assert {digest for digest, _ in answers} == {patch.digest for patch in versions}
    assert all(tokens == expected[digest] for digest, tokens in answers)


def test_after_a_call_returned_no_connection_gets_what_was(server: Any, versions: list[Patch]) -> None:
    for patch in versions[:2]:
        server.install(patch, wait=False)
    server.wait_for_digest("hot", versions[1].digest)
    with lines(server) as to:
        for i in range(12):
            wanted = versions[i % 2]
            caller = to["follower" if i % 3 else "leader"]
            activated = caller.post("hot/activate", version=wanted.manifest.version)
            assert activated.status_code == 200, activated.text
            for line in (to["follower"], to["leader"]):
                assert digest_of(line.ask()) == wanted.digest


def test_a_process_that_hangs_stops_a_change_and_never_serves_what_was(
    server: Any, versions: list[Patch]
) -> None:
    with lines(server) as to:
        assert to["leader"].post("hot/activate", version="1.0.0").status_code == 200
        assert digest_of(to["follower"].ask()) == versions[0].digest
        to["follower"].process.suspend()
        try:
            refused = to["leader"].post("hot/activate", version="1.1.0")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_in_step")
            assert digest_of(to["leader"].ask()) == versions[0].digest
            # It is cut off now, and nothing waits for it.
            assert to["leader"].post("hot/activate", version="1.1.0").status_code == 200
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(to["follower"].ask)
                time.sleep(0.5)
                # The request is there before any message of the leader is read.
                to["follower"].process.resume()
                late = waiting.result()
        finally:
            to["follower"].process.resume()
        if late.status_code != 503:
            assert digest_of(late) == versions[1].digest
        deadline = time.monotonic() + 60
        while (response := to["follower"].ask()).status_code == 503 and time.monotonic() < deadline:
            assert response.json()["error"]["code"] == "not_in_step"
            time.sleep(0.2)
        assert digest_of(response) == versions[1].digest


def test_sigterm_lets_both_processes_finish_what_they_answer(server: Any) -> None:
    num_tokens = 150
    with lines(server) as to, contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(
                server.unread_stream(PROMPT, patch="hot@1.0.0", num_tokens=num_tokens, client=line.client)
            )
            for line in to.values()
        ]
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            texts = list(stream)
            assert texts[-1] == "data: [DONE]"
            num_got: Counter[int] = Counter()
            for (choice,) in (json.loads(text[6:])["choices"] for text in texts[:-1]):
                num_got[choice["index"]] += len(choice["logprobs"]["tokens"])
            assert set(num_got.values()) == {num_tokens}
    assert server.process.wait(90) == 0
