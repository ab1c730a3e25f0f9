"""Bootstrap intervals: a metric in many resamples of the same rows, and the range that holds 95 % of its values.

A resample is a row of weights: how often each row of the table was drawn. Models are compared on equal resamples
(paired), and a slice takes the columns of its own rows. The *units* that are drawn are single rows (Efron, 1979); whole
groups if rows come in groups (cluster bootstrap: Field & Welsh, 2007); or blocks of about sqrt(n) consecutive rows if
the split is by time (non-overlapping block bootstrap: Carlstein, 1986). Errors of neighbouring rows are correlated:
drawing single rows would make the interval too narrow.
"""

import math

import numpy as np
import pandas as pd

from towline.config import TrainingConfig
from towline.data.schema.contract import Contract
from towline.data.splits import group_codes
from towline.training.evaluation.metrics import EncodedPredictions, evaluate_metric
from towline.training.evaluation.predictions import Interval, Predictions


def resampling_units(rows: pd.DataFrame, config: TrainingConfig) -> np.ndarray:
    """(n,) the number of the unit that each row belongs to, from 0; rows of one unit are drawn together."""
    n = len(rows)
    if config.data.group:
        return group_codes(rows[config.data.group])
    if config.by_time:
        rank = np.empty(n, dtype=np.int64)
        rank[np.argsort(rows[config.data.time].to_numpy(), kind="stable")] = np.arange(n)
        return rank // max(1, math.isqrt(n))
    return np.arange(n)


def rows_by_unit(units: np.ndarray) -> list[np.ndarray]:
    """The positions of the rows of each unit, in their order.

    Example:
        >>> [rows.tolist() for rows in rows_by_unit(np.array([1, 0, 1]))]
        [[1], [0, 2]]
    """
    return np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])


def evenly_spaced(count: int, maximum: int) -> np.ndarray:
    """At most ``maximum`` of ``count`` positions, evenly spaced."""
    return np.arange(count) if count <= maximum else np.linspace(0, count - 1, maximum).astype(np.int64)


def draw_weights(n: int, resamples: int, seed: int, units: np.ndarray | None = None) -> np.ndarray:
    """(resamples, n) counts of n rows, of which whole ``units`` are drawn with replacement; default: single rows."""
    units = np.arange(n) if units is None else units
    unit_count = int(units.max(initial=-1)) + 1
    counts = np.empty((resamples, n), dtype=np.uint16)
    rng = np.random.default_rng(seed)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, unit_count, unit_count), minlength=unit_count)[units]
    return counts


def resample_metric(
    truth: np.ndarray, predictions: Predictions, contract: Contract, metric: str, weights: np.ndarray
) -> np.ndarray:
    """(B,) one metric of (n,) predictions in each of the resamples, whose weights are (B, n)."""
    return evaluate_metric(EncodedPredictions.of(truth, predictions, contract), metric, weights)


def percentile_interval(value: float, resampled: np.ndarray) -> Interval:
    """The central 95 % of the resampled values (percentile interval: Efron & Tibshirani, 1993, ch. 13)."""
    if not math.isfinite(value):
        return Interval(value=None)
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < 20:
        return Interval(value=float(value))
    low, high = np.quantile(defined, (0.025, 0.975))
    return Interval(value=float(value), low=float(low), high=float(high))
