"""Metrics of predictions on n rows: point estimates by scikit-learn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from towline.config import METRICS, Task
from towline.data.schema.contract import Contract
from towline.training.evaluation.predictions import Predictions, encode_labels


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
    """

    task: Task
    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None

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
        return cls(contract.task, encode_labels(truth, classes), predicted, probabilities)

    def take(self, rows: np.ndarray) -> "EncodedPredictions":
        """The same for some rows: positions, or a mask (n,)."""
        probabilities = None if self.probabilities is None else self.probabilities[rows]
        return EncodedPredictions(self.task, self.truth[rows], self.predicted[rows], probabilities)


def compute_metrics(
    truth: np.ndarray, predictions: Predictions, contract: Contract, weights: np.ndarray | None = None
) -> dict[str, float]:
    """All metrics of the contract's task (``config.METRICS``); NaN for a metric that is undefined.

    Precision, recall and F1 are those of the positive class in a binary task, else the macro average over the classes
    that occur in the rows or their predictions; a ratio 0/0 counts as 0. ROC AUC of several classes is the mean of
    one-vs-rest over the classes that occur. MAPE is a fraction (0.1 is 10 %) over the rows whose target is not 0.

    Undefined are: metrics of positives if no row is positive; ROC AUC with one class; metrics of probabilities if the
    model has none; R² if the target is constant; all metrics if a prediction is not finite or no row has weight.

    Args:
        truth: (n,) true values or labels.
        predictions: for the same rows.
        contract: task, classes and positive class.
        weights: (n,) how often each row counts.

    Example:
        >>> contract = Contract(target="y", task="regression", columns=())
        >>> compute_metrics(np.array([1.0, 3.0]), Predictions(np.array([2.0, 3.0])), contract)["mae"]
        0.5
    """
    encoded = EncodedPredictions.of(truth, predictions, contract)
    if weights is not None:
        counted = weights > 0
        encoded, weights = encoded.take(counted), weights[counted]
    undefined = dict.fromkeys(METRICS[encoded.task], float("nan"))
    if len(encoded.truth) == 0 or not np.isfinite(encoded.predicted).all():
        return undefined
    compute = {"regression": _regression_metrics, "binary": _binary_metrics, "multiclass": _multiclass_metrics}
    return undefined | {name: float(value) for name, value in compute[encoded.task](encoded, weights).items()}


def _regression_metrics(encoded: EncodedPredictions, weights: np.ndarray | None) -> dict[str, float]:
    truth, predicted = encoded.truth, encoded.predicted
    metrics = {
        "mae": sk.mean_absolute_error(truth, predicted, sample_weight=weights),
        "rmse": sk.root_mean_squared_error(truth, predicted, sample_weight=weights),
    }
    if truth.min() < truth.max():
        metrics["r2"] = sk.r2_score(truth, predicted, sample_weight=weights)
    if (nonzero := truth != 0).any():
        mape_weights = None if weights is None else weights[nonzero]
        metrics["mape"] = sk.mean_absolute_percentage_error(
            truth[nonzero], predicted[nonzero], sample_weight=mape_weights
        )
    return metrics


def _binary_metrics(encoded: EncodedPredictions, weights: np.ndarray | None) -> dict[str, float]:
    truth, predicted = encoded.truth, encoded.predicted
    metrics = {"accuracy": sk.accuracy_score(truth, predicted, sample_weight=weights)}
    has_positives = bool((truth == 1).any())
    if has_positives:
        flags = {"y_true": truth == 1, "y_pred": predicted == 1, "sample_weight": weights, "zero_division": 0.0}
        metrics |= {
            "f1": sk.f1_score(**flags),
            "precision": sk.precision_score(**flags),
            "recall": sk.recall_score(**flags),
        }
    if encoded.probabilities is not None:
        chances = encoded.probabilities[:, 1]
        metrics["log_loss"] = sk.log_loss(truth, encoded.probabilities, sample_weight=weights, labels=[0, 1])
        metrics["brier"] = sk.brier_score_loss(truth, chances, sample_weight=weights, pos_label=1)
        if has_positives:
            metrics["average_precision"] = sk.average_precision_score(truth, chances, sample_weight=weights)
        if has_positives and (truth == 0).any():
            metrics["roc_auc"] = sk.roc_auc_score(truth, chances, sample_weight=weights)
    return metrics


def _multiclass_metrics(encoded: EncodedPredictions, weights: np.ndarray | None) -> dict[str, float]:
    truth, predicted, probabilities = encoded.truth, encoded.predicted, encoded.probabilities
    macro: dict[str, Any] = {"average": "macro", "sample_weight": weights, "zero_division": 0.0}
    metrics = {
        "accuracy": sk.accuracy_score(truth, predicted, sample_weight=weights),
        "f1": sk.f1_score(truth, predicted, **macro),
        "precision": sk.precision_score(truth, predicted, **macro),
        "recall": sk.recall_score(truth, predicted, **macro),
    }
    if probabilities is not None:
        labels = list(range(probabilities.shape[1]))
        metrics["log_loss"] = sk.log_loss(truth, probabilities, sample_weight=weights, labels=labels)
        present = np.unique(truth)
        if len(present) > 1:
            areas = [sk.roc_auc_score(truth == k, probabilities[:, k], sample_weight=weights) for k in present]
            metrics["roc_auc"] = float(np.mean(areas))
    return metrics
