"""The Prometheus metrics of the service, for one worker or several.

Requests append numbers to lists. The lists are added to the metrics twice a second and before each scrape: a tenth
of the cost of updating the metrics in each request.
"""

import asyncio
import os
import resource
import time
from bisect import bisect_left
from collections import Counter as CountDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions
    from towline.prediction_log.writer import PredictionLog

from towline.config.monitoring import LATENCY_BUCKETS_S

FLUSH_INTERVAL_S = 0.5
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PREDICTION_BUCKETS = 20  # of the histogram of predicted values, over the target's range in training
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """The metrics of one worker, and of all where they share a directory.

    Args:
        log: the prediction log, for its queue depth and dropped rows.
        queued_rows: returns how many rows wait to be scored.
        current_model: returns the model that answers.
        rejections: returns how many releases were rejected.
        rollout_rows: returns the rows of the present rollout by (arm, outcome), since its start.
    """

    def __init__(
        self,
        log: "PredictionLog | None",
        queued_rows: Callable[[], int],
        current_model: "Callable[[], Model | None]",
        rejections: Callable[[], int],
        rollout_rows: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.in_flight = 0
        self._log, self._queued_rows = log, queued_rows
        self._current_model, self._rejections, self._rollout_rows = current_model, rejections, rollout_rows
        self._flushed_rollout_rows: dict[tuple[str, str], int] = {}
        self._worker = str(os.getpid())
        self._durations: dict[tuple[str, int, str], list[float]] = {}
        self._error_counts: CountDict[str] = CountDict()
        self._row_counts: CountDict[str] = CountDict()
        self._anomaly_counts: CountDict[tuple[str, str, str]] = CountDict()
        self._predictions: dict[str, list[Any]] = {}
        self._flushed_cpu = self._flushed_drops = self._flushed_rejections = 0.0
        self._values: Histogram | None = None

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"towline_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"towline_{name}", text, labels, registry=self.registry, multiprocess_mode="livesum")

        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._seconds = Histogram(
            "towline_request_seconds", "Duration of requests that reached a model.", ("route", "version"),
            registry=self.registry, buckets=LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._errors = counter("errors", "Refused requests by error code.", "code")
        self._input = counter("input_rows", "Scored rows.", "version")
        self._anomalies = counter(
            "input_anomalies", "Input values that were null, out of range or unseen in training.",
            "version", "column", "kind",
        )  # fmt: skip
        self._rollout = counter("rollout_rows", "Rows of rollouts by version and outcome.", "arm", "outcome")
        self._labels = counter("predicted_labels", "Predicted labels.", "version", "label")
        self._flight = gauge("in_flight", "Requests in progress.")
        self._depth = gauge("queue_depth", "Rows waiting to be scored or logged.", "queue")
        self._dropped = counter("log_dropped", "Predictions dropped because the log's queue was full.")
        self._rejected = counter("releases_refused", "Releases rejected because a check failed.", "worker")
        self._cpu_seconds = counter("process_cpu_seconds", "CPU time of a worker.", "worker")
        self._memory = gauge("process_resident_memory_bytes", "Memory of a worker.", "worker")
        Gauge(
            "towline_start_time_seconds", "Start of the service in seconds since 1970.", registry=self.registry,
            multiprocess_mode="min",
        ).set(time.time())  # fmt: skip
        self._model = gauge("model_version", "Version served by a worker.", "name", "worker")

    def count_request(self, route: str, status: int, version: str, seconds: float) -> None:
        """Counts one response."""
        key = route, status, version
        if (pending := self._durations.get(key)) is None:
            pending = self._durations[key] = []
        pending.append(seconds)

    def count_error(self, code: str) -> None:
        self._error_counts[code] += 1

    def count_predictions(
        self, model: "Model", version: str, answer: "RowPredictions", anomalies: Mapping[tuple[str, str], int]
    ) -> None:
        """Counts predictions and input anomalies (see ``RowReader.read``)."""
        self._row_counts[version] += len(answer.predictions)
        if (pending := self._predictions.get(version)) is None:
            pending = self._predictions[version] = []
            self._values = self._values or _histogram(model, self.registry)
        pending += answer.predictions
        for (column, what), count in anomalies.items():
            self._anomaly_counts[version, column, what] += count

    async def flush_periodically(self) -> None:
        """Flushes every ``FLUSH_INTERVAL_S`` until it is cancelled."""
        while True:
            self.flush()
            await asyncio.sleep(FLUSH_INTERVAL_S)

    def flush(self) -> None:
        """Adds the collected numbers to the metrics."""
        for (route, status, version), seconds in self._durations.items():
            if seconds:
                self._requests.labels(route, str(status)).inc(len(seconds))
                if version:
                    _observe(self._seconds.labels(route, version), seconds)
                seconds.clear()
        for version, answers in self._predictions.items():
            if self._values is not None:
                _observe(self._values.labels(version), answers)
            else:
                for label, count in CountDict(map(str, answers)).items():
                    self._labels.labels(version, label).inc(count)
            answers.clear()
        for key, count in self._rollout_rows().items():
            before = self._flushed_rollout_rows.get(key, 0)
            self._rollout.labels(*key).inc(count - before if count >= before else count)  # less: another rollout began
            self._flushed_rollout_rows[key] = count
        _drain(self._error_counts, self._errors.labels)
        _drain(self._row_counts, self._input.labels)
        _drain(self._anomaly_counts, lambda key: self._anomalies.labels(*key))
        self._update_gauges()

    def collect(self) -> list[Metric]:
        """The metrics of this worker alone."""
        self.flush()
        return list(self.registry.collect())

    def render(self) -> bytes:
        """The exposition text of this worker, or of all workers that share a metrics directory."""
        self.flush()
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self.registry)
        shared_registry = CollectorRegistry()
        MultiProcessCollector(shared_registry)  # type: ignore[no-untyped-call]
        return generate_latest(shared_registry)

    def _update_gauges(self) -> None:
        self._flight.set(self.in_flight)
        if (model := self._current_model()) is not None:
            self._model.labels(model.name, self._worker).set(model.version)
        self._depth.labels("score").set(self._queued_rows())
        if self._log is not None:
            self._depth.labels("log").set(self._log.depth)
            drops = self._log.drops  # the log's thread may increase them during this call
            self._dropped.inc(drops - self._flushed_drops)
            self._flushed_drops = drops
        rejections = self._rejections()
        self._rejected.labels(self._worker).inc(rejections - self._flushed_rejections)
        self._flushed_rejections = rejections
        cpu = time.process_time()
        self._cpu_seconds.labels(self._worker).inc(cpu - self._flushed_cpu)
        self._flushed_cpu = cpu
        self._memory.labels(self._worker).set(_resident())


def _histogram(model: "Model", registry: CollectorRegistry) -> Histogram | None:
    """The histogram of predicted numbers; its buckets stay those of the first version that this worker served."""
    if model.contract.classes:
        return None
    target = next((column for column in model.contract.columns if column.role == "target"), None)
    low, high = (target.min, target.max) if target else (None, None)
    if low is None or high is None or not low < high:
        low, high = 0.0, 1.0
    edges = [low + (high - low) * cell / PREDICTION_BUCKETS for cell in range(PREDICTION_BUCKETS + 1)]
    return Histogram(
        "towline_predictions", "Predicted values.", ("version",), registry=registry,
        buckets=sorted({float(f"{edge:.6g}") for edge in edges}),
    )  # fmt: skip


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    """Adds many values at once, which has no public method and costs a tenth of single calls."""
    edges = histogram._upper_bounds
    for cell, count in CountDict(bisect_left(edges, value) for value in values).items():
        histogram._buckets[cell].inc(count)
    histogram._sum.inc(sum(values))


def _drain(counts: "CountDict[Any]", child: Callable[[Any], Counter]) -> None:
    for key, count in counts.items():
        child(key).inc(count)
    counts.clear()


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    except OSError:  # not Linux: the peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
