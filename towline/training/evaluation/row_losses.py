"""The loss of each row, for comparisons of two models on the same rows.

A metric that is not a mean over rows is replaced by a loss that is one: rmse and r2 by the squared error, ranks and
counts of a classification by the log loss, a custom metric by the loss of its task.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from towline.data.schema.contract import Contract
from towline.training.evaluation.predictions import Predictions, encode_labels

Loss = Literal["absolute error", "squared error", "relative error", "error rate", "brier score", "log loss"]
_REGRESSION: dict[str, Loss] = {"mape": "relative error", "rmse": "squared error", "r2": "squared error"}
LARGEST_LOSS: Mapping[Loss, float] = {"error rate": 1.0, "brier score": 2.0}  # the others are not bounded
_TINY = float(np.finfo(np.float64).eps)  # least probability of the label, so that its log loss is finite


def choose_loss(metric: str, contract: Contract, predictions: Predictions) -> Loss:
    """The loss of a row that stands for a metric."""
    if contract.task == "regression":
        return _REGRESSION.get(metric, "absolute error")
    if metric == "accuracy" or predictions.probabilities is None:
        return "error rate"
    return "brier score" if metric == "brier" else "log loss"


def row_losses(truth: np.ndarray, predictions: Predictions, contract: Contract, loss: Loss) -> np.ndarray:
    """The loss of each row; lower is better.

    Args:
        truth: (n,) labels.
        predictions: of n rows; probabilities in the order of the contract's classes.
        contract: with all classes that labels have.
        loss: as ``choose_loss`` returns it.

    Returns:
        (n,) float64; NaN where the loss is undefined.
    """
    if contract.task == "regression":
        targets = truth.astype(np.float64)
        errors: np.ndarray = np.abs(targets - predictions.labels.astype(np.float64))
        if loss == "relative error":
            size = np.abs(targets)
            return np.asarray(np.divide(errors, size, out=np.full(len(errors), np.nan), where=size > 0))
        return errors**2 if loss == "squared error" else errors
    if loss == "error rate" or predictions.probabilities is None:
        return np.asarray(truth != predictions.labels, dtype=np.float64)
    codes: np.ndarray = encode_labels(truth, contract.classes)
    if loss == "brier score":
        is_class = np.zeros_like(predictions.probabilities)
        is_class[np.arange(len(codes)), codes] = 1
        return np.asarray(((predictions.probabilities - is_class) ** 2).sum(axis=1))
    return np.asarray(-np.log(np.clip(predictions.probabilities[np.arange(len(codes)), codes], _TINY, 1)))
