"""What is checked of vectors on a GPU: who is steered in which step, as the device's table of rows says.

The rows are read back from the device after they were set, so they are true without kernels too. What needs
kernels, that a condition is met where it must be, is checked where there are some.
"""

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from scenarios import NUM_SLOTS

from bench.servers.random_vector import random_vector
from patches.label import Label
from server.memory.payload import Payload

if TYPE_CHECKING:
    from host_path import Rehearsal


async def load_vector(rehearsal: "Rehearsal", name: str, condition: str = "none") -> Any:
    """Load a random vector, and return what the gate selects for it."""
    patch = random_vector(
        rehearsal.base_model, Label(name, "1.0.0"), seed=len(name) + ord(name[-1]), condition=condition
    )
    await rehearsal.residency.load(Payload.of(patch))
    return SimpleNamespace(
        digest=patch.digest,
        num_tokens=0,
        reference=f"{name}@1.0.0",
        name=name,
        prefixes=(),
        vector=SimpleNamespace(digest=patch.digest, manifest=patch.manifest),
    )


async def check_steering(rehearsal: "Rehearsal", metrics: CollectorRegistry, *, has_kernels: bool) -> None:
    """One vector; more vectors than the table has rows; conditions; and a vector that a worker lost."""
    layout = await rehearsal.rpc("policy_patch_layout")
    rehearsal.checks.equal("vectors are served", layout["steering"], None)
    await _check_rows(rehearsal, metrics)
    await _check_mixed(rehearsal)
    await _check_conditions(rehearsal, metrics, has_kernels=has_kernels)
    await _check_lost(rehearsal)


async def _check_rows(rehearsal: "Rehearsal", metrics: CollectorRegistry) -> None:
    checks = rehearsal.checks
    vector = await load_vector(rehearsal, "one")
    await rehearsal.rpc("watch_rows")
    # 200 tokens through a budget of 64 a step, and the answer; the last token is never computed.
    answer = await rehearsal.ask(vector, 200)
    checks.equal("one vector: answered", answer[0][1], "length")
    steps = await rehearsal.rpc("watch_rows")
    num_steered = sum(row == step["row_of"][vector.digest] for step in steps for row in step["rows"])
    checks.equal("one vector: each computed token has its row", num_steered, 203)
    await rehearsal.ask(None)
    steps = await rehearsal.rpc("watch_rows")
    checks.equal("base request: no row is left", [row for step in steps for row in step["rows"] if row], [])
    counted = sum(
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "policy_patch_steered_tokens_total"
    )
    checks.equal("the statistics count the steered tokens", counted, 203)


async def _check_mixed(rehearsal: "Rehearsal") -> None:
    """Six vectors through four rows, beside the base model and prefixes, with preemption."""
    checks = rehearsal.checks
    vectors = [await load_vector(rehearsal, f"mixed-{i}") for i in range(NUM_SLOTS + 2)]
    prefix = await rehearsal.load("prefix", 45)
    both = SimpleNamespace(
        digest="0" * 64,
        num_tokens=prefix.num_tokens,
        reference="prefix@1.0.0,mixed-0@1.0.0",
        name="both",
        prefixes=prefix.prefixes,
        vector=vectors[0].vector,
    )
    asked = [*vectors, None, prefix, both]
    await rehearsal.rpc("watch_rows")
    answers = await asyncio.gather(
        *(rehearsal.ask(asked[i % len(asked)], 20 + i, max_tokens=60) for i in range(18))
    )
    checks.equal("six vectors, four rows: answered", [a[0][1] for a in answers], ["length"] * 18)
    # Requests are numbered as they were asked; vLLM adds to their ids.
    first = rehearsal.num_requests - 18
    wanted = {f"r{first + 1 + i}": asked[i % len(asked)] for i in range(18)}
    wrong = []
    for step in await rehearsal.rpc("watch_rows"):
        stop = 0
        for req_id, num_tokens in step["requests"]:
            begin, stop = stop, stop + num_tokens
            patch = wanted[req_id.split("-")[0]]
            vector = None if patch is None else getattr(patch, "vector", None)
            expected = 0 if vector is None else step["row_of"][vector.digest]
            rows = step["rows"][begin:stop]
            if rows != [expected] * num_tokens:
                wrong.append([req_id, expected, rows[:8]])
    checks.equal("six vectors, four rows: each token has its request's row", wrong[:3], [])


async def _check_conditions(rehearsal: "Rehearsal", metrics: CollectorRegistry, *, has_kernels: bool) -> None:
    checks = rehearsal.checks
    patches = {name: await load_vector(rehearsal, name, name) for name in ("met", "unmet")}
    answers = await asyncio.gather(
        *(rehearsal.ask(patches[name], 70) for name in ("met", "unmet", "met", "unmet"))
    )
    checks.equal("conditions: answered", [a[0][1] for a in answers], ["length"] * 4)
    outcomes = {"met": 0.0, "not_met": 0.0}
    for family in metrics.collect():
        for sample in family.samples:
            if sample.name == "policy_patch_condition_total":
                outcomes[sample.labels["outcome"]] += sample.value
    if has_kernels:
        checks.equal("conditions: decided", outcomes, {"met": 2.0, "not_met": 2.0})
    else:
        checks.equal("conditions: an outcome each", sum(outcomes.values()), 4.0)


async def _check_lost(rehearsal: "Rehearsal") -> None:
    checks = rehearsal.checks
    lost, kept = await load_vector(rehearsal, "lost"), await load_vector(rehearsal, "kept")
    await rehearsal.rpc("policy_patch_unload", lost.digest)
    answer = await rehearsal.ask(lost)
    checks.equal("lost vector: no token, finish_reason error", answer[0], ([], "error"))
    answers = await asyncio.gather(*(rehearsal.ask([lost, kept][i % 2], max_tokens=8) for i in range(12)))
    checks.equal(
        "lost vector, six at once: all fail", [answers[i][0] for i in range(0, 12, 2)], [([], "error")] * 6
    )
    checks.equal("lost vector: others answer", [answers[i][0][1] for i in range(1, 12, 2)], ["length"] * 6)
