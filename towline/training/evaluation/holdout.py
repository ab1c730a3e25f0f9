"""Evaluation on the holdout, the rows that no step of the training used.

It has the metrics with their 95 % intervals, the primary metric by slice (the rows with one value of one column), and
the permutation importance of the columns.
"""

import copy as copying
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import brier_score_loss

from towline import files
from towline.config import Frozen, Task, TrainingConfig, finite_or_none, suggest
from towline.data.schema.contract import Contract
from towline.data.schema.values import category_name
from towline.data.workspace import HOLDOUT_ALL, Workspace
from towline.errors import ConfigError
from towline.training import model_io
from towline.training.calibration import expected_calibration_error
from towline.training.evaluation.bootstrap import draw_weights, percentile_interval, resample_metric, resampling_units
from towline.training.evaluation.definitions import Metric, metrics_of, primary_metric
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.evaluation.predictions import Interval, Predictions, encode_labels
from towline.training.final_fit import BASELINE_MODEL, EVALUATION_PREDICTIONS, FittedModel

MIN_ROWS = 30  # of a slice: with fewer, the interval is too wide to be useful
MAX_SLICES = 60
SLICE_RESAMPLES = 100
MAX_LEVELS = {"category": 20, "boolean": 20, "numeric": 12}  # of a column that is sliced by default
QUARTILES_FROM = 20  # distinct numbers: columns with more are cut at their quartiles
_QUARTILE = re.compile(r"\((\S+), (\S+)\]")  # as pandas names it
_NEAR_PERFECT: Mapping[Task, tuple[str, float]] = {  # from which value of which metric on a leak is likely
    "regression": ("r2", 0.9995),
    "binary": ("roc_auc", 0.9995),
    "multiclass": ("f1", 0.9995),
}
_BASELINE = "baseline_"  # prefix of the arrays of its predictions
MAX_PREDICTED_ROWS, MAX_PREDICTED_CELLS = 75_000, 40_000_000  # budget of the permutation importance


class SliceResult(Frozen):
    """The primary metric of the model and of the baseline on one slice of the holdout."""

    column: str
    value: str
    rows: int
    metric: Interval
    baseline: float | None


class CalibrationResult(Frozen):
    """The probabilities on the holdout before and after their calibration; in all metrics, lower is better.

    Attributes:
        method, rows: of the calibration, and the number of out-of-fold rows it was fitted on.
        before, after: ``log_loss``, ``brier`` and ``calibration_error``, the mean distance between predicted
            probabilities and observed shares.
    """

    method: str
    rows: int
    before: dict[str, float]
    after: dict[str, float]

    def __str__(self) -> str:
        errors = f"{100 * self.before['calibration_error']:.2g} to {100 * self.after['calibration_error']:.2g} points"
        losses = f"{self.before['log_loss']:.4g} to {self.after['log_loss']:.4g}"
        return f"calibrated ({self.method}): error {errors}, log_loss {losses}"


class Evaluation(Frozen):
    """The model on the holdout.

    Attributes:
        candidate: that was fitted.
        metrics: each metric of the task with its interval.
        baseline: the same metrics of the baseline.
        slices: in the order of the columns, within one by value.
        importance: (column, mean loss of the primary metric when the column is shuffled, sd over the shuffles),
            largest first; positive: the model uses the column.
        notes: limits of these numbers, such as too few rows.
        calibration: None if the probabilities are not calibrated.
    """

    task: Task
    primary: str
    rows: int
    candidate: str = ""
    metrics: dict[str, Interval]
    baseline: dict[str, float | None]
    slices: tuple[SliceResult, ...]
    importance: tuple[tuple[str, float, float], ...]
    notes: tuple[str, ...]
    calibration: CalibrationResult | None = None

    @property
    def advice(self) -> str:
        """A note if the model is nearly perfect, as it is with a column that contains the target; else empty."""
        name, limit = _NEAR_PERFECT[self.task]
        metric = self.metrics.get(name)
        if metric is None or metric.value is None or metric.value < limit:
            return ""
        columns = [column for column, _, _ in self.importance[:3]]
        check = f"check that its columns are known before the target, or set data.drop: {', '.join(columns)}"
        return f"{name} is {metric.value:.4g} on the holdout, nearly perfect: {check}"


