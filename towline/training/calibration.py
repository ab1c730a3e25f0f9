"""Calibration makes predicted probabilities agree with observed frequencies: of rows with 0.2, 20 % are positive.

The calibrated model itself is not changed. For each class, a *curve* maps its predicted probability to the calibrated
one. The curves are fitted on out-of-fold probabilities, so never on rows that the model was fitted on:

- ``isotonic``: any increasing curve, by isotonic regression (Zadrozny and Elkan, 2002).
- ``sigmoid``: a line between the log-odds, by logistic regression (Platt, 1999). It needs fewer rows.

Two classes have one curve, of the positive class. More classes have a curve each, and the calibrated probabilities are
divided by their sum, as by scikit-learn's ``CalibratedClassifierCV``.

The fitted model and the compiled plan call the same functions, one row at a time, so that their results are equal to
the last bit.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from towline.config import CalibrationMethod, Frozen
from towline.formatting import shorten_list
from towline.training.link_functions import add, add_columns, expit, exponentials

ISOTONIC_ROWS, ISOTONIC_CLASS_ROWS = 1_000, 100  # with fewer, isotonic regression overfits: sigmoid is used
SIGMOID_CLASS_ROWS = 10  # with fewer, the probabilities of a class stay as they are
DIGITS = 3  # of the knots: a curve between two knots that are closer would amplify rounding errors
ERROR_BINS = 10  # of each class, for the calibration error
_SMALLEST = 1e-6  # probability with finite log-odds


class IsotonicCurve(Frozen):
    """A piecewise linear map by its knots; constant below the first knot and above the last one."""

    predicted: tuple[float, ...]
    calibrated: tuple[float, ...]

    def calibrate(self, probability: float) -> float:
        """The calibrated probability, as ``IsotonicRegression(out_of_bounds="clip").predict`` computes it."""
        predicted, calibrated = self.predicted, self.calibrated
        if probability <= predicted[0]:
            return calibrated[0]
        if probability >= predicted[-1]:
            return calibrated[-1]
        if math.isnan(probability):
            return probability
        high = bisect_left(predicted, probability)
        low = high - 1
        slope = (calibrated[high] - calibrated[low]) / (predicted[high] - predicted[low])
        return slope * (probability - predicted[low]) + calibrated[low]

    def calibrate_column(self, probabilities: np.ndarray) -> np.ndarray:
        """(n,) the calibrated probabilities of finite ones, each as ``calibrate`` gives it."""
        predicted, calibrated = np.array(self.predicted), np.array(self.calibrated)
        high = np.searchsorted(predicted, probabilities, "left").clip(1, max(1, len(predicted) - 1))
        if len(predicted) == 1:
            return np.full(len(probabilities), calibrated[0])
        low = high - 1
        slope = (calibrated[high] - calibrated[low]) / (predicted[high] - predicted[low])
        between = slope * (probabilities - predicted[low]) + calibrated[low]
        below, above = probabilities <= predicted[0], probabilities >= predicted[-1]
        curve: np.ndarray = np.where(below, calibrated[0], np.where(above, calibrated[-1], between))
        return curve

    @property
    def steepness(self) -> float:
        """The largest change of the calibrated probability for a small relative change of the predicted one."""
        slopes = np.diff(self.calibrated) / np.diff(self.predicted) * self.predicted[1:]
        return float(slopes.max(initial=0.0))


class SigmoidCurve(Frozen):
    """A linear map of log-odds."""

    slope: float
    intercept: float

    def calibrate(self, probability: float) -> float:
        """The calibrated probability."""
        bounded = min(max(probability, _SMALLEST), 1 - _SMALLEST)
        log_odds = math.log(bounded / (1 - bounded))
        return expit(self.slope * log_odds + self.intercept)[1]

    def calibrate_column(self, probabilities: np.ndarray) -> np.ndarray:
        """(n,) the calibrated probabilities of finite ones, each as ``calibrate`` gives it."""
        bounded = probabilities.clip(_SMALLEST, 1 - _SMALLEST)
        log_odds = np.fromiter(map(math.log, (bounded / (1 - bounded)).tolist()), np.float64, len(bounded))
        calibrated: np.ndarray = 1 / (1 + exponentials(-(self.slope * log_odds + self.intercept)))
        return calibrated

    @property
    def steepness(self) -> float:
        """The largest change of the calibrated probability for a small relative change of the predicted one."""
        log_odds = np.linspace(-14, 14, 200)
        calibrated = 1 / (1 + np.exp(-(self.slope * log_odds + self.intercept)))
        return float((abs(self.slope) * calibrated * (1 - calibrated) * (1 + np.exp(log_odds))).max())


CalibrationCurve = IsotonicCurve | SigmoidCurve
IDENTITY = IsotonicCurve(predicted=(0.0, 1.0), calibrated=(0.0, 1.0))


class Calibration(Frozen):
    """A fitted calibration, which is a part of a model.

    Attributes:
        method: of the config; a class with few rows may have another curve.
        rows: number of out-of-fold rows it was fitted on.
        curves: of each class, in the contract's order; with two classes only of the positive class.
        positive: binary: position of the positive class in the contract's order.
    """

    method: CalibrationMethod
    rows: int
    curves: tuple[CalibrationCurve, ...]
    positive: int | None = None

    def calibrate(self, probabilities: Sequence[float]) -> list[float]:
        """The calibrated probabilities of one row, from its probabilities in the contract's order."""
        if self.positive is not None:
            positive = self.curves[0].calibrate(probabilities[self.positive])
            return [1 - positive, positive] if self.positive else [positive, 1 - positive]
        values = [curve.calibrate(value) for curve, value in zip(self.curves, probabilities, strict=True)]
        total = add(values)
        return [value / total if total else 1 / len(values) for value in values]

    def calibrate_rows(self, probabilities: np.ndarray) -> np.ndarray:
        """(n, classes) calibrated probabilities; each row is equal to ``calibrate`` of the row."""
        if not np.isfinite(probabilities).all():
            rows = [self.calibrate(row) for row in probabilities.tolist()]
            return np.array(rows, dtype=np.float64).reshape(probabilities.shape)
        if self.positive is not None:
            positive = self.curves[0].calibrate_column(probabilities[:, self.positive])
            return np.column_stack([1 - positive, positive] if self.positive else [positive, 1 - positive])
        columns = [curve.calibrate_column(values) for curve, values in zip(self.curves, probabilities.T, strict=True)]
        calibrated = np.column_stack(columns)
        total = add_columns(calibrated)[:, None]
        shares: np.ndarray = np.divide(
            calibrated, total, out=np.full_like(calibrated, 1 / len(columns)), where=total != 0
        )
        return shares

    @property
    def steepness(self) -> float:
        """The largest change of a calibrated probability for a small relative change of a predicted one."""
        return max(curve.steepness for curve in self.curves)


