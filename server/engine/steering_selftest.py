"""A forward pass at start that shows whether vectors act where they should, as it is going to serve.

It finds a compiled graph of an earlier start without hooks, and a model whose layers do not hand on the
stream as their class is known to. What fails here is not served: steering is switched off.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention import Attention

from server.engine.steering_rows import SteeringRank

NUM_TOKENS = 8

#: Between the final norm of what the hooks saw, and what left the model; of the larger one.
_MAX_GAP = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@contextlib.contextmanager
def without_attention(layers: Iterable[object]) -> Iterator[None]:
    """Have attention return zeros, as far as Python calls it.

    A dummy run has nothing to attend to, and on a CPU its attention returns whatever lay in memory.
    """
    impls = [layer.impl for layer in layers if isinstance(layer, Attention)]
    for impl in impls:
        impl.forward = _zeros
    try:
        yield
    finally:
        for impl in impls:
            del impl.forward


def _zeros(*args: Any, output: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    # After layer, query, key, value, cache and metadata.
    return (args[6] if output is None else output).zero_()


def find_problem(rank: SteeringRank, runner: Any, network: nn.Module) -> str | None:
    """Return what is wrong with how vectors act on this rank, or ``None``.

    Args:
        rank: Without a vector so far.
        runner: vLLM's model runner, after everything is compiled and captured.
        network: The loaded model.
    """
    num_tokens = min(NUM_TOKENS, runner.max_num_tokens)
    half = num_tokens // 2
    if not half:
        return None
    bare = _stream(runner, num_tokens)
    with rank.rehearsal(half) as seen:
        steered = _stream(runner, num_tokens)
    again = _stream(runner, num_tokens)
    is_changed = (steered != bare).any(dim=-1)
    if not is_changed[:half].all():
        return "self-test: expected a vector to change its tokens, some stayed as they were"
    # V2's dummy requests share one block of the cache, so that one's tokens reach the others.
    is_apart = not hasattr(runner, "prepare_inputs")
    if is_apart and is_changed[half:].any():
        return "self-test: expected a vector to leave other tokens alone, some changed"
    if is_apart and not torch.equal(again, bare):
        return "self-test: expected nothing to be left of a vector in the next step, something was"
    norm = getattr(network.get_submodule("model"), "norm", None)
    if seen and rank.is_last_stage and isinstance(norm, nn.Module):
        expected = norm(seen[-1][:num_tokens])
        gap = float((expected.float() - steered.float()).abs().max() / steered.float().abs().max())
        if not gap <= _MAX_GAP.get(steered.dtype, 0.0):
            return f"self-test: expected the model to end with the stream of its last layer, off by {gap:.1g}"
    return None


def _stream(runner: Any, num_tokens: int) -> torch.Tensor:
    """Return what leaves this rank's last layer for so many tokens: ``[num_tokens, d]``."""
    output = runner._dummy_run(num_tokens)[0]
    if not isinstance(output, torch.Tensor):
        # What goes to the next pipeline stage.
        output = output.tensors["hidden_states"] + output.tensors["residual"]
    return output[:num_tokens].clone()
