"""Runs patched requests through vLLM's CUDA path and checks what the connector did, step by step.

    python tests/gpu/host_path.py KIT_MODEL SCENARIO [--no-kernels]

KIT_MODEL is a folder with a tokenizer of SmolLM2's vocabulary; a two-layer model with random weights is made
beside it in a temporary folder. SCENARIO is one of those in ``SCENARIOS``. ``--no-kernels`` is for a
rehearsal with a stand-in driver: host code runs, caches stay empty, so what is written is judged by the
arguments of each write. Prints one JSON line per check and exits with 1 where one failed.

vLLM imports worker extensions by name: this folder and the repository must be on PYTHONPATH.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from scenarios import BLOCK_SIZE, NUM_SLOTS, SCENARIOS, STEERED, engine_args, write_model
from steering_checks import check_steering
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError
from watched_worker import NO_KERNELS, sha256_of

from bench.servers.random_patch import random_patch
from patches.fingerprint import fingerprint_model
from patches.label import Label
from server.engine.client import PatchedAsyncLLM
from server.engine.rpc_workers import RpcWorkers
from server.engine.stats import injection_logger_factory
from server.memory.payload import Payload
from server.metrics.patches import PatchMetrics
from tests.open_gate import OpenGate


class WatchedClient(PatchedAsyncLLM):
    """Notes the cached tokens of each output before the client takes the prefix out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cached: list[tuple[str, int, int | None]] = []

    def _hide_prefix(self, output: Any, patch: Any, num_tokens: int) -> None:
        self.cached.append((output.request_id, num_tokens, output.num_cached_tokens))
        super()._hide_prefix(output, patch, num_tokens)


class Checks:
    """Prints each check as it is made."""

    def __init__(self, scenario: str) -> None:
        self._scenario = scenario
        self.num_failed = 0

    def equal(self, name: str, actual: Any, expected: Any) -> None:
        self._print(name, actual == expected, {"expected": expected, "got": actual})

    def true(self, name: str, is_so: bool, **facts: Any) -> None:
        self._print(name, bool(is_so), facts)

    def _print(self, name: str, is_ok: bool, facts: dict[str, Any]) -> None:
        self.num_failed += not is_ok
        facts = facts if not is_ok or len(json.dumps(facts)) < 600 else {}
        print(json.dumps({"scenario": self._scenario, "check": name, "ok": is_ok, **facts}), flush=True)


