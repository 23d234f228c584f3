"""The seam to distributed tracing: what is told about one request while it runs.

``server.engine.tracing`` implements it with OpenTelemetry. Without an endpoint nothing is told, and the id of
the caller's trace still stands in the logs and beside the latencies.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

#: Names of the spans below that of the request.
SELECT_SPAN = "policy_patch.select"
RESIDENCY_SPAN = "policy_patch.residency"
INJECT_SPAN = "policy_patch.inject"

#: https://www.w3.org/TR/trace-context/: version, trace, parent, flags; later versions may add more.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_IS_SAMPLED = 1

_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()

#: Of what ``RequestScope.known`` says, as an attribute of a span.
PREFIX = "policy_patch."

RawHeaders = Sequence[tuple[bytes, bytes]]
Attributes = Mapping[str, str | int | float]


class Trace(Protocol):
    """One request in a trace."""

    @property
    def trace_id(self) -> str | None:
        """The trace, as 32 hexadecimal digits."""

    @property
    def is_sampled(self) -> bool:
        """Whether someone keeps the trace."""

    @property
    def is_told(self) -> bool:
        """Whether anything is told of the request; else nothing has to be put into words."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Return the span of one step of the request, as long as the context lasts."""
        ...

    def describe(self, known: Callable[[], Mapping[str, str]]) -> None:
        """Add what is ``known`` now to the request's span, and to what the engine tells of it."""
        ...

    def engine_headers(self) -> Mapping[str, str] | None:
        """Return the headers by which the engine joins the trace; ``None`` for what the caller sent."""
        ...

    def end(self, attributes: Attributes, *, has_failed: bool) -> None:
        """End the request's span."""
        ...


class Tracing(Protocol):
    """Begins traces."""

    def begin(self, headers: RawHeaders, name: str) -> Trace:
        """Begin the span of a request, in the trace that its ``headers`` name or in one of its own."""
        ...


@dataclass(frozen=True, slots=True)
class NoTrace:
    """A request of which nothing is told; it may belong to a trace of its caller."""

    trace_id: str | None = None
    is_sampled: bool = False

    @property
    def is_told(self) -> bool:
        """See ``Trace.is_told``."""
        return False

    def span(self, name: str) -> AbstractContextManager[None]:
        """See ``Trace.span``."""
        return _NOTHING

    def describe(self, known: Callable[[], Mapping[str, str]]) -> None:
        """See ``Trace.describe``."""

    def engine_headers(self) -> Mapping[str, str] | None:
        """See ``Trace.engine_headers``."""
        return None

    def end(self, attributes: Attributes, *, has_failed: bool) -> None:
        """See ``Trace.end``."""


NO_TRACE = NoTrace()


class NoTracing:
    """Keeps nothing: what serves where there is no ``--otlp-traces-endpoint``."""

    def begin(self, headers: RawHeaders, name: str) -> Trace:
        """See ``Tracing.begin``."""
        sent = [value for key, value in headers if key == b"traceparent"]
        match = _TRACEPARENT.fullmatch(sent[0].decode("latin-1")) if len(sent) == 1 else None
        if match is None or not int(match[1], 16) or not int(match[2], 16):
            return NO_TRACE
        return NoTrace(match[1], bool(int(match[3], 16) & _IS_SAMPLED))