class SliceRows(NamedTuple):
    """A slice: the rows (positions) with one value of one column."""

    column: str
    value: str
    rows: np.ndarray


def evaluate(work: Workspace, config: TrainingConfig, fitted: FittedModel) -> Evaluation:
    """Measures the model and the baseline on the holdout; saves ``evaluation.json`` and ``holdout-predictions.npz``.

    Raises:
        ConfigError: ``evaluation.slices`` names an unknown column, or the metric does not fit the task.
        ReleaseError: a stored model cannot be read.
    """
    contract = work.contract()
    features, truth, rows = work.subset("holdout")
    primary = primary_metric(config, contract.task)
    slices, slice_notes = find_slices(rows, contract, config)
    model = model_io.load_model(work.file(fitted.file), model_io.trusted_packages(config))
    units = resampling_units(rows, config)
    weights = draw_weights(len(rows), config.evaluation.resamples, config.seed, units)
    with warnings.catch_warnings(action="ignore"):  # cross-validation has reported the warnings of the libraries
        predictions = predict(model, features, contract)
        baseline = predict(model_io.load_model(work.file(BASELINE_MODEL)), features, contract)
        calibration = _measure_calibration(model, features, truth, predictions, contract)
        importance, importance_notes = _importance(model, features, truth, contract, primary, config.seed)

    def evaluate_slice(part: SliceRows) -> SliceResult:
        part_truth, once = truth[part.rows], np.ones((1, len(part.rows)))
        part_predictions = predictions.take(part.rows)
        resampled = weights[:SLICE_RESAMPLES, part.rows]
        value = resample_metric(part_truth, part_predictions, contract, primary, once)[0]
        values = resample_metric(part_truth, part_predictions, contract, primary, resampled)
        reference = resample_metric(part_truth, baseline.take(part.rows), contract, primary, once)[0]
        return SliceResult(
            column=part.column,
            value=part.value,
            rows=len(part.rows),
            metric=percentile_interval(value, values),
            baseline=finite_or_none(reference),
        )

    names = metrics_of(config, contract.task)
    points = compute_metrics(truth, predictions, contract, metrics=names)
    intervals = {
        name: percentile_interval(points[name], resample_metric(truth, predictions, contract, name, weights))
        for name in names
    }
    reference, measured = compute_metrics(truth, baseline, contract, metrics=names), len(rows)
    if HOLDOUT_ALL in work.split_positions():
        complete = _predict_all(work, model, model_io.load_model(work.file(BASELINE_MODEL)))
        measured = len(complete[0])
        points, reference = (compute_metrics(complete[0], each, contract, metrics=names) for each in complete[1:])
        intervals = {name: _shift(intervals[name], points[name]) for name in names}
        note = f"metrics: of all {measured:,} rows; intervals have the width of those on a sample of {len(rows):,} rows"
        slice_notes = (f"{note}; slices, calibration and plots are of the sample", *slice_notes)
    evaluation = Evaluation(
        task=contract.task,
        primary=primary,
        rows=measured,
        candidate=fitted.candidate,
        metrics=intervals,
        baseline={name: finite_or_none(value) for name, value in reference.items()},
        slices=tuple(map(evaluate_slice, slices)),
        importance=importance,
        notes=_notes(points, truth, int(units.max()) + 1, config) + slice_notes + importance_notes,
        calibration=calibration,
    )
    work.save("evaluation.json", evaluation)
    classes = contract.classes
    arrays = {"truth": Predictions(truth).to_arrays(classes)["labels"], **predictions.to_arrays(classes)}
    arrays |= {f"{_BASELINE}{name}": array for name, array in baseline.to_arrays(classes).items()}
    files.write_arrays(work.file(EVALUATION_PREDICTIONS), **arrays)
    return evaluation


def _predict_all(work: Workspace, model: Any, baseline: Any) -> tuple[np.ndarray, Predictions, Predictions]:
    """Truth and predictions of all rows of the holdout, batch by batch."""
    contract = work.contract()
    truths, predicted, references = [], [], []
    with warnings.catch_warnings(action="ignore"):
        for part in work.holdout_batches():
            truths.append(part.labels)
            predicted.append(predict(model, part.features, contract))
            references.append(predict(baseline, part.features, contract))
    return np.concatenate(truths), Predictions.concatenate(predicted), Predictions.concatenate(references)


