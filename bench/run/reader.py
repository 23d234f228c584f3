"""A model in this process, in transformers, that reads prompts behind prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.model import LoadedModel


@dataclass(frozen=True)
class Batch:
    """Prompts as token ids, padded on the left: ``[B, S]`` each."""

    ids: torch.Tensor
    mask: torch.Tensor

    def followed_by(self, ids: torch.Tensor) -> "Batch":
        """Append ``[B, T]`` tokens."""
        return Batch(torch.cat([self.ids, ids], dim=1), torch.cat([self.mask, torch.ones_like(ids)], dim=1))


class Reader:
    """A model that reads behind prefixes."""

    def __init__(self, model: LoadedModel) -> None:
        self._network = model.network
        self._tokenizer = model.tokenizer

    def batch(self, prompts: Sequence[str]) -> Batch:
        """Render each prompt as a chat of one user message."""
        texts = [
            self._tokenizer.apply_chat_template(  # type: ignore[union-attr]
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        rows = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]  # type: ignore[misc]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        return Batch(ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]))

    @torch.no_grad()
    def logits(self, kv: torch.Tensor | None, batch: Batch, num_last: int, cache: Any = None) -> torch.Tensor:
        """Return ``[B, num_last, V]`` float32 logits at the last positions.

        Args:
            kv: ``[L, 2, N, H_kv, D]``, what lies in front; None for nothing.
            batch: everything behind it; where ``cache`` holds a part already, only the last token is read.
            num_last: how many positions.
            cache: from ``cache_of``, to be continued; a fresh one where None.
        """
        num_prefix = 0 if kv is None else kv.shape[2]
        positions = (num_prefix + batch.mask.cumsum(1) - 1).clamp(min=0)
        ids = batch.ids
        if cache is None:
            cache = self.cache_of(kv, len(ids))
        num_read = cache.get_seq_length() - num_prefix
        front = torch.ones(len(ids), num_prefix, dtype=torch.long)
        output = self._network(
            ids[:, num_read:],
            attention_mask=torch.cat([front, batch.mask], dim=1),
            position_ids=positions[:, num_read:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=num_last,
        )
        logits: torch.Tensor = output.logits.float()
        return logits

    def cache_of(self, kv: torch.Tensor | None, batch_size: int) -> Any:
        """Return a cache that holds ``kv`` for each row of a batch."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for row, layer in enumerate(() if kv is None else kv.transpose(2, 3)):
            key, value = (side.expand(batch_size, -1, -1, -1).contiguous() for side in layer)
            cache.update(key, value, row)
        return cache

    def greedy(self, kv: torch.Tensor | None, batch: Batch, num_tokens: int) -> torch.Tensor:
        """Return ``[B, num_tokens]`` ids; answers go on behind their end, alike for every way."""
        cache = self.cache_of(kv, len(batch.ids))
        chosen = []
        for _ in range(num_tokens):
            chosen.append(self.logits(kv, batch, 1, cache)[:, -1].argmax(dim=-1, keepdim=True))
            batch = batch.followed_by(chosen[-1])
        return torch.cat(chosen, dim=1)
