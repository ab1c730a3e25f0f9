"""Metrics as increases and percentiles, in this process."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from towline.errors import ConfigError
from towline.serving.telemetry import otlp_environment
from towline.serving.telemetry.embedded_metrics import EmbeddedMetrics
from towline.serving.telemetry.histogram_series import quantile, read_histograms

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Output:
    """The lines that were written after the last call of ``take``."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, line: bytes) -> None:
        assert line.endswith(b"\n")
        self.lines.append(json.loads(line))

    def take(self) -> list[dict[str, Any]]:
        lines, self.lines = self.lines, []
        return lines


def test_a_counter_is_written_as_its_increase() -> None:
    """CloudWatch adds values up; a counter without an increase needs no line."""
    registry, output = CollectorRegistry(), Output()
    rows = Counter("towline_rows", "Rows.", ["version"], registry=registry)
    metrics = EmbeddedMetrics("shop", output.write)
    rows.labels("1").inc(5)
    metrics.send(list(registry.collect()))
    rows.labels("2").inc(2)
    metrics.send(list(registry.collect()))
    metrics.send(list(registry.collect()))
    assert [(line["version"], line["rows"]) for line in output.take()] == [("1", 5), ("2", 2)]


def test_a_gauge_is_written_each_time() -> None:
    """Also if it is zero, so that an alarm has data."""
    registry, output = CollectorRegistry(), Output()
    Gauge("towline_depth", "Depth.", registry=registry)
    metrics = EmbeddedMetrics("shop", output.write)
    for _ in range(2):
        metrics.send(list(registry.collect()))
    assert [line["depth"] for line in output.take()] == [0, 0]


def test_percentiles_are_those_of_the_interval() -> None:
    """Slow requests of an earlier interval do not count in the next one."""
    registry, output = CollectorRegistry(), Output()
    seconds = Histogram("towline_request_seconds", "Duration.", buckets=(0.1, 0.2, 1.0), registry=registry)
    metrics = EmbeddedMetrics("shop", output.write)
    for value in [0.9] * 10:
        seconds.observe(value)
    metrics.send(list(registry.collect()))
    for value in [0.05] * 10:
        seconds.observe(value)
    metrics.send(list(registry.collect()))
    slow, fast = output.take()
    assert (slow["request_seconds_count"], fast["request_seconds_count"]) == (10, 10)
    assert slow["request_seconds_p50"] == pytest.approx(0.6)
    assert fast["request_seconds_p99"] == pytest.approx(0.099)
    assert fast["request_seconds_sum"] == pytest.approx(0.5)


def test_the_value_of_a_dimension_is_never_empty_or_long() -> None:
    """CloudWatch leaves out metrics with such values; a label of the user's model may be anything."""
    registry, output = CollectorRegistry(), Output()
    labels = Counter("towline_predicted_labels", "Labels.", ["label"], registry=registry)
    for label in ("", "x" * 5_000):
        labels.labels(label).inc()
    EmbeddedMetrics("shop", output.write).send(list(registry.collect()))
    assert [1 <= len(line["label"]) <= 255 for line in output.take()] == [True, True]


def test_a_histogram_as_counts_by_bucket() -> None:
    """One series for each set of labels, with the values above the last bound."""
    registry = CollectorRegistry()
    sizes = Histogram("sizes", "Sizes.", ["kind"], buckets=(1.0, 10.0), registry=registry)
    for value in (0.5, 5, 6, 100):
        sizes.labels("a").observe(value)
    sizes.labels("b").observe(2)
    (family,) = registry.collect()
    assert [(series.labels, series.bounds, series.counts, series.sum) for series in read_histograms(family)] == [
        ({"kind": "a"}, [1.0, 10.0], [1, 2, 1], 111.5),
        ({"kind": "b"}, [1.0, 10.0], [0, 1, 0], 2.0),
    ]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([2, 2, 0], 0.5, 1.0), ([2, 2, 0], 0.75, 1.5), ([0, 0, 4], 0.5, 2.0), ([4, 0, 0], 0.25, 0.25)],
)
def test_quantiles(counts: list[int], share: float, expected: float) -> None:
    """Values above the last bound count as the last bound, as in Prometheus."""
    assert quantile([1.0, 2.0], counts, share) == expected


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, False, False),
        ({ENDPOINT: "http://a:4318"}, True, True),
        ({ENDPOINT: "http://a:4318", "OTEL_TRACES_EXPORTER": "none"}, False, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://a/v1/metrics"}, False, True),
        ({ENDPOINT: "http://a:4318", "OTEL_SDK_DISABLED": "true"}, False, False),
    ],
)
def test_the_variables_switch_signals_on_and_off(environ: dict[str, str], traces: bool, metrics: bool) -> None:
    """As the specification of OpenTelemetry says."""
    assert otlp_environment.sends("traces", environ) == traces
    assert otlp_environment.sends("metrics", environ) == metrics
    otlp_environment.check_environment(environ)


def test_the_extra_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the service starts, and only if an exporter is configured."""
    monkeypatch.setattr("towline.extras.find_spec", lambda _: None)
    otlp_environment.check_environment({})
    with pytest.raises(ConfigError) as caught:
        otlp_environment.check_environment({ENDPOINT: "http://a:4318"})
    assert caught.value.remedy == "pip install 'towline[otel]'"
