"""Running the frozen model behind a prefix, over a batch of prompts and answers.

The prefix is given as K/V, computed once for the whole batch, as a server does it: its positions are no
part of the batch, have no logits, and so can't reach a loss. What all rows begin with joins it. Rows are
padded on the right, so that every token has the position that it has in a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.train.data import Sample

#: Per layer: keys and values, each ``[1, H_kv, N, D]``.
PrefixKv = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Batch:
    """Prompts with their answers, padded on the right; all ``[B, T]`` on one device."""

    input_ids: torch.Tensor
    #: 1 where there is a token.
    attention_mask: torch.Tensor
    #: True where the token belongs to the answer.
    answer_mask: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())


@dataclass(frozen=True)
class AnswerLogits:
    """What the model says where an answer's token comes next."""

    #: ``[B, K, V]``, K the positions before any row's answer token.
    logits: torch.Tensor
    #: ``[B, K]``, the token that comes.
    labels: torch.Tensor
    #: ``[B, K]``, true where it belongs to the answer.
    mask: torch.Tensor


def collate(samples: Sequence[Sample], device: torch.device | str) -> Batch:
    """Put samples into one batch."""
    lengths = [len(sample.prompt_ids) + len(sample.answer_ids) for sample in samples]
    ids = torch.zeros(len(samples), max(lengths), dtype=torch.long)
    attention, answer = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        ids[row, :length] = torch.tensor(sample.prompt_ids + sample.answer_ids)
        attention[row, :length] = 1
        answer[row, len(sample.prompt_ids) : length] = True
    return Batch(ids.to(device), attention.to(device), answer.to(device))


def answer_logits(network: Any, kv: PrefixKv | None, batch: Batch) -> AnswerLogits:
    """Run the model and keep the logits that predict answers.

    Args:
        network: The frozen model.
        kv: The prefix; gradients flow into it where it has them. ``None`` runs the model as it is.
        batch: What to read. Each prompt has at least one token.
    """
    kv, batch = _with_shared_head(network, kv, batch)
    num_rows = batch.input_ids.shape[0]
    # The logits at one position are about the token at the next.
    positions = batch.answer_mask.any(0).nonzero()[:, 0] - 1
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if kv is not None:
        num_prefix = kv[0][0].shape[2]
        seen = batch.attention_mask.new_ones(num_rows, num_prefix)
        inputs["attention_mask"] = torch.cat([seen, batch.attention_mask], dim=1)
        inputs["past_key_values"] = _cache_of(kv, num_rows)
    output = network(**inputs, use_cache=kv is not None, logits_to_keep=positions)
    return AnswerLogits(output.logits, batch.input_ids[:, positions + 1], batch.answer_mask[:, positions + 1])


def prefix_kv(network: Any, embeddings: torch.Tensor) -> PrefixKv:
    """Compute the K/V of embeddings at positions 0 … N-1, differentiably.

    Args:
        network: The frozen model.
        embeddings: ``[N, hidden_size]``, cast to the model's dtype.
    """
    from transformers import DynamicCache

    weight = network.get_input_embeddings().weight
    cache = DynamicCache()
    network.get_decoder()(
        inputs_embeds=embeddings.to(device=weight.device, dtype=weight.dtype)[None],
        past_key_values=cache,
        use_cache=True,
    )
    return [(layer.keys, layer.values) for layer in cache.layers]


def _with_shared_head(network: Any, kv: PrefixKv | None, batch: Batch) -> tuple[PrefixKv | None, Batch]:
    """Move what all rows begin with, such as a system message, into the K/V: read once, not B times."""
    differs = (batch.input_ids != batch.input_ids[:1]).any(0) | batch.answer_mask.any(0)
    # At least one token of a prompt stays: its logits predict the answer's first one.
    num_shared = int(differs.int().argmax()) - 1
    if batch.input_ids.shape[0] == 1 or num_shared < 1:
        return kv, batch
    from transformers import DynamicCache

    cache = DynamicCache() if kv is None else _cache_of(kv, 1)
    network.get_decoder()(input_ids=batch.input_ids[:1, :num_shared], past_key_values=cache, use_cache=True)
    rest = Batch(
        batch.input_ids[:, num_shared:],
        batch.attention_mask[:, num_shared:],
        batch.answer_mask[:, num_shared:],
    )
    return [(layer.keys, layer.values) for layer in cache.layers], rest


def _cache_of(kv: PrefixKv, num_rows: int) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer_idx, (keys, values) in enumerate(kv):
        # [1, H, N, D] -> [B, H, N, D] without a copy.
        cache.update(keys.expand(num_rows, -1, -1, -1), values.expand(num_rows, -1, -1, -1), layer_idx)
    return cache
