"""Runs one engine with vectors, without a server, and writes down what its requests get.

A program of its own, because vLLM imports the connector and the workers by their modules' names (so the
repository must be on PYTHONPATH):

    python steered_engine.py JOB_FILE RESULT_FILE

The file is JSON: ``model``; ``engine``, arguments of vLLM's ``LLM``; ``vectors``, digest -> facts, whose
tensors lie in ``tensors``, a safetensors file with names ``DIGEST/vector``; ``lost``, digests that the
workers lose before the first round; ``rounds``, lists of requests, each round sent at once; ``is_steered``:
whether the engine has our workers at all; ``adapter``, the folder of a LoRA adapter for all requests. The
result is JSON, too.
"""

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from server.engine.claim import PatchClaim, VectorClaim
from server.engine.steering_hooks import COMPILE_KEY

CONNECTOR = {
    "kv_connector": "PolicyPatchConnector",
    "kv_connector_module_path": "server.engine.connector",
    "kv_role": "kv_producer",
    "kv_load_failure_policy": "fail",
}


def engine_of(job: dict[str, Any]) -> LLM:
    """Start the engine; vLLM is told of our workers as the launcher tells it."""
    ours = {"worker_cls": "server.engine.cpu_worker.PatchedCPUWorker", "additional_config": COMPILE_KEY}
    defaults = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "max_model_len": 256}
    return LLM(
        job["model"],
        **(defaults | (ours if job["is_steered"] else {}) | job["engine"]),
        max_num_seqs=16,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        kv_transfer_config=CONNECTOR | {"kv_connector_extra_config": job.get("options", {})},
    )


def load(engine: LLM, digest: str, facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Hand one patch to every worker."""
    mine = {name.split("/")[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{digest}/")}
    engine.collective_rpc("policy_patch_load", args=(digest, "steering", save(mine), facts, False))
    loaded = engine.collective_rpc("policy_patch_loaded", args=(digest,))
    assert all(answer["digest"] == digest for answer in loaded)


def asked(request: dict[str, Any]) -> tuple[dict[str, Any], SamplingParams]:
    """Return a request as the engine client would send it."""
    prompt: dict[str, Any] = {"prompt_token_ids": request["prompt"]}
    extra = {}
    if (digest := request.get("digest")) is not None:
        vector = VectorClaim(digest, request["from_answer"], request.get("is_conditional", False))
        extra["kv_transfer_params"] = PatchClaim(digest, 0, vector=vector).to_params()
        prompt["cache_salt"] = f"patch:{digest}"
    return prompt, SamplingParams(
        temperature=0,
        max_tokens=request["max_tokens"],
        logprobs=5,
        ignore_eos=True,
        detokenize=False,
        extra_args=extra,
    )


def answered(output: Any) -> dict[str, Any]:
    """Return what tests look at."""
    completion = output.outputs[0]
    return {
        "token_ids": list(completion.token_ids),
        "logprobs": [{str(i): top.logprob for i, top in step.items()} for step in completion.logprobs],
        "finish_reason": completion.finish_reason,
        "num_cached": output.num_cached_tokens,
        "params": output.kv_transfer_params,
    }


def main(job_file: str, result_file: str) -> None:
    """Send the rounds and write down the answers."""
    job = json.loads(Path(job_file).read_text())
    tensors = load_file(job["tensors"])
    engine = engine_of(job)
    for digest, facts in job["vectors"].items():
        load(engine, digest, facts, tensors)
    for digest in job.get("lost", []):
        engine.collective_rpc("policy_patch_unload", args=(digest,))
    adapter = LoRARequest("adapter", 1, job["adapter"]) if "adapter" in job else None
    rounds = []
    for requests in job["rounds"]:
        prompts, params = zip(*map(asked, requests), strict=True)
        outputs = engine.generate(list(prompts), list(params), use_tqdm=False, lora_request=adapter)
        rounds.append([answered(output) for output in outputs])
    counted = {metric.name: metric.value for metric in engine.get_metrics() if hasattr(metric, "value")}
    result = {"rounds": rounds, "num_preemptions": counted["vllm:num_preemptions"]}
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
