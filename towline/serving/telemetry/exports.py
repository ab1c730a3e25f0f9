"""The exports of one worker: their content, interval and end."""

import asyncio
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import Metric

from towline import __version__
from towline.serving.metrics import Metrics
from towline.serving.options import ServeOptions
from towline.serving.telemetry import otlp_environment
from towline.serving.telemetry.embedded_metrics import EmbeddedMetrics

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from towline.serving.telemetry.tracing import Tracing

CLOSE_TIMEOUT_S = 3.0  # of the last exports, when the service shuts down
_LOG = logging.getLogger("towline.serving")


class MetricsExport:
    """Sends the metrics at an interval, in a thread: a slow receiver delays no request.

    Args:
        metrics: of this worker.
        send: sends families of samples.
        interval: seconds between two exports.
        stop: ends a sending that waits for its receiver.
    """

    def __init__(
        self,
        metrics: Metrics,
        send: Callable[[Sequence[Metric]], None],
        interval: float,
        stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._metrics, self._send, self._stop = metrics, send, stop
        self.interval = interval
        self._waiting: queue.Queue[Sequence[Metric] | None] = queue.Queue(1)
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="metrics-export", daemon=True)
        self._thread.start()

    async def run_periodically(self) -> None:
        """Exports until it is cancelled. While an export is not complete, the next one is left out."""
        while True:
            await asyncio.sleep(self.interval)
            if self._waiting.empty():
                self._waiting.put_nowait(self._metrics.collect())

    def close(self, timeout: float) -> None:
        """Exports a last time and ends the thread; data that is not sent after ``timeout`` seconds is lost."""
        deadline = time.monotonic() + timeout
        for item in (self._metrics.collect(), None):
            try:
                self._waiting.put(item, timeout=max(0.0, deadline - time.monotonic()))
            except queue.Full:
                break
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stop()

    def _run(self) -> None:
        while (families := self._waiting.get()) is not None:
            try:
                self._send(families)
                self._failing = False
            except Exception as error:  # noqa: BLE001 - whatever the error is, the service continues
                if not self._failing:
                    _LOG.warning("metrics are not exported: %s", error)
                self._failing = True


class Telemetry:
    """The exports of a worker; without an export, the methods do nothing.

    Attributes:
        tracing: makes endpoints with spans; None: requests have no spans.
        exports: of the metrics.
    """

    def __init__(self, options: ServeOptions, metrics: Metrics, model: str) -> None:
        self.tracing: Tracing | None = None
        self.exports: list[MetricsExport] = []
        if options.metrics == "emf":
            self.exports.append(MetricsExport(metrics, EmbeddedMetrics(model).send, options.metrics_interval))
        if otlp_environment.sends("traces"):
            from towline.serving.telemetry import tracing

            self.tracing = tracing.Tracing(_resource(model))
        if otlp_environment.sends("metrics"):
            from towline.serving.telemetry.otlp_metrics import OtlpMetrics

            otlp = OtlpMetrics(_resource(model))
            self.exports.append(MetricsExport(metrics, otlp.send, otlp_environment.metrics_interval(), otlp.stop))

    def close(self) -> None:
        """Sends the waiting data, within ``CLOSE_TIMEOUT_S`` seconds in total."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for export in self.exports:
            export.close(deadline - time.monotonic())
        if self.tracing is not None:
            self.tracing.close(max(0.0, deadline - time.monotonic()))


def _resource(model: str) -> "Resource":
    """The resource of this worker; variables such as ``OTEL_SERVICE_NAME`` have priority."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    attributes = {
        "service.name": model,
        "service.version": __version__,
        "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
    }
    environment = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in attributes.items() if name not in environment})
