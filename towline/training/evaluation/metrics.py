"""Metrics of predictions, with the definitions of scikit-learn, for many weightings of the same rows in one call.

A *weighting* says how often each row counts. All rows once is the metric itself; a resample of the rows is a weighting
too, so that an interval needs one pass over the predictions, not one call of scikit-learn for each resample.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from towline.config import METRICS, Task
from towline.data.schema.contract import Contract, Label
from towline.errors import FitError
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.predictions import Predictions, decode_labels, encode_labels
from towline.training.user_code import describe_error

_CHUNK_CELLS = 100_000  # weights of a chunk, which fit into the cache of a core
Statistic = Callable[[np.ndarray], np.ndarray]  # (B, n) weights → (B,) values


def predict(model: Any, features: pd.DataFrame, contract: Contract) -> Predictions:
    """Predicts rows with a fitted pipeline; a class that did not occur in its training rows has the probability 0."""
    if contract.task == "regression":
        return Predictions(np.asarray(model.predict(features), dtype=np.float64).reshape(len(features)))
    predictions: Predictions = model.predictions(features)
    return predictions


@dataclass(frozen=True)
class EncodedPredictions:
    """Truth and predictions as numbers; for classification, positions of classes (binary: 1 is the positive class).

    Attributes:
        task: of the contract.
        truth, predicted: (n,).
        probabilities: (n, classes); None if there are none or one is not finite.
        classes: of a classification, in the order of their positions.
    """

    task: Task
    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    classes: tuple[Label, ...] = ()

    @classmethod
    def of(cls, truth: np.ndarray, predictions: Predictions, contract: Contract) -> "EncodedPredictions":
        probabilities = predictions.probabilities
        if probabilities is not None and not np.isfinite(probabilities).all():
            probabilities = None
        if contract.task == "regression":
            return cls("regression", truth.astype(np.float64), predictions.labels.astype(np.float64), None)
        if contract.task == "multiclass":
            classes = contract.classes
        else:
            classes = tuple(sorted(contract.classes, key=lambda label: label == contract.positive))
            if probabilities is not None:
                probabilities = probabilities[:, encode_labels(np.array(classes, dtype=object), contract.classes)]
        predicted = encode_labels(predictions.labels, classes)
        return cls(contract.task, encode_labels(truth, classes), predicted, probabilities, classes)


def compute_metrics(
    truth: np.ndarray,
    predictions: Predictions,
    contract: Contract,
    weights: np.ndarray | None = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, float]:
    """Metrics of predictions; NaN for a metric that is undefined.

    Precision, recall and F1 are those of the positive class in a binary task, else the macro average over the classes
    that occur in the rows or their predictions; a ratio 0/0 counts as 0. ROC AUC of several classes is the mean of
    one-vs-rest over the classes that occur. MAPE is a fraction (0.1 is 10 %) over the rows whose target is not 0.

    Undefined are: metrics of positives if no row is positive; ROC AUC with one class; metrics of probabilities if the
    model has none; R² if the target is constant; all metrics if a prediction is not finite or no row has weight.

    Args:
        truth: (n,) true values or labels.
        predictions: for the same rows.
        contract: task, classes and positive class.
        weights: (n,) how often each row counts; default: once.
        metrics: to compute; default: all built-in ones of the task (``config.METRICS``).

    Raises:
        FitError: a custom metric raised an error.

    Example:
        >>> contract = Contract(target="y", task="regression", columns=())
        >>> compute_metrics(np.array([1.0, 3.0]), Predictions(np.array([2.0, 3.0])), contract)["mae"]
        0.5
    """
    encoded = EncodedPredictions.of(truth, predictions, contract)
    weighting = (np.ones(len(truth)) if weights is None else weights)[None, :]
    names = METRICS[encoded.task] if metrics is None else metrics
    return {str(metric): float(evaluate_metric(encoded, metric, weighting)[0]) for metric in names}


def evaluate_metric(encoded: EncodedPredictions, metric: str, weights: np.ndarray) -> np.ndarray:
    """(B,) one metric under each of the (B, n) weights; NaN where it is undefined."""
    count, n = weights.shape
    if n == 0 or not np.isfinite(encoded.predicted).all():
        return np.full(count, np.nan)
    statistic, step = _statistic(encoded, metric), max(1, _CHUNK_CELLS // n)
    values = np.empty(count)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 is NaN: undefined under this weighting
        for start in range(0, count, step):
            values[start : start + step] = statistic(weights[start : start + step].astype(np.float64))
    return values


def _statistic(encoded: EncodedPredictions, metric: str) -> Statistic:
    truth, predicted, probabilities = encoded.truth, encoded.predicted, encoded.probabilities
    if isinstance(metric, Metric) and metric.function is not None:
        return _custom_metric(encoded, metric)
    if encoded.task == "regression":
        return _error_metric(truth, predicted, metric)
    if metric == "accuracy":
        return _mean((truth == predicted).astype(np.float64))
    if metric in ("precision", "recall", "f1"):
        return _count_metric(encoded, metric)
    if probabilities is None:
        return lambda w: np.full(len(w), np.nan)
    if metric == "log_loss":
        tiny = np.finfo(np.float64).eps
        return _mean(-np.log(np.clip(probabilities[np.arange(len(truth)), truth], tiny, 1 - tiny)))
    if metric == "brier":
        return _mean((probabilities[:, 1] - (truth == 1)) ** 2)
    if encoded.task == "binary":
        return _rank_metric(truth == 1, probabilities[:, 1], metric)
    by_class = [_rank_metric(truth == label, probabilities[:, label], metric) for label in np.unique(truth)]
    return lambda w: _nanmean(np.array([statistic(w) for statistic in by_class]))


def _custom_metric(encoded: EncodedPredictions, metric: Metric) -> Statistic:
    """Calls the user's function once for each weighting; without ``sample_weight``, rows are repeated or left out."""
    truth, predicted = encoded.truth, encoded.predicted
    if encoded.classes:
        truth, predicted = (decode_labels(codes, encoded.classes) for codes in (truth, predicted))
    if metric.response == "probabilities":
        if encoded.probabilities is None:
            return lambda w: np.full(len(w), np.nan)
        predicted = encoded.probabilities[:, 1] if encoded.task == "binary" else encoded.probabilities

    def evaluate(weights: np.ndarray) -> float:
        if not weights.any():
            return np.nan
        try:
            if metric.weighted:
                return float(metric.function(truth, predicted, sample_weight=weights))  # type: ignore[misc]
            rows = np.repeat(np.arange(len(truth)), weights.astype(np.intp))
            return float(metric.function(truth[rows], predicted[rows]))  # type: ignore[misc]
        except (ValueError, ZeroDivisionError) as error:  # such as one class only
            warnings.warn(f"{metric} is undefined: {describe_error(error)}", stacklevel=2)
            return np.nan
        except Exception as error:
            what = f"the metric {metric} failed: {describe_error(error)}"
            remedy = "correct the function: it gets y_true and y_pred as arrays, and returns a number"
            raise FitError(what, where=f"evaluation.custom.{metric}", remedy=remedy) from error

    return lambda w: np.array([evaluate(weights) for weights in w])


