"""Files of a running server come, change and go; requests in flight keep their version (invariants 3, 6)."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from patches.format import Patch, encode_patch

pytestmark = [pytest.mark.e2e, pytest.mark.server("own", why="counts"), pytest.mark.feature("hot swap")]

NUM_STREAMS = 16
NUM_SWAPS = 20
NUM_TOKENS = 48
NUM_VIRTUAL_TOKENS = 48
MAX_MODEL_LEN = 512

PROMPTS = [[100 + 7 * i, 200 + i, 300, 17 + i] for i in range(4)]


@pytest.fixture(scope="module")
def server(start_module_server: Any, tiny_model: Path) -> Any:
    """A server whose workers can be asked what they hold."""
    started = start_module_server(
        tiny_model,
        *("--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN), "--keep-previous", "0"),
        env={"VLLM_SERVER_DEV_MODE": "1"},
    )
    started.wait_ready()
    return started


def put(path: Path, data: bytes) -> None:
    """Rename a file into its place."""
    staged = path.with_name(f".{path.name}.staged")
    staged.write_bytes(data)
    staged.rename(path)


def bytes_of(patch: Patch) -> bytes:
    return encode_patch(patch.manifest, patch.tensors)


def resident_digests(server: Any) -> set[str]:
    """What the worker itself says that it holds."""
    body = {"method": "policy_patch_resident", "args": []}
    response = server.client.post("/collective_rpc", json=body)
    assert response.status_code == 200, response.text
    (held,) = response.json()["results"]
    return set(held)


def eventually(holds: Callable[[], bool], timeout_s: float = 120.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True)
class Streamed:
    """One complete stream."""

    prompt_idx: int
    digest: str
    token_ids: list[int]
    started_s: float
    finished_s: float


def stream(client: httpx.Client, prompt_idx: int, begun: list[str]) -> Streamed:
    """Read one stream to its end; `begun` gets its digest when the first bytes arrive."""
    body = {
        "model": "base",
        "prompt": PROMPTS[prompt_idx],
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "stream": True,
        "return_token_ids": True,
    }
    started_s = time.monotonic()
    token_ids: list[int] = []
    finish_reason = None
    headers = {"X-Policy-Patch": "hot"}
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            raise AssertionError(response.read().decode())
        begun.append(response.headers["X-Policy-Patch-Digest"])
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    for line in lines:
        (choice,) = json.loads(line)["choices"]
        token_ids += choice.get("token_ids") or []
        finish_reason = choice["finish_reason"] or finish_reason
    assert finish_reason in ("length", "stop")
    digest = response.headers["X-Policy-Patch-Digest"]
    return Streamed(prompt_idx, digest, token_ids, started_s, time.monotonic())


@pytest.fixture(scope="module")
def versions(tiny_patches: Any) -> list[Patch]:
    """What the file holds, one after the other. Every second swap changes the content of one version."""
    return [
        tiny_patches.of_random_embeddings("hot", NUM_VIRTUAL_TOKENS, seed=k, version=f"1.0.{k // 2}")
        for k in range(NUM_SWAPS + 1)
    ]


@pytest.fixture(scope="module")
def expected(versions: list[Patch], tiny_patches: Any, generate: Any) -> dict[tuple[str, int], list[int]]:
    """(digest, prompt) -> token ids, by transformers."""
    network = tiny_patches.model.network
    user = network.get_input_embeddings()(torch.tensor(PROMPTS))
    answers = {}
    for patch in versions:
        assert patch.embeddings is not None
        inputs = torch.cat([patch.embeddings.expand(len(PROMPTS), -1, -1), user], dim=1)
        for i, answer in enumerate(generate(network, PROMPTS, NUM_TOKENS, inputs_embeds=inputs)):
            answers[patch.digest, i] = answer.token_ids
    return answers


class Swaps:
    """Replaces the file again and again, and remembers when which version was known to be active."""

    def __init__(self, server: Any, versions: list[Patch]) -> None:
        self._server = server
        self._versions = versions
        self._path = server.patches / "hot.safetensors"
        self.active_s: dict[str, float] = {}

    def to(self, patch: Patch) -> None:
        put(self._path, bytes_of(patch))
        self._server.wait_for_digest("hot", patch.digest)
        self.active_s[patch.digest] = time.monotonic()

    def known_active(self, at_s: float) -> int:
        """Return the index of the newest version that was known to be active at a time."""
        return max(k for k, patch in enumerate(self._versions) if self.active_s[patch.digest] <= at_s)


@pytest.fixture(scope="module")
def swapped(server: Any, versions: list[Patch]) -> tuple[list[Streamed], Swaps]:
    """Sixteen clients stream without a pause while the file is replaced twenty times."""
    swaps = Swaps(server, versions)
    swaps.to(versions[0])
    is_over = threading.Event()
    begun: list[str] = []

    def is_in_use(patch: Patch) -> bool:
        for client in clients:
            if client.done():
                # Nobody stops before it is over: this raises what ended it.
                client.result()
        return begun.count(patch.digest) >= NUM_STREAMS // 2

    def keep_streaming(i: int) -> list[Streamed]:
        answers = []
        with server.new_client() as client:
            while not is_over.is_set():
                answers.append(stream(client, i % len(PROMPTS), begun))
        return answers

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        clients = [pool.submit(keep_streaming, i) for i in range(NUM_STREAMS)]
        try:
            for before, after in pairwise(versions):
                # Whatever the machine's pace, the next swap comes while this version is being used.
                assert eventually(partial(is_in_use, before))
                swaps.to(after)
            assert eventually(partial(is_in_use, versions[-1]))
        finally:
            is_over.set()
    return [answer for client in clients for answer in client.result()], swaps


def test_every_answer_is_that_of_the_version_its_header_names(
    swapped: tuple[list[Streamed], Swaps], expected: dict[tuple[str, int], list[int]]
) -> None:
    answers, _ = swapped
    for answer in answers:
        assert answer.token_ids == expected[answer.digest, answer.prompt_idx]


def test_answers_differ_between_versions(expected: dict[tuple[str, int], list[int]]) -> None:
    """Else a mixed answer could pass for a right one."""
    for i in range(len(PROMPTS)):
        answers = [tuple(ids) for (_, prompt_idx), ids in expected.items() if prompt_idx == i]
        assert len(set(answers)) == len(answers)


def test_requests_ran_across_the_swaps(swapped: tuple[list[Streamed], Swaps], versions: list[Patch]) -> None:
    """The load was such that versions were replaced under requests that used them."""
    answers, swaps = swapped
    order = [patch.digest for patch in versions]
    replaced_s = {order[k]: swaps.active_s[order[k + 1]] for k in range(NUM_SWAPS)}
    is_late = [a.digest in replaced_s and a.finished_s > replaced_s[a.digest] for a in answers]
    assert sum(is_late) >= NUM_SWAPS
    assert {answer.digest for answer in answers} == set(order)


def test_no_request_gets_a_version_that_was_replaced_before_it_began(
    swapped: tuple[list[Streamed], Swaps], versions: list[Patch]
) -> None:
    answers, swaps = swapped
    order = [patch.digest for patch in versions]
    for answer in answers:
        assert order.index(answer.digest) >= swaps.known_active(answer.started_s)


def test_replaced_versions_leave_nothing_behind(
    server: Any, swapped: tuple[list[Streamed], Swaps], versions: list[Patch]
) -> None:
    answers, _ = swapped
    last = versions[-1]
    assert last.kv is not None
    assert eventually(lambda: resident_digests(server) == {last.digest})
    (card,) = server.client.get("/v1/patches").json()["data"]
    assert [(v["digest"], v["state"], v["in_flight"]) for v in card["versions"]] == [
        (last.digest, "active", 0)
    ]
    assert server.metric("policy_patch_resident_bytes") == last.kv.nbytes
    assert server.metric("policy_patch_requests_running") == 0
    assert server.metric("policy_patch_requests_total", patch="hot", outcome="ok") == len(answers)
    assert server.metric("policy_patch_requests_total") == len(answers)


def test_a_removed_file_is_drained(server: Any, tiny_patches: Any) -> None:
    patch = tiny_patches.of_random_embeddings("gone", NUM_VIRTUAL_TOKENS, seed=99)
    path = server.install(patch)
    num_tokens = MAX_MODEL_LEN - NUM_VIRTUAL_TOKENS - len(PROMPTS[0])

    def complete(_: int) -> httpx.Response:
        return server.complete(PROMPTS[0], patch="gone", max_tokens=num_tokens, ignore_eos=True)

    def num_begun() -> Any:
        return sum(server.metric(f"policy_patch_requests_{x}", patch="gone") for x in ("running", "total"))

    whole = complete(0).json()["choices"]
    with (
        ThreadPoolExecutor(4 * NUM_STREAMS) as pool,
        server.unread_stream(PROMPTS[0], patch="gone", num_tokens=150) as lines,
    ):
        answers = pool.map(complete, range(4 * NUM_STREAMS))
        # Besides the first answer and the stream.
        assert eventually(lambda: num_begun() >= NUM_STREAMS + 2)
        path.unlink()
        assert eventually(lambda: server.complete(PROMPTS[0], patch="gone").status_code == 404)
        # Still running, so still held.
        (version,) = server.client.get("/v1/patches/gone").json()["versions"]
        assert version["state"] == "draining"
        assert version["in_flight"] > 0
        finished = [answer for answer in answers if answer.status_code != 404]
        assert list(lines)[-1] == "data: [DONE]"
    assert len(finished) >= NUM_STREAMS
    assert all(answer.json()["choices"] == whole for answer in finished)
    server.wait_for_digest("gone", None)
    assert patch.digest not in resident_digests(server)


@pytest.fixture
def steady(server: Any, tiny_patches: Any) -> Iterator[Callable[[], None]]:
    """Checks that a patch which nobody touches answers as before."""
    patch = tiny_patches.of_random_embeddings("steady", 33, seed=7)
    server.install(patch)
    before = server.ask(PROMPTS[1], patch="steady")

    def check() -> None:
        after = server.ask(PROMPTS[1], patch="steady")
        assert (after.token_ids, after.digest) == (before.token_ids, patch.digest)

    yield check
    check()


def failure_of(server: Any, file: str) -> dict[str, Any] | None:
    failures = server.client.get("/v1/patches").json()["failures"]
    return next((failure for failure in failures if failure["file"] == file), None)


def with_base_model(patch: Patch, **changes: Any) -> bytes:
    """The patch as made for a model that differs in this."""
    assert patch.kv is not None
    manifest = replace(patch.manifest, base_model=replace(patch.manifest.base_model, **changes))
    dtype = getattr(torch, manifest.base_model.dtype)
    return encode_patch(manifest, {"kv": patch.kv.to(dtype)})


def flipped(data: bytes) -> bytes:
    return data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]


#: what is wrong -> how to make it, the reason, and a word of the message.
BAD_FILES: dict[str, tuple[Callable[[Patch], bytes], str, str]] = {
    "cut off": (lambda patch: bytes_of(patch)[:-1000], "truncated", ""),
    "cut off in the header": (lambda patch: bytes_of(patch)[:100], "truncated", ""),
    "empty": (lambda patch: b"", "truncated", ""),
    "one bit flipped": (lambda patch: flipped(bytes_of(patch)), "digest_mismatch", "altered"),
    "no safetensors file": (lambda patch: b"\x80\x04pickle" * 100, "not_safetensors", ""),
    "other weights": (
        lambda patch: with_base_model(patch, weights_digest="sha256:" + "0" * 64),
        "base_model_mismatch",
        "weights",
    ),
    "other tokenizer": (
        lambda patch: with_base_model(patch, tokenizer_digest="sha256:" + "0" * 64),
        "base_model_mismatch",
        "tokenizer",
    ),
}


def assert_refused(server: Any, path: Path, reason: str, word: str) -> None:
    assert eventually(lambda: failure_of(server, path.name) is not None)
    failure = failure_of(server, path.name)
    assert failure is not None
    assert failure["reason"] == reason, failure
    assert word in failure["message"]
    assert str(path.parent) not in failure["message"]
    assert server.metric("policy_patch_load_failures_total", reason=reason) > 0


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_with_its_reason(
    server: Any, tiny_patches: Any, steady: Callable[[], None], kind: str
) -> None:
    make, reason, word = BAD_FILES[kind]
    path = server.patches / "bad.safetensors"
    put(path, make(tiny_patches.of_random_embeddings("bad", 20)))
    assert_refused(server, path, reason, word)
    assert server.complete(PROMPTS[0], patch="bad").status_code == 404
    path.unlink()
    assert eventually(lambda: failure_of(server, path.name) is None)


def test_a_prefix_longer_than_the_context_is_refused(
    server: Any, tiny_patches: Any, steady: Callable[[], None]
) -> None:
    path = server.install(tiny_patches.of_random_embeddings("long", MAX_MODEL_LEN + 1), wait=False)
    assert_refused(server, path, "too_many_tokens", str(MAX_MODEL_LEN + 1))
    assert server.complete(PROMPTS[0], patch="long").status_code == 404
    path.unlink()


def test_a_half_written_file_changes_nothing_until_it_is_whole(
    server: Any, tiny_patches: Any, steady: Callable[[], None]
) -> None:
    old = tiny_patches.of_random_embeddings("slow", 40, seed=1)
    new = tiny_patches.of_random_embeddings("slow", 40, seed=2)
    path = server.install(old)
    # In use, so in memory from here on: see "overwritten in place" in docs/operations.md.
    assert server.ask(PROMPTS[0], patch="slow").digest == old.digest
    data = bytes_of(new)
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        assert_refused(server, path, "truncated", "")
        assert server.ask(PROMPTS[0], patch="slow").digest == old.digest
        file.write(data[len(data) // 2 :])
    server.wait_for_digest("slow", new.digest)
    assert failure_of(server, path.name) is None
    path.unlink()
    server.wait_for_digest("slow", None)


def test_of_two_files_that_claim_one_version_the_first_serves(
    server: Any, tiny_patches: Any, steady: Callable[[], None]
) -> None:
    first, second = (tiny_patches.of_random_embeddings("twice", 40, seed=seed) for seed in (1, 2))
    path = server.install(first)
    rival = server.patches / "rival.safetensors"
    put(rival, bytes_of(second))
    assert_refused(server, rival, "conflict", path.name)
    assert server.ask(PROMPTS[0], patch="twice").digest == first.digest
    path.unlink()
    server.wait_for_digest("twice", second.digest)
    assert failure_of(server, rival.name) is None
    assert (
        Counter(v["state"] for v in server.client.get("/v1/patches/twice").json()["versions"])["active"] == 1
    )
    rival.unlink()
    server.wait_for_digest("twice", None)
