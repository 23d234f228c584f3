"""Steering patches on a real server: alone and beside a prefix, with a condition and without.

The tiny model in float32, held against transformers with hooks. A prefix that was made from tokens is, to the
oracle, these tokens in front of the prompt, which no vector touches.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.format import Patch, make_patch
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering, SteeringBody
from patches.label import Label
from tests import steering_oracle

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("tiny", "own", why="several processes that answer, and several engines"),
    pytest.mark.feature("steering patches: alone, beside a prefix, with a condition"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 16
POLICY_IDS = [(37 * i) % 40000 + 10 for i in range(45)]
PROMPTS = [[(91 * i + 7 * j) % 40000 + 10 for i in range(n)] for j, n in enumerate([3, 9, 32, 40, 70, 130])]
ALL = Steering("residual", "absolute", 8.0, renormalise=False)
ANSWER = Steering("mlp", "absolute", 8.0, renormalise=False, tokens="answer")


class Case:
    """Vectors for the tiny model, and what transformers make of them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        shape = (model.base_model.num_layers, model.base_model.hidden_size)
        generator = torch.Generator().manual_seed(5)
        self.vector = torch.randn(shape, generator=generator)
        self.vector /= self.vector.norm(dim=1, keepdim=True)
        self.probe = torch.randn(1, shape[1], generator=generator) / 8

    def patch(self, name: str, steering: Steering, condition: Condition | None = None) -> Patch:
        vector, probes = self.vector.clone(), {}
        if condition is not None:
            vector[: condition.last_layer + 1] = 0
            probes = {"probes": self.probe}
        body = SteeringBody(steering, condition)
        manifest = Label(name, "1.0.0").manifest(self.model.base_model, body, {"method": "icv"})
        return make_patch(manifest, {"vector": vector, **probes})

    def score(self, ids: list[int], first: int) -> float:
        with torch.no_grad():
            state = self.model.network(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        return float((state[first:] @ self.probe[0]).mean())

    def assert_answers(self, answer: Any, patch: Patch | None, ids: list[int], num_prefix: int = 0) -> None:
        """Hold an answer to ``ids``, the first ``num_prefix`` of them a prefix, against transformers."""
        expected = steering_oracle.logprobs(self.model.network, ids, answer.token_ids)
        if patch is not None:
            steering = patch.manifest.body.steering
            first = len(ids) - 1 if steering.tokens == "answer" else num_prefix
            with steering_oracle.hooks(self.model.network, patch.tensors["vector"], vars(steering), first):
                steered = steering_oracle.logprobs(self.model.network, ids, answer.token_ids)
            # Else nothing is shown.
            assert (steered - expected).abs().max() > 0.1
            expected = steered
        assert expected.argmax(dim=-1).tolist() == answer.token_ids
        for step, row in zip(answer.logprobs, expected, strict=True):
            assert all(abs(value - float(row[token])) < MAX_LOGPROB_GAP for token, value in step.items())


@pytest.fixture(scope="module")
def case(tiny_patches: Any) -> Case:
    return Case(tiny_patches.model)


@pytest.fixture(scope="module")
def vectors(case: Case, tiny_patches: Any) -> dict[str, Patch]:
    """What the servers have; the last one is a prefix."""
    made = [case.patch("steer-all", ALL), case.patch("steer-answer", ANSWER)]
    return {patch.manifest.name: patch for patch in made}


def install_all(server: Any, vectors: dict[str, Patch], tiny_patches: Any) -> None:
    for patch in vectors.values():
        server.install(patch)
    server.install(tiny_patches.of_token_ids("policy-of-steering", POLICY_IDS))


def assert_steers(server: Any, case: Case, vectors: dict[str, Patch]) -> None:
    """Ask everything at once: the base, a vector alone, and one behind a prefix."""
    ways = [(None, None, 0)]
    for name, patch in vectors.items():
        ways += [(name, patch, 0), (f"{name}, policy-of-steering", patch, len(POLICY_IDS))]
    asked = [(way, prompt) for way in ways for prompt in PROMPTS]
    for _ in ("cold", "warm"):
        got = server.ask_together(
            [{"prompt": prompt, "patch": way[0], "max_tokens": NUM_TOKENS} for way, prompt in asked]
        )
        for ((_, patch, num_prefix), prompt), answer in zip(asked, got, strict=True):
            case.assert_answers(answer, patch, POLICY_IDS[:num_prefix] + prompt, num_prefix)


def test_vectors_answer_as_in_transformers_alone_and_behind_a_prefix(
    tiny_server: Any, case: Case, vectors: dict[str, Patch], tiny_patches: Any
) -> None:
    install_all(tiny_server, vectors, tiny_patches)
    assert_steers(tiny_server, case, vectors)


def test_tokens_are_counted_as_often_as_a_vector_acts_on_them(tiny_server: Any, case: Case) -> None:
    tiny_server.install(case.patch("steer-counted", ALL))
    tiny_server.install(case.patch("steer-counted-answer", ANSWER))
    for name in ("steer-counted", "steer-counted-answer"):
        for prompt in PROMPTS:
            # Apart from each other in the prefix cache, where nothing would be computed again.
            salt = {"cache_salt": f"{name}-{len(prompt)}", "ignore_eos": True}
            tiny_server.complete(prompt, patch=name, max_tokens=NUM_TOKENS, **salt).raise_for_status()
    # The last token of an answer is never put back into the model.
    num_answered = len(PROMPTS) * (NUM_TOKENS - 1)
    counted = {
        name: tiny_server.metric("policy_patch_steered_tokens_total", patch=name)
        for name in ("steer-counted", "steer-counted-answer")
    }
    assert counted == {
        "steer-counted": num_answered + sum(map(len, PROMPTS)),
        "steer-counted-answer": num_answered + len(PROMPTS),
    }


@pytest.mark.parametrize("num_prefix", [0, len(POLICY_IDS)], ids=["alone", "behind-a-prefix"])
def test_a_condition_decides_and_its_outcome_is_told(
    tiny_server: Any, case: Case, vectors: dict[str, Patch], tiny_patches: Any, num_prefix: int
) -> None:
    install_all(tiny_server, vectors, tiny_patches)
    scores = [case.score(POLICY_IDS[:num_prefix] + prompt, num_prefix) for prompt in PROMPTS]
    threshold = statistics.median(scores)
    name = f"conditional-{num_prefix}"
    condition = Condition((Probe((0,), "mean", 0.0, threshold),))
    patch = case.patch(
        name, Steering("residual", "absolute", 8.0, renormalise=False, tokens="answer"), condition
    )
    tiny_server.install(patch)
    wished = f"{name}, policy-of-steering" if num_prefix else name
    for prompt, score in zip(PROMPTS, scores, strict=True):
        answer = tiny_server.ask(prompt, patch=wished, max_tokens=NUM_TOKENS)
        is_met = score > threshold
        case.assert_answers(answer, patch if is_met else None, POLICY_IDS[:num_prefix] + prompt, num_prefix)
        response = tiny_server.complete(prompt, patch=wished, max_tokens=NUM_TOKENS)
        assert response.headers["X-Policy-Patch-Condition"] == ("met" if is_met else "not_met")
        # Scores would show the way across the threshold.
        assert response.json().get("kv_transfer_params") is None
    outcomes = {
        outcome: tiny_server.metric("policy_patch_condition_total", patch=name, outcome=outcome)
        for outcome in ("met", "not_met")
    }
    num_met = 2 * sum(score > threshold for score in scores)
    assert outcomes == {"met": num_met, "not_met": 2 * len(PROMPTS) - num_met}
    assert tiny_server.metric("policy_patch_condition_margin_count", patch=name) == 2 * len(PROMPTS)


def test_a_vector_that_the_workers_lost_fails_its_requests_and_nothing_else(
    tiny_server: Any, case: Case, vectors: dict[str, Patch], tiny_patches: Any
) -> None:
    install_all(tiny_server, vectors, tiny_patches)
    lost = case.patch("steer-lost", ALL)
    tiny_server.install(lost)
    case.assert_answers(tiny_server.ask(PROMPTS[1], patch="steer-lost"), lost, PROMPTS[1])
    # Behind the catalog's back, as a worker would lose it that was restarted.
    body = {"method": "policy_patch_unload", "args": [lost.digest]}
    tiny_server.client.post("/collective_rpc", json=body).raise_for_status()
    response = tiny_server.complete(PROMPTS[1], patch="steer-lost")
    assert response.status_code == 500, response.text
    with tiny_server.client.stream(
        "POST",
        "/v1/completions",
        json={"model": "base", "prompt": PROMPTS[2], "stream": True},
        headers={"X-Policy-Patch": "steer-lost"},
    ) as stream:
        events = [line for line in stream.iter_lines() if line]
    assert any('"error"' in event for event in events), events
    assert not any('"text"' in event for event in events), events
    assert_steers(tiny_server, case, vectors)


@pytest.fixture
def server(start_module_server: Any, tiny_model: Path) -> Iterator[Any]:
    several = ["--api-server-count", "2", "--data-parallel-size", "2"]
    started = start_module_server(tiny_model, "--dtype", "float32", "--max-model-len", "512", *several)
    started.wait_ready()
    yield started
    assert started.terminate() == 0


def test_two_front_ends_and_two_engines_steer_alike(
    server: Any, case: Case, vectors: dict[str, Patch], tiny_patches: Any
) -> None:
    install_all(server, vectors, tiny_patches)
    assert_steers(server, case, vectors)
