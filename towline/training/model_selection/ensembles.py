"""An ensemble predicts the weighted mean of the predictions of other candidates, its *parts*.

Cross-validation of an ensemble fits nothing: it combines the saved out-of-fold predictions of the parts. The weights
are chosen on these predictions by forward selection with replacement (Caruana et al., Ensemble selection from libraries
of models, ICML 2004): in each of ``STEPS`` steps the part is added with which the mean has the lowest loss. The weight
of a part is its share of the steps. The loss is the log loss of classes, the absolute error for the metrics mae and
mape, and the squared error for other metrics.

If the config says ``calibrate``, the mean is calibrated, and the predictions of the parts are not.

The score of an ensemble is measured on rows that its weights were not chosen on: the predictions of a fold are combined
with the weights of the other folds. The weights of the final model come from all folds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from towline.config import Candidate, TrainingConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.predictions import Predictions, decode_labels, encode_labels
from towline.training.model_selection.budget import BudgetLimits
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    OutOfFoldPredictions,
    load_out_of_fold_predictions,
    save_out_of_fold_predictions,
)
from towline.training.model_selection.fold_scores import FoldScores, score_folds
from towline.training.pipeline_components import weighted_mean

STEPS = 50

Loss = Callable[[np.ndarray], np.ndarray]  # (n,) predictions → (n,) losses


def cross_validate_ensemble(
    work: Workspace,
    config: TrainingConfig,
    ensemble: Candidate,
    scores: Sequence[CrossValidationResult],
    limits: BudgetLimits | None = None,
) -> CrossValidationResult:
    """Chooses the weights of an ensemble, and scores it on the folds of its parts.

    A part that could not be fitted, or that has no probabilities, is left out with a note. In a binary task the
    decision threshold is chosen on the combined probabilities. Saves the out-of-fold predictions as
    ``oof-<name>.npz``.

    Args:
        work: the run's workspace, with the out-of-fold predictions of the parts.
        config: of the training.
        ensemble: to score.
        scores: of the candidates that were cross-validated.
        limits: of the time budget; default: none.

    Returns:
        The scores. ``params`` has the ``weights`` of the parts by name, and their ``params`` where these are not empty.
    """
    started = time.perf_counter(), time.process_time()
    contract, left_out = work.contract(), (limits or BudgetLimits()).limits_of(ensemble).left_out
    results = {result.candidate: result for result in scores}
    parts, notes = _load_parts(work, [results[part.name] for part in config.parts_of(ensemble)])
    params, fold_scores, failed = {}, FoldScores([], None, []), ""
    if left_out:
        failed = "left out (budget)"
    elif len(parts) < 2:
        failed = "; ".join(["fewer than two parts can be combined", *notes])
    else:
        labels = work.subset("train").labels
        weights, combined = _combine(parts, labels, contract, primary_metric(config, contract.task))
        if len(weights) < 2:
            failed = f"its weights select {next(iter(weights))} alone"
        else:
            used = {name: results[name].params for name in weights if results[name].params}
            params = {"weights": weights} | ({"params": used} if used else {})
            fold_scores = _score(combined, labels, contract, config)
            uncalibrated = combined.predictions.probabilities if fold_scores.calibration else None
            predictions = Predictions.concatenate(fold_scores.predictions)
            save_out_of_fold_predictions(
                work, ensemble.name, combined._replace(predictions=predictions, uncalibrated=uncalibrated)
            )
    return CrossValidationResult(
        candidate=ensemble.name,
        estimator=ensemble.estimator,
        params=params,
        folds=tuple(fold_scores.metrics),
        mean=fold_scores.summary(np.mean),
        sd=fold_scores.summary(np.std),
        threshold=fold_scores.threshold,
        calibration=fold_scores.calibration,
        calibration_notes=fold_scores.calibration_notes,
        seconds=round(time.perf_counter() - started[0], 3),
        cpu_seconds=round(time.process_time() - started[1], 3),
        reductions=(f"{ensemble.name} is left out: {left_out}",) if left_out else (),
        failed=failed,
        notes=notes,
    )


def choose_weights(predictions: Sequence[np.ndarray], loss: Loss) -> list[float]:
    """Weights that sum to 1, multiples of ``1 / STEPS``, by forward selection with replacement.

    Args:
        predictions: (n,) of each part.
        loss: of combined predictions.

    Example:
        >>> truth = np.array([1.0, 2.0, 3.0])
        >>> choose_weights([truth + 1, truth - 1], lambda predicted: (predicted - truth) ** 2)
        [0.5, 0.5]
    """
    counts, total = [0] * len(predictions), np.zeros(len(predictions[0]))
    for step in range(1, STEPS + 1):
        losses = [loss((total + part) / step).mean() for part in predictions]
        best = int(np.argmin(losses))
        counts[best] += 1
        total += predictions[best]
    return [count / STEPS for count in counts]


def _load_parts(
    work: Workspace, results: Sequence[CrossValidationResult]
) -> tuple[dict[str, OutOfFoldPredictions], tuple[str, ...]]:
    """The out-of-fold predictions of the parts that can be combined, and notes on the others."""
    contract = work.contract()
    parts, notes = {}, []
    for result in results:
        saved = None if result.failed else load_out_of_fold_predictions(work, result.candidate)
        if saved is None:
            notes.append(f"{result.candidate} is left out: {result.failed}")
        elif contract.classes and saved.predictions.probabilities is None:
            notes.append(f"{result.candidate} is left out: it has no probabilities")
        elif not np.isfinite(_outputs(saved)).all():
            notes.append(f"{result.candidate} is left out: a prediction is not finite")
        else:
            parts[result.candidate] = saved
    return parts, tuple(notes)


def _combine(
    parts: Mapping[str, OutOfFoldPredictions], labels: np.ndarray, contract: Contract, metric: str
) -> tuple[dict[str, float], OutOfFoldPredictions]:
    """The weights from all folds, and the predictions of each fold, combined with the weights of the other folds."""
    first = next(iter(parts.values()))
    truth = labels[first.rows]
    outputs = [_outputs(part) for part in parts.values()]
    combined = np.empty_like(outputs[0])
    for fold in np.unique(first.fold):
        test = first.fold == fold
        others = ~test if not test.all() else test
        weights = _weights_of_rows(outputs, truth, others, contract, metric)
        combined[test] = weighted_mean([output[test] for output in outputs], weights)
    final = _weights_of_rows(outputs, truth, np.ones(len(truth), dtype=bool), contract, metric)
    weights_by_name = {name: weight for name, weight in zip(parts, final, strict=True) if weight}
    if not contract.classes:
        return weights_by_name, first._replace(predictions=Predictions(combined), uncalibrated=None)
    predicted = decode_labels(combined.argmax(axis=1), contract.classes)
    return weights_by_name, first._replace(predictions=Predictions(predicted, combined), uncalibrated=None)


def _weights_of_rows(
    outputs: Sequence[np.ndarray], truth: np.ndarray, rows: np.ndarray, contract: Contract, metric: str
) -> list[float]:
    """The weights of the parts, chosen on the rows of a mask (n,)."""
    if contract.classes:
        true_class = encode_labels(truth[rows], contract.classes)
        chances = [output[rows][np.arange(len(true_class)), true_class] for output in outputs]
        return choose_weights(chances, lambda chance: -np.log(np.maximum(chance, np.finfo(np.float64).eps)))
    values, target = [output[rows] for output in outputs], truth[rows].astype(np.float64)
    if metric in ("mae", "mape"):
        return choose_weights(values, lambda value: np.abs(value - target))
    return choose_weights(values, lambda value: (value - target) ** 2)


def _score(
    combined: OutOfFoldPredictions, labels: np.ndarray, contract: Contract, config: TrainingConfig
) -> FoldScores:
    folds = [np.flatnonzero(combined.fold == fold) for fold in np.unique(combined.fold)]
    truth = [labels[combined.rows[rows]] for rows in folds]
    predictions = [combined.predictions.take(rows) for rows in folds]
    return score_folds(truth, predictions, contract, config)


def _outputs(part: OutOfFoldPredictions) -> Any:
    """The values of a regression (n,), or the probabilities (n, classes) before the calibration."""
    if part.uncalibrated is not None:
        return part.uncalibrated
    return part.predictions.labels if part.predictions.probabilities is None else part.predictions.probabilities
