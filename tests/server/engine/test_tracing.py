"""Spans that can't be sent: nothing waits for them, they are counted, and the log says so once."""

import logging
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.engine.tracing import PAUSE_S, OtelTracing, WatchedExporter


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
