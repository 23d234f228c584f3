"""What the engine client refuses and fits, without an engine."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput, WeightVersionSpan
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from patches.kinds.steering import Steering, SteeringBody
from patches.manifest import Manifest
from server.engine.client import (
    PatchedAsyncLLM,
    refuse_beams,
    refuse_reserved_parameters,
    refuse_unsupported,
    vector_claim,
)
from server.engine.context_length import fitting_max_tokens
from server.engine.placeholder import placeholder_token_id
from server.errors import PatchNotApplied, UnsupportedWithPatch
from server.request.gate import PatchGate
from server.versions.view import ServedPatch
from tests.tiny_model import BASE_MODEL

TOKENS = {"type": "token", "prompt_token_ids": [1, 2, 3]}


def test_the_space_that_vllm_fills_in_shrinks_by_the_prefix() -> None:
    assert fitting_max_tokens(None, 100, 48, 1000) == 852
    assert fitting_max_tokens(900, 100, 48, 1000) == 852


def test_a_callers_own_max_tokens_stays_where_it_fits() -> None:
    assert fitting_max_tokens(852, 100, 48, 1000) == 852
    assert fitting_max_tokens(1, 100, 48, 1000) == 1


def test_a_callers_own_max_tokens_beyond_the_context_is_cut_to_it() -> None:
    assert fitting_max_tokens(853, 100, 48, 1000) == 852
    assert fitting_max_tokens(5000, 100, 48, 1000) == 852


@pytest.mark.parametrize("num_prompt_tokens", [952, 953, 1000])
def test_a_prompt_that_leaves_no_room_is_refused(num_prompt_tokens: int) -> None:
    with pytest.raises(UnsupportedWithPatch, match="too long for this policy patch"):
        fitting_max_tokens(None, num_prompt_tokens, 48, 1000)


def test_a_prompt_that_leaves_one_token_is_served() -> None:
    assert fitting_max_tokens(None, 951, 48, 1000) == 1


@pytest.mark.parametrize("extra", [{"policy_patch": ["sha256:00", 3]}, {"do_remote_prefill": True}, {}])
def test_callers_kv_transfer_params_are_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(VLLMValidationError, match="kv_transfer_params"):
        refuse_reserved_parameters(SamplingParams(extra_args={"kv_transfer_params": extra}))


def test_other_extra_arguments_pass() -> None:
    refuse_reserved_parameters(SamplingParams(extra_args={"something": 1}))
    refuse_reserved_parameters(SamplingParams())


async def _stream() -> Any:
    yield {}


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ({"type": "embeds", "prompt_embeds": None}, {}, "embeds input"),
        ({"type": "multimodal", "prompt_token_ids": [1]}, {}, "multimodal input"),
        (_stream(), {}, "streaming input"),
        (TOKENS, {"prompt_logprobs": 0}, "prompt_logprobs"),
    ],
    ids=["embeds", "multimodal", "realtime", "prompt-logprobs"],
)
def test_what_a_patch_cannot_be_combined_with_is_refused(
    prompt: Any, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedWithPatch, match=message):
        refuse_unsupported(prompt, SamplingParams(**params))


def test_text_prompts_pass() -> None:
    refuse_unsupported(TOKENS, SamplingParams(logprobs=5, n=3))


class _Tokenizer:
    def __init__(self, size: int, **ids: int | None) -> None:
        self._size = size
        self.bos_token_id = ids.get("bos")
        self.eos_token_id = ids.get("eos")
        self.pad_token_id = ids.get("pad")
        self.unk_token_id = ids.get("unk")

    def __len__(self) -> int:
        return self._size


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (_Tokenizer(90, bos=1, eos=2), 99),
        (_Tokenizer(100, bos=1, eos=2), 1),
        (_Tokenizer(100, bos=2, eos=2, pad=7), 7),
        (_Tokenizer(100, bos=2, eos=2, pad=2, unk=5), 5),
        (_Tokenizer(100, eos=0), 0),
        (None, 0),
    ],
    ids=["unused-entry", "bos", "pad", "unk", "nothing", "no-tokenizer"],
)
def test_the_placeholder_is_an_id_whose_logit_does_not_matter(tokenizer: Any, expected: int) -> None:
    assert placeholder_token_id(SimpleNamespace(get_vocab_size=lambda: 100), tokenizer) == expected


class Headless(PatchedAsyncLLM):
    """A client whose engine core has never been started."""

    def __init__(self, calls: dict[int, asyncio.Future[Any]]) -> None:
        self.output_handler = None
        self.engine_core = SimpleNamespace(utility_results=calls)

    def shutdown(self, timeout: float | None = None) -> None:
        """There is nothing to end."""


async def test_calls_to_workers_fail_where_the_engine_core_says_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    answered, waiting, outputs = loop.create_future(), loop.create_future(), loop.create_future()
    answered.set_result([1])

    def read_outputs(engine: AsyncLLM) -> None:
        engine.output_handler = asyncio.ensure_future(outputs)

    monkeypatch.setattr(AsyncLLM, "_run_output_handler", read_outputs)
    Headless({1: answered, 2: waiting})._run_output_handler()
    assert not waiting.done()
    outputs.set_result(None)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(waiting, 10)
    assert answered.result() == [1]


def steering_of(tokens: str) -> ServedPatch:
    body = SteeringBody(Steering("residual", "relative", 0.1, tokens=tokens))
    manifest = Manifest("safe", "1.0.0", BASE_MODEL, body, {"method": "icv"})
    return ServedPatch.of(manifest, "sha256:" + "d" * 64, 8)


@pytest.mark.parametrize("request_id", ["cmpl-1-0-beam-0", "chatcmpl-beam-12"])
def test_a_vector_that_acts_on_the_answer_refuses_the_steps_of_a_beam_search(request_id: str) -> None:
    """Each step's prompt ends with answer tokens, which would go unsteered."""
    answer, every = steering_of("answer"), steering_of("all")
    with pytest.raises(UnsupportedWithPatch, match=r"safe@1\.0\.0 acts on the answer's tokens"):
        refuse_beams(request_id, answer, vector_claim(answer))
    refuse_beams(request_id, every, vector_claim(every))
    refuse_beams(f"{request_id}-0", answer, vector_claim(answer))


@pytest.mark.parametrize(
    ("weights", "versions", "is_whole"),
    [
        ((None,), ["default"], True),
        (("a",), ["a"], True),
        (("a",), ["default", "a"], False),
        (("a",), ["b"], False),
        ((None,), ["a"], False),
        (None, ["a", "b"], True),
    ],
    ids=["own", "patch", "mixed", "another", "not-own", "weights-never-change"],
)
def test_an_answer_of_other_weights_than_its_request_entered_under_is_withheld(
    weights: tuple[str | None] | None, versions: list[str], is_whole: bool
) -> None:
    client = PatchedAsyncLLM.__new__(PatchedAsyncLLM)
    client._gate = cast(PatchGate, SimpleNamespace(weights=lambda: weights, reject=lambda error: error))
    spans = [WeightVersionSpan(version, i, i + 1) for i, version in enumerate(versions)]
    output = cast(RequestOutput, SimpleNamespace(outputs=[SimpleNamespace(weight_versions=spans)]))
    if is_whole:
        client._require_one_set_of_weights(output)
    else:
        with pytest.raises(PatchNotApplied, match="from the first token to the last"):
            client._require_one_set_of_weights(output)
