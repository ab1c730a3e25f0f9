"""The loss of each row, for comparisons of two models on the same rows."""

import numpy as np

from towline.data.schema.contract import Contract
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.predictions import Predictions, encode_labels

LABEL_METRICS = ("f1", "precision", "recall", "accuracy")
_SMALLEST = 1e-6  # probability of the label, so that a loss is finite


def row_losses(truth: np.ndarray, predictions: Predictions, contract: Contract, metric: Metric) -> np.ndarray:
    """The loss of each row that belongs to a metric; lower is better.

    The mean of these losses is mae, log_loss, brier or the share of wrong labels. ``rmse`` and ``r2`` use squared
    errors, ``mape`` relative ones. A metric that has no loss of single rows, such as ``roc_auc``, uses the log loss of
    the probabilities.

    Args:
        truth: (n,) labels.
        predictions: of n rows; probabilities in the order of the contract's classes.
        contract: of the model.
        metric: that the comparison stands for.

    Returns:
        (n,) float64; NaN where the loss is undefined.
    """
    if contract.task == "regression":
        errors = np.asarray(truth, dtype=np.float64) - np.asarray(predictions.labels, dtype=np.float64)
        if metric in ("rmse", "r2"):
            return errors**2
        if metric == "mape":
            scale = np.abs(np.asarray(truth, dtype=np.float64))
            relative: np.ndarray = np.divide(np.abs(errors), scale, out=np.full(len(errors), np.nan), where=scale > 0)
            return relative
        return np.abs(errors)
    probabilities = predictions.probabilities
    by_label = metric in LABEL_METRICS or (metric.function is not None and metric.response == "labels")
    if by_label or probabilities is None:
        wrong = np.array([label != other for label, other in zip(truth, predictions.labels, strict=True)])
        return wrong.astype(np.float64)
    codes = encode_labels(truth, contract.classes)
    probability: np.ndarray = probabilities[np.arange(len(codes)), codes]
    if metric == "brier":
        return (1.0 - probability) ** 2
    losses: np.ndarray = -np.log(np.clip(probability, _SMALLEST, 1.0))
    return losses
