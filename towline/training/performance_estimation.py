"""Performance estimation: how good predictions probably are before their labels are known.

The estimator is fitted at training and stored in the release.

- Classification (confidence-based performance estimation, NannyML, 2021): probabilities are calibrated on rows that the
  model was not fitted on. With the probability of each label of a row, every metric has an expected value.
- Regression (direct loss estimation, NannyML, 2022): a small model predicts the loss of each row.

Neither can see concept drift, where the same inputs lead to other labels. The error of the estimates is measured on the
model's own past: each of the newest folds is estimated from the folds before it.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from towline.config import METRICS, Candidate, Frozen, PipelineConfig, Task
from towline.data.schema.contract import Column, Contract
from towline.data.workspace import Workspace
from towline.processes import thread_pools
from towline.training import model_io
from towline.training.calibration import CalibrationCurve, IsotonicCurve, fit_isotonic, fit_sigmoid
from towline.training.estimators import build_model
from towline.training.evaluation.bootstrap import evenly_spaced, percentile_interval, resample_metric
from towline.training.evaluation.definitions import Metric, primary_metric
from towline.training.evaluation.holdout import load_evaluation_predictions
from towline.training.evaluation.predictions import Interval, Predictions, decode_labels
from towline.training.evaluation.row_losses import choose_loss, row_losses
from towline.training.model_selection.cross_validation import load_out_of_fold_predictions
from towline.training.user_code import describe_error

LOSSES = ("mae", "rmse", "mape")
ESTIMATE, LOSS = "estimate.json", "loss.skops"
MIN_ROWS = 50
MAX_ROWS = 20_000  # used for fitting: more change little
PAST_FOLDS = 3  # estimated from the folds before them, to measure the error
MAX_ROWS_OF_PAST_FOLD = 3_000
DRAWS = 100
MAX_CELLS = 100_000  # rows x classes of an estimate; of more, evenly spaced rows are used
CALIBRATION_ROWS, CALIBRATION_ROWS_PER_CLASS = 1_000, 50  # enough to leave out older rows
ROWS_PER_BIN, MAX_KNOTS = 200, 40  # of a calibration curve
_LOSS_MODEL_PARAMS = {"max_iter": 30, "max_leaf_nodes": 7, "min_samples_leaf": 20}


class EstimatorState(Frozen):
    """A fitted estimator: ``estimate.json`` of a release.

    Attributes:
        metric: metric that it estimates.
        rows: number of rows it was fitted on.
        curves: calibration curve of each class, in the contract's order.
        noise: for a regression, variance of a row's loss around its prediction; includes autocorrelation.
        error: error of past estimates beyond sampling error, in the metric's unit; None if there are no past folds.
        unavailable: why there is no estimate; else empty.
    """

    metric: str
    rows: int = 0
    curves: tuple[CalibrationCurve, ...] = ()
    noise: float = 0.0
    error: float | None = None
    unavailable: str = ""


class _ScoredRows(NamedTuple):
    """Rows with predictions of a model that was not fitted on them, in time order if there is a time."""

    features: pd.DataFrame
    truth: np.ndarray
    predictions: Predictions

    def take(self, rows: np.ndarray) -> "_ScoredRows":
        features = self.features.iloc[rows].reset_index(drop=True)
        return _ScoredRows(features, self.truth[rows], self.predictions.take(rows))


def fit_estimator(work: Workspace, config: PipelineConfig, candidate: str) -> tuple[EstimatorState, Any]:
    """Fits the estimator of the primary metric; returns it and, for a regression, the loss model (else None).

    It is fitted on the out-of-fold predictions of the chosen candidate and on the holdout, at most 20,000 rows. The
    result is deterministic. If it cannot be fitted, ``unavailable`` has the reason; that never ends a run.

    Raises:
        ConfigError: the metric does not fit the task.
    """
    contract = work.contract()
    metric = primary_metric(config, contract.task)
    try:
        return _fit(work, config, candidate, contract, metric)
    except Exception as error:  # noqa: BLE001 - a model can be released without it
        reason = f"the estimator could not be fitted: {describe_error(error)}"
        return EstimatorState(metric=metric, unavailable=reason), None


def save_estimator(work: Workspace, config: PipelineConfig, candidate: str) -> list[Path]:
    """Writes the fitted estimator into the workspace, once: ``estimate.json``, and ``loss.skops`` for a regression.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    if not work.file(ESTIMATE).exists():
        state, model = fit_estimator(work, config, candidate)
        if model is not None:
            model_io.save_model(model, work.file(LOSS), level=9)
        work.save(ESTIMATE, state)  # written last: it marks the result as complete
    return [path for name in (ESTIMATE, LOSS) if (path := work.file(name)).exists()]


