"""Running the frozen model behind a prefix, over prompts and their answers.

The prefix is given as K/V, computed once for all rows, as a server does it: its positions are not part of
what is read, have no logits, and so can't reach a loss. Rows are read as a trie: what several begin with,
such as the chat template's head or the prompt of two answers, is read once, and there is no padding. A mask
lets each token see its own row alone, and its position is the one that it has in a request.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.train.data import Sample

#: Per layer: keys and values, each ``[1, H_kv, N, D]``.
PrefixKv = Sequence[tuple[torch.Tensor, torch.Tensor]]

#: Tokens of one trie, unless a single row has more: attention's cost grows with its square.
_MAX_TRIE_TOKENS = 1024


@dataclass(frozen=True)
class Trie:
    """Rows as one sequence of T tokens that holds each common beginning once."""

    #: ``[T]``, token ids. The last token of a row predicts nothing and is not read.
    input_ids: torch.Tensor
    #: ``[T]``, places within the rows, from 0.
    positions: torch.Tensor
    #: ``[T, T]``, true where the second token is the first one or stands before it in a row.
    sees: torch.Tensor
    #: ``[K]``, for each token of an answer the index in ``input_ids`` of the one before it.
    predicted_at: torch.Tensor
    #: ``[K]``, the tokens of the answers, row after row.
    labels: torch.Tensor


@dataclass(frozen=True)
class AnswerLogits:
    """What the model says where an answer's token comes next; K is the tokens of all answers."""

    #: ``[K, V]``.
    logits: torch.Tensor
    #: ``[K]``, the token that comes.
    labels: torch.Tensor
    #: ``[K]``, the row whose answer it belongs to, in rising order.
    rows: torch.Tensor


def make_trie(samples: Sequence[Sample]) -> Trie:
    """Lay rows over each other. Each has at least one token of a prompt and one of an answer."""
    children: dict[tuple[int | None, int, bool], int] = {}
    parents: list[int | None] = []
    ids: list[int] = []
    predicted_at: list[int | None] = []
    labels: list[int] = []
    for sample in samples:
        place: int | None = None
        row = sample.prompt_ids + sample.answer_ids
        for position, token in enumerate(row):
            if position >= len(sample.prompt_ids):
                predicted_at.append(place)
                labels.append(token)
            if position == len(row) - 1:
                break
            # What one row answers with may be the prompt of another, and only an answer's tokens are steered.
            key = (place, token, position >= len(sample.prompt_ids) - 1)
            if key not in children:
                children[key] = len(ids)
                parents.append(place)
                ids.append(token)
            place = children[key]
    sees = torch.eye(len(ids), dtype=torch.bool)
    positions = torch.zeros(len(ids), dtype=torch.long)
    for place, parent in enumerate(parents):
        if parent is not None:
            sees[place] |= sees[parent]
            positions[place] = positions[parent] + 1
    return Trie(torch.tensor(ids), positions, sees, torch.tensor(predicted_at), torch.tensor(labels))


def answer_logits(network: Any, kv: PrefixKv | None, samples: Sequence[Sample]) -> AnswerLogits:
    """Run the model and keep the logits that predict answers.

    Args:
        network: The frozen model.
        kv: The prefix; gradients flow into it where it has them. ``None`` runs the model as it is.
        samples: What to read.
    """
    device = network.get_input_embeddings().weight.device
    tries = [make_trie(part) for part in _parts(samples)]
    logits = torch.cat([_trie_logits(network, kv, trie, device) for trie in tries])
    lengths = torch.tensor([len(sample.answer_ids) for sample in samples])
    rows = torch.arange(len(samples)).repeat_interleave(lengths)
    return AnswerLogits(logits, torch.cat([trie.labels for trie in tries]).to(device), rows.to(device))


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


def _parts(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    start = num_tokens = 0
    for end, sample in enumerate(samples):
        if end > start and num_tokens + len(sample) > _MAX_TRIE_TOKENS:
            yield samples[start:end]
            start, num_tokens = end, 0
        num_tokens += len(sample)
    yield samples[start:]


def _trie_logits(network: Any, kv: PrefixKv | None, trie: Trie, device: torch.device) -> torch.Tensor:
    num_prefix = 0 if kv is None else kv[0][0].shape[2]
    output = network(
        input_ids=trie.input_ids[None].to(device),
        position_ids=(trie.positions + num_prefix)[None].to(device),
        attention_mask=_attention_masks(network, trie, num_prefix, device),
        past_key_values=None if kv is None else _cache_of(kv),
        use_cache=kv is not None,
        logits_to_keep=trie.predicted_at.to(device),
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def _attention_masks(
    network: Any, trie: Trie, num_prefix: int, device: torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask ``[1, 1, T, N + T]`` that is added to attention's scores.

    A dict of two for models whose layers differ in it.
    """
    config, dtype = network.config.get_text_config(), network.get_input_embeddings().weight.dtype
    prefix = torch.ones(len(trie.positions), num_prefix, dtype=torch.bool)
    full = torch.cat([prefix, trie.sees], dim=1)
    window = getattr(config, "sliding_window", None)
    within = full
    if window is not None:
        keys = torch.cat([torch.arange(num_prefix), trie.positions + num_prefix])
        queries = trie.positions + num_prefix
        within = full & (queries[:, None] - keys < window)
    lowest = torch.finfo(dtype).min

    def added(mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, lowest)[None, None].to(device)

    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return added(within)
    return {kind: added(within if kind == "sliding_attention" else full) for kind in kinds}


def _cache_of(kv: PrefixKv) -> Any:
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer_idx, (keys, values) in enumerate(kv):
        cache.update(keys, values, layer_idx)
    return cache