class OutOfFoldRows(NamedTuple):
    """Rows with probabilities of models that were not fitted on them.

    Attributes:
        probabilities: (n, classes) in the contract's order.
        truth: (n,) position of the true class.
        fold: (n,) number of the fold.
    """

    probabilities: np.ndarray
    truth: np.ndarray
    fold: np.ndarray

    def take(self, rows: np.ndarray) -> "OutOfFoldRows":
        return OutOfFoldRows(self.probabilities[rows], self.truth[rows], self.fold[rows])


class CalibratedRows(NamedTuple):
    """The calibration of all folds, and the rows' probabilities calibrated by the other folds.

    Attributes:
        calibration: None if no class has enough rows.
        probabilities: (n, classes) calibrated probabilities. Each fold is calibrated by curves of the other folds, so
            that metrics of these probabilities are honest.
        notes: what differs from the config, in one line each.
    """

    calibration: Calibration | None
    probabilities: np.ndarray
    notes: tuple[str, ...] = ()


def calibrate_out_of_fold(
    rows: OutOfFoldRows, method: CalibrationMethod, classes: Sequence[object], positive: int | None
) -> CalibratedRows:
    """Fits a calibration on out-of-fold rows.

    Isotonic regression needs 1,000 rows, of them 100 with the class and 100 without it; with fewer, the class gets a
    sigmoid. With fewer than 10 rows with or without it, its probabilities stay as they are. A note says so.

    Args:
        rows: of at least two folds.
        method: of the config.
        classes: labels in the contract's order, for notes.
        positive: binary: position of the positive class.
    """
    if not np.isfinite(rows.probabilities).all():
        return CalibratedRows(None, rows.probabilities, ("not calibrated: a probability is not finite",))
    curved = range(len(classes)) if positive is None else (positive,)
    methods = {position: _choose_method(method, rows.truth == position) for position in curved}
    notes = _describe_methods(methods, method, classes, rows.truth)
    folds = np.unique(rows.fold)
    if not any(methods.values()) or len(folds) < 2:
        return CalibratedRows(None, rows.probabilities, notes)

    def fit_rows(selected: OutOfFoldRows) -> Calibration:
        curves = tuple(
            _fit_curve(selected.probabilities[:, position], selected.truth == position, chosen)
            for position, chosen in methods.items()
        )
        return Calibration(method=method, rows=len(selected.truth), curves=curves, positive=positive)

    calibrated = np.empty_like(rows.probabilities)
    for fold in folds:
        test = rows.fold == fold
        calibrated[test] = fit_rows(rows.take(~test)).calibrate_rows(rows.probabilities[test])
    return CalibratedRows(fit_rows(rows), calibrated, notes)


