"""Measured quality: the metric on predictions with ground-truth labels.

Only predictions older than ``quality.delay`` are measured. The interval comes from a block bootstrap, as in training:
blocks of about sqrt(n) consecutive predictions (or groups, if the log has them). It is widened by Student's t if there
are few blocks, since percentiles of few draws are too narrow. Quality is degraded if the interval lies beyond the
bound, ok if it lies within, and unknown if it contains the bound.
"""

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import t as student

from towline.config import PipelineConfig
from towline.config.monitoring import QualityConfig
from towline.data.schema.contract import Contract
from towline.data.splits import group_codes
from towline.errors import DataError
from towline.manifest import read_manifest
from towline.monitoring.performance.logged_predictions import (
    LoggedLabels,
    LoggedPredictions,
    find_logged_slices,
    logged_features,
    pad_probabilities,
    read_times,
    select_labels,
    select_predictions,
    to_datetime64,
    unmodified_features,
)
from towline.monitoring.results import QualityResult, QualityState, SliceMetric
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.times import to_utc
from towline.training import performance_estimation
from towline.training.evaluation.bootstrap import draw_weights, evenly_spaced, percentile_interval, resample_metric
from towline.training.evaluation.definitions import Metric, primary_metric
from towline.training.evaluation.holdout import SLICE_RESAMPLES
from towline.training.evaluation.predictions import Interval, Predictions

MAX_ROWS = 50_000  # a metric is measured on; of more rows, evenly spaced ones are used
MAX_UNKNOWN_CLASS = 0.05  # from this share of labels of an unknown class on, quality is degraded whatever the metric
_RULE_OF_THREE = 3.0


class PerformanceBound(NamedTuple):
    """The primary metric, its value on the holdout, and its worst acceptable value."""

    metric: Metric
    holdout: float | None
    bound: float

    @property
    def tolerance(self) -> float:
        """The acceptable loss against the holdout; 0 if the holdout's value is unknown."""
        return 0.0 if self.holdout is None else abs(self.bound - self.holdout)

    def text(self) -> str:
        side = "at least" if self.metric.greater_is_better else "at most"
        text = f"bound: {side} {self.bound:.4g}"
        return text if self.holdout is None else f"{text} ({self.holdout:.4g} on the holdout)"


def performance_bound(release: Path, config: PipelineConfig, contract: Contract) -> PerformanceBound:
    """``slo.metric`` if it is set, else the holdout's value worsened by ``quality.tolerance``.

    A loss (mae, log loss, …) and a custom metric may worsen by that share of itself. A score may fall by that share of
    its distance to 1, or to the value without skill (roc_auc: 0.5, others: 0), whichever is nearer: a roc_auc of 0.95
    to 0.9375, of 0.6 to 0.575. The bound is never stricter than the holdout can tell: not stricter than the worse
    end of the holdout's interval; and if the holdout had (nearly) no errors, it allows 3/n errors of n rows (rule of
    three: Hanley and Lippman-Hand, 1983), for losses 3/n of the baseline's value.

    Raises:
        ConfigError: the metric does not fit the task.
    """
    metric = primary_metric(config, contract.task)
    evaluation: dict[str, Any] = json.loads((release / "metrics.json").read_bytes())["evaluation"]
    measured = Interval.model_validate(evaluation["metrics"].get(metric) or {"value": None})
    holdout = measured.value
    if config.slo.metric is not None:
        return PerformanceBound(metric, holdout, config.slo.metric)
    if holdout is None:
        return PerformanceBound(metric, None, 0.0)
    resolution = _RULE_OF_THREE / max(1, evaluation["rows"])
    if metric.function is not None:
        worsened = config.quality.tolerance * abs(holdout)
        low, high = (holdout if end is None else end for end in (measured.low, measured.high))
        bound = min(low, holdout - worsened) if metric.greater_is_better else max(high, holdout + worsened)
        return PerformanceBound(metric, holdout, bound)
    if metric.greater_is_better:
        no_skill = 0.5 if metric == "roc_auc" else 0.0
        decrease = config.quality.tolerance * min(abs(holdout - no_skill), abs(1.0 - holdout))
        low = holdout if measured.low is None else measured.low
        return PerformanceBound(metric, holdout, min(low, holdout - max(decrease, resolution)))
    baseline = abs(evaluation["baseline"].get(metric) or 0.0)
    increase = max(config.quality.tolerance * holdout, resolution * baseline)
    high = holdout if measured.high is None else measured.high
    return PerformanceBound(metric, holdout, max(high, holdout + increase))


