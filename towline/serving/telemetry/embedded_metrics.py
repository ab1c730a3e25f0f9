"""Metrics as lines of JSON in the embedded metric format, from which CloudWatch Logs extracts them.

CloudWatch adds values up, so a line has the increase of a counter since the last line. A histogram becomes its
count, its sum and percentiles: the format has no buckets. The number of a worker's process is a member of the line but
no dimension, since each combination of dimensions is a metric that is paid for.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from prometheus_client import Metric

from towline.serving.telemetry.histogram_series import quantile, read_histograms

NAMESPACE = "towline"
PERCENTILES = (50, 95, 99)
_PREFIX = "towline_"
_MAX_VALUE = 255  # characters of a dimension's value; a line then is written to a pipe as a whole
_UNITS = {"seconds": "Seconds", "bytes": "Bytes"}
_NOT_SENT = ("towline_start_time_seconds",)  # a time is not a measurement
_Labels = tuple[tuple[str, str], ...]


class EmbeddedMetrics:
    """Writes the metrics of one worker.

    Args:
        model: name of the served model; a dimension of each metric.
        write: writes a line.
    """

    def __init__(self, model: str, write: Callable[[bytes], Any] | None = None) -> None:
        self._model = model
        self._write = write or (lambda line: os.write(1, line))
        self._totals: dict[tuple[str, _Labels], float] = {}
        self._counts: dict[tuple[str, _Labels], list[int]] = {}

    def send(self, families: Sequence[Metric]) -> None:
        """Writes a line for each set of dimensions that has something to report."""
        values: dict[_Labels, dict[str, tuple[float, str]]] = {}
        for family in families:
            if family.name in _NOT_SENT:
                continue
            name, unit = family.name.removeprefix(_PREFIX), _UNITS.get(family.name.rpartition("_")[2])
            if family.type == "histogram":
                self._add_histograms(values, family, name, unit or "None")
                continue
            for sample in family.samples:
                labels = tuple(sample.labels.items())
                if family.type == "gauge":
                    values.setdefault(labels, {})[name] = sample.value, unit or "None"
                elif sample.name.endswith("_total") and (increase := self._increase(name, labels, sample.value)):
                    values.setdefault(labels, {})[name] = increase, unit or "Count"
        now = int(time.time() * 1000)
        for labels, metrics in values.items():
            self._write(self._line(now, dict(labels), metrics))

    def _increase(self, name: str, labels: _Labels, value: float) -> float:
        before = self._totals.get((name, labels), 0.0)
        self._totals[name, labels] = value
        return value - before

    def _add_histograms(
        self, values: dict[_Labels, dict[str, tuple[float, str]]], family: Metric, name: str, unit: str
    ) -> None:
        for series in read_histograms(family):
            labels = tuple(series.labels.items())
            before = self._counts.get((family.name, labels)) or [0] * len(series.counts)
            self._counts[family.name, labels] = series.counts
            counts = [count - last for count, last in zip(series.counts, before, strict=True)]
            added = self._increase(f"{family.name}_sum", labels, series.sum)
            if any(counts):
                metrics = values.setdefault(labels, {})
                metrics[f"{name}_count"] = sum(counts), "Count"
                metrics[f"{name}_sum"] = added, unit
                for percent in PERCENTILES:
                    metrics[f"{name}_p{percent}"] = quantile(series.bounds, counts, percent / 100), unit

    def _line(self, now: int, labels: dict[str, str], metrics: dict[str, tuple[float, str]]) -> bytes:
        worker = labels.pop("worker", str(os.getpid()))
        dimensions = {"model": self._model, **labels}
        definitions = [{"Name": name, "Unit": unit} for name, (_, unit) in metrics.items()]
        directive = {"Namespace": NAMESPACE, "Dimensions": [list(dimensions)], "Metrics": definitions}
        document = {
            "_aws": {"Timestamp": now, "CloudWatchMetrics": [directive]},
            **{name: value[:_MAX_VALUE] or "(empty)" for name, value in dimensions.items()},
            "worker": worker,
            **{name: value for name, (value, _) in metrics.items()},
        }
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)
