"""Vectors at work in a transformers model: the arithmetic, each architecture, and rows of one batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from patches.errors import ModelUnusable
from patches.kinds.condition import Condition, Probe
from patches.kinds.steering import Steering
from patches.steer.arithmetic import steer
from patches.steer.batch import SteeredBatch, SteeredRow, steered
from patches.steer.network import ARCHITECTURES
from patches.steer.vector import Vector, acting_layers

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "initializer_range": 0.3,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS: dict[str, Callable[..., PretrainedConfig]] = {
    "Gemma2ForCausalLM": Gemma2Config,
    "Gemma3ForCausalLM": Gemma3TextConfig,
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}
PAPER = Steering("residual", "absolute", 2.0)
CODE = Steering("mlp", "relative", 0.5, opposed_gain=1)
PLAIN = Steering("residual", "relative", 0.4, renormalise=False)
FORMS = {"paper": PAPER, "code": CODE, "plain": PLAIN}
PROMPT = [5, 9, 13, 21, 34, 55]


def network_of(architecture: str) -> Any:
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(CONFIGS[architecture](**SIZES), dtype=torch.float32).eval()
    assert type(network).__name__ == architecture
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def llama() -> Any:
    return network_of("LlamaForCausalLM")


def vector(steering: Steering, seed: int = 0, **more: Any) -> Vector:
    drawn = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    values = drawn / drawn.norm(dim=1, keepdim=True)
    if "condition" in more:
        values[: more["condition"].last_layer + 1] = 0
    return Vector(steering, values, acting_layers(values), **more)


def logits_of(network: Any, ids: list[int], row: SteeredRow | None = None) -> torch.Tensor:
    with torch.no_grad(), steered(network, [row]):
        logits: torch.Tensor = network(torch.tensor([ids])).logits[0]
    return logits


def test_every_architecture_that_may_be_steered_is_tried_here() -> None:
    assert set(CONFIGS) == ARCHITECTURES


def test_the_arithmetic_is_the_one_derived_by_hand() -> None:
    x, v = torch.tensor([[3.0, 4.0], [-3.0, 4.0]]), torch.tensor([1.0, 0.0])
    relative = Steering("residual", "relative", 0.2, renormalise=False)
    torch.testing.assert_close(steer(x, v, relative), torch.tensor([[4.0, 4.0], [-2.0, 4.0]]))
    kept = steer(x, v, replace(relative, renormalise=True))
    torch.testing.assert_close(kept[0], torch.tensor([4.0, 4.0]) * 5 / 32**0.5)
    # -cos of the second row is 3/5: it moves by 1 + 0.6, the first, which points along v, by 1.
    opposed = steer(x, v, replace(relative, opposed_gain=1))
    torch.testing.assert_close(opposed, torch.tensor([[4.0, 4.0], [-1.4, 4.0]]))
    absolute = steer(x, v * 2, Steering("residual", "absolute", 0.5, renormalise=False))
    torch.testing.assert_close(absolute, torch.tensor([[4.0, 4.0], [-2.0, 4.0]]))


def test_a_state_of_zeros_stays_a_number() -> None:
    for form in FORMS.values():
        assert bool(torch.isfinite(steer(torch.zeros(1, 4), torch.eye(4)[0], form)).all())


def test_states_in_bfloat16_are_rounded_once() -> None:
    x = torch.randn(5, 16).bfloat16()
    v = torch.randn(16)
    assert torch.equal(steer(x, v, CODE), steer(x.float(), v, CODE).bfloat16())


def test_gradients_reach_the_vector() -> None:
    x, v = torch.randn(3, 4), torch.randn(4, requires_grad=True)
    (gradient,) = torch.autograd.grad(steer(x, v, CODE).sum(), v)
    assert bool(gradient.abs().sum() > 0)


def plain_logits(network: Any, ids: list[int], acting: Vector, first: int) -> torch.Tensor:
    """The same by another way: the weights' own modules are wrapped, every token of an index is changed."""
    layers = network.get_decoder().layers

    def wrap(module: Any, row: torch.Tensor) -> Any:
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
            states = own(*args, **kwargs)
            return torch.cat([states[:, :first], steer(states[:, first:], row, acting.steering)], 1)

        return forward

    modules = [layer.mlp if acting.steering.site == "mlp" else layer for layer in layers]
    for module, row in zip(modules, acting.values, strict=True):
        module.forward = wrap(module, row)
    try:
        with torch.no_grad():
            logits: torch.Tensor = network(torch.tensor([ids])).logits[0]
    finally:
        for module in modules:
            del module.forward
    return logits


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_each_architecture_is_steered_where_its_layers_end(architecture: str, form: str) -> None:
    network, acting = network_of(architecture), vector(FORMS[form])
    steered_logits = logits_of(network, PROMPT, SteeredRow(acting, len(PROMPT)))
    assert torch.equal(steered_logits, plain_logits(network, PROMPT, acting, 0))
    assert not torch.allclose(steered_logits, logits_of(network, PROMPT), atol=0.1)


