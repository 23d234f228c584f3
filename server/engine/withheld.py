"""Tokens that a worker sampled and must not hand over: those of requests whose vector can't be answered for.

vLLM fails a request for blocks that could not be loaded, but only once it counts them as computed: after the
step that computed them, whose token would reach the client. So the token is taken out here.
"""

from collections.abc import Collection

from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from server.engine.steering_guard import StepCheck


class _Withholding(AsyncModelRunnerOutput):
    def __init__(
        self, inner: AsyncModelRunnerOutput, req_ids: Collection[str], check: StepCheck | None
    ) -> None:
        self._inner = inner
        self._req_ids = req_ids
        self._check = check

    def get_output(self) -> ModelRunnerOutput:
        return _without(self._inner.get_output(), self._req_ids, self._check)


def without_tokens_of(
    req_ids: Collection[str],
    output: ModelRunnerOutput | AsyncModelRunnerOutput,
    check: StepCheck | None = None,
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    """Return a step's output as if nothing had been sampled for some requests.

    Args:
        req_ids: What is known to be wrong.
        output: Of the step.
        check: What else turns out to be wrong in it, known once its tokens are there.
    """
    if isinstance(output, AsyncModelRunnerOutput):
        return _Withholding(output, frozenset(req_ids), check)
    return _without(output, req_ids, check)


def _without(
    output: ModelRunnerOutput, req_ids: Collection[str], check: StepCheck | None
) -> ModelRunnerOutput:
    broken = [] if check is None else check.wait().broken()
    for req_id in {*req_ids, *(one.req_id for one in broken)}:
        index = output.req_id_to_index.get(req_id)
        if index is not None and index < len(output.sampled_token_ids):
            output.sampled_token_ids[index] = []
    return output
