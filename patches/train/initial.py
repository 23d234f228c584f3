"""What a prefix starts as.

``tile`` repeats the embeddings of a policy text until N rows are filled, ``pool`` takes the means of N even
stretches of it, ``system`` is the text as the system message that a compiled patch is, lengthened with line
breaks or shortened to N tokens, and ``random`` draws rows as wide as the model's own embeddings, for
ablation.
"""

from dataclasses import replace
from typing import Any

import torch

from patches.compile import compile_embeddings
from patches.errors import TrainingError
from patches.fingerprint import require_same_base_model
from patches.format import Patch
from patches.model import LoadedModel
from patches.rendering import RenderedText, filler_token_id, pad, render_raw, render_system
from patches.train.config import TrainConfig


def initial_values(network: Any, tokenizer: Any, config: TrainConfig, text: str | None) -> torch.Tensor:
    """Return the start values.

    Args:
        network: The frozen model.
        tokenizer: Its tokenizer.
        config: Kind, start, N and seed.
        text: The policy text; ``random`` needs none.

    Returns:
        ``[N, hidden_size]``, or ``[L, 2, N, H_kv, D]`` for the kind ``prefix``; float32.

    Raises:
        TrainingError: The start needs a text that is not there.
        CompileError: The text has no tokens, or can't be a system message.
    """
    rows = _rows(network, tokenizer, config, text)
    return rows if config.kind == "prompt" else compile_embeddings(network, rows).float()


def values_of_patch(patch: Patch, model: LoadedModel, config: TrainConfig) -> torch.Tensor:
    """Return the start values of a run that continues from a patch, such as the version before.

    Raises:
        BaseModelMismatch: It belongs to another model.
        TrainingError: It holds no values of the kind that is learned, or another number of tokens.
    """
    # The dtype it is served in does not matter here.
    own = replace(patch.manifest.base_model, dtype=model.base_model.dtype)
    require_same_base_model(own, model.base_model)
    values = patch.embeddings if config.kind == "prompt" else patch.kv
    if values is None:
        raise TrainingError(f"init_patch: holds no values of kind {config.kind}; choose the kind that it has")
    own_n, n = patch.manifest.num_virtual_tokens, config.num_virtual_tokens
    if own_n != n:
        raise TrainingError(f"init_patch: has {own_n} tokens, expected {n}; train with as many as it has")
    return values.float().clone()


def _rows(network: Any, tokenizer: Any, config: TrainConfig, text: str | None) -> torch.Tensor:
    weight = network.get_input_embeddings().weight
    n = config.num_virtual_tokens
    if config.init == "random":
        generator = torch.Generator().manual_seed(config.seed)
        drawn: torch.Tensor = (
            torch.randn(n, weight.shape[1], generator=generator) * weight.float().std().cpu()
        )
        return drawn
    if text is None or not text.strip():
        raise TrainingError(f"init: {config.init} needs a policy text; give one, or choose random")
    if config.init == "system":
        ids = _resized(tokenizer, render_system(tokenizer, text), n).token_ids
    else:
        ids = render_raw(tokenizer, text.strip()).token_ids
    with torch.no_grad():
        rows = network.get_input_embeddings()(torch.tensor(ids, device=weight.device)).float().cpu()
    if config.init == "pool":
        return _pooled(rows, n)
    tiled: torch.Tensor = rows.repeat(-(-n // len(rows)), 1)[:n]
    return tiled


def _pooled(rows: torch.Tensor, n: int) -> torch.Tensor:
    if len(rows) < n:
        raise TrainingError(f"init: pool needs a text of at least {n} tokens, got {len(rows)}; choose tile")
    # torch.tensor_split differs in length by one at most, and leaves no part empty.
    return torch.stack([part.mean(0) for part in rows.tensor_split(n)])


def _resized(tokenizer: Any, rendered: RenderedText, n: int) -> RenderedText:
    if len(rendered.token_ids) <= n:
        return pad(rendered, n, filler_token_id(tokenizer))
    ids, closing = rendered.token_ids, rendered.num_closing
    if closing >= n:
        raise TrainingError(f"init: the end of a system message has {closing} tokens, the prefix only {n}")
    return RenderedText(ids[: n - closing] + ids[len(ids) - closing :], closing)