def fit_sigmoid(predicted: np.ndarray, positive: np.ndarray) -> SigmoidCurve:
    """Fits Platt's sigmoid on log-odds.

    The targets are smoothed as Platt does: each row counts for both labels, almost wholly for its own one.

    Args:
        predicted: (n,) probabilities.
        positive: (n,) whether the row has the class.
    """
    from sklearn.linear_model import LogisticRegression

    targets = _smooth_targets(positive)
    bounded = np.clip(predicted, _SMALLEST, 1 - _SMALLEST)
    log_odds = np.log(bounded / (1 - bounded))[:, None]
    labels = np.repeat([True, False], len(targets))
    weights = np.concatenate([targets, 1 - targets])
    model = LogisticRegression(C=1e6).fit(np.concatenate([log_odds, log_odds]), labels, sample_weight=weights)
    return SigmoidCurve(slope=float(model.coef_[0, 0]), intercept=float(model.intercept_[0]))


def fit_isotonic(predicted: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> IsotonicCurve:
    """Fits isotonic regression.

    Args:
        predicted: (n,) probabilities.
        targets: (n,) shares of positive rows.
        weights: (n,) number of rows; default: one each.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit(predicted, targets, sample_weight=weights)
    return IsotonicCurve(predicted=fitted.X_thresholds_.tolist(), calibrated=fitted.y_thresholds_.tolist())


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The mean distance between predicted probabilities and observed shares, over ten bins of equal numbers of rows.

    The result is the mean of the errors of the classes.

    Args:
        probabilities: (n, classes).
        truth: (n,) position of the true class.
    """
    errors = []
    for position in range(probabilities.shape[1]):
        predicted, observed = probabilities[:, position], truth == position
        parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), ERROR_BINS) if len(part)]
        errors.append(sum(abs(float(predicted[part].sum()) - int(observed[part].sum())) for part in parts) / len(truth))
    return float(np.mean(errors))


def _choose_method(method: CalibrationMethod, positive: np.ndarray) -> CalibrationMethod | None:
    """The method for one class; None: its probabilities stay as they are."""
    minority = int(min(positive.sum(), (~positive).sum()))
    if minority < SIGMOID_CLASS_ROWS:
        return None
    if len(positive) < ISOTONIC_ROWS or minority < ISOTONIC_CLASS_ROWS:
        return "sigmoid"
    return method


def _describe_methods(
    methods: dict[int, CalibrationMethod | None],
    method: CalibrationMethod,
    classes: Sequence[object],
    truth: np.ndarray,
) -> tuple[str, ...]:
    """What differs from the configured method, one line for each other method."""
    notes = []
    for chosen in ("sigmoid", None):
        names = [f"{classes[position]}" for position, each in methods.items() if each == chosen]
        if chosen == method or not names:
            continue
        shown = shorten_list(names, 5)
        counts = np.bincount(truth, minlength=len(classes))
        fewest = min(
            min(int(counts[at]), len(truth) - int(counts[at])) for at, each in methods.items() if each == chosen
        )
        consequence = f"sigmoid is used for {shown}" if chosen else f"the probabilities of {shown} are not calibrated"
        notes.append(
            f"calibrate: {consequence}: of {len(truth):,} out-of-fold rows, as few as {fewest:,} have or do not have "
            f"such a class, too few for {method if chosen else 'calibration'}"
        )
    return tuple(notes)


def _fit_curve(predicted: np.ndarray, positive: np.ndarray, method: CalibrationMethod | None) -> CalibrationCurve:
    if method is None:
        return IDENTITY
    if method == "sigmoid":
        return fit_sigmoid(predicted, positive)
    # with smoothed targets no probability is 0 or 1: such a row would have an infinite log loss if it is wrong
    return fit_isotonic(_round_probabilities(predicted), _smooth_targets(positive))


def _round_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """(n,) probabilities with three decimals, or with three digits if they are below 0.1."""
    magnitude = np.floor(np.log10(np.clip(probabilities, _SMALLEST, 0.1)))
    scale = 10.0 ** (DIGITS - 1 - magnitude)
    return np.asarray(np.round(probabilities * scale) / scale)


def _smooth_targets(positive: np.ndarray) -> np.ndarray:
    """(n,) Platt's targets: near 1 for positive rows, near 0 for the others."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
