"""A span of OpenTelemetry for each request that needs a key; it continues the caller's trace (W3C Trace Context)."""

import threading

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from towline import __version__
from towline.serving.endpoint import Access, AccessControl, Endpoint, Handler, RequestContext, Response

_PARENT, _STATE = b"traceparent", b"tracestate"
_PROPAGATOR = TraceContextTextMapPropagator()
_NO_PARENT = Context()


class Tracing:
    """The spans of one worker, which a thread sends by OTLP over HTTP.

    Args:
        resource: the source of the spans.
    """

    def __init__(self, resource: Resource) -> None:
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("towline", __version__)

    def endpoint(
        self,
        path: str,
        access: Access,
        handler: Handler,
        control: AccessControl,
        method: str = "GET",
        *,
        browser: bool = False,
    ) -> Endpoint:
        """An endpoint whose requests have spans; requests of public routes, which are health checks, have none."""
        if access == "public":
            return Endpoint(path, access, handler, control, method, browser=browser)
        endpoint = TracedEndpoint(path, access, handler, control, method, browser=browser)
        endpoint.tracer = self._tracer
        return endpoint

    def close(self, timeout: float) -> None:
        """Sends the waiting spans; those that are not sent after ``timeout`` seconds are lost."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(timeout)


class TracedEndpoint(Endpoint):
    """An endpoint with a span for each request. The response has the trace in the header ``traceresponse``."""

    tracer: Tracer

    async def _respond(self, context: RequestContext) -> Response:
        method = context.scope["method"] if context.scope["method"] in self._methods else "_OTHER"
        span = self.tracer.start_span(
            f"{method} {self.path}",
            _parent(context.headers),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "http.route": self.path,
                "url.path": context.scope["path"],
                "url.scheme": context.scope.get("scheme", "http"),
            },
        )
        own = span.get_span_context()
        context.trace_id = format_trace_id(own.trace_id)
        try:
            response = await super()._respond(context)
            span.set_attributes(
                {
                    "http.response.status_code": response.status,
                    "towline.request_id": context.request_id,
                    "towline.model.version": context.version,
                }
            )
            if response.status >= 500:
                span.set_attribute("error.type", str(response.status))
                span.set_status(Status(StatusCode.ERROR))
        finally:
            span.end()
        trace = f"00-{context.trace_id}-{format_span_id(own.span_id)}-{own.trace_flags:02x}".encode()
        return response._replace(headers=(*response.headers, (b"traceresponse", trace)))


def _parent(headers: dict[bytes, bytes]) -> Context:
    if (parent := headers.get(_PARENT)) is None:
        return _NO_PARENT
    carrier = {"traceparent": parent.decode("latin-1"), "tracestate": headers.get(_STATE, b"").decode("latin-1")}
    return _PROPAGATOR.extract(carrier, _NO_PARENT)