def measure_quality(
    rows: pa.Table, release: Path, config: PipelineConfig, *, start: dt.datetime, end: dt.datetime, now: dt.datetime
) -> QualityResult:
    """Measures the primary metric on labels, with its interval, overall and by slice, and compares it with the bound.

    Args:
        rows: predictions with labels, as ``labels.read`` returns them; those of other versions are left out.
        release: directory of the version's release.
        config: for metric, slices, bound, delay and the minimum number of labels.
        start: start of the window.
        end: end of the window, not included.
        now: labels that came later are ignored; predictions younger than ``quality.delay`` are not due.

    Raises:
        ConfigError: the metric does not fit the task.
        ReleaseError: the release has no valid manifest.
    """
    version, contract = read_manifest(release).version, Contract.read(release)
    bound = performance_bound(release, config, contract)
    logged = select_predictions(rows, version, contract, bound.metric, start, end)
    labels = select_labels(logged, contract, now)
    due = read_times(logged.rows["time"]) <= to_datetime64(now - config.quality.delay)
    labelled = due & labels.labelled
    counts = _Counts(len(due), int(due.sum()), int(labelled.sum()))
    positions = np.flatnonzero(labelled & labels.usable & logged.usable)
    measured = _MeasuredRows(logged, labels, bound.metric, limit_rows(positions), config)
    value = measured.metric_interval()
    state, reason = _judge(measured, value, bound, counts, config)
    return QualityResult(
        state=state,
        version=version,
        metric=bound.metric,
        greater_is_better=bound.metric.greater_is_better,
        value=value,
        holdout=bound.holdout,
        bound=bound.bound,
        rows=counts.rows,
        labelled=counts.labelled,
        due=counts.due,
        start=to_utc(start),
        end=to_utc(end),
        slices=measured.slices(release, contract),
        expected=measured.estimate(release, contract),
        reason="; ".join((reason, *logged.notes, *labels.notes)),
    )


class _Counts(NamedTuple):
    rows: int
    due: int
    labelled: int


class _MeasuredRows:
    """The rows that are measured, with one set of bootstrap weights for the whole and its slices."""

    def __init__(
        self,
        logged: LoggedPredictions,
        labels: LoggedLabels,
        metric: Metric,
        positions: np.ndarray,
        config: PipelineConfig,
    ) -> None:
        self.contract, self.metric, self.config = labels.contract, metric, config
        self.labels = labels
        self.rows = logged.rows.take(pa.array(positions))
        self.truth = labels.truth[positions]
        self.logged = logged.predictions.take(positions)
        padded = pad_probabilities(self.logged, self.contract)
        self.predictions = padded if metric.needs_probabilities else Predictions(padded.labels)
        self.units = log_resampling_units(self.rows, config)
        self.weights = draw_weights(len(positions), config.evaluation.resamples, config.seed, self.units)

    def metric_interval(self, rows: np.ndarray | None = None) -> Interval:
        """The metric on all rows, or on those at some positions."""
        positions = np.arange(len(self.truth)) if rows is None else rows
        if not len(positions):
            return Interval(value=None)
        truth, predictions = self.truth[positions], self.predictions.take(positions)
        value = float(resample_metric(truth, predictions, self.contract, self.metric, np.ones((1, len(positions))))[0])
        draws = self.weights[:, positions] if rows is None else self.weights[:SLICE_RESAMPLES, positions]
        resampled = resample_metric(truth, predictions, self.contract, self.metric, draws)
        interval = resampled_interval(value, resampled, len(np.unique(self.units[positions])))
        return _clip_to_range(interval, self.metric)

    def slices(self, release: Path, contract: Contract) -> tuple[SliceMetric, ...]:
        """The slices of the evaluation whose columns are logged unmodified."""
        slices = find_logged_slices(self.rows, release, contract, self.config)
        return tuple(
            SliceMetric(
                column=part.column, value=part.value, rows=len(part.rows), metric=self.metric_interval(part.rows)
            )
            for part in slices
        )

    def estimate(self, release: Path, contract: Contract) -> Interval | None:
        """The estimate for these rows without their labels; None if the release cannot estimate the metric."""
        loaded = performance_estimation.load_estimator(release)
        if loaded is None or loaded[0].metric != self.metric or not len(self.truth):
            return None
        features: pd.DataFrame | None = None
        if contract.task == "regression":
            try:
                features = contract.features(logged_features(self.rows, sorted(unmodified_features(release, contract))))
            except DataError:  # a column is not logged unmodified
                return None
        return performance_estimation.estimate_metric(*loaded, self.logged, features, contract, self.config.seed)

    def why_undefined(self) -> str:
        distinct = sorted({str(label) for label in self.truth}) if self.contract.classes else []
        if len(distinct) == 1:
            return f"{self.metric} is undefined: every label is {distinct[0]!r}"
        return f"{self.metric} is undefined on these {len(self.truth):,} labels"


