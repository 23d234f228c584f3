"""Runs one engine whose guards of invariant 1 are partly removed, and prints what a hostile request gets.

A program of its own, because vLLM imports the connector class by its module's name in worker processes (so
this folder and the repository must be on PYTHONPATH):

    python guardless_engine.py MODEL GUARDS PATCH_FILE

GUARDS is ``all``; ``plan``: the scheduler no longer insists on reading the prefix, the plan still notices;
or ``none``. The request asks vLLM not to read the prefix cache, which makes it ignore connectors. It is made
with and without the client's own check. Prints one JSON line.
"""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams

from patches.format import read_patch
from server.engine.client import PatchedAsyncLLM
from server.engine.connector import PolicyPatchConnector
from server.engine.rpc_workers import RpcWorkers
from server.engine.scheduler_side import SchedulerSide
from server.errors import PatchNotApplied
from server.memory.payload import Payload
from tests.open_gate import OpenGate

PROMPT = [11, 222, 333, 44]


class TrustingScheduler(SchedulerSide):
    """Believes that vLLM will ask for the prefix."""

    def on_new_request(self, request: Any) -> None:
        skips = request.skip_reading_prefix_cache
        super().on_new_request(request)
        request.skip_reading_prefix_cache = skips


class BlindScheduler(TrustingScheduler):
    """Does not look at what is scheduled either."""

    def _find_unbacked(self, scheduler_output: Any) -> None:
        return None


class PlanGuarded(PolicyPatchConnector):
    """Only the second guard."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            self._scheduler = TrustingScheduler(vllm_config, kv_cache_config)


class Guardless(PolicyPatchConnector):
    """No guard at all."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if self._scheduler is not None:
            self._scheduler = BlindScheduler(vllm_config, kv_cache_config)


class InsistingClient(PatchedAsyncLLM):
    """Lets a request through that tells vLLM to ignore the prefix cache."""

    insists = False
    checks = True

    def _patched_params(self, *args: Any) -> SamplingParams:
        params = super()._patched_params(*args)
        params.skip_reading_prefix_cache = self.insists
        return params

    def _hide_prefix(self, *args: Any) -> None:
        if self.checks:
            super()._hide_prefix(*args)


def engine_args(model: str, guards: str) -> AsyncEngineArgs:
    """Configure the engine with the connector that has just these guards."""
    class_name, module = {
        "all": ("PolicyPatchConnector", "server.engine.connector"),
        "plan": ("PlanGuarded", "guardless_engine"),
        "none": ("Guardless", "guardless_engine"),
    }[guards]
    args = AsyncEngineArgs(
        model=model, dtype="float32", enforce_eager=True, block_size=32, max_model_len=256, max_num_seqs=4
    )
    args.kv_transfer_config = KVTransferConfig(
        kv_connector=class_name,
        kv_connector_module_path=module,
        kv_role="kv_producer",
        kv_load_failure_policy="fail",
    )
    args.worker_extension_cls = "server.engine.worker_extension.PatchWorkerExtension"
    return args


async def generate(engine: InsistingClient, *, insists: bool, checks: bool = True) -> dict[str, Any]:
    """Answer the prompt under the patch."""
    engine.insists, engine.checks = insists, checks
    params = SamplingParams(temperature=0, max_tokens=8, output_kind=RequestOutputKind.FINAL_ONLY)
    prompt = {"type": "token", "prompt_token_ids": PROMPT}
    try:
        async for output in engine.generate(prompt, params, f"request-{insists}-{checks}"):
            completion = output.outputs[0]
    except PatchNotApplied as error:
        return {"error": error.code}
    return {"token_ids": list(completion.token_ids), "finish_reason": completion.finish_reason}


async def main(model: str, guards: str, patch_file: str) -> None:
    """Ask twice, without and with insisting, and print both outcomes."""
    patch = read_patch(patch_file)
    engine = InsistingClient.from_vllm_config(engine_args(model, guards).create_engine_config())
    gate = OpenGate()
    engine.bind_gate(gate)
    await RpcWorkers(engine).load(Payload.of(patch))
    gate.patch = SimpleNamespace(
        name="random",
        digest=patch.digest,
        num_tokens=patch.manifest.num_virtual_tokens,
        reference="random@1.0.0",
    )
    gate.patch.prefixes, gate.patch.vector = (gate.patch,), None
    outcome = {
        "expected": await generate(engine, insists=False),
        "hostile": await generate(engine, insists=True),
        "unchecked": await generate(engine, insists=True, checks=False),
    }
    engine.shutdown()
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