def test_another_architecture_is_refused_by_name() -> None:
    network = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    with (
        pytest.raises(ModelUnusable, match=r"can be steered in Gemma2.*; got GPT2LMHeadModel"),
        steered(network, [None]),
    ):
        pass


def test_answer_tokens_begin_with_the_last_one_of_the_prompt(llama: Any) -> None:
    acting = vector(replace(PAPER, tokens="answer"))
    ids = [*PROMPT, 7, 8]
    got = logits_of(llama, ids, SteeredRow(acting, len(PROMPT)))
    assert torch.equal(got, plain_logits(llama, ids, acting, len(PROMPT) - 1))
    assert torch.equal(got[: len(PROMPT) - 1], logits_of(llama, ids)[: len(PROMPT) - 1])


def test_a_layer_without_a_row_is_left_alone() -> None:
    network, values = network_of("LlamaForCausalLM"), vector(PAPER).values.clone()
    values[[0, 2]] = 0
    acting = Vector(PAPER, values, acting_layers(values))
    assert acting.layers == {1, 3}
    seen: list[torch.Tensor] = []
    for layer in network.get_decoder().layers[1:3]:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits_of(network, PROMPT)
    logits_of(network, PROMPT, SteeredRow(acting, len(PROMPT)))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[1], seen[3])


def test_the_model_is_itself_again_behind_the_context(llama: Any) -> None:
    before = logits_of(llama, PROMPT)
    logits_of(llama, PROMPT, SteeredRow(vector(PAPER), len(PROMPT)))
    assert torch.equal(logits_of(llama, PROMPT), before)


def answers(
    network: Any, prompts: list[list[int]], rows: list[SteeredRow | None]
) -> tuple[Any, SteeredBatch]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad(), steered(network, rows) as batch:
        output = network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )
    return torch.stack(output.logits, 1), batch


PROMPTS = [PROMPT, [3, 4], [11, 12, 13, 14], [11, 12, 13, 14]]


def test_rows_of_a_padded_batch_are_steered_each_by_its_own_vector(llama: Any) -> None:
    a, b = vector(PAPER), vector(replace(CODE, tokens="answer"), seed=1)
    rows = [SteeredRow(a, 6), SteeredRow(b, 2), None, SteeredRow(a, 4)]
    together, batch = answers(llama, PROMPTS, rows)
    for index, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        alone, _ = answers(llama, [prompt], [row])
        torch.testing.assert_close(together[index], alone[0], atol=2e-4, rtol=2e-4)
    # Prompt and answer, but for the last token, which is not read; of the answer the last prompt token too.
    assert batch.num_steered == [6 + 5, 1 + 5, 0, 4 + 5]


def test_rows_without_a_vector_are_the_models_own_to_the_last_bit(llama: Any) -> None:
    plain, _ = answers(llama, PROMPTS, [None] * 4)
    mixed, _ = answers(llama, PROMPTS, [SteeredRow(vector(PAPER), 6), None, None, None])
    assert torch.equal(plain[1:], mixed[1:])
    assert not torch.equal(plain[0], mixed[0])