def _judge(
    measured: _MeasuredRows, value: Interval, bound: PerformanceBound, counts: _Counts, config: PipelineConfig
) -> tuple[QualityState, str]:
    """The state and its reason."""
    if shortage := _label_shortage(counts, config.quality):
        return "unknown", shortage
    unknown_class = measured.labels.unknown_class
    if unknown_class >= MAX_UNKNOWN_CLASS * counts.labelled:
        share = f"{unknown_class / counts.labelled:.0%} of {counts.labelled:,} labels"
        return "degraded", f"{share} are of a class that the model does not know"
    if len(measured.truth) < config.quality.min_labels:
        reason = f"{len(measured.truth):,} of {counts.labelled:,} labelled predictions can be measured"
        return "unknown", f"{reason}, {config.quality.min_labels} are needed"
    if value.value is None:
        return "unknown", measured.why_undefined()
    if value.low is None or value.high is None:
        return "unknown", f"{bound.metric} {value.text()}: too few or too similar rows for an interval"
    reason = f"{bound.metric} {value.text()} on {counts.labelled:,} labels"
    if bound.holdout is None and config.slo.metric is None:
        return "unknown", f"{reason}; there is no bound: the release has no holdout value, and slo.metric is not set"
    sign = 1.0 if bound.metric.greater_is_better else -1.0
    worst, best = sorted((sign * value.low, sign * value.high))
    if best < sign * bound.bound:
        return "degraded", f"{reason}; {bound.text()}"
    if worst >= sign * bound.bound:
        return "ok", f"{reason}; {bound.text()}"
    return "unknown", f"{reason}: the interval contains the bound; {bound.text()}"


def _label_shortage(counts: _Counts, config: QualityConfig) -> str:
    """Why there are too few labels; empty if there are enough."""
    if not counts.rows:
        return "there are no predictions in this window"
    if not counts.due:
        return f"none of {counts.rows:,} predictions is old enough to have a label"
    labelled = f"{counts.labelled:,} of {counts.due:,} predictions that are due have a label"
    if counts.labelled < config.min_labels:
        return f"{labelled}, {config.min_labels} are needed"
    if counts.labelled < config.min_coverage * counts.due:
        return f"only {labelled}, {config.min_coverage:.0%} are needed: early labels may be biased"
    return ""


def log_resampling_units(rows: pa.Table, config: PipelineConfig) -> np.ndarray:
    """(n,) the unit of each row: its group, or a block of about sqrt(n) consecutive rows."""
    if config.data.group and INPUT_PREFIX + config.data.group in rows.column_names:
        return group_codes(rows[INPUT_PREFIX + config.data.group].to_pandas())
    return np.arange(len(rows)) // max(1, math.isqrt(len(rows)))


def resampled_interval(value: float, resampled: np.ndarray, units: int) -> Interval:
    """The interval of a bootstrap, widened by Student's t for few units.

    There is none if most resampled values are undefined, or for a single unit.
    """
    if np.isfinite(resampled).sum() < len(resampled) / 2:
        return percentile_interval(value, resampled[:0])
    percentiles = percentile_interval(value, resampled)
    if percentiles.value is None or percentiles.low is None or percentiles.high is None:
        return percentiles
    if units < 2:
        return Interval(value=percentiles.value)
    factor = float(student.ppf(0.975, units - 1)) / 1.96
    low, high = (percentiles.value + factor * (end - percentiles.value) for end in (percentiles.low, percentiles.high))
    return Interval(value=percentiles.value, low=low, high=high)


def limit_rows(positions: np.ndarray) -> np.ndarray:
    """At most 50,000 of the positions, evenly spaced."""
    limited: np.ndarray = positions[evenly_spaced(len(positions), MAX_ROWS)]
    return limited


def _clip_to_range(value: Interval, metric: Metric) -> Interval:
    """Limits an interval to the range of the metric."""
    if value.low is None or value.high is None or metric.function is not None:
        return value
    low = value.low if metric == "r2" else max(0.0, value.low)
    high = min(1.0, value.high) if metric.greater_is_better else value.high
    return Interval(value=value.value, low=low, high=high)
