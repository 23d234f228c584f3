"""Weight patches on a real server: put in force, taken back, and never two sets of weights in one answer.

The tiny model in float32, held against transformers with the same weights.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from patches.compile import compile_token_ids
from patches.deltas.applied import under_delta
from patches.deltas.collected import Collected
from patches.format import Patch, make_patch
from patches.label import Label
from patches.model import load_model
from tests.e2e.running_server import SERVED_NAME, Answer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="weights are those of a whole server"),
    pytest.mark.feature("weight patches: in force for the whole server, and taken back"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 16
PROMPTS = [[(91 * i + 7 * j) % 40000 + 10 for i in range(n)] for j, n in enumerate([3, 9, 40, 130])]
ADMIN = {"Authorization": "Bearer " + "k" * 32}


def linear_names(network: Any) -> list[str]:
    return sorted(n for n, p in network.named_parameters() if ".layers." in n and p.dim() == 2)


def delta_of(model: Any, name: str, version: str = "1.0.0", seed: int = 0) -> Patch:
    """One weight in twenty of every linear layer, moved by as much as weights are large."""
    generator = torch.Generator().manual_seed(seed)
    collected = Collected("float32")
    weights = dict(model.network.named_parameters())
    for of in linear_names(model.network):
        old = weights[of].detach()
        positions = torch.randperm(old.numel(), generator=generator)[: old.numel() // 20].sort().values
        moved = old.reshape(-1)[positions] + torch.randn(len(positions), generator=generator) * old.std()
        collected.add(of, old, positions, moved)
    body, tensors = collected.finish("no weight")
    return make_patch(Label(name, version).manifest(model.base_model, body, {"method": "import"}), tensors)


class Weights:
    """A copy of the model whose weights are those under a patch, as transformers computes with them."""

    def __init__(self, model: Any, patch: Patch | None) -> None:
        self.state = {n: p.detach().clone() for n, p in model.network.named_parameters()}
        self.network = model.network
        if patch is not None:
            for change in patch.manifest.body.changes(patch.tensors):  # type: ignore[attr-defined]
                self.state[change.tensor.name].view(-1)[change.positions] = change.values

    def assert_answered(self, ids: list[int], answer: Any) -> None:
        with torch.no_grad():
            logits = torch.func.functional_call(  # type: ignore[no-untyped-call]
                self.network, self.state, (torch.tensor([[*ids, *answer.token_ids]]),), tie_weights=True
            ).logits[0]
        rows = torch.log_softmax(logits[len(ids) - 1 : -1].float(), dim=-1)
        assert rows.argmax(dim=-1).tolist() == answer.token_ids
        for step, row in zip(answer.logprobs, rows, strict=True):
            assert all(abs(value - float(row[token])) < MAX_LOGPROB_GAP for token, value in step.items())


class Servers:
    """The server of this file, which one test starts anew on the same folders."""

    def __init__(self, start: Any, model: Path, folder: Path, *flags: str) -> None:
        (folder / "keys").write_text("ops:" + "k" * 32 + "\n")
        (folder / "keys").chmod(0o600)
        ours = ["--weight-patches", "--weight-drain-timeout", "5", "--admin-key-file", str(folder / "keys")]
        ours += ["--state", str(folder / "state"), "--dtype", "float32", "--max-model-len", "512"]
        ours += ["--enable-prefix-caching", "--enable-prompt-tokens-details", *flags]
        self._start = lambda: start(model, *ours, patches=folder / "patches")
        self.now = self.restarted()

    def restarted(self) -> Any:
        self.now = self._start()
        self.now.wait_ready()
        return self.now


@pytest.fixture(scope="module")
def servers(start_module_server: Any, tiny_model: Path, tmp_path_factory: Any) -> Servers:
    return Servers(start_module_server, tiny_model, tmp_path_factory.mktemp("weights"))


@pytest.fixture
def server(servers: Servers) -> Any:
    return servers.now


@pytest.fixture
def deltas(servers: Servers, tiny_patches: Any) -> Iterator[dict[str, Patch]]:
    """Two versions of one weight patch, none of which is in force before and after."""
    patches = {
        v: delta_of(tiny_patches.model, "no-harm", v, seed) for seed, v in enumerate(["1.0.0", "2.0.0"])
    }
    server = servers.now
    for patch in patches.values():
        server.install(patch, wait=False)
    wait_for(server, "2.0.0")
    yield patches
    while order(servers.now, "rollback").status_code == 200:
        # Versions before it come back one after the other.
        pass


def wait_for(server: Any, version: str) -> None:
    deadline = time.monotonic() + 60
    while server.client.get(f"/v1/patches/no-harm/{version}").status_code != 200:
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.1)


def order(server: Any, action: str, name: str = "no-harm", **body: Any) -> httpx.Response:
    response = server.client.post(f"/v1/patches/{name}/{action}", json=body, headers=ADMIN, timeout=120)
    assert isinstance(response, httpx.Response)
    return response


def ask_all(server: Any) -> list[Any]:
    return [server.ask(prompt, max_tokens=NUM_TOKENS) for prompt in PROMPTS]


def test_answers_are_those_of_the_weights_in_force_and_come_back_to_the_last_bit(
    server: Any, deltas: dict[str, Patch], tiny_patches: Any
) -> None:
    model = tiny_patches.model
    before = ask_all(server)
    for version, patch in deltas.items():
        assert order(server, "activate", version=version).status_code == 200
        for prompt, answer, base in zip(PROMPTS, ask_all(server), before, strict=True):
            Weights(model, patch).assert_answered(prompt, answer)
            # Else nothing is shown.
            assert answer != base
        told = server.complete(PROMPTS[0], max_tokens=1).headers
        assert (told["X-Policy-Delta"], told["X-Policy-Patch"]) == (f"no-harm@{version}", "none")
    assert order(server, "rollback").json()["active"]["version"] == "1.0.0"
    for prompt, answer in zip(PROMPTS, ask_all(server), strict=True):
        Weights(model, deltas["1.0.0"]).assert_answered(prompt, answer)
    assert order(server, "rollback").json()["active"] is None
    assert ask_all(server) == before
    assert server.complete(PROMPTS[0], max_tokens=1).headers["X-Policy-Delta"] == "none"
    actions = [
        change["action"]
        for change in server.client.get("/v1/patches/no-harm/history", headers=ADMIN).json()["history"]
    ]
    assert actions[:4] == ["rollback", "rollback", "activate", "activate"]


def test_every_answer_around_a_change_is_of_one_set_of_weights(
    server: Any, deltas: dict[str, Patch], tiny_patches: Any
) -> None:
    sides = {
        "none": Weights(tiny_patches.model, None),
        "no-harm@1.0.0": Weights(tiny_patches.model, deltas["1.0.0"]),
    }
    answers: list[tuple[list[int], Answer, str]] = []
    is_over = threading.Event()

    def keep_asking(prompt: list[int]) -> None:
        body = {"model": SERVED_NAME, "prompt": prompt, "max_tokens": 48, "logprobs": 5, "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
        with server.new_client() as client:
            while not is_over.is_set():
                response = client.post("/v1/completions", json=body)
                answers.append((prompt, Answer.of_response(response), response.headers["X-Policy-Delta"]))

    threads = [threading.Thread(target=keep_asking, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            time.sleep(1)
            assert order(server, "activate", version="1.0.0").status_code == 200
            time.sleep(1)
            assert order(server, "rollback").status_code == 200
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert {weights for _, _, weights in answers} == set(sides)
    for prompt, answer, weights in answers:
        sides[weights].assert_answered(prompt, answer)


def test_patches_for_other_weights_are_told_from_those_that_serve(
    server: Any, deltas: dict[str, Patch], tiny_patches: Any
) -> None:
    server.install(tiny_patches.of_token_ids("policy-of-weights", [5, 6, 7]))
    assert server.complete(PROMPTS[0], patch="policy-of-weights", max_tokens=1).status_code == 200
    assert order(server, "activate", version="1.0.0").status_code == 200
    refused = server.complete(PROMPTS[0], patch="policy-of-weights", max_tokens=1)
    assert refused.status_code == 404
    assert "was made for other weights than those in force (under no-harm@1.0.0)" in refused.text
    listed = {card["name"]: card for card in server.client.get("/v1/patches").json()["data"]}
    assert listed["policy-of-weights"]["versions"][0]["state"] == "mismatched"
    assert listed["no-harm"]["active_version"] == "1.0.0"
    assert order(server, "rollback").status_code == 200
    assert server.complete(PROMPTS[0], patch="policy-of-weights", max_tokens=1).status_code == 200


def test_a_name_changes_with_the_weights_to_the_version_that_was_made_for_them(
    server: Any, deltas: dict[str, Patch], tiny_model: Path, tiny_patches: Any
) -> None:
    under = under_delta(load_model(tiny_model, dtype="float32"), deltas["1.0.0"])
    policy = [(37 * i) % 40000 + 10 for i in range(45)]
    own = compile_token_ids(tiny_patches.model, policy, Label("policy-of-both", "1.0.0"))
    server.install(own)
    server.install(compile_token_ids(under, policy, Label("policy-of-both", "2.0.0")), wait=False)

    def ask(weights: Weights, version: str) -> None:
        told = server.complete(PROMPTS[0], patch="policy-of-both", max_tokens=1).headers
        assert told["X-Policy-Patch"] == f"policy-of-both@{version}"
        for prompt in PROMPTS:
            answer = server.ask(prompt, patch="policy-of-both", max_tokens=NUM_TOKENS)
            weights.assert_answered(policy + prompt, answer)

    while server.client.get("/v1/patches/policy-of-both/2.0.0").status_code != 200:
        time.sleep(0.1)
    ask(Weights(tiny_patches.model, None), "1.0.0")
    assert order(server, "activate", version="1.0.0").status_code == 200
    ask(Weights(under, None), "2.0.0")
    assert order(server, "rollback").status_code == 200
    ask(Weights(tiny_patches.model, None), "1.0.0")
    assert server.complete(PROMPTS[0], patch="policy-of-both@2.0.0").status_code == 404


def test_what_makes_no_sense_is_refused_and_changes_nothing(server: Any, deltas: dict[str, Patch]) -> None:
    named = server.complete(PROMPTS[0], patch="no-harm", max_tokens=1)
    assert (named.status_code, named.json()["error"]["code"]) == (400, "unsupported_with_patch")
    assert "whole server" in named.text
    assert order(server, "activate", follow=True).status_code == 409
    assert order(server, "activate", version="1.0.0").status_code == 200
    canary = order(server, "canary", version="2.0.0")
    assert (canary.status_code, canary.json()["error"]["code"]) == (409, "order_refused")
    assert server.client.delete("/v1/patches/no-harm/1.0.0", headers=ADMIN).status_code == 409
    assert server.complete(PROMPTS[0], max_tokens=1).headers["X-Policy-Delta"] == "no-harm@1.0.0"


def test_a_change_that_finds_no_pause_is_given_up(server: Any, deltas: dict[str, Patch]) -> None:
    """A request that is not even sent to its end is inside, and keeps its weights."""
    body = json.dumps({"model": SERVED_NAME, "prompt": PROMPTS[0], "max_tokens": 4}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body[:9])
        refused = order(server, "activate", version="1.0.0")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "weights_busy"), refused.text
        assert "1 requests were still running after 5 s" in refused.text
        assert server.complete(PROMPTS[1], max_tokens=1).headers["X-Policy-Delta"] == "none"
        slow.sendall(body[9:])
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"x-policy-delta: none" in answer.lower()
    assert order(server, "activate", version="1.0.0").status_code == 200


def test_k_v_of_other_weights_is_never_read(server: Any, deltas: dict[str, Patch]) -> None:
    def cached() -> int:
        usage = server.complete(PROMPTS[3], max_tokens=1).json()["usage"]
        return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    cached()
    assert cached() > 0
    assert order(server, "activate", version="1.0.0").status_code == 200
    assert (cached(), cached() > 0) == (0, True)


def test_what_is_in_force_is_so_after_a_restart(servers: Servers, deltas: dict[str, Patch]) -> None:
    assert order(servers.now, "activate", version="2.0.0").status_code == 200
    under = ask_all(servers.now)
    assert servers.now.terminate() == 0
    again = servers.restarted()
    assert ask_all(again) == under
    assert again.complete(PROMPTS[0], max_tokens=1).headers["X-Policy-Delta"] == "no-harm@2.0.0"
    assert order(again, "rollback").json()["active"] is None
    assert ask_all(again) != under


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--tensor-parallel-size", "2", "--data-parallel-size", "2"], id="tensor and data"),
        pytest.param(["--pipeline-parallel-size", "2", "--api-server-count", "2"], id="stages, front ends"),
        pytest.param(["--no-enforce-eager"], id="compiled"),
    ],
)
def test_ranks_and_processes_hold_the_same_weights(
    start_module_server: Any, tiny_model: Path, tmp_path_factory: Any, tiny_patches: Any, flags: list[str]
) -> None:
    """Every answer, whoever gives it, is that of the weights in force."""
    several = flags if "--api-server-count" in flags else [*flags, "--api-server-count", "1"]
    folder = tmp_path_factory.mktemp("weights-of-ranks")
    server = Servers(start_module_server, tiny_model, folder, *several).now
    patch = delta_of(tiny_patches.model, "no-harm")
    server.install(patch, wait=False)
    wait_for(server, "1.0.0")
    asked = [{"prompt": prompt, "max_tokens": NUM_TOKENS} for prompt in PROMPTS * 2]
    for weights, action in ((patch, {"version": "1.0.0"}), (None, None)):
        done = order(server, "activate", **action) if action else order(server, "rollback")
        assert done.status_code == 200, done.text
        side = Weights(tiny_patches.model, weights)
        for one, answer in zip(asked, server.ask_together(asked), strict=True):
            side.assert_answered(one["prompt"], answer)
    assert server.terminate() == 0
