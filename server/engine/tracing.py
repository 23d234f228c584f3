"""OpenTelemetry behind ``--otlp-traces-endpoint``: our spans around vLLM's, and what its own are missing.

vLLM makes the provider and the exporter. A span of ours is the parent of what it tells of a request, and its
spans get the same attributes. An endpoint that can't be reached slows nothing: spans are dropped and counted,
the log says so once, and after a failure no attempt is made for a while.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import vllm.tracing.otel
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.request.trace import PREFIX, Attributes, RawHeaders, Trace

logger = logging.getLogger(__name__)

#: Seconds without an attempt after spans could not be sent.
PAUSE_S = 5.0

#: Unless the environment says otherwise: seconds that an attempt may take, and what gRPC prints by itself.
_DEFAULTS = {"OTEL_EXPORTER_OTLP_TIMEOUT": "3", "GRPC_VERBOSITY": "NONE"}

_CARRIED = frozenset({b"traceparent", b"tracestate"})
_PROPAGATOR = TraceContextTextMapPropagator()

Dropped = Callable[[int], None]


def quiet_exporters() -> None:
    """Silence what the exporters log about each attempt; to be called in each process that exports."""
    for name in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def watched_exports(dropped: Dropped) -> Iterator[None]:
    """Count with ``dropped`` what the exporters that vLLM makes meanwhile can't send."""
    make = vllm.tracing.otel.get_span_exporter
    quiet_exporters()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    vllm.tracing.otel.get_span_exporter = lambda endpoint: WatchedExporter(make(endpoint), endpoint, dropped)
    try:
        yield
    finally:
        vllm.tracing.otel.get_span_exporter = make


class WatchedExporter(SpanExporter):
    """Passes spans on, and counts those that did not arrive. Used by the exporting thread alone."""

    def __init__(
        self,
        exporter: SpanExporter,
        endpoint: str,
        dropped: Dropped,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._dropped = dropped
        self._clock = clock
        self._is_failing = False
        self._next_s = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``, or drop them where that failed a moment ago."""
        if self._clock() < self._next_s:
            self._dropped(len(spans))
            return SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            # Whatever an exporter raises, the thread that calls it has to survive.
            logger.debug("spans could not be sent: %s", error)
            result = SpanExportResult.FAILURE
        has_failed = result is not SpanExportResult.SUCCESS
        if has_failed:
            self._dropped(len(spans))
            self._next_s = self._clock() + PAUSE_S
        if has_failed and not self._is_failing:
            logger.error("traces can't be sent to %s: spans are dropped and counted", self._endpoint)
        elif self._is_failing and not has_failed:
            logger.warning("traces can be sent to %s again", self._endpoint)
        self._is_failing = has_failed
        return result

    def shutdown(self) -> None:
        """See ``SpanExporter.shutdown``."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """See ``SpanExporter.force_flush``."""
        return self._exporter.force_flush(timeout_millis)


class _Attributes(SpanProcessor):
    """Puts the attributes of a request on every span below that of the request."""

    def __init__(self) -> None:
        #: Id of a request's span -> what is known of the request, while it runs.
        self.known: dict[int, Mapping[str, str]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the provider."""
        parent = trace.get_current_span(parent_context).get_span_context()
        known = self.known.get(parent.span_id)
        if known:
            span.set_attributes(known)


class OtelTracing:
    """``server.request.trace.Tracing`` on the provider that vLLM has set."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("policypatch")
        self._attributes = _Attributes()
        provider.add_span_processor(self._attributes)

    def begin(self, headers: RawHeaders, name: str) -> Trace:
        """See ``Tracing.begin``."""
        carrier = {k.decode("latin-1"): v.decode("latin-1") for k, v in headers if k in _CARRIED}
        # An empty context of its own: never a span that happens to be current here.
        context = _PROPAGATOR.extract(carrier, Context())
        return OtelTrace(
            self._tracer, self._attributes.known, self._tracer.start_span(name, context, SpanKind.SERVER)
        )


class OtelTrace:
    """``server.request.trace.Trace``."""

    def __init__(self, tracer: trace.Tracer, known: dict[int, Mapping[str, str]], span: trace.Span) -> None:
        self._tracer = tracer
        self._known = known
        self._span = span
        self._context = set_span_in_context(span, Context())
        self._ids = span.get_span_context()

    @property
    def trace_id(self) -> str | None:
        """See ``Trace.trace_id``."""
        return trace.format_trace_id(self._ids.trace_id)

    @property
    def is_told(self) -> bool:
        """See ``Trace.is_told``."""
        return True

    @property
    def is_sampled(self) -> bool:
        """See ``Trace.is_sampled``."""
        return self._ids.trace_flags.sampled

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See ``Trace.span``."""
        span = self._tracer.start_span(name, self._context)
        try:
            yield
        except BaseException as error:
            # The class alone: a message may hold what a client wrote.
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def describe(self, known: Callable[[], Mapping[str, str]]) -> None:
        """See ``Trace.describe``."""
        if self.is_sampled:
            attributes = {f"{PREFIX}{key}": value for key, value in known().items()}
            self._known[self._ids.span_id] = attributes
            self._span.set_attributes(attributes)

    def engine_headers(self) -> Mapping[str, str] | None:
        """See ``Trace.engine_headers``."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, self._context)
        return carrier

    def end(self, attributes: Attributes, *, has_failed: bool) -> None:
        """See ``Trace.end``."""
        self._known.pop(self._ids.span_id, None)
        self._span.set_attributes(attributes)
        if has_failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def tracing_of_engine() -> OtelTracing | None:
    """Return what tells on the provider that vLLM has set; ``None`` where it has set none."""
    provider = trace.get_tracer_provider()
    return OtelTracing(provider) if isinstance(provider, TracerProvider) else None