def load_estimator(release: Path) -> tuple[EstimatorState, Any] | None:
    """The estimator and loss model of a release; None if it has none.

    Raises:
        ReleaseError: the loss model cannot be read.
    """
    if not (release / ESTIMATE).exists():
        return None
    state = EstimatorState.model_validate_json((release / ESTIMATE).read_bytes())
    return state, model_io.load_model(release / LOSS) if (release / LOSS).exists() else None


def _fit(
    work: Workspace, config: PipelineConfig, candidate: str, contract: Contract, metric: Metric
) -> tuple[EstimatorState, Any]:
    if metric.function is not None or (contract.task == "regression" and metric not in LOSSES):
        estimated = LOSSES if contract.task == "regression" else METRICS[contract.task]
        reason = f"{metric} cannot be estimated without labels, only {', '.join(estimated)}"
        return EstimatorState(metric=metric, unavailable=reason), None
    folds = _load_folds(work, config, candidate)
    if contract.task != "regression" and any(fold.predictions.probabilities is None for fold in folds):
        return EstimatorState(metric=metric, unavailable="the model has no probabilities"), None
    if (rows := sum(len(fold.truth) for fold in folds)) < MIN_ROWS:
        return EstimatorState(metric=metric, rows=rows, unavailable=f"{rows} rows are too few to fit it"), None
    with thread_pools().limit(limits=1):
        curves: Callable[..., tuple[EstimatorState, Any]] = partial(_fit_curves, ages=config.by_time)
        fit = _fit_loss_model if contract.task == "regression" else curves
        past = [
            _measure_past_error(fit, folds[: number + 1], contract, metric, config.seed)
            for number in range(max(1, len(folds) - PAST_FOLDS), len(folds))
        ]
        state, model = fit(folds, contract, metric, config.seed)
    errors = [measured for measured in past if measured is not None]
    if not errors:
        return state, model
    error = math.sqrt(max(0.0, float(np.mean([measured.squared_error for measured in errors]))))
    return state.model_copy(update={"error": error, "noise": errors[-1].noise}), model


class _PastError(NamedTuple):
    """The squared error of one estimate beyond its sampling error, and the noise of the losses."""

    squared_error: float
    noise: float


def _measure_past_error(
    fit: Callable[..., tuple[EstimatorState, Any]],
    folds: Sequence[_ScoredRows],
    contract: Contract,
    metric: Metric,
    seed: int,
) -> _PastError | None:
    """Estimates the last fold from those before it; None if its metric is undefined."""
    state, model = fit(folds[:-1], contract, metric, seed)
    last = folds[-1].take(evenly_spaced(len(folds[-1].truth), MAX_ROWS_OF_PAST_FOLD))
    state = state.model_copy(update={"noise": _loss_noise(last, state, model, contract)})
    estimate = estimate_metric(state, model, last.predictions, last.features, contract, seed)
    weights = np.ones((1, len(last.truth)))
    measured = float(resample_metric(last.truth, last.predictions, contract, metric, weights)[0])
    if estimate.value is None or estimate.low is None or estimate.high is None or not math.isfinite(measured):
        return None
    sampling_error = (estimate.high - estimate.low) / 2 / 1.96
    return _PastError((measured - estimate.value) ** 2 - sampling_error**2, state.noise)


def estimate_metric(
    state: EstimatorState,
    model: Any,
    predictions: Predictions,
    features: pd.DataFrame | None,
    contract: Contract,
    seed: int,
) -> Interval:
    """The expected metric of rows without labels; None if it is undefined.

    Args:
        state: the fitted estimator.
        model: loss model; for a regression only.
        predictions: of n rows; in a classification, rows without probabilities are left out.
        features: (n, …) canonical frame; for a regression only.
        contract: the model's contract.
        seed: seed of the label draws behind a classifier's interval.

    Returns:
        An interval that covers the sampling error of these rows and of the rows the estimator was fitted on, and the
        error of past estimates.
    """
    n = len(predictions.labels)
    if n == 0 or state.unavailable:
        return Interval(value=None)
    if contract.task == "regression":
        assert features is not None  # noqa: S101 - required for a regression
        mean = float(np.clip(model.predict(_add_predictions(features, predictions, contract)), 0.0, None).mean())
        value, spread = mean, 1.96 * math.sqrt(state.noise / n)
        if state.metric == "rmse":
            value = math.sqrt(mean)
            spread = spread / (2 * value) if value else spread
        sampling = Interval(value=value, low=value - spread, high=value + spread)
    else:
        sampling = _expected_metric(state, predictions, contract, seed)
    fitting = math.sqrt(1 + n / max(1, state.rows))  # sampling error of the rows it was fitted on
    return _widen(sampling, fitting, 1.96 * (state.error or 0.0), contract.task)


