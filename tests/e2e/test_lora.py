"""LoRA adapters under a patch: the prefix is what the base model made of the policy, everything behind it is
the adapter's.

The reference is PEFT: the patch's K/V as `past_key_values`, the adapter active. The base model, two adapters
and two patches are asked in one batch, so K/V that one of them left in the prefix cache must not reach
another.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DynamicCache

from patches.format import Patch
from patches.model import load_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.server("own", why="`--enable-lora`"),
    pytest.mark.feature("LoRA adapter behind a patch"),
]

MAX_LOGPROB_GAP = 1e-4
NUM_TOKENS = 16
ADAPTERS = ("formal", "casual")
#: Less and more than a block of 32; the longer one is shared through the prefix cache.
LENGTHS = {"short": 11, "long": 70}
PROMPTS = [[300, 17, 4000], [100 + i for i in range(40)]]
#: (model, patch, prompt)
KEYS = [*itertools.product((None, *ADAPTERS), (None, *LENGTHS), range(len(PROMPTS)))]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        # Random instead of zero: an adapter that changes nothing would prove nothing.
        config = LoraConfig(
            r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False
        )
        folders[name] = tmp_path_factory.mktemp(name)
        get_peft_model(load_model(tiny_model, dtype="float32").network, config).save_pretrained(
            str(folders[name])
        )
    return folders


@pytest.fixture(scope="module")
def patches(tiny_patches: Any) -> dict[str, Patch]:
    return {name: tiny_patches.of_random_embeddings(name, n, seed=n) for name, n in LENGTHS.items()}


@pytest.fixture(scope="module")
def server(
    start_module_server: Any, tiny_model: Path, adapters: dict[str, Path], patches: dict[str, Patch]
) -> Iterator[Any]:
    modules = [f"{name}={folder}" for name, folder in adapters.items()]
    started = start_module_server(
        tiny_model,
        *("--dtype", "float32", "--max-model-len", "512"),
        # On CPUs, vLLM lets the base model's requests of a mixed batch read the last slot: it stays empty.
        *("--enable-lora", "--max-loras", "3", "--max-lora-rank", "8", "--lora-modules", *modules),
    )
    started.wait_ready()
    for patch in patches.values():
        started.install(patch)
    yield started
    assert started.terminate() == 0


def steps(network: Any, prompt: list[int], patch: Patch | None) -> tuple[list[int], torch.Tensor]:
    """Greedy ids and the log probabilities of each step, by transformers."""
    cache = DynamicCache()
    if patch is not None:
        assert patch.kv is not None
        for layer, (key, value) in enumerate(patch.kv.transpose(2, 3)):
            cache.update(key[None], value[None], layer)
    ids, logprobs, chosen = torch.tensor([prompt]), [], []
    for _ in range(NUM_TOKENS):
        with torch.no_grad():
            logits = network(input_ids=ids, past_key_values=cache, use_cache=True).logits[0, -1]
        logprobs.append(torch.log_softmax(logits.float(), dim=-1))
        chosen.append(int(logits.argmax()))
        ids = torch.tensor([chosen[-1:]])
    return chosen, torch.stack(logprobs)


@pytest.fixture(scope="module")
def expected(tiny_model: Path, adapters: dict[str, Path], patches: dict[str, Patch]) -> dict[Any, Any]:
    network: Any = load_model(tiny_model, dtype="float32").network
    answers = {}
    for model in (None, *ADAPTERS):
        if model == ADAPTERS[0]:
            network = PeftModel.from_pretrained(network, str(adapters[model]), adapter_name=model)
        elif model is not None:
            network.load_adapter(str(adapters[model]), adapter_name=model)
        if model is not None:
            network.set_adapter(model)
        network.eval()
        for name, i in itertools.product((None, *LENGTHS), range(len(PROMPTS))):
            answers[model, name, i] = steps(network, PROMPTS[i], patches[name] if name else None)
    return answers


def test_the_references_differ(expected: dict[Any, Any]) -> None:
    """Else a request that got the wrong adapter or patch could pass."""
    for i in range(len(PROMPTS)):
        first = [expected[key][1][0] for key in KEYS if key[2] == i]
        assert all(not torch.allclose(a, b, atol=0.01) for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize("round_name", ["cold", "warm"])
def test_an_adapter_behind_a_patch_answers_as_peft_behind_its_kv(
    server: Any, expected: dict[Any, Any], patches: dict[str, Patch], round_name: str
) -> None:
    requests = [
        {"prompt": PROMPTS[i], "patch": patch, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        | ({} if model is None else {"model": model})
        for model, patch, i in KEYS
    ]
    for key, answer in zip(KEYS, server.ask_together(requests), strict=True):
        token_ids, logprobs = expected[key]
        assert answer.token_ids == token_ids, (round_name, key)
        for step, likeliest in zip(logprobs, answer.logprobs, strict=True):
            assert all(abs(float(step[i]) - p) < MAX_LOGPROB_GAP for i, p in likeliest.items())
        assert answer.digest == (patches[key[1]].digest if key[1] else None)
        assert answer.num_prompt_tokens == len(PROMPTS[key[2]])


def test_each_adapter_keeps_blocks_of_its_own(server: Any) -> None:
    """The blocks of a patch are found again by the model that wrote them, and by no other."""
    for model in ("base", *ADAPTERS):
        written = server.metric("policy_patch_injected_tokens_total", patch="long")
        body = {"model": model, "max_tokens": 1, "cache_salt": "fresh"}
        server.ask(PROMPTS[0], patch="long", **body)
        assert server.metric("policy_patch_injected_tokens_total", patch="long") - written == LENGTHS["long"]
        server.ask(PROMPTS[0], patch="long", **body)
        # Two whole blocks of 32 are shared; the tail is written for each request.
        again = server.metric("policy_patch_injected_tokens_total", patch="long") - written
        assert again == LENGTHS["long"] + LENGTHS["long"] % 32
