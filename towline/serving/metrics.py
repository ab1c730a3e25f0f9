"""What Prometheus is told, right with one worker or many.

A request leaves a few numbers in lists; they are counted twice a second and before each scrape, which costs a tenth of
counting one by one.
"""

import asyncio
import os
import resource
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions
    from towline.prediction_log.writer import PredictionLog

from towline.config.monitoring import LATENCY_BUCKETS_S

FLUSH_INTERVAL_S = 0.5  # seconds
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
PREDICTION_BUCKETS = 20  # of the histogram of predicted values, over the range of the training table
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """The metrics of one worker, and of all where they share a directory.

    Args:
        log: whose depth and drops are told.
        waiting: how many rows wait to be scored.
        serving: the model that answers.
        refused: how many releases were to serve and were not let.
    """

    def __init__(
        self,
        log: "PredictionLog | None",
        waiting: Callable[[], int],
        serving: "Callable[[], Model | None]",
        refused: Callable[[], int],
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.in_flight = 0
        self._log, self._waiting, self._serving, self._refusals = log, waiting, serving, refused
        self._worker = str(os.getpid())
        self._durations: dict[tuple[str, int, str], list[float]] = {}
        self._codes: Tally[str] = Tally()
        self._rows: Tally[str] = Tally()
        self._odd: Tally[tuple[str, str, str]] = Tally()
        self._answers: dict[str, list[Any]] = {}
        self._cpu = self._drops = self._refused_before = 0.0
        self._values: Histogram | None = None

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"towline_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"towline_{name}", text, labels, registry=self.registry, multiprocess_mode="livesum")

        self._requests = counter("requests", "Requests answered.", "route", "status")
        self._seconds = Histogram(
            "towline_request_seconds", "Of a request that reached a model until it was answered.", ("route", "version"),
            registry=self.registry, buckets=LATENCY_BUCKETS_S,
        )  # fmt: skip
        self._errors = counter("errors", "Requests refused, by the code of the problem.", "code")
        self._input = counter("input_rows", "Rows predicted.", "version")
        self._oddities = counter(
            "input_oddities", "Input values that were null, out of the range or unseen in training.",
            "version", "column", "what",
        )  # fmt: skip
        self._labels = counter("predicted_labels", "Labels predicted.", "version", "label")
        self._flight = gauge("in_flight", "Requests being answered.")
        self._depth = gauge("queue_depth", "Rows that wait to be scored, and records to be logged.", "queue")
        self._dropped = counter("log_dropped", "Predictions that found the log's queue full.")
        self._refused = counter("releases_refused", "Releases that were to serve and failed a check.", "worker")
        self._cpu_seconds = counter("process_cpu_seconds", "CPU time of a worker.", "worker")
        self._memory = gauge("process_resident_memory_bytes", "Memory of a worker.", "worker")
        Gauge(
            "towline_start_time_seconds", "When the service started, since 1970.", registry=self.registry,
            multiprocess_mode="min",
        ).set(time.time())  # fmt: skip
        self._model = gauge("model_version", "The version that a worker serves.", "name", "worker")

    def finished(self, route: str, status: int, version: str, seconds: float) -> None:
        """Counts one answer."""
        key = route, status, version
        if (pending := self._durations.get(key)) is None:
            pending = self._durations[key] = []
        pending.append(seconds)

    def refused(self, code: str) -> None:
        self._codes[code] += 1

    def predicted(
        self, model: "Model", version: str, answer: "RowPredictions", odd: Mapping[tuple[str, str], int]
    ) -> None:
        """Counts what was predicted, and what was odd about the input (see ``Reader.read``)."""
        self._rows[version] += len(answer.predictions)
        if (pending := self._answers.get(version)) is None:
            pending = self._answers[version] = []
            self._values = self._values or _histogram(model, self.registry)
        pending += answer.predictions
        for (column, what), count in odd.items():
            self._odd[version, column, what] += count

    async def keep(self) -> None:
        """Counts what requests have left, for ever."""
        while True:
            self.flush()
            await asyncio.sleep(FLUSH_INTERVAL_S)

    def flush(self) -> None:
        """Counts what requests have left."""
        for (route, status, version), seconds in self._durations.items():
            if seconds:
                self._requests.labels(route, str(status)).inc(len(seconds))
                if version:
                    _observe(self._seconds.labels(route, version), seconds)
                seconds.clear()
        for version, answers in self._answers.items():
            if self._values is not None:
                _observe(self._values.labels(version), answers)
            else:
                for label, count in Tally(map(str, answers)).items():
                    self._labels.labels(version, label).inc(count)
            answers.clear()
        _drain(self._codes, self._errors.labels)
        _drain(self._rows, self._input.labels)
        _drain(self._odd, lambda key: self._oddities.labels(*key))
        self._state()

    def render(self) -> bytes:
        """The exposition text of this worker, or of all that share a directory."""
        self.flush()
        if MULTIPROCESS_DIR not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def _state(self) -> None:
        self._flight.set(self.in_flight)
        if (model := self._serving()) is not None:
            self._model.labels(model.name, self._worker).set(model.version)
        self._depth.labels("score").set(self._waiting())
        if self._log is not None:
            self._depth.labels("log").set(self._log.depth)
            self._dropped.inc(self._log.drops - self._drops)
            self._drops = self._log.drops
        refused = self._refusals()
        self._refused.labels(self._worker).inc(refused - self._refused_before)
        self._refused_before = refused
        cpu = time.process_time()
        self._cpu_seconds.labels(self._worker).inc(cpu - self._cpu)
        self._cpu = cpu
        self._memory.labels(self._worker).set(_resident())


def _histogram(model: "Model", registry: CollectorRegistry) -> Histogram | None:
    """Of predicted numbers; its cells stay those of the first version that this worker served."""
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
    """Many at once: prometheus_client has no public way, and one by one costs ten times as much."""
    edges = histogram._upper_bounds
    for cell, count in Tally(bisect_left(edges, value) for value in values).items():
        histogram._buckets[cell].inc(count)
    histogram._sum.inc(sum(values))


def _drain(tally: "Tally[Any]", child: Callable[[Any], Counter]) -> None:
    for key, count in tally.items():
        child(key).inc(count)
    tally.clear()


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE
    except OSError:  # no Linux: the most it ever was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
