"""Computing in float64 with a model whose weights are stored in less.

Arithmetic in bfloat16 or float16 gives other bits on other processors: each has its own instructions, its
own order of additions, its own places to round. What two machines make of one prefix then differs in three of
four values. In float64 the difference lies far below what a result rounded to half precision can show, so
that the rounded results are equal but for a few values next to a rounding boundary. (Models normalise in
float32 inside, whatever they are given; float32 throughout leaves a value in a thousand different.)
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 where a device has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def computing_in(decoder: Any, dtype: torch.dtype) -> Iterator[None]:
    """Make a transformers decoder compute in ``dtype`` while the context lasts; its weights stay as they are.

    Weights are widened, which is exact, one layer at a time and only while that layer computes. So the memory
    that it takes is one layer, not a second model.

    Args:
        decoder: What ``get_decoder()`` of a causal language model returns. It is given ``inputs_embeds`` of
            that dtype, and is used for nothing else meanwhile.
        dtype: Wider than that of the weights.
    """
    with contextlib.ExitStack() as stack:
        own = _Widened(list(decoder.parameters(recurse=False)), dtype)
        stack.callback(own.restore)
        own.widen()
        for unit in _units_of(decoder):
            widened = _Widened(list(unit.parameters()), dtype)
            # Whatever happens in between, a unit that began to compute gets its weights back.
            stack.callback(widened.restore)
            stack.callback(unit.register_forward_pre_hook(widened.widen).remove)
            stack.callback(unit.register_forward_hook(widened.restore).remove)
        yield


class _Widened:
    """The weights of one module, wider between ``widen`` and ``restore``; both are hooks."""

    def __init__(self, parameters: list[torch.nn.Parameter], dtype: torch.dtype) -> None:
        self._parameters = [p for p in parameters if p.is_floating_point()]
        self._dtype = dtype
        self._stored: list[torch.Tensor] = []

    def widen(self, *_: Any) -> None:
        """Put wider copies in the place of the weights."""
        self._stored = [parameter.data for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.data = parameter.data.to(self._dtype)

    def restore(self, *_: Any) -> None:
        """Put the weights back, if they are not."""
        for parameter, stored in zip(self._parameters, self._stored, strict=False):
            parameter.data = stored
        self._stored = []


def _units_of(decoder: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield what computes one after the other: each layer of a list of layers, and what stands beside it."""
    for child in decoder.children():
        yield from child if isinstance(child, torch.nn.ModuleList) else (child,)
