"""An engine core that computes nothing: vLLM loads this class in place of what runs the model.

Scheduler, KV connector, output processor and the processes between them stay vLLM's and ours. Each prompt has
its first token at once, and its next ones a step later each, as long as ``STEP_VARIABLE`` says. Whatever a
worker would say of a patch is confirmed, and nothing of it is kept.

    vllm serve MODEL --distributed-executor-backend bench.servers.instant_executor.InstantExecutor
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from safetensors.torch import load
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput

#: Seconds from a token to the next one of the same answer.
STEP_VARIABLE = "POLICYPATCH_BENCH_STEP_S"
#: Tokens are taken in turn from here, far from the special ones.
FIRST_TOKEN, NUM_TOKENS = 1000, 997
#: More than any number of blocks that is asked for.
_MEMORY_BYTES = 1 << 38


class InstantExecutor(Executor):  # type: ignore[misc]
    """Answers for the only worker, which does not exist."""

    def _init_executor(self) -> None:
        self._step_s = float(os.environ.get(STEP_VARIABLE, "0"))
        self._stepped_s = 0.0
        #: Request -> tokens that have to be computed before it has its next one.
        self._due: dict[str, int] = {}
        self._answers: dict[str, Callable[..., Any]] = {
            "get_kv_cache_spec": self._kv_cache_spec,
            "get_supported_kv_cache_layouts": lambda: ["LBNHC"],
            "determine_available_memory": lambda: _MEMORY_BYTES,
            "get_supported_tasks": lambda: ("generate",),
            "policy_patch_layout": self._layout,
            "policy_patch_check": lambda digest, kind, layout, facts: self._confirmed(digest, layout),
            "policy_patch_load": self._take,
            "policy_patch_loaded": lambda digest: self._confirmed(digest, self._layouts[digest]),
            "policy_patch_unload": lambda digest: 0,
            "policy_patch_resident": dict,
            "policy_patch_slots": list,
        }
        self._layouts: dict[str, dict[str, tuple[list[int], str]]] = {}

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """Answer for the worker; what it has no answer for is done."""
        if method == "compile_or_warm_up_model":
            return []
        answer = self._answers.get(method) if isinstance(method, str) else None
        return [answer(*args, **(kwargs or {})) if answer is not None else None]

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """Return a token for each request whose tokens are computed with this step."""
        self._wait(scheduler_output)
        output = self._tokens(scheduler_output)
        if not non_block:
            return output
        future: Future[ModelRunnerOutput] = Future()
        future.set_result(output)
        return future

    def check_health(self) -> None:
        """Nothing can fail."""

    def _wait(self, step: SchedulerOutput) -> None:
        if step.scheduled_cached_reqs.req_ids and self._step_s:
            time.sleep(max(0.0, self._stepped_s + self._step_s - time.monotonic()))
        self._stepped_s = time.monotonic()

    def _tokens(self, step: SchedulerOutput) -> ModelRunnerOutput:
        for finished in step.finished_req_ids:
            self._due.pop(finished, None)
        computed = {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
        for new in step.scheduled_new_reqs:
            self._due[new.req_id] = len(new.prompt_token_ids or ())
        cached = step.scheduled_cached_reqs
        computed |= zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        ids = list(step.num_scheduled_tokens)
        sampled = []
        for req_id in ids:
            reached = computed[req_id] + step.num_scheduled_tokens[req_id]
            # By its place in the answer, so that all answers read the same.
            place = reached - self._due[req_id]
            sampled.append([FIRST_TOKEN + place % NUM_TOKENS] if place >= 0 else [])
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={req_id: i for i, req_id in enumerate(ids)},
            sampled_token_ids=sampled,
        )

    def _kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        config, parallel = self.model_config, self.parallel_config
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=config.get_num_kv_heads(parallel),
            head_size=config.get_head_size(),
            dtype=torch.bfloat16,
        )
        return {f"model.layers.{i}.self_attn.attn": spec for i in range(config.get_num_layers(parallel))}

    def _layout(self) -> dict[str, object]:
        indices = list(range(self.model_config.get_num_layers(self.parallel_config)))
        return {"layer_indices": indices, "problems": [], "writer": "torch", "steering": None}

    def _take(self, digest: str, kind: str, blob: bytes, facts: object, is_pinned: bool = False) -> None:
        self._layouts[digest] = {
            name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in load(blob).items()
        }

    def _confirmed(self, digest: str, layout: Any) -> dict[str, Any]:
        return {"digest": digest, "layout": layout, "nbytes": 0}
