"""Removal of a target's trend over time, so that a model can learn from old rows at the newest level of the target.

If demand or prices grow, a model of all rows predicts the level of the past, and a model of the newest rows has few of
them. The *trend* of a target is its change over time that the features do not explain: the observed targets divided by
(or minus) the targets that are expected of such features (indirect standardisation), smoothed over time in both
directions (exponential smoothing; Brown, 1959). Each target is adjusted to the newest trend, as insurers bring losses
on level before they price (Werner & Modlin, Basic Ratemaking, 2016, chapter 6). A model that is fitted on the adjusted
targets is an ordinary model: its predictions are not changed.
"""

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from towline.config import Frozen

FOLDS = 3
PRIOR_ROWS = 3  # weight of the prior "no change", so that a few rows do not make a trend
_BLOCKS_PER_HALF_LIFE = 4  # stretches of time that are dealt to the folds
_BINS_PER_HALF_LIFE = 8  # time steps of the trend
_MAX_POINTS = 200

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Trend(Frozen):
    """The trend of a target, relative to the newest row.

    Attributes:
        times: ISO, oldest first, evenly spaced; at most 200.
        values: (times,) factor by which the newest target level was multiplied, or the difference that was added.
        is_factor: whether values are factors.
    """

    times: tuple[str, ...]
    values: tuple[float, ...]
    is_factor: bool

    def __str__(self) -> str:
        first = self.values[0]
        change = f"× {1 / first:.3g}" if self.is_factor else f"{-first:+.3g}"
        return f"trend {change} since {self.times[0][:10]}"


class DetrendedTarget(NamedTuple):
    """Targets (n,) adjusted to the newest trend; ``trend`` is None if the rows cover one stretch only or are all 0."""

    labels: np.ndarray
    trend: Trend | None


def remove_trend(labels: np.ndarray, times: pd.Series, half_life: dt.timedelta, predict: Predict) -> DetrendedTarget:
    """Adjusts targets to the newest trend.

    The trend is a factor if no target is negative, else a difference. The expected targets come from folds of stretches
    of a quarter of the half-life: no target is predicted by a model that has seen rows of the same days.

    Args:
        labels: (n,) numbers.
        times: (n,) time of each row.
        half_life: of the smoothing: a row at this distance in time has half the weight.
        predict: fits a model on the rows at the first positions and predicts the rows at the second.
    """
    seconds = (times - times.min()).dt.total_seconds().to_numpy()
    fold = (seconds // (half_life.total_seconds() / _BLOCKS_PER_HALF_LIFE)).astype(np.int64) % FOLDS
    numbers = np.unique(fold)
    if len(numbers) < 2:
        return DetrendedTarget(labels, None)
    expected = np.empty(len(labels))
    for number in numbers:
        in_fold = fold == number
        expected[in_fold] = predict(np.flatnonzero(~in_fold), np.flatnonzero(in_fold))

    bins = (seconds // (half_life.total_seconds() / _BINS_PER_HALF_LIFE)).astype(np.int64)
    is_factor, prior = bool(labels.min() >= 0), PRIOR_ROWS * labels.mean()
    if is_factor and not prior:
        return DetrendedTarget(labels, None)
    if is_factor:
        values = (_smooth(bins, labels) + prior) / (_smooth(bins, np.maximum(expected, 0)) + prior)
        values = values / values[-1]
        adjusted = labels / values[bins]
    else:
        values = _smooth(bins, labels - expected) / (_smooth(bins, np.ones(len(labels))) + PRIOR_ROWS)
        values = values - values[-1]
        adjusted = labels - values[bins]
    points = np.unique(np.linspace(0, len(values) - 1, _MAX_POINTS).round().astype(np.int64))
    point_times = tuple((times.min() + at * (half_life / _BINS_PER_HALF_LIFE)).isoformat() for at in points.tolist())
    return DetrendedTarget(
        adjusted, Trend(times=point_times, values=tuple(values[points].tolist()), is_factor=is_factor)
    )


def _smooth(bins: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(bins,) sums of values; the weight of a neighbouring bin halves with each half-life of distance."""
    sums = np.bincount(bins, values)
    decay = [1.0, -(0.5 ** (1 / _BINS_PER_HALF_LIFE))]
    return np.asarray(lfilter([1.0], decay, sums) + lfilter([1.0], decay, sums[::-1])[::-1] - sums)