def _shift(interval: Interval, value: float) -> Interval:
    """The interval around another value."""
    if interval.value is None or interval.low is None or interval.high is None or not np.isfinite(value):
        return Interval(value=finite_or_none(value))
    by = float(value) - interval.value
    return Interval(value=float(value), low=interval.low + by, high=interval.high + by)


def load_evaluation_predictions(work: Workspace) -> tuple[np.ndarray, Predictions, Predictions]:
    """Truth, the model's and the baseline's predictions on the holdout, as ``evaluate`` saved them."""
    arrays, classes = files.read_arrays(work.file(EVALUATION_PREDICTIONS)), work.contract().classes
    truth = Predictions.from_arrays({"labels": arrays["truth"]}, classes).labels
    baseline = {name.removeprefix(_BASELINE): arrays[name] for name in arrays if name.startswith(_BASELINE)}
    return truth, Predictions.from_arrays(arrays, classes), Predictions.from_arrays(baseline, classes)


def find_slices(
    rows: pd.DataFrame, contract: Contract, config: TrainingConfig
) -> tuple[tuple[SliceRows, ...], tuple[str, ...]]:
    """The slices of at least 30 rows, and notes on columns that were left out.

    Columns are those of ``evaluation.slices``, by default the features with few values and without personal data.
    Numbers with many values are cut at their quartiles, times by month.

    Raises:
        ConfigError: ``evaluation.slices`` names an unknown column.
    """
    names = config.evaluation.slices
    for name in names or ():
        if name not in rows.columns:
            remedy = suggest(name, rows.columns)
            raise ConfigError(f"no column {name!r} to slice by", where="evaluation.slices", remedy=remedy)
    if names is None:
        columns = [c for c in contract.input_columns if not c.pii and (c.kind != "numeric" or c.integer)]
        names = tuple(c.name for c in columns if 2 <= rows[c.name].nunique() <= MAX_LEVELS.get(c.kind, 0))
    slices: list[SliceRows] = []
    for position, name in enumerate(names):
        levels, codes, counts = np.unique(slice_values(rows[name]), return_inverse=True, return_counts=True)
        enough = np.flatnonzero(counts >= MIN_ROWS)
        large = [SliceRows(name, str(levels[code]), np.flatnonzero(codes == code)) for code in enough]
        largest = sorted(large, key=lambda part: -len(part.rows))[: MAX_LEVELS["category"]]
        if len(slices) + len(largest) > MAX_SLICES:
            note = f"slices: {', '.join(names[position:])} left out, more than {MAX_SLICES} slices"
            return tuple(slices), (note,)
        slices += sorted(largest, key=lambda part: _numeric_order(part.value))
    return tuple(slices), ()


def slice_values(column: pd.Series) -> np.ndarray:
    """(n,) text that names the slice of each row."""
    if _is_number(column) and column.nunique() > QUARTILES_FROM:
        return _slice_texts(column, pd.qcut(column, 4, duplicates="drop").astype(object))
    return _slice_texts(column, _value_texts(column))


