"""The token id that stands for prefix positions in a request's prompt."""

from typing import Any


def placeholder_token_id(model_config: Any, tokenizer: Any) -> int:
    """Choose an id that does no harm where vLLM looks at prompt ids.

    The id is never embedded: those positions are always loaded. But repetition penalties cover every id of
    the prompt, so it must be one whose logit does not matter: an entry of the vocabulary that no token uses,
    else the token that begins a sequence, which no answer contains. Never the one that ends it: penalizing
    that would make answers longer.

    Args:
        model_config: vLLM's ``ModelConfig``.
        tokenizer: the model's tokenizer, or None where vLLM runs without one.
    """
    vocab_size = int(model_config.get_vocab_size())
    if tokenizer is None:
        return 0
    if len(tokenizer) < vocab_size:
        return vocab_size - 1
    for candidate in (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id):
        if candidate is not None and candidate != tokenizer.eos_token_id:
            return int(candidate)
    return 0
