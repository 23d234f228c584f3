"""From text, token ids or embeddings to a patch with K/V, computed by transformers.

The K/V of a prefix is what the model's own cache holds after reading the prefix's embeddings at positions 0
… N-1. It is computed in float64 and rounded once to the model's dtype, so that another machine gives the same
to a unit in the last place, and the same digest unless a value lies next to a rounding boundary. Equal input
on one machine gives an equal digest: the manifest holds no time, path or tool version.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from patches.canonical import JsonValue, canonical_json
from patches.errors import CompileError
from patches.fingerprint import canonical_rope
from patches.float64 import computing_in, widest_dtype
from patches.format import Patch, make_patch
from patches.kinds.prefix import MAX_NUM_VIRTUAL_TOKENS, PrefixBody
from patches.label import Label
from patches.model import LoadedModel
from patches.rendering import RenderedText, cut, filler_token_id, pad, render_raw, render_system

# Their rotation depends on the length of the whole sequence, which a prefix computed ahead can't know.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope", "su")


def compile_text(
    model: LoadedModel,
    text: str,
    label: Label,
    *,
    raw: bool = False,
    pad_to_multiple: int | None = None,
    cut_to_multiple: int | None = None,
    keep_text: bool = False,
) -> Patch:
    """Make a patch from policy text.

    Args:
        model: The base model, with a tokenizer.
        text: The policy.
        label: Name, version and notes.
        raw: Take the text as it is, not as a system message through the chat template.
        pad_to_multiple: Lengthen to a multiple of so many tokens with line breaks.
        cut_to_multiple: Shorten to a multiple of so many tokens.
        keep_text: Store the text in the manifest, for people to read.

    Raises:
        CompileError: The text can't become a prefix of this model.
        PatchFormatError: The label does not fit into a manifest.
    """
    if model.tokenizer is None:
        raise CompileError("model: has no tokenizer, so it can't read text")
    rendered = (render_raw if raw else render_system)(model.tokenizer, text)
    num_text_tokens = len(rendered.token_ids)
    rendered = _fitted(model.tokenizer, rendered, pad_to_multiple, cut_to_multiple)
    origin: dict[str, JsonValue] = {
        "method": "text",
        "rendering": "raw" if raw else "chat-template",
        "text_digest": _text_digest(text),
        "num_text_tokens": num_text_tokens,
    }
    if keep_text:
        origin["text"] = text
    return compile_token_ids(model, rendered.token_ids, label, origin=origin)


def compile_token_ids(
    model: LoadedModel,
    token_ids: Sequence[int],
    label: Label,
    *,
    origin: Mapping[str, JsonValue] | None = None,
) -> Patch:
    """Make a patch from token ids, in the place of which its prefix stands.

    Raises:
        CompileError: No ids, too many, or ids that the vocabulary does not have.
    """
    layer = model.network.get_input_embeddings()
    num_rows = layer.weight.shape[0]
    _check_length(model.network, len(token_ids))
    if any(not 0 <= token_id < num_rows for token_id in token_ids):
        raise CompileError(f"token_ids: expected ids from 0 to {num_rows - 1}")
    ids = torch.tensor([list(token_ids)], device=layer.weight.device)
    with torch.inference_mode():
        embeddings = layer(ids)[0]
    # Only a copy made outside of inference mode may later be trained on.
    embeddings = embeddings.clone()
    token_digest = _text_digest(canonical_json(list(token_ids)))
    return compile_patch(
        model, embeddings, label, {"method": "text", **(origin or {}), "token_ids_digest": token_digest}
    )


def compile_patch(
    model: LoadedModel, embeddings: torch.Tensor, label: Label, origin: Mapping[str, JsonValue]
) -> Patch:
    """Make a patch from embeddings.

    Args:
        model: The base model.
        embeddings: ``[N, hidden_size]``, the rows that take the place of token embeddings. They are kept in
            the model's dtype or in float32; any other float dtype becomes float32.
        label: Name, version and notes.
        origin: How the embeddings were made; see ``patches.format``.

    Raises:
        CompileError: The embeddings do not fit the model.
        PatchFormatError: The label or the origin does not fit into a manifest.
    """
    if embeddings.dtype != getattr(torch, model.base_model.dtype):
        embeddings = embeddings.float()
    kv = compile_embeddings(model.network, embeddings)
    manifest = label.manifest(model.base_model, PrefixBody(embeddings.shape[0]), origin)
    return make_patch(manifest, {"embeddings": embeddings, "kv": kv})


def compile_embeddings(network: Any, embeddings: torch.Tensor) -> torch.Tensor:
    """Compute the K/V of embeddings at positions 0 … N-1, in float64 whatever the model's dtype is.

    Args:
        network: A transformers causal language model in evaluation mode.
        embeddings: ``[N, hidden_size]``, any float dtype and device; rounded to the model's dtype first, as
            the model would read them.

    Returns:
        ``[L, 2, N, H_kv, D]`` rounded to the model's dtype, on the CPU, contiguous; keys after RoPE.
        Semantics: ``out[l, 0, i]`` is layer ``l``'s cached key of position ``i``, ``out[l, 1, i]`` its value.

    Raises:
        CompileError: Wrong shape, too long, or a kind of model whose cache can't be computed ahead.
    """
    from transformers import DynamicCache

    weight = network.get_input_embeddings().weight
    hidden_size = network.config.get_text_config().hidden_size
    if embeddings.dim() != 2 or embeddings.shape[1] != hidden_size:
        raise CompileError(f"embeddings: expected [N, {hidden_size}], got {list(embeddings.shape)}")
    _check_length(network, embeddings.shape[0])
    _require_prefix_can_be_computed(network.config)
    # Without a configuration the cache keeps every position, also in layers with a sliding window.
    cache = DynamicCache()
    decoder = network.get_decoder()
    # Not inference mode, whose tensors can't stand in for a module's weights.
    dtype = widest_dtype(weight.device)
    with torch.no_grad(), computing_in(decoder, dtype):
        decoder(
            inputs_embeds=embeddings.to(device=weight.device, dtype=weight.dtype).to(dtype)[None],
            position_ids=torch.arange(embeddings.shape[0], device=weight.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
    kv = stack_cache(cache, embeddings.shape[0], network.config.get_text_config().num_hidden_layers)
    return kv.to(weight.dtype)


def stack_cache(cache: Any, num_tokens: int, num_layers: int) -> torch.Tensor:
    """Put a transformers cache of batch size 1 into a patch's layout.

    Returns:
        ``[L, 2, N, H_kv, D]`` on the CPU, contiguous.

    Raises:
        CompileError: Some layer has no K/V for every position, or its own shape.
    """
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = [(layer.keys, layer.values) for layer in layers]
    if len(pairs) != num_layers:
        raise CompileError(
            f"model: expected K/V in each of {num_layers} layers, its cache has {len(pairs)}; models "
            "whose layers share K/V can't carry a prefix"
        )
    shapes = {tuple(tensor.shape) for pair in pairs for tensor in pair}
    if len(shapes) != 1 or next(iter(shapes))[0] != 1 or next(iter(shapes))[2] != num_tokens:
        raise CompileError(
            f"model: expected K/V of one shape [1, heads, {num_tokens}, size] in all layers, "
            f"got {sorted(shapes)}"
        )
    # [H, N, D] of each layer -> [N, H, D]
    stacked = torch.stack([torch.stack([k[0], v[0]]) for k, v in pairs]).transpose(2, 3)
    return stacked.to("cpu").contiguous().clone()


def _fitted(
    tokenizer: Any, rendered: RenderedText, pad_to_multiple: int | None, cut_to_multiple: int | None
) -> RenderedText:
    if pad_to_multiple is not None and cut_to_multiple is not None:
        raise CompileError("pad_to_multiple, cut_to_multiple: expected one of them, got both")
    for multiple in (pad_to_multiple, cut_to_multiple):
        if multiple is not None and not 1 <= multiple <= MAX_NUM_VIRTUAL_TOKENS:
            raise CompileError(f"multiple: expected 1 to {MAX_NUM_VIRTUAL_TOKENS}, got {multiple}")
    if pad_to_multiple is not None:
        return pad(rendered, pad_to_multiple, filler_token_id(tokenizer))
    return rendered if cut_to_multiple is None else cut(rendered, cut_to_multiple)


def _check_length(network: Any, num_tokens: int) -> None:
    limit = MAX_NUM_VIRTUAL_TOKENS
    own_limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if own_limit is not None and own_limit - 1 < limit:
        # At least one position must be left for the request.
        limit = own_limit - 1
    if not 1 <= num_tokens <= limit:
        raise CompileError(f"prefix: expected 1 to {limit} tokens, got {num_tokens}; shorten the policy")


def _require_prefix_can_be_computed(config: Any) -> None:
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    rope = canonical_rope(config)
    rotations = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    for rotation in rotations:
        if rotation.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            raise CompileError(
                f"model: its rotary positions ({rotation['rope_type']}) depend on the sequence's length, "
                "so K/V can't be computed ahead"
            )
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", None):
        raise CompileError("model: feeds token ids into every layer, which embeddings alone can't replace")
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=config).layers):
        raise CompileError(
            "model: has state-space or linear-attention layers, whose state is not a prefix of K/V"
        )


def _text_digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()
