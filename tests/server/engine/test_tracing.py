"""Spans that can't be sent: nothing waits for them, they are counted, and the log says so once."""

import gzip
import http.server
import logging
import threading
from collections.abc import Sequence

import pytest
import vllm.tracing.otel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.engine.tracing import PAUSE_S, OtelTracing, WatchedExporter, watched_exports


class Flaky(SpanExporter):
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.answers: list[SpanExportResult | Exception] = []
        self.num_calls = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_failure_is_counted_said_once_and_not_tried_again_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner, dropped = Flaky(), []
    times_s = [0.0, 1.0, PAUSE_S + 1, 2 * PAUSE_S + 2, 2 * PAUSE_S + 3]
    exporter = WatchedExporter(inner, "http://otlp", dropped.append, clock=lambda: times_s[0])
    spans = [ReadableSpan("a"), ReadableSpan("b")]
    inner.answers = [
        SpanExportResult.FAILURE,
        RuntimeError("no"),
        SpanExportResult.SUCCESS,
        SpanExportResult.FAILURE,
    ]
    with caplog.at_level(logging.WARNING, "server.engine.tracing"):
        while times_s:
            exporter.export(spans)
            del times_s[0]
    assert inner.num_calls == 4
    assert dropped == [2, 2, 2, 2]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"]


def test_the_spans_below_a_request_get_what_is_known_of_it_as_long_as_it_runs() -> None:
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing = OtelTracing(provider)
    trace = tracing.begin([], "request")
    with trace.span("before"):
        pass
    trace.describe(lambda: {"patch": "pirate"})
    with pytest.raises(ValueError, match="no"), trace.span("after"):
        raise ValueError("no")
    trace.end({"policy_patch.outcome": "server_error"}, has_failed=True)
    with trace.span("too late"):
        pass
    spans = {span.name: dict(span.attributes or {}) for span in kept.get_finished_spans()}
    assert spans == {
        "before": {},
        "after": {"policy_patch.patch": "pirate"},
        "request": {"policy_patch.patch": "pirate", "policy_patch.outcome": "server_error"},
        "too late": {},
    }
    (failed,) = (span for span in kept.get_finished_spans() if span.name == "after")
    assert failed.status.description == "ValueError"


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans over HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        spans = [s.name for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        self.server.taken.append((self.path, spans))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_spans_go_to_a_collector_over_http_too_and_are_counted_once_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    dropped: list[int] = []
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.taken = taken = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with watched_exports(dropped.append):
            endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
            exporter = vllm.tracing.otel.get_span_exporter(endpoint)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        OtelTracing(provider).begin([], "request").end({}, has_failed=False)
        assert taken == [("/v1/traces", ["request"])]
        server.shutdown()
        thread.join()
    OtelTracing(provider).begin([], "request").end({}, has_failed=False)
    assert dropped == [1]
    provider.shutdown()
