"""A real OTLP receiver in this process: keeps the spans that a server sends over gRPC."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service


@dataclass(frozen=True)
class Received:
    """One span."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    #: In seconds.
    start_s: float
    end_s: float


@dataclass
class Receiver(service.TraceServiceServicer):
    """Keeps what comes."""

    spans: list[Received] = field(default_factory=list)
    server: grpc.Server | None = None

    def Export(self, request: Any, context: Any) -> Any:
        """Take spans; called by gRPC."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += map(_received, scope.spans)
        return messages.ExportTraceServiceResponse()

    def stop(self) -> None:
        """Take nothing more, and close the port."""
        assert self.server is not None
        self.server.stop(None).wait()

    def wait_for(self, is_there: Callable[[list[Received]], bool], trace_id: str) -> dict[str, Received]:
        """Return the spans of a trace by name, once they are there."""
        deadline = time.monotonic() + 60
        while True:
            found = [span for span in self.spans if span.trace_id == trace_id]
            if is_there(found):
                return {span.name: span for span in found}
            assert time.monotonic() < deadline, [span.name for span in found]
            time.sleep(0.1)


@contextlib.contextmanager
def receiving(port: int = 0) -> Iterator[tuple[Receiver, int]]:
    """Yield a receiver, and the port on which it listens."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    receiver = Receiver(server=server)
    service.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield receiver, port
    finally:
        receiver.stop()


def _received(span: Any) -> Received:
    attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
    return Received(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        attributes,
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
    )
