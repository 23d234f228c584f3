"""Spans of the writes of prefixes, told by the worker that wrote them, in the traces of their requests."""

from collections.abc import Iterable

from vllm.tracing import extract_trace_context, instrument_manual

from server.engine.plan import PrefixLoad
from server.request.trace import INJECT_SPAN, PREFIX


def tell_injections(loads: Iterable[PrefixLoad], start_ns: int, end_ns: int) -> None:
    """Record each write that belongs to a trace; times in nanoseconds since the epoch.

    On a GPU a write is launched in that time, and runs before the forward pass.
    """
    for load in loads:
        if load.trace_headers:
            instrument_manual(
                INJECT_SPAN,
                start_ns,
                end_ns,
                {f"{PREFIX}digest": load.digest, f"{PREFIX}tokens": load.num_tokens},
                extract_trace_context(load.trace_headers),
            )