class Rehearsal:
    """One engine, its patches and the requests made of it."""

    def __init__(self, engine: WatchedClient, model: Path, dtype: str, checks: Checks) -> None:
        self.engine = engine
        self.gate = OpenGate()
        engine.bind_gate(self.gate)
        self.checks = checks
        self.base_model = fingerprint_model(model, dtype, may_lack_weights=True)
        self.residency = RpcWorkers(engine)
        self.num_written = 0
        self.num_requests = 0

    async def rpc(self, method: str, *args: Any) -> Any:
        return (await self.engine.collective_rpc(method, args=args))[0]

    async def load(self, name: str, num_tokens: int) -> Any:
        patch = random_patch(self.base_model, num_tokens, Label(name, "1.0.0"), seed=num_tokens)
        await self.residency.load(Payload.of(patch))
        loaded = SimpleNamespace(
            digest=patch.digest, num_tokens=num_tokens, reference=f"{name}@1.0.0", name=name, kv=patch.kv
        )
        loaded.prefixes, loaded.vector = (loaded,), None
        return loaded

    async def ask(self, patch: Any, num_prompt_tokens: int = 5, *, max_tokens: int = 4, n: int = 1) -> Any:
        """Answer a prompt that nobody else has; return each choice's token ids and finish reason."""
        self.num_requests += 1
        self.gate.patch = patch
        seed = 1000 + 211 * self.num_requests
        prompt = {
            "type": "token",
            "prompt_token_ids": [(seed + 7 * i) % 40000 for i in range(num_prompt_tokens)],
        }
        params = SamplingParams(
            temperature=0.0 if n == 1 else 1.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            n=n,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        choices: dict[int, tuple[list[int], Any]] = {i: ([], None) for i in range(n)}
        async for output in self.engine.generate(prompt, params, f"r{self.num_requests}"):
            for completion in output.outputs:
                ids, reason = choices[completion.index]
                choices[completion.index] = (
                    [*ids, *completion.token_ids],
                    completion.finish_reason or reason,
                )
        return choices

    async def steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = await self.rpc("watch_take")
        for step in steps:
            self.num_written += sum(load["stop"] - min(load["first"]) for load in step["loads"])
        return steps

    def check_writes(self, name: str, steps: list[dict[str, Any]], patches: list[Any]) -> int:
        """Hold every write against the block tables that the model runner got; return tokens written."""
        by_digest = {patch.digest: patch for patch in patches}
        num_written, problems = 0, []
        for step in steps:
            groups: list[list[int]] = []
            for load in step["loads"]:
                tables = step["admitted"].get(load["request"])
                if tables is None:
                    problems.append(f"{load['request']} is loaded but not admitted in this step")
                    continue
                for i, (table, first) in enumerate(zip(tables, load["first"], strict=True)):
                    groups += [[]] * (i + 1 - len(groups))
                    groups[i] = groups[i] + [
                        table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
                        for p in range(first, load["stop"])
                    ]
                if step["computed"][load["request"]] != load["stop"]:
                    problems.append(f"{load['request']} starts at {step['computed'][load['request']]}")
                num_written += load["stop"] - min(load["first"])
            if {tuple(write["slots"]) for write in step["writes"]} - {tuple(slots) for slots in groups}:
                problems.append(f"slots: {[w['slots'] for w in step['writes']]}, block tables say {groups}")
            if len(step["writes"]) != self.base_model.num_layers:
                problems.append(f"{len(step['writes'])} writes")
            problems += [
                p for row, w in enumerate(step["writes"]) for p in self._problems(w, row, step, by_digest)
            ]
        self.checks.true(
            f"{name}: each layer's writes match the block tables, shapes and values",
            not problems,
            problems=problems[:4],
            steps=len(steps),
            tokens=num_written,
        )
        return num_written

    def _problems(self, write: dict[str, Any], row: int, step: dict[str, Any], patches: Any) -> list[str]:
        expected = [
            [len(write["slots"]), self.base_model.num_kv_heads, self.base_model.head_size],
            f"torch.{self.base_model.dtype}",
            "cuda",
        ]
        problems = [f"{k}: {write[k]}" for k in ("key", "value") if write[k] != expected]
        problems += [] if write["slots_dtype"] == "torch.int64" else [write["slots_dtype"]]
        problems += (
            [] if write.get("is_held", True) else [f"{write['layer']}: the cache holds something else"]
        )
        if len(step["loads"]) == 1:  # Several are put together by a kernel.
            load = step["loads"][0]
            kv = patches[load["digest"]].kv[row, :, load["stop"] - len(write["slots"]) : load["stop"]]
            same = [sha256_of(part) for part in kv] == [write["key_sha256"], write["value_sha256"]]
            problems += [] if same else [f"{write['layer']}: not the patch's values"]
        return problems


async def check_sharing(rehearsal: Rehearsal, *, is_caching: bool) -> None:
    """First and second request of two patches: one that fills its blocks, one with a tail."""
    checks = rehearsal.checks
    for num_tokens in (37, 48):
        patch = await rehearsal.load(f"p{num_tokens}", num_tokens)
        tail = num_tokens % BLOCK_SIZE
        for name, expected in (("first", num_tokens), ("second", tail if is_caching else num_tokens)):
            answer = await rehearsal.ask(patch)
            steps = await rehearsal.steps()
            written = rehearsal.check_writes(f"N={num_tokens}, {name} request", steps, [patch])
            checks.equal(f"N={num_tokens}, {name} request: tokens written", written, expected)
            checks.equal(f"N={num_tokens}, {name} request: answered", answer[0][1], "length")
    await rehearsal.ask(None)
    checks.equal("base request: nothing loaded", await rehearsal.steps(), [])


async def check_many(rehearsal: Rehearsal) -> None:
    """n > 1, chunked prefill, a mixed batch, and preemption in a cache of a few blocks."""
    checks = rehearsal.checks
    patches = [await rehearsal.load(f"m{n}", n) for n in (1, 45, 64)]
    await rehearsal.steps()
    # 45 + 2 tokens fill two blocks: each choice has a tail of its own to write.
    choices = await rehearsal.ask(patches[1], 2, n=3)
    checks.equal("n=3: choices", [reason for _, reason in choices.values()], ["length"] * 3)
    steps = await rehearsal.steps()
    rehearsal.check_writes("n=3", steps, patches)
    checks.equal("n=3: each choice is admitted with its prefix", sum(len(s["loads"]) for s in steps), 3)
    # 200 tokens through a budget of 64 a step.
    answer = await rehearsal.ask(patches[1], 200)
    rehearsal.check_writes("chunked prefill", await rehearsal.steps(), patches)
    checks.equal("chunked prefill: answered", answer[0][1], "length")
    preempted_before = total(REGISTRY, "vllm:num_preemptions_total")
    answers = await asyncio.gather(
        *(rehearsal.ask([*patches, None][i % 4], 20 + i, max_tokens=90) for i in range(16))
    )
    steps = await rehearsal.steps()
    rehearsal.check_writes("16 requests that preempt each other", steps, patches)
    checks.equal("preempted requests: answered", [a[0][1] for a in answers], ["length"] * 16)
    num_loads = sum(len(step["loads"]) for step in steps)
    num_preempted = total(REGISTRY, "vllm:num_preemptions_total") - preempted_before
    checks.true(
        "requests were preempted, and loaded again", num_preempted > 0, loads=num_loads, times=num_preempted
    )
    checks.equal("no request ran without its prefix", [s["unbacked"] for s in steps if s["unbacked"]], [])


def total(registry: CollectorRegistry, name: str) -> float:
    """Sum of a metric's samples of this name."""
    return sum(s.value for family in registry.collect() for s in family.samples if s.name == name)


async def check_missing(rehearsal: Rehearsal) -> None:
    """A prefix that a worker lost: the requests fail without a token, also those that share its blocks."""
    checks = rehearsal.checks
    lost, kept = await rehearsal.load("lost", 48), await rehearsal.load("kept", 33)
    await rehearsal.rpc("policy_patch_unload", lost.digest)
    answer = await rehearsal.ask(lost)
    checks.equal("missing prefix: no token, finish_reason error", answer[0], ([], "error"))
    answers = await asyncio.gather(*(rehearsal.ask([lost, kept][i % 2], max_tokens=8) for i in range(12)))
    checks.equal(
        "missing prefix, six at once: all fail", [answers[i][0] for i in range(0, 12, 2)], [([], "error")] * 6
    )
    checks.equal("missing prefix: others answer", [answers[i][0][1] for i in range(1, 12, 2)], ["length"] * 6)
    await rehearsal.steps()
    lost = await rehearsal.load("lost", 48)
    await rehearsal.ask(lost)
    written = rehearsal.check_writes("loaded again", await rehearsal.steps(), [lost])
    checks.equal("loaded again: nothing of the failed requests is shared", written, 48)


async def check_missing_with_groups(rehearsal: Rehearsal) -> None:
    """The same for a model with several KV-cache groups: vLLM can only stop there, which ends this engine."""
    lost = await rehearsal.load("lost", 48)
    await rehearsal.rpc("policy_patch_unload", lost.digest)
    try:
        got = await rehearsal.ask(lost)
    except EngineDeadError:
        got = "engine dead"
    rehearsal.checks.equal("missing prefix, several groups: no token; the engine ends", got, "engine dead")


def check_client(rehearsal: Rehearsal, metrics: CollectorRegistry) -> None:
    """What reached the front end: cached tokens of each output, and the statistics."""
    with_tokens = [cached for _, num_tokens, cached in rehearsal.engine.cached if num_tokens]
    rehearsal.checks.true(
        "every output with tokens names its cached tokens",
        all(cached is not None and cached > 0 for cached in with_tokens),
        outputs=len(with_tokens),
    )
    totals = {name: total(metrics, name) for name in STATISTICS}
    rehearsal.checks.equal(
        "the statistics count what was written", totals[STATISTICS[0]], rehearsal.num_written
    )
    rehearsal.checks.true("write times arrive", totals[STATISTICS[1]] > 0, **totals)


STATISTICS = (
    "policy_patch_injected_tokens_total",
    "policy_patch_injection_seconds_count",
)


async def rehearse(
    model: Path, checks: Checks, arguments: dict[str, Any], *, has_kernels: bool, is_steered: bool
) -> None:
    """Run all checks on one engine; of vectors alone where they are on, since the others have been run."""
    metrics = CollectorRegistry()
    num_slots = NUM_SLOTS if is_steered else 0
    config = engine_args(model, arguments, is_patched=True, num_slots=num_slots).create_engine_config()
    engine = WatchedClient.from_vllm_config(
        config, stat_loggers=[injection_logger_factory(PatchMetrics(metrics))]
    )
    try:
        rehearsal = Rehearsal(engine, model, str(config.model_config.dtype).removeprefix("torch."), checks)
        facts = await rehearsal.rpc("watch_facts")
        checks.true(
            "facts", facts["block_size"] == BLOCK_SIZE and facts["max_concurrent_batches"] > 1, **facts
        )
        checks.true("runner", facts["runner"] == "vllm.v1.worker.gpu.model_runner.GPUModelRunner")
        checks.equal(
            "layers that cannot hold a prefix", (await rehearsal.rpc("policy_patch_layout"))["problems"], []
        )
        if has_kernels:
            checks.equal("prefixes are written by one launch", facts["writer"], "triton")
        await rehearsal.rpc("watch_begin", has_kernels)
        if is_steered:
            await check_steering(rehearsal, metrics, has_kernels=has_kernels)
            return
        await check_sharing(rehearsal, is_caching=bool(config.cache_config.enable_prefix_caching))
        await check_many(rehearsal)
        if len(facts["groups"]) == 1:
            await check_missing(rehearsal)
        await rehearsal.ask(None)
        await rehearsal.steps()
        check_client(rehearsal, metrics)
        if len(facts["groups"]) > 1:
            await check_missing_with_groups(rehearsal)
    finally:
        engine.shutdown()


async def rehearse_plain(model: Path, checks: Checks, arguments: dict[str, Any]) -> None:
    """Start the same engine without a connector, for the graphs that it captures."""
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_vllm_config(engine_args(model, arguments, is_patched=False).create_engine_config())
    try:
        facts = (await engine.collective_rpc("watch_facts"))[0]
        checks.true("facts", facts["connector"] is None, **facts)
    finally:
        engine.shutdown()


def main() -> int:
    """Run one scenario."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kit_model", type=Path)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--no-kernels", dest="has_kernels", action="store_false")
    args = parser.parse_args()
    model_config, is_patched, arguments = SCENARIOS[args.scenario]
    checks = Checks(args.scenario)
    # As `vllm serve` and ours do.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if not args.has_kernels:
        os.environ[NO_KERNELS] = "1"
    with tempfile.TemporaryDirectory() as folder:
        write_model(args.kit_model, Path(folder), model_config)
        if is_patched:
            is_steered = args.scenario in STEERED
            asyncio.run(
                rehearse(Path(folder), checks, arguments, has_kernels=args.has_kernels, is_steered=is_steered)
            )
        else:
            asyncio.run(rehearse_plain(Path(folder), checks, arguments))
    return int(checks.num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
