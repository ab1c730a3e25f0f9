"""An OpenTelemetry collector in this process, which decodes requests of OTLP over HTTP."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_DOCUMENTS = {"/v1/traces": ExportTraceServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


class OtlpReceiver:
    """The spans and metrics received so far.

    Attributes:
        endpoint: the value of OTEL_EXPORTER_OTLP_ENDPOINT.
        spans: each with its resource, attributes as dictionaries.
        points: the last value of each metric by (name, sorted attributes); a histogram as the protobuf point.
        resources: attributes of each resource whose metrics were received.
    """

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.spans: list[tuple[dict[str, Any], Any, dict[str, Any]]] = []
        self.points: dict[tuple[str, tuple[tuple[str, Any], ...]], Any] = {}
        self.kinds: dict[str, str] = {}
        self.resources: list[dict[str, Any]] = []

    def add(self, path: str, body: bytes) -> None:
        document: Any = _DOCUMENTS[path].FromString(body)
        for part in document.resource_spans if path == "/v1/traces" else ():
            resource = attributes(part.resource)
            self.spans += [(resource, span, attributes(span)) for scope in part.scope_spans for span in scope.spans]
        for part in document.resource_metrics if path == "/v1/metrics" else ():
            self.resources.append(attributes(part.resource))
            for metric in (metric for scope in part.scope_metrics for metric in scope.metrics):
                kind = metric.WhichOneof("data")
                self.kinds[metric.name] = kind
                for point in getattr(metric, kind).data_points:
                    key = metric.name, tuple(sorted(attributes(point).items()))
                    self.points[key] = point if kind == "histogram" else point.as_double


def attributes(message: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in message.attributes}


@contextmanager
def run_receiver() -> Iterator[OtlpReceiver]:
    """Receives requests until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            receiver.add(self.path, gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = OtlpReceiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
