"""Tests on the predictions for the whole holdout: calibration, and differences between groups of rows.

A test fails if the excess over the bound is significant at 5 %, with Holm's procedure over all pairs of groups. It
passes if each upper limit is within the bound: for that, no correction is needed (Berger, 1982). Else it is
inconclusive.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from towline.config import CalibrationTest, FairnessTest, finite_or_none
from towline.data.schema.contract import Contract
from towline.training.behaviour.results import BehaviourCheck
from towline.training.calibration import expected_calibration_error
from towline.training.evaluation.bootstrap import resample_metric
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.holdout import MIN_ROWS, slice_values
from towline.training.evaluation.multiple_tests import reject_by_holm
from towline.training.evaluation.predictions import Predictions, encode_labels

SIGNIFICANCE = 0.05
CALIBRATION_RESAMPLES = 200


class PredictedHoldout(NamedTuple):
    """The n holdout rows with their predictions and resamples.

    Attributes:
        contract: task and classes.
        rows: raw.
        truth: (n,) true values or labels.
        predictions: of the evaluated model, which was not fitted on these rows.
        units: (n,) the resampling unit of each row.
        draws: (B, n) how often each row occurs in each resample.
    """

    contract: Contract
    rows: pd.DataFrame
    truth: np.ndarray
    predictions: Predictions
    units: np.ndarray
    draws: np.ndarray


class _Group(NamedTuple):
    """A metric of one group: on its rows, and in each resample (B,)."""

    name: str
    value: float
    resampled: np.ndarray
    units: int


def check_calibration(test: CalibrationTest, holdout: PredictedHoldout) -> BehaviourCheck:
    """Whether the expected calibration error is within its bound, by the basic bootstrap interval.

    The error of a finite sample is larger than that of the model: chance alone separates probabilities and shares. The
    basic interval (Davison & Hinkley, 1997), which reflects the resampled errors at the measured one, corrects for it.
    """
    name, bound, probabilities = "calibration", test.max_error, holdout.predictions.probabilities
    if probabilities is None or not np.isfinite(probabilities).all():
        return BehaviourCheck(name=name, outcome="fail", detail="the model gives no finite probabilities", bound=bound)
    positions = encode_labels(holdout.truth, holdout.contract.classes)
    error = expected_calibration_error(probabilities, positions)
    resampled = []
    for weights in holdout.draws[:CALIBRATION_RESAMPLES]:
        rows = np.repeat(np.arange(len(positions)), weights)
        resampled.append(expected_calibration_error(probabilities[rows], positions[rows]))
    high, low = 2 * error - np.quantile(resampled, (SIGNIFICANCE, 1 - SIGNIFICANCE))
    corrected = max(0.0, 2 * error - float(np.mean(resampled)))
    outcome = "fail" if low > bound else "pass" if high <= bound else "inconclusive"
    detail = (
        f"the error is {corrected:.4g} without the part that chance explains (90 % interval {max(0.0, low):.4g} to "
        f"{max(0.0, high):.4g}; {error:.4g} as measured) on {len(positions):,} rows, at most {bound:.4g}"
    )
    return BehaviourCheck(name=name, outcome=outcome, detail=detail, value=corrected, bound=bound)


def check_fairness(test: FairnessTest, metric: Metric | None, holdout: PredictedHoldout) -> Iterator[BehaviourCheck]:
    """One check for the difference, one for the ratio of a metric between the groups of a column.

    Args:
        test: column and bounds.
        metric: None: the share of rows that are predicted positive.
        holdout: rows and predictions.
    """
    groups, skipped = _measure_groups(test, metric, holdout)
    for kind, bound in (("difference", test.max_difference), ("ratio", test.min_ratio)):
        if bound is not None:
            yield _compare_groups(test, kind, bound, groups, skipped)


def _measure_groups(
    test: FairnessTest, metric: Metric | None, holdout: PredictedHoldout
) -> tuple[list[_Group], list[str]]:
    """The groups whose metric is defined, and the names of the others with the reason."""
    values = slice_values(holdout.rows[test.column])
    groups, skipped = [], []
    for name in np.unique(values):
        rows = np.flatnonzero(values == name)
        units = len(np.unique(holdout.units[rows]))
        if len(rows) < MIN_ROWS or units < 2:
            skipped.append(f"{name} has {len(rows)} rows")
            continue
        once = np.ones((1, len(rows)))
        point, resampled = (_measure(metric, holdout, rows, weights) for weights in (once, holdout.draws[:, rows]))
        finite = np.isfinite(resampled)
        if not math.isfinite(point[0]) or finite.mean() < 0.5:
            skipped.append(f"{test.metric} is undefined for {name}")
            continue
        groups.append(_Group(str(name), float(point[0]), resampled, units))
    return groups, skipped


def _measure(metric: Metric | None, holdout: PredictedHoldout, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    predictions = holdout.predictions.take(rows)
    if metric is not None:
        return resample_metric(holdout.truth[rows], predictions, holdout.contract, metric, weights)
    positive = (predictions.labels == holdout.contract.positive).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(weights.astype(np.float64) @ positive / weights.sum(axis=1))


class _GroupPair(NamedTuple):
    """Two groups: the difference or ratio, and the excess over the bound with its standard error.

    ``opposite`` is the distance from the bound on the other side, where the higher group is the lower one.
    """

    lower: _Group
    higher: _Group
    value: float
    excess: float
    opposite: float
    error: float

    @property
    def degrees(self) -> int:
        return min(self.lower.units, self.higher.units) - 1

    @property
    def p_value(self) -> float:
        """Of the hypothesis that the pair is within the bound."""
        if self.error == 0:
            return float(self.excess <= 0)
        return float(student.sf(np.array([self.excess, self.opposite]) / self.error, self.degrees).sum())

    @property
    def width(self) -> float:
        return self.error * float(student.ppf(1 - SIGNIFICANCE, self.degrees))


def _compare_groups(
    test: FairnessTest, kind: str, bound: float, groups: list[_Group], skipped: list[str]
) -> BehaviourCheck:
    name = f"fairness {test.column} {kind} of {test.metric}"
    missing = f"; not compared: {', '.join(skipped[:5])}" if skipped else ""
    if len(groups) < 2:
        detail = f"fewer than two groups of {MIN_ROWS} rows can be compared{missing}"
        return BehaviourCheck(name=name, outcome="inconclusive", detail=detail, bound=bound)
    pairs = [_compare_pair(kind, bound, *pair) for pair in itertools.combinations(groups, 2)]
    rejected = reject_by_holm(np.array([pair.p_value for pair in pairs]), SIGNIFICANCE)
    worst = max(pairs, key=lambda pair: pair.excess)
    if rejected.any():
        outcome = "fail"
        worst = max((pair for pair, failed in zip(pairs, rejected, strict=True) if failed), key=lambda p: p.excess)
    else:
        within = all(pair.excess + pair.width <= 0 for pair in pairs)
        outcome = "pass" if within and not skipped else "inconclusive"
    scale = 1.0 if kind == "difference" else max(abs(worst.higher.value), 1e-300)
    center, width = worst.value, worst.width / scale
    low, high = center - width, center + width
    side = "at most" if kind == "difference" else "at least"
    detail = (
        f"{test.metric} {worst.lower.value:.4g} for {worst.lower.name}, {worst.higher.value:.4g} for "
        f"{worst.higher.name}: {kind} {center:.4g} (90 % interval {low:.4g} to {high:.4g}), {side} {bound:.4g}, "
        f"{len(pairs)} pairs{missing}"
    )
    return BehaviourCheck(name=name, outcome=outcome, detail=detail, value=finite_or_none(center), bound=bound)


def _compare_pair(kind: str, bound: float, first: _Group, second: _Group) -> _GroupPair:
    lower, higher = sorted((first, second), key=lambda group: group.value)
    factor = 1.0 if kind == "difference" else bound
    resampled = factor * higher.resampled - lower.resampled
    difference = factor * higher.value - lower.value
    error = float(np.nanstd(resampled, ddof=1))
    if kind == "difference":
        return _GroupPair(lower, higher, difference, difference - bound, difference + bound, error)
    ratio = lower.value / higher.value if higher.value > 0 else (1.0 if higher.value == lower.value else math.nan)
    return _GroupPair(lower, higher, ratio, difference, higher.value - bound * lower.value, error)
