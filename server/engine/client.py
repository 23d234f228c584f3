"""The engine client that gives each request the patch that was selected for it.

vLLM's whole OpenAI surface ends in ``AsyncLLM.generate``. Here the request's selection is asked for, checked
and leased; at the last moment, as the request leaves for the engine core, N placeholder ids go in front of
its prompt. The front end's own record of the request never holds them, so prompt ids, text, echo and usage
need no correction.
"""

import re
import time
from asyncio import CancelledError, Future, current_task
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from patches.headers import PATCH_HEADER
from patches.kinds.steering import SteeringBody
from server.engine.block_pins import PINNED_NAMES_KEY
from server.engine.claim import PatchClaim, PrefixPart, VectorClaim, scoped_cache_salt
from server.engine.context_length import fitting_max_tokens
from server.engine.placeholder import placeholder_token_id
from server.engine.steering_report import Outcome
from server.errors import NotInStep, PatchNotApplied, UnsupportedWithPatch

if TYPE_CHECKING:
    from server.request.gate import PatchGate
    from server.request.lease import Lease
    from server.request.meter import Meter
    from server.versions.composition import SelectedPatch


#: vLLM's word for weights that were never changed.
OWN_WEIGHTS = "default"

#: How vLLM's beam search ends the ids of the requests that it makes.
_BEAM = re.compile(r"-beam-\d+$")

#: Seconds of the time to end that are kept for hanging up.
_HANG_UP_S = 2.0


