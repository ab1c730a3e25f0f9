"""Intervals: the metrics of many resamples of the same rows, computed all at once.

A resample is a row of counts, how often each table row was drawn, so models are compared on equal resamples (paired)
and a slice takes the columns of its own rows. What is drawn are *units*: single rows (Efron, 1979), whole groups where
rows come in groups (cluster bootstrap: Field & Welsh, 2007), or blocks of ~sqrt(n) consecutive rows where the split
is by time, since the errors of neighbours are alike and single rows would make the interval too narrow
(non-overlapping block bootstrap: Carlstein, 1986).
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import sparse

from towline.config import TrainingConfig
from towline.data.schema.contract import Contract
from towline.training.evaluation.metrics import EncodedPredictions
from towline.training.evaluation.predictions import Interval, Predictions

CELLS = 100_000  # of a chunk of weights: stays in the cache of a core
Statistic = Callable[[np.ndarray], np.ndarray]


def resampling_units(rows: pd.DataFrame, config: TrainingConfig) -> np.ndarray:
    """(n,) which rows are drawn together: codes from 0."""
    n = len(rows)
    if config.data.group:
        return pd.factorize(rows[config.data.group], use_na_sentinel=False)[0]
    if config.data.time and config.split.by != "random":
        rank = np.empty(n, dtype=np.int64)
        rank[np.argsort(rows[config.data.time].to_numpy(), kind="stable")] = np.arange(n)
        return rank // max(1, math.isqrt(n))
    return np.arange(n)


def draw_weights(n: int, resamples: int, seed: int, units: np.ndarray | None = None) -> np.ndarray:
    """(resamples, n) multinomial counts of rows drawn with replacement, whole ``units`` at a time."""
    drawn = n if units is None else int(units.max(initial=-1)) + 1
    counts = np.empty((resamples, n), dtype=np.uint16)
    rng = np.random.default_rng(seed)
    for row in counts:
        count = np.bincount(rng.integers(0, drawn, drawn), minlength=drawn)
        row[:] = count if units is None else count[units]
    return counts


def resample_metric(
    truth: np.ndarray, predictions: Predictions, contract: Contract, metric: str, weights: np.ndarray
) -> np.ndarray:
    """(B,) one metric under each row of (B, n) weights; equals ``metrics.scores`` with those weights."""
    coded = EncodedPredictions.of(truth, predictions, contract)
    count, n = weights.shape
    if n == 0 or not np.isfinite(coded.predicted).all():
        return np.full(count, np.nan)
    statistic = _statistic(coded, metric)
    step = max(1, CELLS // n)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 is nan: undefined in that resample
        return np.concatenate(
            [statistic(weights[at : at + step].astype(np.float64)) for at in range(0, count, step)] or [np.empty(0)]
        )


def percentile_interval(value: float, resampled: np.ndarray) -> Interval:
    """The central 95 % of the resampled values (percentile interval: Efron & Tibshirani, 1993, ch. 13)."""
    if not math.isfinite(value):
        return Interval(value=None)
    known = resampled[np.isfinite(resampled)]
    if len(known) < 20:
        return Interval(value=float(value))
    low, high = np.quantile(known, (0.025, 0.975))
    return Interval(value=float(value), low=float(low), high=float(high))


def _statistic(coded: EncodedPredictions, metric: str) -> Statistic:
    truth, predicted, chances = coded.truth, coded.predicted, coded.probabilities
    if coded.task == "regression":
        return _of_errors(truth, predicted, metric)
    if metric == "accuracy":
        return _mean((truth == predicted).astype(np.float64))
    if metric in ("precision", "recall", "f1"):
        return _of_counts(coded, metric)
    if chances is None:
        return lambda w: np.full(len(w), np.nan)
    if metric == "log_loss":
        tiny = np.finfo(np.float64).eps
        return _mean(-np.log(np.clip(chances[np.arange(len(truth)), truth], tiny, 1 - tiny)))
    if metric == "brier":
        return _mean((chances[:, 1] - (truth == 1)) ** 2)
    if coded.task == "binary":
        return _of_ranks(truth == 1, chances[:, 1], metric)
    each = [_of_ranks(truth == label, chances[:, label], metric) for label in np.unique(truth)]
    return lambda w: _nanmean(np.array([ranks(w) for ranks in each]))


def _mean(values: np.ndarray) -> Statistic:
    return lambda w: (w @ values) / w.sum(axis=1)


def _nanmean(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nansum(values, axis=0) / np.isfinite(values).sum(axis=0))


def _of_errors(truth: np.ndarray, predicted: np.ndarray, metric: str) -> Statistic:
    errors = np.abs(truth - predicted)
    if metric == "mae":
        return _mean(errors)
    if metric == "mape":
        some = truth != 0
        relative = _mean(errors[some] / np.abs(truth[some]))
        return lambda w: relative(w[:, some])
    squares = _mean(errors**2)
    if metric == "rmse":
        return lambda w: np.sqrt(squares(w))
    from_mean = truth - truth.mean()  # centred first: the variance below would else lose digits
    first, second = _mean(from_mean), _mean(from_mean**2)

    def r2(w: np.ndarray) -> np.ndarray:
        variance = second(w) - first(w) ** 2
        return np.where(variance > 1e-12 * second(w), 1 - squares(w) / variance, np.nan)

    return r2


def _of_counts(coded: EncodedPredictions, metric: str) -> Statistic:
    labels = np.arange(max(coded.truth.max(), coded.predicted.max()) + 1) if coded.task == "multiclass" else [1]
    n = len(coded.truth)

    def members(codes: np.ndarray, of: np.ndarray) -> sparse.csr_array:
        selected = np.flatnonzero(of & np.isin(codes, labels))
        at = codes[selected] if coded.task == "multiclass" else np.zeros(len(selected), dtype=np.int64)
        return sparse.csr_array((np.ones(len(selected)), (at, selected)), shape=(len(labels), n))

    everywhere = np.ones(n, dtype=bool)
    hit = members(coded.truth, coded.truth == coded.predicted)
    true, predicted = members(coded.truth, everywhere), members(coded.predicted, everywhere)

    def statistic(w: np.ndarray) -> np.ndarray:
        hits, trues, predictions = hit @ w.T, true @ w.T, predicted @ w.T  # (labels, B)
        below = {"precision": predictions, "recall": trues, "f1": (trues + predictions) / 2}[metric]
        ratio = np.divide(hits, below, out=np.zeros_like(hits), where=below > 0)
        occurs = trues > 0 if coded.task == "binary" else trues + predictions > 0
        return _nanmean(np.where(occurs, ratio, np.nan))

    return statistic


def _of_ranks(positive: np.ndarray, score: np.ndarray, metric: str) -> Statistic:
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], positive[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # one step of the curve for each distinct score

    def statistic(w: np.ndarray) -> np.ndarray:
        w = w[:, order]
        new_hits = np.add.reduceat(w * hits, starts, axis=1)
        new_all = np.add.reduceat(w, starts, axis=1)
        caught = np.cumsum(new_hits, axis=1)
        positives = caught[:, -1]
        if metric == "roc_auc":  # a false alarm is beaten by the positives above it and draws with those beside it
            beaten = ((new_all - new_hits) * (caught - new_hits / 2)).sum(axis=1)
            return np.asarray(beaten / (positives * (w.sum(axis=1) - positives)))
        reached = np.cumsum(new_all, axis=1)
        precision = np.divide(caught, reached, out=np.zeros_like(caught), where=reached > 0)
        return np.asarray((new_hits * precision).sum(axis=1) / positives)

    return statistic
