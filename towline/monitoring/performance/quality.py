"""How good a version's predictions turned out to be, once labels are there.

The metric is measured on predictions that are old enough to have a label (``quality.delay``) and have one. Its interval
is drawn as in training: blocks of ~sqrt(n) consecutive predictions (or groups, where the log keeps them), widened by
Student's t for few blocks, since percentiles of few draws are too narrow. The verdict is the interval's: bad where it
lies beyond the accepted bound, good where it lies within, unknown where it holds it.
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

from towline.config import GREATER_IS_BETTER, Metric, PipelineConfig
from towline.config.monitoring import QualityConfig
from towline.data.schema.contract import Contract
from towline.errors import DataError
from towline.manifest import read
from towline.monitoring.performance.logged_predictions import (
    PROBABILITY_METRICS,
    LoggedLabels,
    LoggedPredictions,
    answered,
    frame,
    known,
    moments,
    padded,
    plain,
    utc,
)
from towline.monitoring.results import QualityResult, QualityState, SliceMetric
from towline.prediction_log.parquet_store import INPUT
from towline.training import performance_estimation
from towline.training.cross_validation import primary
from towline.training.evaluation.bootstrap import interval, resample, weights
from towline.training.evaluation.holdout import SLICE_RESAMPLES, cuts
from towline.training.evaluation.interval import Interval
from towline.training.evaluation.predictions import Predictions

MOST = 50_000  # rows a metric is measured on; of more, evenly spaced ones
STRANGE = 0.05  # labels of classes the model never saw; from this share on no metric is needed to call it bad
_RULE_OF_THREE = 3.0


class PerformanceBound(NamedTuple):
    """The deciding metric, what it was on the holdout, and the value that is still accepted."""

    metric: Metric
    holdout: float | None
    bound: float

    def text(self) -> str:
        word = "at least" if GREATER_IS_BETTER[self.metric] else "at most"
        told = f"{word} {self.bound:.4g} is accepted"
        return told if self.holdout is None else f"{told}, {self.holdout:.4g} on the holdout"


def accepted(release: Path, config: PipelineConfig, contract: Contract) -> PerformanceBound:
    """``slo.metric`` where it is set, else the holdout's value worsened by ``quality.tolerance``.

    A loss (mae, log loss, …) may grow by that share of itself. A score may fall by that share of its distance to 1 or
    to what no skill reaches (roc_auc: 0.5, others: 0), whichever is nearer: of a roc_auc of 0.95 to 0.9375, of 0.6 to
    0.575. What the holdout is too small to rule out is no loss: the bound is never stricter than the worse end of the
    holdout's own interval, nor, where the holdout was (nearly) without fault, than 3/n of n rows from there (rule of
    three: Hanley & Lippman-Hand, 1983), of the baseline's value where the metric is a loss.

    Raises:
        ConfigError: the metric is not one of the task.
    """
    metric = primary(config, contract.task)
    facts: dict[str, Any] = json.loads((release / "metrics.json").read_bytes())["evaluation"]
    measured = Interval.model_validate(facts["metrics"].get(metric) or {"value": None})
    holdout = measured.value
    if config.slo.metric is not None:
        return PerformanceBound(metric, holdout, config.slo.metric)
    if holdout is None:
        return PerformanceBound(metric, None, 0.0)
    least = _RULE_OF_THREE / max(1, facts["rows"])
    if GREATER_IS_BETTER[metric]:
        nothing = 0.5 if metric == "roc_auc" else 0.0
        less = config.quality.tolerance * min(abs(holdout - nothing), abs(1.0 - holdout))
        end = holdout if measured.low is None else measured.low
        return PerformanceBound(metric, holdout, min(end, holdout - max(less, least)))
    more = max(config.quality.tolerance * holdout, least * abs(facts["baseline"].get(metric) or 0.0))
    end = holdout if measured.high is None else measured.high
    return PerformanceBound(metric, holdout, max(end, holdout + more))


def measure(
    table: pa.Table, release: Path, config: PipelineConfig, *, start: dt.datetime, end: dt.datetime, now: dt.datetime
) -> QualityResult:
    """The deciding metric on late labels, with its interval, overall and by slice, and what to think of it.

    Args:
        table: predictions with labels, as ``labels.read`` gives them; those of other versions are left out.
        release: of the version in question.
        config: says metric, slices, bound, delay and how many labels there must be.
        start: of the predictions.
        end: the same, not included.
        now: labels that came later do not count; predictions younger than ``quality.delay`` are not due.

    Raises:
        ConfigError: the metric is not one of the task.
        ReleaseError: the release has no manifest, or another one.
    """
    version = read(release).version
    contract = Contract.read(release)
    goal = accepted(release, config, contract)
    found = answered(table, version, contract, goal.metric, start, end)
    labels = known(found, contract, now)
    at = np.datetime64(utc(now - config.quality.delay).replace(tzinfo=None), "us")
    due = moments(found.table["time"]) <= at
    labelled = due & labels.labelled
    counted = _Counted(len(due), int(due.sum()), int(labelled.sum()))
    places = np.flatnonzero(labelled & labels.usable & found.usable)
    places = places[_spaced(len(places))]
    sample = _Sample(found, labels, goal.metric, places, config)
    value = sample.measured()
    state, reason = _verdict(sample, value, goal, counted, config)
    return QualityResult(
        state=state,
        version=version,
        metric=goal.metric,
        value=value,
        holdout=goal.holdout,
        bound=goal.bound,
        rows=counted.rows,
        labelled=counted.labelled,
        due=counted.due,
        start=utc(start),
        end=utc(end),
        slices=sample.slices(release, contract),
        expected=sample.expected(release, contract),
        reason="; ".join((reason, *found.notes, *labels.notes)),
    )


class _Counted(NamedTuple):
    rows: int
    due: int
    labelled: int


class _Sample:
    """The rows that are measured, and one set of resamples for the whole and its slices."""

    def __init__(
        self, found: LoggedPredictions, labels: LoggedLabels, metric: Metric, places: np.ndarray, config: PipelineConfig
    ) -> None:
        self.contract, self.metric, self.config = labels.contract, metric, config
        self.labels = labels
        self.table = found.table.take(pa.array(places))
        self.truth = labels.truth[places]
        self.given = found.predictions.take(places)
        answers = padded(self.given, self.contract)
        self.answers = answers if metric in PROBABILITY_METRICS else Predictions(answers.labels)
        self.units = blocks(self.table, config)
        self.draws = weights(len(places), config.evaluation.resamples, config.seed, self.units)

    def measured(self, rows: np.ndarray | None = None) -> Interval:
        """The metric on all rows, or on some by their positions."""
        places = np.arange(len(self.truth)) if rows is None else rows
        if not len(places):
            return Interval(value=None)
        truth, answers = self.truth[places], self.answers.take(places)
        once = np.ones((1, len(places)))
        value = float(resample(truth, answers, self.contract, self.metric, once)[0])
        draws = self.draws[:, places] if rows is None else self.draws[:SLICE_RESAMPLES, places]
        drawn = resample(truth, answers, self.contract, self.metric, draws)
        if np.isfinite(drawn).sum() < len(drawn) / 2:
            return interval(value, drawn[:0])
        return _possible(widened(interval(value, drawn), len(np.unique(self.units[places]))), self.metric)

    def slices(self, release: Path, contract: Contract) -> tuple[SliceMetric, ...]:
        """By the columns of the evaluation, as far as the log keeps them as they are."""
        rows = frame(self.table, sorted(plain(release, contract)))
        columns = tuple(column for column in contract.columns if column.name in rows.columns)
        asked = self.config.evaluation.slices
        if asked is not None:
            asked = tuple(name for name in asked if name in rows.columns)
        evaluation = self.config.evaluation.model_copy(update={"slices": asked})
        config = self.config.model_copy(update={"evaluation": evaluation})
        found, _ = cuts(rows, contract.model_copy(update={"columns": columns}), config)
        each = ((cut, self.measured(cut.rows)) for cut in found)
        return tuple(
            SliceMetric(column=cut.column, value=cut.value, rows=len(cut.rows), metric=value) for cut, value in each
        )

    def expected(self, release: Path, contract: Contract) -> Interval | None:
        """What would have been thought of these rows without their labels; None where there is no estimate."""
        loaded = performance_estimation.load(release)
        if loaded is None or loaded[0].metric != self.metric or not len(self.truth):
            return None
        features: pd.DataFrame | None = None
        if contract.task == "regression":
            try:
                features = contract.features(frame(self.table, sorted(plain(release, contract))))
            except DataError:  # a column is not in the log, or not as it was
                return None
        return performance_estimation.estimate(*loaded, self.given, features, contract, self.config.seed)

    def undefined(self) -> str:
        """Why the metric has no value."""
        seen = sorted({str(label) for label in self.truth}) if self.contract.classes else []
        if len(seen) == 1:
            return f"{self.metric} is undefined: every label is {seen[0]!r}"
        return f"{self.metric} is undefined on these {len(self.truth):,} labels"


def _verdict(
    sample: _Sample, value: Interval, goal: PerformanceBound, counted: _Counted, config: PipelineConfig
) -> tuple[QualityState, str]:
    if short := _too_few(counted, config.quality):
        return "unknown", short
    strange = sample.labels.strange
    if strange >= STRANGE * counted.labelled:
        share = f"{strange / counted.labelled:.0%} of {counted.labelled:,} labels"
        return "degraded", f"{share} are of a class that the model never saw"
    if len(sample.truth) < config.quality.min_labels:
        told = f"{len(sample.truth):,} of {counted.labelled:,} labelled predictions can be measured"
        return "unknown", f"{told}, {config.quality.min_labels} are needed"
    if value.value is None:
        return "unknown", sample.undefined()
    if value.low is None or value.high is None:
        return "unknown", f"{goal.metric} {value.text()}: too few rows, or rows too much of a kind, for an interval"
    told = f"{goal.metric} {value.text()} on {counted.labelled:,} labels"
    if goal.holdout is None and config.slo.metric is None:
        return "unknown", f"{told}; the release knows no value of the holdout to hold it to, and slo.metric is not set"
    sign = 1.0 if GREATER_IS_BETTER[goal.metric] else -1.0
    ends = sorted((sign * value.low, sign * value.high))
    if ends[1] < sign * goal.bound:
        return "degraded", f"{told}; {goal.text()}"
    if ends[0] >= sign * goal.bound:
        return "ok", f"{told}; {goal.text()}"
    return "unknown", f"{told}: too uncertain to say; {goal.text()}"


def _too_few(counted: _Counted, asked: QualityConfig) -> str:
    """Why the labels say nothing of the window; empty where they do."""
    if not counted.rows:
        return "there are no predictions in this window"
    if not counted.due:
        return f"none of {counted.rows:,} predictions is old enough to have a label"
    of = f"{counted.labelled:,} of {counted.due:,} predictions that are due have a label"
    if counted.labelled < asked.min_labels:
        return f"{of}, {asked.min_labels} are needed"
    if counted.labelled < asked.min_coverage * counted.due:
        return f"only {of}: they may be an early part, {asked.min_coverage:.0%} are asked for"
    return ""


def blocks(table: pa.Table, config: PipelineConfig) -> np.ndarray:
    """(n,) which rows are drawn together: those of a group, or ~sqrt(n) consecutive ones of a table in time's order."""
    if config.data.group and INPUT + config.data.group in table.column_names:
        codes: np.ndarray = pd.factorize(table[INPUT + config.data.group].to_pandas(), use_na_sentinel=False)[0]
        return codes
    return np.arange(len(table)) // max(1, math.isqrt(len(table)))


def widened(drawn: Interval, units: int) -> Interval:
    """An interval of few units as wide as Student's t has it; none of a single unit."""
    if drawn.value is None or drawn.low is None or drawn.high is None:
        return drawn
    if units < 2:
        return Interval(value=drawn.value)
    more = float(student.ppf(0.975, units - 1)) / 1.96
    low, high = (drawn.value + more * (end - drawn.value) for end in (drawn.low, drawn.high))
    return Interval(value=drawn.value, low=low, high=high)


def _possible(found: Interval, metric: Metric) -> Interval:
    """Within what the metric can be."""
    if found.low is None or found.high is None:
        return found
    low = found.low if metric == "r2" else max(0.0, found.low)
    high = min(1.0, found.high) if GREATER_IS_BETTER[metric] else found.high
    return Interval(value=found.value, low=low, high=high)


def _spaced(count: int) -> np.ndarray:
    return np.arange(count) if count <= MOST else np.linspace(0, count - 1, MOST).astype(np.int64)