def kv_of(network: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return network(torch.tensor([ids]), use_cache=True).past_key_values


@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_behind_a_prefix_only_what_follows_it_is_steered(llama: Any, tokens: str) -> None:
    acting, prefix = vector(replace(PAPER, tokens=tokens)), [40, 41, 42]
    first = 3 if tokens == "all" else 3 + len(PROMPT) - 1
    whole = plain_logits(llama, [*prefix, *PROMPT, 7], acting, first)
    row = SteeredRow(acting, 3 + len(PROMPT), num_prefix=3)
    with torch.no_grad(), steered(llama, [row]):
        got = llama(torch.tensor([[*PROMPT, 7]]), past_key_values=kv_of(llama, prefix)).logits[0]
    torch.testing.assert_close(got, whole[3:], atol=1e-4, rtol=1e-4)


CONDITION = Condition((Probe((0, 1), "mean", -0.5, 0.0), Probe((1,), "last", 0.25, 0.0)))
#: The same, and a probe of the last three tokens.
THREE = replace(CONDITION, probes=(*CONDITION.probes, Probe((0,), "last", 0.0, 0.0, 3)))
PROBES = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
ANSWER = replace(PAPER, tokens="answer")


def scores_by_hand(network: Any, ids: list[int], num_prefix: int = 0) -> tuple[float, ...]:
    with torch.no_grad():
        states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
    of_tokens = states[1][0] @ PROBES[0] + states[2][0] @ PROBES[1]
    last = (states[1][0, num_prefix:] @ PROBES[3])[-3:]
    scores = (float(of_tokens[num_prefix:].mean()) - 0.5, float(states[2][0, -1] @ PROBES[2]) + 0.25)
    return (*scores, float(last.mean()))


def conditional(condition: Condition) -> Vector:
    return vector(ANSWER, condition=condition, probes=PROBES[: condition.num_rows])


def bounded(low: float, high: float, combine: str = "any", shadow: bool = False) -> Condition:
    first, second = CONDITION.probes
    return Condition((replace(first, threshold=low), replace(second, threshold=high)), combine, shadow)


def test_scores_are_those_of_the_prompts_tokens(llama: Any) -> None:
    rows: list[SteeredRow | None] = [SteeredRow(conditional(THREE), len(p)) for p in PROMPTS]
    _, batch = answers(llama, PROMPTS, rows)
    for prompt, scoring in zip(PROMPTS, batch.scorings, strict=True):
        assert scoring is not None
        assert scoring.scores == pytest.approx(scores_by_hand(llama, prompt), abs=1e-4)


def test_scores_do_not_depend_on_how_the_prompt_is_read(llama: Any) -> None:
    row = SteeredRow(conditional(THREE), 3 + len(PROMPT), num_prefix=3)
    cache = kv_of(llama, [40, 41, 42])
    assert isinstance(cache, DynamicCache)
    with torch.no_grad(), steered(llama, [row]) as batch:
        for part in (PROMPT[:1], PROMPT[1:4], PROMPT[4:]):
            llama(torch.tensor([part]), past_key_values=cache)
    scoring = batch.scorings[0]
    assert scoring is not None
    assert scoring.scores == pytest.approx(scores_by_hand(llama, [40, 41, 42, *PROMPT], 3), abs=1e-4)


@pytest.mark.parametrize(
    ("low", "high", "combine", "is_met"),
    [(-99, 99, "any", True), (99, 99, "any", False), (-99, 99, "all", False), (-99, -99, "all", True)],
)
def test_a_condition_decides_as_it_says(
    llama: Any, low: float, high: float, combine: str, is_met: bool
) -> None:
    acting = conditional(bounded(low, high, combine))
    got, batch = answers(llama, [PROMPT], [SteeredRow(acting, len(PROMPT))])
    plain, _ = answers(llama, [PROMPT], [None])
    always, _ = answers(llama, [PROMPT], [SteeredRow(replace(acting, condition=None), len(PROMPT))])
    scoring = batch.scorings[0]
    assert scoring is not None
    assert scoring.is_met is is_met
    assert torch.equal(got, always if is_met else plain)
    assert batch.num_steered == [6 if is_met else 0]


def test_a_shadow_condition_is_scored_and_steers_nothing(llama: Any) -> None:
    acting = conditional(bounded(-99, -99, shadow=True))
    got, batch = answers(llama, [PROMPT], [SteeredRow(acting, len(PROMPT))])
    plain, _ = answers(llama, [PROMPT], [None])
    scoring = batch.scorings[0]
    assert scoring is not None
    assert scoring.is_met
    assert torch.equal(got, plain)
