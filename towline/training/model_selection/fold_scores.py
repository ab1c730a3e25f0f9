"""The scores of a candidate on the folds: calibrates its predictions, decides the labels, and computes the metrics."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from towline.config import CalibrationMethod, TrainingConfig
from towline.data.schema.contract import Contract
from towline.training.calibration import Calibration, OutOfFoldRows, calibrate_out_of_fold
from towline.training.evaluation.definitions import Metric, metrics_of, primary_metric
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Predictions, Threshold, decide_classes, decode_labels, encode_labels

_POWERS = (0.25, 0.5, 0.75, 1.0)  # of the shares of the classes


class FoldScores(NamedTuple):
    """The scored predictions for the test rows of each fold.

    Attributes:
        predictions: calibrated, with the labels of the threshold.
        threshold: of the decision; None: the estimator's own rule.
        metrics: of each fold.
        calibration, calibration_notes: as in ``CrossValidationResult``.
    """

    predictions: list[Predictions]
    threshold: Threshold | None
    metrics: list[dict[str, float]]
    calibration: Calibration | None = None
    calibration_notes: tuple[str, ...] = ()

    def summary(self, statistic: Callable[[list[float]], Any]) -> dict[str, float]:
        """Each metric over the folds in which it is defined."""
        names = dict.fromkeys(name for fold in self.metrics for name in fold)
        return {name: float(statistic([fold[name] for fold in self.metrics if name in fold])) for name in names}


def score_folds(
    truth: Sequence[np.ndarray], predictions: Sequence[Predictions], contract: Contract, config: TrainingConfig
) -> FoldScores:
    """Calibrates the predictions if the config says so, decides the labels, and computes the metrics of each fold.

    Args:
        truth: true values or labels of each fold.
        predictions: for the rows of each fold.
        contract: task, classes and positive class.
        config: ``calibrate``; the metrics; and the metric that the threshold of a binary task maximises on the rows of
            all folds. Of more classes, the thresholds improve the primary metric.
    """
    scores = FoldScores(list(predictions), None, [])
    if config.calibrate is not None and contract.classes:
        scores = _calibrate_folds(truth, scores.predictions, contract, config.calibrate)
    threshold_metric = config.evaluation.threshold
    has_probabilities = all(fold.probabilities is not None for fold in scores.predictions)
    if threshold_metric != "none" and has_probabilities and contract.task == "binary":
        chances = _positive_probabilities(scores.predictions, contract)
        threshold = best_threshold(np.concatenate(list(truth)), chances, contract.positive, threshold_metric)
        labelled = [_apply_threshold(fold, threshold, contract) for fold in scores.predictions]
        scores = scores._replace(predictions=labelled, threshold=threshold)
    elif threshold_metric != "none" and has_probabilities and contract.task == "multiclass":
        scores = _choose_class_thresholds(truth, scores, contract, primary_metric(config, contract.task))
    return measure_folds(truth, scores, contract, metrics_of(config, contract.task))


def measure_folds(
    truth: Sequence[np.ndarray], scores: FoldScores, contract: Contract, metrics: Sequence[Metric]
) -> FoldScores:
    """The scores with the metrics of each fold, without those that are undefined.

    A candidate with a prediction that is not finite has no metrics: those of the other folds say nothing about it.
    """
    if not all(fold.are_finite for fold in scores.predictions):
        return scores._replace(metrics=[{} for _ in truth])
    folds = [compute_metrics(*fold, contract, metrics=metrics) for fold in zip(truth, scores.predictions, strict=True)]
    finite = [{name: value for name, value in fold.items() if np.isfinite(value)} for fold in folds]
    return scores._replace(metrics=finite)


def _calibrate_folds(
    truth: Sequence[np.ndarray], predictions: list[Predictions], contract: Contract, method: CalibrationMethod
) -> FoldScores:
    """Calibrated predictions of each fold, whose labels are the classes with the largest probabilities."""
    if any(fold.probabilities is None for fold in predictions):
        return FoldScores(predictions, None, [], None, ("calibrate: the estimator has no probabilities",))
    numbers = np.concatenate([np.full(len(fold.labels), number) for number, fold in enumerate(predictions)])
    probabilities = Predictions.concatenate(predictions).probabilities
    assert probabilities is not None  # noqa: S101 - checked above
    rows = OutOfFoldRows(probabilities, encode_labels(np.concatenate(list(truth)), contract.classes), numbers)
    positive = contract.classes.index(contract.positive) if contract.task == "binary" else None
    calibrated = calibrate_out_of_fold(rows, method, contract.classes, positive)
    if calibrated.calibration is None:
        return FoldScores(predictions, None, [], None, calibrated.notes)
    labels = decode_labels(calibrated.probabilities.argmax(axis=1), contract.classes)
    everything = Predictions(labels, calibrated.probabilities)
    folds = [everything.take(np.flatnonzero(numbers == number)) for number in range(len(predictions))]
    return FoldScores(folds, None, [], calibrated.calibration, calibrated.notes)


def best_threshold(truth: np.ndarray, chances: np.ndarray, positive: object, metric: str) -> float:
    """The decision threshold that maximises a metric of the labels; the highest one on a tie.

    Every distinct probability is considered in one sorted pass. The threshold is the middle between it and the next
    lower one, so that a difference in the last digit moves no row across it.

    Args:
        truth: (n,) true labels.
        chances: (n,) probabilities of the positive class.
        positive: the positive class.
        metric: f1, precision, recall or accuracy.

    Example:
        >>> truth = np.array(["no", "no", "yes", "yes"])
        >>> best_threshold(truth, np.array([0.1, 0.3, 0.5, 0.9]), "yes", "f1")
        0.4
    """
    order = np.argsort(-chances, kind="stable")
    ordered, hits = chances[order], np.cumsum(truth[order] == positive)
    last = np.flatnonzero(np.diff(ordered, append=-1.0))  # rows of equal probability get the same label
    true_positives, predicted = hits[last], last + 1
    positives, n = hits[-1], len(truth)
    value = {
        "f1": 2 * true_positives / (predicted + positives),
        "precision": true_positives / predicted,
        "recall": true_positives / max(positives, 1),
        "accuracy": (n - positives - predicted + 2 * true_positives) / n,
    }[metric]
    best = int(np.argmax(value))
    chance = ordered[last[best]]
    next_lower = ordered[last[best + 1]] if best + 1 < len(last) else 0.0
    middle = (chance + next_lower) / 2
    return float(middle if middle > next_lower else chance)


def _choose_class_thresholds(
    truth: Sequence[np.ndarray], scores: FoldScores, contract: Contract, metric: Metric
) -> FoldScores:
    """Thresholds for several classes: a power of the shares of the classes, the one with the best score on all rows.

    The power 0 is the class with the largest probability, 1 that with the largest ratio to its share, which is best for
    the mean recall of the classes (logit adjustment, Menon et al. 2021). Probabilities stay as they are. A metric that
    does not depend on the labels leaves out the thresholds.
    """
    if metric.needs_probabilities:
        return scores
    labels, pooled = np.concatenate(list(truth)), Predictions.concatenate(scores.predictions)
    counts = np.bincount(encode_labels(labels, contract.classes), minlength=len(contract.classes)) + 1
    sign = 1 if metric.greater_is_better else -1
    best, thresholds, threshold = -np.inf, [None, *_power_thresholds(counts)], None
    for considered in thresholds:
        decided = pooled if considered is None else _apply_threshold(pooled, considered, contract)
        value = sign * compute_metrics(labels, decided, contract, metrics=[metric])[metric]
        if value > best:
            best, threshold = value, considered
    if threshold is None:
        return scores
    labelled = [_apply_threshold(fold, threshold, contract) for fold in scores.predictions]
    return scores._replace(predictions=labelled, threshold=threshold)


def _power_thresholds(counts: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(((counts / counts.sum()) ** power).tolist()) for power in _POWERS]


def _positive_probabilities(predictions: list[Predictions], contract: Contract) -> np.ndarray:
    column = contract.classes.index(contract.positive)
    return np.concatenate([part.probabilities[:, column] for part in predictions if part.probabilities is not None])


def _apply_threshold(predictions: Predictions, threshold: Threshold, contract: Contract) -> Predictions:
    assert predictions.probabilities is not None  # noqa: S101 - checked by the callers
    positive = contract.classes.index(contract.positive) if contract.positive is not None else 1
    positions = decide_classes(predictions.probabilities, threshold, positive)
    return Predictions(decode_labels(positions, contract.classes), predictions.probabilities)