def slice_members(column: pd.Series, values: Sequence[str]) -> list[np.ndarray]:
    """For each slice of a column that ``slice_values`` named on other rows, (n,) whether a row is in it.

    Example:
        >>> [rows.tolist() for rows in slice_members(pd.Series([1.0, 2.5, None]), ["(2.0, 3.0]", "missing"])]
        [[False, True, False], [False, False, True]]
    """
    texts, is_number = _slice_texts(column, _value_texts(column)), _is_number(column)
    members = []
    for value in values:
        quartile = _QUARTILE.fullmatch(value) if is_number else None
        low, high = map(float, quartile.groups()) if quartile else (0.0, 0.0)
        inside = (column > low) & (column <= high) if quartile else texts == value
        members.append(np.asarray(inside, dtype=bool))
    return members


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _value_texts(column: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(column):
        months: pd.Series = column.dt.strftime("%Y-%m")
        return months
    return column.map(category_name) if _is_number(column) else column


def _slice_texts(column: pd.Series, texts: pd.Series) -> np.ndarray:
    return np.where(column.isna(), "missing", texts.astype(str)).astype(str)


def _numeric_order(value: str) -> tuple[float, str]:
    """A sort key: numbers and intervals by their value, then other texts."""
    try:
        return float(value.lstrip("(").partition(",")[0]), value
    except ValueError:
        return float("inf"), value


def _measure_calibration(
    model: Any, features: pd.DataFrame, truth: np.ndarray, predictions: Predictions, contract: Contract
) -> CalibrationResult | None:
    """Compares the model with itself without its calibration; None if it has none."""
    calibration = getattr(model, "calibration", None)
    if calibration is None:
        return None
    uncalibrated = copying.copy(model)
    uncalibrated.calibration = None

    def measure(measured: Predictions) -> dict[str, float]:
        assert measured.probabilities is not None  # noqa: S101 - a calibrated model has probabilities
        positions, labels = encode_labels(truth, contract.classes), range(len(contract.classes))
        return {
            "log_loss": compute_metrics(truth, measured, contract, metrics=["log_loss"])["log_loss"],
            "brier": float(brier_score_loss(positions, measured.probabilities, labels=labels, scale_by_half=True)),
            "calibration_error": expected_calibration_error(measured.probabilities, positions),
        }

    before = measure(predict(uncalibrated, features, contract))
    return CalibrationResult(
        method=calibration.method, rows=calibration.rows, before=before, after=measure(predictions)
    )


def _importance(
    model: Any, features: pd.DataFrame, truth: np.ndarray, contract: Contract, metric: Metric, seed: int
) -> tuple[tuple[tuple[str, float, float], ...], tuple[str, ...]]:
    """Permutation importance (Breiman, 2001) of each column, and a note.

    The model predicts the copies with one shuffled column each in batches: one call for many copies is faster.
    """
    names = [column.name for column in contract.feature_columns]
    row_cost = max(1.0, len(contract.classes) / 5)  # boosting has trees for each class
    repeats = 3 if len(names) <= 30 and row_cost <= 4 else 2
    budget = int(min(MAX_PREDICTED_ROWS / row_cost, MAX_PREDICTED_CELLS / len(names))) // (len(names) * repeats)
    size = min(len(features), 2000, max(50 if row_cost == 1 else 200, budget))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(features), size, replace=False))
    features, truth, once = features.iloc[sample].reset_index(drop=True), truth[sample], np.ones((1, size))
    unshuffled = resample_metric(truth, predict(model, features, contract), contract, metric, once)[0]
    sign = 1 if metric.greater_is_better else -1

    losses = np.empty((len(names), repeats))
    batch_size = max(1, 20_000 // (size * repeats))
    for first in range(0, len(names), batch_size):
        batch = names[first : first + batch_size]
        copies = features.take(np.tile(np.arange(size), len(batch) * repeats))
        for number, name in enumerate(batch):
            values = copies[name].to_numpy(copy=True)
            for start in range(number * repeats * size, (number + 1) * repeats * size, size):
                values[start : start + size] = rng.permutation(values[start : start + size])
            copies[name] = values
        predictions = predict(model, copies, contract)
        for copy in range(len(batch) * repeats):
            part = predictions.take(np.arange(copy * size, (copy + 1) * size))
            shuffled = resample_metric(truth, part, contract, metric, once)[0]
            losses[first + copy // repeats, copy % repeats] = sign * (unshuffled - shuffled)
    if not np.isfinite(losses).all():
        return (), (f"importance: {metric} is undefined on the {size} sampled rows",)
    columns = zip(names, losses.mean(axis=1).tolist(), losses.std(axis=1).tolist(), strict=True)
    note = f"importance: {repeats} shuffles of each column on {size} rows"
    return tuple(sorted(columns, key=lambda column: (-column[1], column[0]))), (note,)


def _notes(points: dict[str, float], truth: np.ndarray, units: int, config: TrainingConfig) -> tuple[str, ...]:
    notes = []
    if units < len(truth):
        kind = "groups" if config.data.group else f"blocks of {-(-len(truth) // units)} consecutive rows"
        warning = ": too few for a reliable interval" if units < 20 else ""
        notes.append(f"intervals: {units} {kind} are resampled{warning}")
    if "mape" in points and (zeros := int((truth == 0).sum())):
        notes.append(f"mape: {zeros} of {len(truth)} rows have a target of 0 and are left out")
    if undefined := [name for name, value in points.items() if not np.isfinite(value)]:
        notes.append(f"undefined on these rows: {', '.join(undefined)}")
    return tuple(notes)
