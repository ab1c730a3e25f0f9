"""The metrics of Prometheus as metrics of OpenTelemetry, sent by OTLP over HTTP."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import export as points
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import Metric

from towline import __version__
from towline.serving.telemetry.histogram_series import read_histograms

_UNITS = {"seconds": "s", "bytes": "By"}
_CUMULATIVE = points.AggregationTemporality.CUMULATIVE


class OtlpMetrics:
    """Sends the metrics of one worker, cumulative since its start.

    Args:
        resource: the source of the metrics.
    """

    def __init__(self, resource: Resource) -> None:
        self._resource, self._start = resource, time.time_ns()
        self._exporter = OTLPMetricExporter()

    def send(self, families: Sequence[Metric]) -> None:
        """Sends all metrics; a failure is logged by the exporter, and the next export has the totals again."""
        scope = points.ScopeMetrics(
            scope=InstrumentationScope("towline", __version__), metrics=list(self._convert(families)), schema_url=""
        )
        document = points.ResourceMetrics(resource=self._resource, scope_metrics=[scope], schema_url="")
        self._exporter.export(points.MetricsData([document]))

    def stop(self) -> None:
        """Ends an export that is being repeated."""
        self._exporter.shutdown()

    def _convert(self, families: Iterable[Metric]) -> Iterable[points.Metric]:
        now = time.time_ns()
        for family in families:
            if not family.samples:
                continue
            unit = _UNITS.get(family.name.rpartition("_")[2], "1")
            yield points.Metric(family.name, family.documentation, unit, self._data(family, now))

    def _data(self, family: Metric, now: int) -> points.DataT:
        if family.type == "histogram":
            return points.Histogram(self._histogram_points(family, now), _CUMULATIVE)
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        numbers = [points.NumberDataPoint(each.labels, self._start, now, each.value) for each in samples]
        if family.type == "counter":
            return points.Sum(numbers, _CUMULATIVE, is_monotonic=True)
        return points.Gauge(numbers)

    def _histogram_points(self, family: Metric, now: int) -> list[points.HistogramDataPoint]:
        unknown: Any = None  # minimum and maximum: the fields stay unset
        return [
            points.HistogramDataPoint(
                attributes=series.labels, start_time_unix_nano=self._start, time_unix_nano=now,
                count=sum(series.counts), sum=series.sum, bucket_counts=series.counts, explicit_bounds=series.bounds,
                min=unknown, max=unknown,
            )
            for series in read_histograms(family)
        ]  # fmt: skip
