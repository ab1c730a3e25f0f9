"""The level of a target over time, beyond what the features explain; and old targets brought to the newest level.

Where demand or prices grow, a model of all rows answers with the level of the past, and one of the last rows has learnt
from few of them. What was observed is therefore compared with what the other rows of the table make one expect of such
features (indirect standardisation), smoothed over time in both directions (exponential smoothing; Brown, 1959), and
each target is restated at the newest level, as insurers bring losses on level before they price (Werner & Modlin, Basic
Ratemaking, 2016, chapter 6). A model fitted on these is an ordinary one: nothing is done to its answers.
"""

import datetime as dt
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from towline.config import Frozen

FOLDS = 3
PRIOR = 3  # rows that speak for no change, so that what a few others say is not taken whole
_BLOCKS, _BINS = 4, 8  # per half-life: stretches dealt to the folds, steps in which the level is counted
_POINTS = 200  # are kept of a level

Answer = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Level(Frozen):
    """How high a target stood over time, beside what it is at the newest row.

    Attributes:
        times: ISO, oldest first, evenly spaced; 200 at most.
        values: (times,) as a share of the newest level where levels multiply, else what is to be added to it.
        multiplies: which of the two.
    """

    times: tuple[str, ...]
    values: tuple[float, ...]
    multiplies: bool

    def __str__(self) -> str:
        first = self.values[0]
        change = f"× {1 / first:.3g}" if self.multiplies else f"{-first:+.3g}"
        return f"level {change} since {self.times[0][:10]}"


class Restated(NamedTuple):
    """(n,) targets at the newest level, and the level; none where all rows are of one stretch, or zero."""

    labels: np.ndarray
    level: Level | None


def on_level(labels: np.ndarray, times: pd.Series, half_life: dt.timedelta, answer: Answer) -> Restated:
    """Targets as they would be at the newest level.

    Targets that are nowhere negative have a level that multiplies, others one that is added. What is expected of a row
    comes from folds of stretches a quarter of the half-life long, so that it is not learnt from the row's own days.

    Args:
        labels: (n,) numbers.
        times: (n,) when each row happened.
        half_life: a row so far off in time says half as much of the level as one at the time itself.
        answer: fits on the rows at the first positions and predicts those at the second.
    """
    seconds = (times - times.min()).dt.total_seconds().to_numpy()
    fold = (seconds // (half_life.total_seconds() / _BLOCKS)).astype(np.int64) % FOLDS
    folds = np.unique(fold)
    if len(folds) < 2:
        return Restated(labels, None)
    expected = np.empty(len(labels))
    for number in folds:
        inside = fold == number
        expected[inside] = answer(np.flatnonzero(~inside), np.flatnonzero(inside))

    bins = (seconds // (half_life.total_seconds() / _BINS)).astype(np.int64)
    multiplies, usual = bool(labels.min() >= 0), PRIOR * labels.mean()
    if multiplies and not usual:
        return Restated(labels, None)
    if multiplies:
        level = (_smoothed(bins, labels) + usual) / (_smoothed(bins, np.maximum(expected, 0)) + usual)
        level = level / level[-1]
        restated = labels / level[bins]
    else:
        level = _smoothed(bins, labels - expected) / (_smoothed(bins, np.ones(len(labels))) + PRIOR)
        level = level - level[-1]
        restated = labels - level[bins]
    kept = np.unique(np.linspace(0, len(level) - 1, _POINTS).round().astype(np.int64))
    when = tuple((times.min() + at * (half_life / _BINS)).isoformat() for at in kept.tolist())
    return Restated(restated, Level(times=when, values=tuple(level[kept].tolist()), multiplies=multiplies))


def _smoothed(bins: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(bins,) sums of values, each bin counting for its neighbours by half as much a half-life away."""
    sums = np.bincount(bins, values)
    fading = [1.0, -(0.5 ** (1 / _BINS))]
    return np.asarray(lfilter([1.0], fading, sums) + lfilter([1.0], fading, sums[::-1])[::-1] - sums)
