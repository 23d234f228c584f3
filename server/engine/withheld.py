"""Tokens that a worker sampled and must not hand over: those of requests whose vector is not on the device.

vLLM fails a request for blocks that could not be loaded, but only once it counts them as computed: after the
step that computed them, whose token would reach the client. So the token is taken out here.
"""

from collections.abc import Collection

from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput


class _Withholding(AsyncModelRunnerOutput):
    def __init__(self, inner: AsyncModelRunnerOutput, req_ids: Collection[str]) -> None:
        self._inner = inner
        self._req_ids = req_ids

    def get_output(self) -> ModelRunnerOutput:
        return _without(self._inner.get_output(), self._req_ids)


def without_tokens_of(
    req_ids: Collection[str], output: ModelRunnerOutput | AsyncModelRunnerOutput
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    """Return a step's output as if nothing had been sampled for the requests ``req_ids``."""
    if isinstance(output, AsyncModelRunnerOutput):
        return _Withholding(output, frozenset(req_ids))
    return _without(output, req_ids)


def _without(output: ModelRunnerOutput, req_ids: Collection[str]) -> ModelRunnerOutput:
    for req_id in req_ids:
        index = output.req_id_to_index.get(req_id)
        if index is not None and index < len(output.sampled_token_ids):
            output.sampled_token_ids[index] = []
    return output