def _expected_metric(state: EstimatorState, predictions: Predictions, contract: Contract, seed: int) -> Interval:
    """Repeats each row for every class, weighted by the class's probability; for the interval by drawn labels."""
    if predictions.probabilities is None:
        return Interval(value=None)
    classes = decode_labels(np.arange(len(contract.classes)), contract.classes)
    complete = np.flatnonzero(np.isfinite(predictions.probabilities).all(axis=1))
    used = predictions.take(complete[evenly_spaced(len(complete), MAX_CELLS // len(classes))])
    if used.probabilities is None or not len(complete):
        return Interval(value=None)
    probabilities = calibrate(state, used.probabilities)
    n = len(probabilities)
    truth = np.repeat(classes, n)
    repeated = used.take(np.tile(np.arange(n), len(classes)))
    value = float(resample_metric(truth, repeated, contract, state.metric, probabilities.T.reshape(1, -1))[0])
    rng, edges = np.random.default_rng(seed), np.cumsum(probabilities, axis=1)[:, :-1]
    drawn_labels = np.empty((DRAWS, len(truth)), dtype=np.uint8)
    for row in drawn_labels:
        label = (rng.random((n, 1)) > edges).sum(axis=1)
        row[:] = (label == np.arange(len(classes))[:, None]).reshape(-1)
    return percentile_interval(value, resample_metric(truth, repeated, contract, state.metric, drawn_labels))


def calibrate(state: EstimatorState, probabilities: np.ndarray) -> np.ndarray:
    """(n, k) calibrated probability of each class; rows sum to 1."""
    calibrated = np.column_stack(
        [[*map(curve.calibrate, probabilities[:, k].tolist())] for k, curve in enumerate(state.curves)]
    )
    total, uniform = calibrated.sum(axis=1, keepdims=True), np.full_like(calibrated, 1 / calibrated.shape[1])
    normalized: np.ndarray = np.divide(calibrated, total, out=uniform, where=total > 0)
    return normalized


def _load_folds(work: Workspace, config: PipelineConfig, candidate: str) -> list[_ScoredRows]:
    """The folds' test sides and the holdout, oldest first."""
    features, truth, rows = work.subset("holdout")
    holdout = _ScoredRows(features, truth, load_evaluation_predictions(work)[1])
    if config.data.time:
        holdout = holdout.take(np.argsort(rows[config.data.time].to_numpy(), kind="stable"))
    saved = load_out_of_fold_predictions(work, candidate)
    if saved is None:
        return [holdout.take(half) for half in np.array_split(np.arange(len(truth)), 2)]
    features, truth, _ = work.subset("train")
    scored = _ScoredRows(features.iloc[saved.rows], truth[saved.rows], saved.predictions)
    return [*(scored.take(np.flatnonzero(saved.fold == number)) for number in np.unique(saved.fold)), holdout]


def _concatenate(folds: Sequence[_ScoredRows]) -> _ScoredRows:
    return _ScoredRows(
        pd.concat([fold.features for fold in folds], ignore_index=True),
        np.concatenate([fold.truth for fold in folds]),
        Predictions.concatenate([fold.predictions for fold in folds]),
    )


def _fit_curves(
    folds: Sequence[_ScoredRows], contract: Contract, metric: Metric, _: int, *, ages: bool
) -> tuple[EstimatorState, None]:
    """Fits calibration curves on all folds; if ``ages``, on as few of the newest folds as have enough rows."""
    count = 1 if ages else len(folds)
    classes = np.unique(np.concatenate([fold.truth for fold in folds]))
    while count < len(folds) and not _are_rows_sufficient(folds[-count:], classes):
        count += 1
    scored = _concatenate(folds[-count:])
    scored = scored.take(evenly_spaced(len(scored.truth), MAX_ROWS))
    probabilities = scored.predictions.probabilities
    assert probabilities is not None  # noqa: S101 - checked by _fit
    curves = [_fit_curve(probabilities[:, k], scored.truth == label) for k, label in enumerate(contract.classes)]
    return EstimatorState(metric=metric, rows=len(scored.truth), curves=tuple(curves)), None


def _are_rows_sufficient(folds: Sequence[_ScoredRows], classes: np.ndarray) -> bool:
    truth = np.concatenate([fold.truth for fold in folds])
    smallest = min(int((truth == label).sum()) for label in classes)
    return len(truth) >= CALIBRATION_ROWS and smallest >= CALIBRATION_ROWS_PER_CLASS


def _fit_curve(predicted: np.ndarray, positive: np.ndarray) -> CalibrationCurve:
    """Isotonic regression on means of bins if there are enough rows, else Platt's sigmoid.

    Isotonic regression on single rows overfits their labels, which makes any model look better than it is.

    Source: Niculescu-Mizil and Caruana, Predicting good probabilities with supervised learning (2005).
    """
    rate, minority = float(positive.mean()), int(min(positive.sum(), (~positive).sum()))
    if minority >= CALIBRATION_ROWS // 10 and len(positive) >= CALIBRATION_ROWS:
        bins = np.array_split(np.argsort(predicted, kind="stable"), min(MAX_KNOTS, len(predicted) // ROWS_PER_BIN))
        means, rates = (np.array([values[rows].mean() for rows in bins]) for values in (predicted, positive))
        return fit_isotonic(means, rates, np.array([len(rows) for rows in bins]))
    constant = IsotonicCurve(predicted=(0.0, 1.0), calibrated=(rate, rate))
    if minority == 0:
        return constant
    sigmoid = fit_sigmoid(predicted, positive)
    return sigmoid if sigmoid.slope > 0 else constant


def _fit_loss_model(
    folds: Sequence[_ScoredRows], contract: Contract, metric: Metric, seed: int
) -> tuple[EstimatorState, Any]:
    scored = _concatenate(folds)
    losses = _losses(scored, contract, metric)
    positions = np.flatnonzero(np.isfinite(losses))
    if len(positions) < MIN_ROWS // 2:
        reason = f"{metric} is defined on {len(positions)} rows, too few to fit it"
        return EstimatorState(metric=metric, unavailable=reason), None
    positions = positions[evenly_spaced(len(positions), MAX_ROWS)]
    candidate = Candidate(estimator="boosting", params=_LOSS_MODEL_PARAMS)
    model = build_model(candidate, _loss_contract(contract), seed)
    scored = scored.take(positions)
    model.fit(_add_predictions(scored.features, scored.predictions, contract), losses[positions])
    return EstimatorState(metric=metric, rows=len(positions)), model


def _loss_noise(fold: _ScoredRows, state: EstimatorState, model: Any, contract: Contract) -> float:
    """Variance of one row's loss around its prediction, from means of blocks: includes autocorrelation."""
    if contract.task != "regression" or state.unavailable:
        return 0.0
    residuals = _losses(fold, contract, state.metric) - model.predict(
        _add_predictions(fold.features, fold.predictions, contract)
    )
    residuals = residuals[np.isfinite(residuals)]
    length = math.isqrt(len(residuals))
    if length < 2:
        return 0.0
    blocks = residuals[: len(residuals) // length * length].reshape(-1, length)
    return float(blocks.mean(axis=1).var(ddof=1) * length)


def _losses(fold: _ScoredRows, contract: Contract, metric: str) -> np.ndarray:
    """(n,) losses whose mean is the metric (rmse: its square); NaN for rows that do not count."""
    return row_losses(fold.truth, fold.predictions, contract, choose_loss(metric, contract, fold.predictions))


def _loss_contract(contract: Contract) -> Contract:
    """The loss model's contract: the same columns and the prediction, under the target's name, which no feature has.

    The time of the row is not a feature: the losses of later rows cannot be known from it.
    """
    prediction = Column(name=contract.target, kind="numeric", role="feature")
    others = tuple(column.without_trend() for column in contract.columns if column.name != contract.target)
    return contract.model_copy(update={"columns": (*others, prediction), "target": "loss"})


def _add_predictions(features: pd.DataFrame, predictions: Predictions, contract: Contract) -> pd.DataFrame:
    return features.assign(**{contract.target: predictions.labels.astype(np.float64)})


def _widen(sampling: Interval, factor: float, margin: float, task: Task) -> Interval:
    if sampling.value is None or sampling.low is None or sampling.high is None:
        return sampling
    low = sampling.value - math.hypot(factor * (sampling.value - sampling.low), margin)
    high = sampling.value + math.hypot(factor * (sampling.high - sampling.value), margin)
    return Interval(value=sampling.value, low=max(0.0, low) if task == "regression" else low, high=high)