def _mean(values: np.ndarray) -> Statistic:
    # not a BLAS product, whose last digits depend on the number of threads
    return lambda w: np.einsum("ij,j->i", w, values) / w.sum(axis=1)


def _nanmean(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.nansum(values, axis=0) / np.isfinite(values).sum(axis=0))


def _error_metric(truth: np.ndarray, predicted: np.ndarray, metric: str) -> Statistic:
    errors = np.abs(truth - predicted)
    if metric == "mae":
        return _mean(errors)
    if metric == "mape":
        nonzero = truth != 0
        relative = _mean(errors[nonzero] / np.abs(truth[nonzero]))
        return lambda w: relative(w[:, nonzero])
    squares = _mean(errors**2)
    if metric == "rmse":
        return lambda w: np.sqrt(squares(w))
    from_mean = truth - truth.mean()  # centred first: the variance below would else lose digits
    first, second = _mean(from_mean), _mean(from_mean**2)

    def r2(w: np.ndarray) -> np.ndarray:
        variance = second(w) - first(w) ** 2
        return np.where(variance > 1e-12 * second(w), 1 - squares(w) / variance, np.nan)

    return r2


def _count_metric(encoded: EncodedPredictions, metric: str) -> Statistic:
    labels = np.arange(max(encoded.truth.max(), encoded.predicted.max()) + 1) if encoded.task == "multiclass" else [1]
    n = len(encoded.truth)

    def members(codes: np.ndarray, of: np.ndarray) -> sparse.csr_array:
        selected = np.flatnonzero(of & np.isin(codes, labels))
        at = codes[selected] if encoded.task == "multiclass" else np.zeros(len(selected), dtype=np.int64)
        return sparse.csr_array((np.ones(len(selected)), (at, selected)), shape=(len(labels), n))

    everywhere = np.ones(n, dtype=bool)
    hit = members(encoded.truth, encoded.truth == encoded.predicted)
    true, predicted = members(encoded.truth, everywhere), members(encoded.predicted, everywhere)

    def statistic(w: np.ndarray) -> np.ndarray:
        hits, trues, predictions = hit @ w.T, true @ w.T, predicted @ w.T  # (labels, B)
        below = {"precision": predictions, "recall": trues, "f1": (trues + predictions) / 2}[metric]
        ratio = np.divide(hits, below, out=np.zeros_like(hits), where=below > 0)
        occurs = trues > 0 if encoded.task == "binary" else trues + predictions > 0
        return _nanmean(np.where(occurs, ratio, np.nan))

    return statistic


def _rank_metric(positive: np.ndarray, score: np.ndarray, metric: str) -> Statistic:
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], positive[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # one step of the curve for each distinct score

    def statistic(w: np.ndarray) -> np.ndarray:
        w = w[:, order]
        new_hits = np.add.reduceat(w * hits, starts, axis=1)
        new_all = np.add.reduceat(w, starts, axis=1)
        true_positives = np.cumsum(new_hits, axis=1)
        positives = true_positives[:, -1]
        if metric == "roc_auc":
            # Pairs of a negative with a positive of a higher score; a pair of equal scores counts half.
            ordered_pairs = ((new_all - new_hits) * (true_positives - new_hits / 2)).sum(axis=1)
            return np.asarray(ordered_pairs / (positives * (w.sum(axis=1) - positives)))
        predicted_positives = np.cumsum(new_all, axis=1)
        precision = np.divide(
            true_positives, predicted_positives, out=np.zeros_like(true_positives), where=predicted_positives > 0
        )
        return np.asarray((new_hits * precision).sum(axis=1) / positives)

    return statistic
