"""K/V laid side by side are those that the model computes at those places, without reading each other."""

import pytest
import torch

from patches.compile import compile_embeddings
from patches.errors import ComposeError
from patches.join import join_kv, rotary_of_network
from patches.model import LoadedModel
from prefix_kernels import Rotary


@pytest.fixture
def rotary(tiny_model: LoadedModel) -> Rotary:
    return rotary_of_network(tiny_model.network, tiny_model.base_model.head_size)


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))


def kv_at(model: LoadedModel, embeddings: torch.Tensor, start: int) -> torch.Tensor:
    """Have the model compute K/V at positions that begin later: ``[L, 2, N, H_kv, D]``."""
    from transformers import DynamicCache

    cache = DynamicCache()
    positions = torch.arange(start, start + len(embeddings))[None]
    with torch.no_grad():
        model.network.get_decoder()(
            inputs_embeds=embeddings[None], position_ids=positions, past_key_values=cache, use_cache=True
        )
    return torch.stack([torch.stack([x.keys[0], x.values[0]]) for x in cache.layers]).transpose(2, 3)


def test_a_later_part_is_what_the_model_computes_at_its_place(
    tiny_model: LoadedModel, rotary: Rotary
) -> None:
    parts = [rows(3, 0), rows(2, 1), rows(4, 2)]
    joined = join_kv([compile_embeddings(tiny_model.network, part) for part in parts], rotary)
    expected = torch.cat(
        [kv_at(tiny_model, part, start) for part, start in zip(parts, (0, 3, 5), strict=True)], 2
    )
    assert torch.allclose(joined, expected, atol=1e-5)
    assert not torch.allclose(joined[:, 0, 3:5], kv_at(tiny_model, parts[1], 0)[:, 0], atol=1e-3)


def test_one_part_is_left_as_it_is(rotary: Rotary) -> None:
    kv = torch.randn(2, 2, 3, 2, 8)
    assert join_kv([kv], rotary) is kv


def test_a_later_part_learns(tiny_model: LoadedModel, rotary: Rotary) -> None:
    first, later = (compile_embeddings(tiny_model.network, rows(2, seed)) for seed in (0, 1))
    later.requires_grad_(True)
    join_kv([first, later], rotary)[:, :, 2:].square().sum().backward()  # type: ignore[no-untyped-call]
    assert later.grad is not None
    # A rotation keeps lengths, so the gradient of the squared length is twice the value.
    assert torch.allclose(later.grad.square().sum(), 4 * later.detach().square().sum(), rtol=1e-4)


def test_a_model_whose_keys_move_in_another_way_is_refused() -> None:
    class GPTNeoXForCausalLM:
        pass

    with pytest.raises(ComposeError, match="got GPTNeoXForCausalLM"):
        rotary_of_network(GPTNeoXForCausalLM(), 8)
