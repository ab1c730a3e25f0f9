"""A model's answers on some rows, and how good they are: point estimates through scikit-learn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from towline.config import METRICS, Task
from towline.data.schema.contract import Contract
from towline.training.evaluation.predictions import Predictions, encode_labels


def predict(model: Any, features: pd.DataFrame, contract: Contract) -> Predictions:
    """Asks a fitted model of ours; a class that it never saw gets probability 0."""
    if contract.task == "regression":
        return Predictions(np.asarray(model.predict(features), dtype=np.float64).reshape(len(features)))
    answer: Predictions = model.answer(features)
    return answer


@dataclass(frozen=True)
class EncodedPredictions:
    """Truth and predictions as numbers: class positions for classification (binary: 1 is the positive class)."""

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
        return cls(
            contract.task, encode_labels(truth, classes), encode_labels(predictions.labels, classes), probabilities
        )

    def take(self, rows: np.ndarray) -> "EncodedPredictions":
        kept = None if self.probabilities is None else self.probabilities[rows]
        return EncodedPredictions(self.task, self.truth[rows], self.predicted[rows], kept)


def compute_metrics(
    truth: np.ndarray, predictions: Predictions, contract: Contract, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Every metric of the contract's task (``config.METRICS``), nan where it is undefined.

    Precision, recall and F1 are the positive class's in a binary task, else the macro average over the classes that
    occur in the rows or their predictions; a ratio 0/0 counts 0. ROC AUC of several classes is the mean of one class
    against the rest over the classes that occur. MAPE is a fraction (0.1 is 10 %) over the rows whose true value is
    not 0. Undefined, so nan: all that looks for positives where there are none; ROC AUC with one class; whatever
    needs probabilities where the model gives none; R² with a constant truth; everything when a prediction is not
    finite or no row has weight.

    Args:
        truth: (n,) true values or labels.
        predictions: what the model said of the same rows.
        contract: task, classes and positive class.
        weights: (n,) how often each row counts; a row of weight 0 is as good as absent.
    """
    coded = EncodedPredictions.of(truth, predictions, contract)
    if weights is not None:
        kept = weights > 0
        coded, weights = coded.take(kept), weights[kept]
    undefined = dict.fromkeys(METRICS[coded.task], float("nan"))
    if len(coded.truth) == 0 or not np.isfinite(coded.predicted).all():
        return undefined
    measured = {"regression": _regression, "binary": _binary, "multiclass": _multiclass}[coded.task](coded, weights)
    return undefined | {name: float(value) for name, value in measured.items()}


def _regression(coded: EncodedPredictions, weights: np.ndarray | None) -> dict[str, float]:
    truth, predicted = coded.truth, coded.predicted
    found = {
        "mae": sk.mean_absolute_error(truth, predicted, sample_weight=weights),
        "rmse": sk.root_mean_squared_error(truth, predicted, sample_weight=weights),
    }
    if truth.min() < truth.max():
        found["r2"] = sk.r2_score(truth, predicted, sample_weight=weights)
    if (some := truth != 0).any():
        of_some = None if weights is None else weights[some]
        found["mape"] = sk.mean_absolute_percentage_error(truth[some], predicted[some], sample_weight=of_some)
    return found


def _binary(coded: EncodedPredictions, weights: np.ndarray | None) -> dict[str, float]:
    truth, predicted = coded.truth, coded.predicted
    found = {"accuracy": sk.accuracy_score(truth, predicted, sample_weight=weights)}
    some = bool((truth == 1).any())
    if some:
        hits = {"y_true": truth == 1, "y_pred": predicted == 1, "sample_weight": weights, "zero_division": 0.0}
        found |= {"f1": sk.f1_score(**hits), "precision": sk.precision_score(**hits), "recall": sk.recall_score(**hits)}
    if coded.probabilities is not None:
        chance = coded.probabilities[:, 1]
        found["log_loss"] = sk.log_loss(truth, coded.probabilities, sample_weight=weights, labels=[0, 1])
        found["brier"] = sk.brier_score_loss(truth, chance, sample_weight=weights, pos_label=1)
        if some:
            found["average_precision"] = sk.average_precision_score(truth, chance, sample_weight=weights)
        if some and (truth == 0).any():
            found["roc_auc"] = sk.roc_auc_score(truth, chance, sample_weight=weights)
    return found


def _multiclass(coded: EncodedPredictions, weights: np.ndarray | None) -> dict[str, float]:
    truth, predicted = coded.truth, coded.predicted
    macro: dict[str, Any] = {"average": "macro", "sample_weight": weights, "zero_division": 0.0}
    found = {
        "accuracy": sk.accuracy_score(truth, predicted, sample_weight=weights),
        "f1": sk.f1_score(truth, predicted, **macro),
        "precision": sk.precision_score(truth, predicted, **macro),
        "recall": sk.recall_score(truth, predicted, **macro),
    }
    if coded.probabilities is not None:
        labels = list(range(coded.probabilities.shape[1]))
        found["log_loss"] = sk.log_loss(truth, coded.probabilities, sample_weight=weights, labels=labels)
        seen = np.unique(truth)
        if len(seen) > 1:
            each = [sk.roc_auc_score(truth == k, coded.probabilities[:, k], sample_weight=weights) for k in seen]
            found["roc_auc"] = float(np.mean(each))
    return found
