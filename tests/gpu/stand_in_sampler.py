"""Lets generations go on where no kernel does anything: a rehearsal's stand-in for sampling.

Model runner V2 counts sampled tokens on the device, so with a stand-in driver no request would ever end. As
a plugin of the group ``vllm.general_plugins`` (``stand_in_sampler:install``) this puts in, on the host and
after the step, what sampling would report: one token for each request whose prompt is complete. Never on a
machine with a GPU.
"""

from typing import Any

#: An ordinary word.
TOKEN_ID = 7


def install() -> None:
    """Wrap the model runner."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    execute_model, sample_tokens = GPUModelRunner.execute_model, GPUModelRunner.sample_tokens
    lengths: dict[str, int] = {}
    ready: dict[str, bool] = {}

    def watched_execute(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        ready.clear()
        if scheduler_output is not None and not kwargs.get("dummy_run"):
            cached = scheduler_output.scheduled_cached_reqs
            computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            for new in scheduler_output.scheduled_new_reqs:
                lengths[new.req_id] = len(new.prefill_token_ids or new.prompt_token_ids)
                computed[new.req_id] = new.num_computed_tokens
            for req_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
                ready[req_id] = computed.get(req_id, 0) + num_tokens >= lengths.get(req_id, 0)
        return execute_model(self, scheduler_output, *args, **kwargs)

    def counted_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.execute_model_state
        output = sample_tokens(self, *args, **kwargs)
        if state is not None and hasattr(output, "num_sampled_tokens_np"):
            for i, req_id in enumerate(state.input_batch.req_ids):
                output.num_sampled_tokens_np[i] = ready.get(req_id, True)
                output.sampled_token_ids[i] = TOKEN_ID
        return output

    GPUModelRunner.execute_model, GPUModelRunner.sample_tokens = watched_execute, counted_sample