class PatchedAsyncLLM(AsyncLLM):
    """``AsyncLLM`` with policy patches. ``bind_gate`` must be called before the first request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate: PatchGate | None = None
        self._is_ending = False
        self._placeholder_id = placeholder_token_id(self.model_config, self.tokenizer)
        transfer = self.vllm_config.kv_transfer_config
        #: Patches whose blocks are to stay in the KV cache.
        self._pinned_names = frozenset(
            transfer.get_from_extra_config(PINNED_NAMES_KEY, ()) if transfer else ()
        )
        self._send_to_core = self.engine_core.add_request_async
        self.engine_core.add_request_async = self._send_prefixed

    async def require_alive(self) -> None:
        """Return where the engine can answer.

        Raises:
            NotInStep: It has ended, and so will this process.
        """
        if self.errored:
            raise NotInStep("the engine has ended, and so will this process")

    def shutdown(self, timeout: float | None = None) -> None:
        """End the client; one of several first waits for what it is answering.

        Where vLLM's client has started the engines itself, they are asked to finish, and the client goes on
        reading. Engines that serve several clients are ended by who started them, after the clients.
        """
        # Also called where the client could not be made.
        if timeout and getattr(self, "_client_count", 1) > 1 and not self._is_ending:
            self._is_ending = True
            by_s = time.monotonic() + max(0.0, timeout - _HANG_UP_S)
            while self.get_num_unfinished_requests() and time.monotonic() < by_s and not self.errored:
                time.sleep(0.05)
        super().shutdown(timeout=timeout)

    def bind_gate(self, gate: "PatchGate") -> None:
        """Join the client to the selections of requests. The gate needs the running engine, hence so late."""
        self._gate = gate

    def _run_output_handler(self) -> None:
        """Start to read what the engine core says; where it says no more, calls that wait for it end too.

        vLLM itself ends generations then, and lets whoever called a worker wait for ever.
        """
        is_running = self.output_handler is not None
        super()._run_output_handler()
        if not is_running and self.output_handler is not None:
            # No reference to the client, which has to be collectable while the handler runs.
            calls = self.engine_core.utility_results
            self.output_handler.add_done_callback(lambda handler: end_calls(calls))

    async def ask_workers(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """Call a method of ``PatchWorkerExtension`` on every worker.

        vLLM's own ``collective_rpc`` reaches all data-parallel ranks too, but gives the answers of the first
        alone; here every worker of every rank has its say.

        Raises:
            EngineDeadError: the engine died before it had answered.
        """
        ranks = await self.engine_core.call_utility_all_async("collective_rpc", method, timeout_s, args, None)
        return [answer for answers in ranks for answer in answers]

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Generate under the current request's selection.

        A plain function that returns a generator: a refusal is raised by the call itself, before a streaming
        route has sent its status line.

        Raises:
            PolicyPatchError: the selection cannot be honoured.
            VLLMValidationError: the request carries parameters that are ours.
        """
        assert self._gate is not None, "bind_gate was not called"
        refuse_reserved_parameters(sampling_params)
        if self._is_ending:
            raise self._gate.reject(NotInStep("the server is stopping; try another, or again"))
        patch = self._gate.selection().patch
        if (trace_headers := self._gate.engine_trace()) is not None:
            kwargs["trace_headers"] = trace_headers
        if patch is None:
            outputs = super().generate(prompt, sampling_params, request_id, **kwargs)
            return self._metered(outputs, self._gate.base_meter())
        try:
            refuse_unsupported(prompt, sampling_params)
            vector = vector_claim(patch)
            refuse_beams(request_id, patch, vector)
            params = self._patched_params(prompt, sampling_params, patch, vector)
        except UnsupportedWithPatch as error:
            raise self._gate.reject(error) from None
        return self._generate_leased(patch, prompt, params, request_id, **kwargs)

    async def _generate_leased(
        self, patch: "SelectedPatch", *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        assert self._gate is not None
        with self._gate.generation(), self._gate.lease(patch) as lease:
            await lease.ready()
            async with aclosing(super().generate(*args, **kwargs)) as outputs:
                following = outputs.__anext__
                while True:
                    if lease.is_withdrawn:
                        raise lease.withdrawal()
                    lease.waiting = current_task()
                    try:
                        output = await following()
                    except StopAsyncIteration:
                        return
                    except VLLMClientError:
                        self._gate.mistaken()
                        raise
                    except CancelledError:
                        lease.require_not_withdrawn()
                        raise
                    finally:
                        lease.waiting = None
                    num_tokens = num_new_tokens(output)
                    note(lease.meter, output, num_tokens)
                    self._require_one_set_of_weights(output)
                    self._hide_prefix(output, patch, num_tokens)
                    if output.kv_transfer_params:
                        _take_outcome(lease, output)
                    yield output

    async def _metered(
        self, outputs: AsyncGenerator[RequestOutput, None], meter: "Meter"
    ) -> AsyncGenerator[RequestOutput, None]:
        assert self._gate is not None
        with self._gate.generation():
            async with aclosing(outputs):
                try:
                    async for output in outputs:
                        self._require_one_set_of_weights(output)
                        note(meter, output, num_new_tokens(output))
                        yield output
                except VLLMClientError:
                    self._gate.mistaken()
                    raise

    def _require_one_set_of_weights(self, output: RequestOutput) -> None:
        """Check the weights that vLLM says have made an answer, which it does at its end.

        Raises:
            PatchNotApplied: They are not those that the request entered under, or not one set. No known path
                leads here.
        """
        for answer in output.outputs:
            if not (spans := answer.weight_versions):
                continue
            assert self._gate is not None
            if (weights := self._gate.weights()) is None:
                return
            expected = weights[0] or OWN_WEIGHTS
            if any(span.version != expected for span in spans):
                text = f"expected weights {expected} from the first token to the last, got {spans}"
                raise self._gate.reject(PatchNotApplied(text))

    def _hide_prefix(self, output: RequestOutput, patch: "SelectedPatch", num_tokens: int) -> None:
        """Take the prefix out of the cached tokens, among which the engine counts it.

        Raises:
            PatchNotApplied: the engine computed a part of the prefix's positions itself. No known path leads
                here; should a new vLLM release open one, the answer stops before its first token.
        """
        num_visible_tokens = (output.num_cached_tokens or 0) - patch.num_tokens
        if num_visible_tokens < 0:
            if num_tokens:
                assert self._gate is not None
                raise self._gate.reject(
                    PatchNotApplied(
                        f"the engine took {output.num_cached_tokens or 0} of the {patch.num_tokens} prefix "
                        f"tokens of {patch.reference} from its cache; the answer is withheld"
                    )
                )
            num_visible_tokens = 0
        output.num_cached_tokens = num_visible_tokens

    def _patched_params(
        self,
        prompt: dict[str, Any],
        sampling_params: SamplingParams,
        patch: "SelectedPatch",
        vector: VectorClaim | None,
    ) -> SamplingParams:
        params = sampling_params.clone()
        params.max_tokens = fitting_max_tokens(
            params.max_tokens,
            len(prompt["prompt_token_ids"]),
            patch.num_tokens,
            self.model_config.max_model_len,
        )
        # Without the prefix cache's consent the scheduler never asks the connector.
        params.skip_reading_prefix_cache = False
        parts = tuple(PrefixPart(part.digest, part.num_tokens) for part in patch.prefixes)
        # What a caller's own salt keeps apart is of no use to others.
        is_pinned = bool(parts) and patch.name in self._pinned_names and prompt.get("cache_salt") is None
        claim = PatchClaim(patch.digest, patch.num_tokens, parts, is_pinned, vector)
        params.extra_args = {**(params.extra_args or {}), "kv_transfer_params": claim.to_params()}
        return params

    async def _send_prefixed(self, request: EngineCoreRequest) -> None:
        params = request.sampling_params
        claim = (
            PatchClaim.from_params((params.extra_args or {}).get("kv_transfer_params")) if params else None
        )
        assert self._gate is not None
        request.cache_salt = scoped_cache_salt(claim, request.cache_salt, self._gate.cache_partition())
        self._gate.sent()
        if claim is not None:
            # A new list: the output processor keeps the visible one.
            request.prompt_token_ids = [self._placeholder_id] * claim.num_tokens + request.prompt_token_ids
        await self._send_to_core(request)

    async def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Reset the prefix cache, which would refuse while blocks are pinned."""
        await self._let_go_of_blocks()
        return await super().reset_prefix_cache(*args, **kwargs)

    async def pause_generation(self, *args: Any, **kwargs: Any) -> None:
        """Pause, which by default resets the prefix cache."""
        await self._let_go_of_blocks()
        await super().pause_generation(*args, **kwargs)

    async def sleep(self, *args: Any, **kwargs: Any) -> None:
        """Go to sleep, which resets the prefix cache."""
        await self._let_go_of_blocks()
        await super().sleep(*args, **kwargs)

    async def release_kv_cache_memory(self) -> None:
        """Release the cache's memory, for which nothing in it may be held."""
        await self._let_go_of_blocks()
        await super().release_kv_cache_memory()

    async def _let_go_of_blocks(self) -> None:
        if self._pinned_names:
            # The only call that reaches the connector there. That the cache itself may not be reset yet is
            # what comes next.
            await super().reset_prefix_cache(False, True)

    async def encode(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Run a pooling request, which no patch can reach.

        Raises:
            UnsupportedWithPatch: the request selected a patch.
        """
        assert self._gate is not None, "bind_gate was not called"
        self._gate.refuse_if_patched("a pooling request")
        async for output in super().encode(*args, **kwargs):
            yield output


def num_new_tokens(output: RequestOutput) -> int:
    """Return how many tokens an output brings, over all its answers."""
    answers = output.outputs
    if len(answers) == 1:
        return len(answers[0].token_ids)
    return sum(len(answer.token_ids) for answer in answers)


def note(meter: "Meter", output: RequestOutput, num_tokens: int) -> None:
    """Count what an output holds; in one that is the first and the last, the engine says when tokens came."""
    if meter.token_s is None and num_tokens:
        meter.prompt(len(output.prompt_token_ids or ()))
        if output.finished and output.metrics is not None:
            meter.all_tokens(num_tokens, len(output.outputs), output.metrics)
            return
    meter.tokens(num_tokens)


def _take_outcome(lease: "Lease", output: RequestOutput) -> None:
    outcome = Outcome.from_params(output.kv_transfer_params)
    if outcome is not None:
        # Scores are no business of clients, who could climb them.
        output.kv_transfer_params = None
        lease.decided(is_met=outcome.is_met, margin=outcome.margin)


def vector_claim(patch: "SelectedPatch") -> VectorClaim | None:
    """Return what a patch claims for the vector that acts on its requests; None where none does."""
    vector = patch.vector
    if vector is None:
        return None
    body = vector.manifest.body
    assert isinstance(body, SteeringBody)
    return VectorClaim(vector.digest, body.steering.tokens == "answer", body.condition is not None)


def end_calls(calls: Mapping[int, Future[Any]]) -> None:
    """Make calls to a dead engine fail: call id -> the answer that is waited for."""
    for answer in calls.values():
        if not answer.done():
            answer.set_exception(EngineDeadError())


def refuse_reserved_parameters(sampling_params: SamplingParams) -> None:
    """Refuse callers' ``kv_transfer_params``: they would speak to the connector in our name.

    Raises:
        VLLMValidationError: the request carries some, directly or through ``vllm_xargs``.
    """
    extra_args = getattr(sampling_params, "extra_args", None)
    if extra_args and extra_args.get("kv_transfer_params") is not None:
        raise VLLMValidationError(
            "kv_transfer_params: this server keeps them for policy patches; leave them out",
            parameter="kv_transfer_params",
        )


def refuse_beams(request_id: str, patch: "SelectedPatch", claim: VectorClaim | None) -> None:
    """Refuse a step of a beam search, where the patch has to know which tokens are the answer's.

    vLLM sends each step as a request of its own whose prompt ends with the tokens chosen so far: a vector
    that acts on the answer would act on the last of them only, and a condition would be decided anew.

    Raises:
        UnsupportedWithPatch: such a patch acts on the request.
    """
    if claim is not None and claim.from_answer and _BEAM.search(request_id):
        raise UnsupportedWithPatch(
            f"{patch.reference} acts on the answer's tokens, which beam search sends as prompts; "
            f"leave use_beam_search out, or send {PATCH_HEADER}: none"
        )


def refuse_unsupported(prompt: Any, sampling_params: SamplingParams) -> None:
    """Refuse what a patch cannot be combined with, before anything is scheduled.

    Raises:
        UnsupportedWithPatch: realtime input, images or audio, prompt embeddings, or prompt logprobs.
    """
    if not isinstance(prompt, dict) or prompt.get("type") != "token":
        kind = prompt.get("type", "untokenized") if isinstance(prompt, dict) else "streaming"
        raise UnsupportedWithPatch(f"a policy patch works with text prompts, not with {kind} input")
    if sampling_params.prompt_logprobs is not None or sampling_params.prompt_logprob_token_ids is not None:
        raise UnsupportedWithPatch(
            "prompt_logprobs (and echo with logprobs) cannot be combined with a policy patch; leave it out "
            f"or send {PATCH_HEADER}: none"
        )
