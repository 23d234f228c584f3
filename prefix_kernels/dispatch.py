"""Which implementation writes a prefix: the only place that chooses.

========  =================================================================================================
triton    one launch for everything; CUDA, or Triton's interpreter
torch     two indexed copies a layer; any device
backend   the attention backend's own op, a call a layer; not here: whoever holds the layers calls it
========  =================================================================================================
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from prefix_kernels.layout import PagedCaches, PrefixWrite
from prefix_kernels.rotary import Rotary
from prefix_kernels.torch_ops import write_prefix_kv_torch

Implementation = Literal["triton", "torch", "backend"]

IMPLEMENTATIONS: tuple[Implementation, ...] = ("triton", "torch", "backend")


@dataclass(frozen=True, slots=True)
class Choice:
    """An implementation, and why it."""

    implementation: Implementation
    reason: str


def choose_implementation(caches: PagedCaches | None, *, has_backend_op: bool = False) -> Choice:
    """Choose for one rank's caches; the choice holds as long as they do.

    Args:
        caches: None where their layout is one that this package does not describe.
        has_backend_op: whether the caller could call the attention backend instead.

    Raises:
        ValueError: there is nothing to choose from.
    """
    if caches is None:
        if not has_backend_op:
            raise ValueError("caches: expected a layout of this package, or a backend's own op; got neither")
        return Choice("backend", "the attention backend lays its cache out in its own way")
    problem = _triton_problem(caches)
    if problem is None:
        return Choice("triton", "one launch for all layers")
    return Choice("backend" if has_backend_op else "torch", problem)


def _triton_problem(caches: PagedCaches) -> str | None:
    if caches.device.type != "cuda":
        return f"the cache is on the {caches.device.type}, for which Triton compiles nothing"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not caches.is_aligned:
        return "rows of the cache do not begin at multiples of 16 bytes"
    return None


def write_prefix_kv(
    caches: PagedCaches,
    writes: Sequence[PrefixWrite],
    rotary: Rotary | None = None,
    *,
    implementation: Implementation | None = None,
) -> None:
    """Write prefixes into paged caches, for any number of patches, requests and token ranges at once.

    Args:
        caches: all layers of a rank; written to, on the current stream.
        writes: in any number, none included; no two may name the same slot of a group. Their tensors may be
            freed as soon as this returns, as usual on a stream.
        rotary: how keys are moved; needed where a write has a ``shift``.
        implementation: "triton" or "torch"; None takes ``choose_implementation``'s.

    Raises:
        ValueError: an argument does not fit, or the implementation is not one of this package.

    Semantics: with ``w`` a write, ``l`` a layer of its group, ``b, o = divmod(w.slots[i], block_size)``:
    ``caches.layers[l].kv[b, :, o, :D] = q(relocate(w.kv[l, 0, w.first + i], w.shift), k_scale[l])`` and
    ``caches.layers[l].kv[b, :, o, D:] = q(w.kv[l, 1, w.first + i], v_scale[l])``, where ``q`` casts, and for
    fp8 divides and saturates first. A moved key is rounded to the prefix's dtype before ``q``. Nothing else
    changes.
    """
    _operation(implementation or choose_implementation(caches).implementation)(caches, writes, rotary)


def _operation(implementation: str) -> Callable[[PagedCaches, Sequence[PrefixWrite], Rotary | None], None]:
    if implementation == "triton":
        from prefix_kernels.triton_ops import write_prefix_kv_triton

        return write_prefix_kv_triton
    if implementation == "torch":
        return write_prefix_kv_torch
    raise ValueError(f"implementation: expected 'triton' or 'torch', got {implementation!r}")
