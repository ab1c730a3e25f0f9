"""How good predictions probably are where no label tells yet: what is needed for it is learnt when a model is made.

A classifier's probabilities are calibrated on rows that it was not fitted on; each row then has a chance of each label,
and any metric an expected value (confidence-based performance estimation, NannyML, 2021). A regression's losses are
foretold by a small model of them (direct loss estimation, NannyML, 2022). Neither can see that the same inputs have
come to lead to other labels. How wrong such estimates are is tried on the model's own past: each of the newest folds is
estimated from what came before it.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import ThreadpoolController

from towline.config import Candidate, Frozen, Metric, PipelineConfig, Task
from towline.data.schema.contract import Column, Contract
from towline.data.splits import SplitSummary
from towline.data.workspace import Workspace
from towline.training import model_io
from towline.training.cross_validation import primary_metric
from towline.training.estimator_import import describe_error
from towline.training.estimators import build_model
from towline.training.evaluation.bootstrap import percentile_interval, resample_metric
from towline.training.evaluation.holdout import load_evaluation_predictions
from towline.training.evaluation.interval import Interval
from towline.training.evaluation.predictions import Predictions

LOSSES = ("mae", "rmse", "mape")
ESTIMATE, LOSS = "estimate.json", "loss.skops"
_LEAST = 50
_MOST = 20_000  # rows that are learnt from: more change little
_PAST = 3  # parts that are estimated from what came before them
_TRIED = 3_000  # rows of each
_DRAWS = 100
_CELLS = 100_000  # rows x classes of an estimate; beyond, evenly spaced rows are taken
_ENOUGH, _EACH = 1_000, 50  # rows, and of each class, that a calibration asks for; it then leaves older ones out
_BIN, _KNOTS = 200, 40  # rows of a bin; knots of a curve
_SMALL = {"max_iter": 30, "max_leaf_nodes": 7, "min_samples_leaf": 20}


class CalibrationCurve(Frozen):
    """A probability as the model gives it, to how often it comes true: rising lines between knots."""

    given: tuple[float, ...]
    true: tuple[float, ...]


class EstimatorState(Frozen):
    """What an estimate rests on: ``estimate.json`` of a release.

    Attributes:
        metric: the one that can be estimated.
        rows: it was learnt from.
        curves: of each class, in the contract's order; of a binary task both.
        noise: of a regression: variance of a row's loss around what is foretold, neighbours' likeness included.
        error: in the metric's unit, by how much estimates missed on the model's own past beyond chance; None where
            there was no past to try it on.
        why_not: why there is no estimate; else empty.
    """

    metric: Metric
    rows: int = 0
    curves: tuple[CalibrationCurve, ...] = ()
    noise: float = 0.0
    error: float | None = None
    why_not: str = ""


class _Part(NamedTuple):
    """Rows that the model which answered them was not fitted on, in order of time where there is one."""

    features: pd.DataFrame
    truth: np.ndarray
    predictions: Predictions

    def take(self, rows: np.ndarray) -> "_Part":
        features = self.features.iloc[rows].reset_index(drop=True)
        return _Part(features, self.truth[rows], self.predictions.take(rows))


def learn(work: Workspace, config: PipelineConfig, candidate: str) -> tuple[EstimatorState, Any]:
    """The basis of later estimates of the deciding metric, and for a regression the model of its losses (else None).

    Learns from the chosen candidate's out-of-fold predictions and the holdout's, of at most 20,000 rows; the same
    inputs give the same result. What cannot be learnt is told in the basis and never ends a run.

    Raises:
        ConfigError: the metric is not one of the task.
    """
    contract = work.contract()
    metric = primary_metric(config, contract.task)
    try:
        return _learn(work, config, candidate, contract, metric)
    except Exception as error:  # noqa: BLE001 - a model is worth releasing without it
        return EstimatorState(metric=metric, why_not=f"it could not be learnt: {describe_error(error)}"), None


def save(work: Workspace, config: PipelineConfig, candidate: str) -> list[Path]:
    """``learn``'s result as files of the workspace, made once: ``estimate.json``, of a regression ``loss.skops`` too.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    if not work.file(ESTIMATE).exists():
        basis, model = learn(work, config, candidate)
        if model is not None:
            model_io.save_model(model, work.file(LOSS), level=9)
        work.save(ESTIMATE, basis)  # the last: it says that the rest is there
    return [path for name in (ESTIMATE, LOSS) if (path := work.file(name)).exists()]


def load(release: Path) -> tuple[EstimatorState, Any] | None:
    """What ``save`` left in a release; None where it has none.

    Raises:
        ReleaseError: the model of the losses cannot be read.
    """
    if not (release / ESTIMATE).exists():
        return None
    basis = EstimatorState.model_validate_json((release / ESTIMATE).read_bytes())
    return basis, model_io.load_model(release / LOSS) if (release / LOSS).exists() else None


def _learn(
    work: Workspace, config: PipelineConfig, candidate: str, contract: Contract, metric: Metric
) -> tuple[EstimatorState, Any]:
    if contract.task == "regression" and metric not in LOSSES:
        return EstimatorState(
            metric=metric, why_not=f"{metric} cannot be estimated without labels, only {', '.join(LOSSES)}"
        ), None
    parts = _parts(work, config, candidate, contract)
    if contract.task != "regression" and any(part.predictions.probabilities is None for part in parts):
        return EstimatorState(metric=metric, why_not="the model gives no probabilities"), None
    if (rows := sum(len(part.truth) for part in parts)) < _LEAST:
        return EstimatorState(metric=metric, rows=rows, why_not=f"{rows} rows are too few to learn it from"), None
    with ThreadpoolController().limit(limits=1):
        by_time = SplitSummary.model_validate_json(work.file("parts.json").read_bytes()).by == "time"
        curves: Callable[..., tuple[EstimatorState, Any]] = partial(_learn_curves, ages=by_time)
        learner = _learn_losses if contract.task == "regression" else curves
        missed = []
        for at in range(max(1, len(parts) - _PAST), len(parts)):
            before, model = learner(parts[:at], contract, metric, config.seed)
            part = parts[at].take(_thinned(len(parts[at].truth), _TRIED))
            before = before.model_copy(update={"noise": _noise(part, before, model, contract)})
            guess = estimate(before, model, part.predictions, part.features, contract, config.seed)
            once = np.ones((1, len(part.truth)))
            true = float(resample_metric(part.truth, part.predictions, contract, metric, once)[0])
            if guess.value is not None and guess.low is not None and guess.high is not None and math.isfinite(true):
                sampling = (guess.high - guess.low) / 2 / 1.96
                missed.append(((true - guess.value) ** 2 - sampling**2, before.noise))
        basis, model = learner(parts, contract, metric, config.seed)
    error = math.sqrt(max(0.0, float(np.mean([miss for miss, _ in missed])))) if missed else None
    return basis.model_copy(update={"error": error, "noise": missed[-1][1] if missed else 0.0}), model


def estimate(
    basis: EstimatorState,
    model: Any,
    predictions: Predictions,
    features: pd.DataFrame | None,
    contract: Contract,
    seed: int,
) -> Interval:
    """The metric that rows without labels probably have; None where it is undefined.

    Args:
        basis: as ``learn`` gave it.
        model: of the losses; of a regression alone.
        predictions: what the model said of n rows; of a classification, those without probabilities are left out.
        features: (n, …) the canonical frame; of a regression alone.
        contract: of the model.
        seed: draws the labels behind a classifier's interval.

    Returns:
        The interval holds what chance does to so many rows, what it did to those that were learnt from, and what
        estimates missed by on the model's own past.
    """
    n = len(predictions.labels)
    if n == 0 or basis.why_not:
        return Interval(value=None)
    if contract.task == "regression":
        assert features is not None  # noqa: S101 - as its argument says
        mean = float(np.clip(model.predict(_with_answers(features, predictions, contract)), 0.0, None).mean())
        value, spread = mean, 1.96 * math.sqrt(basis.noise / n)
        if basis.metric == "rmse":
            value = math.sqrt(mean)
            spread = spread / (2 * value) if value else spread
        chance = Interval(value=value, low=value - spread, high=value + spread)
    else:
        chance = _of_labels(basis, predictions, contract, seed)
    learnt = math.sqrt(1 + n / max(1, basis.rows))  # they were as few as they were
    return _widened(chance, learnt, 1.96 * (basis.error or 0.0), contract.task)


def _of_labels(basis: EstimatorState, predictions: Predictions, contract: Contract, seed: int) -> Interval:
    """Each row stands once for each class, weighted by its chance; or, for the interval, where a draw says so."""
    classes = _named(contract)
    if predictions.probabilities is None:
        return Interval(value=None)
    able = np.flatnonzero(np.isfinite(predictions.probabilities).all(axis=1))
    kept = predictions.take(able[_thinned(len(able), _CELLS // len(classes))])
    if kept.probabilities is None or not len(able):
        return Interval(value=None)
    chances = calibrated(basis, kept.probabilities)
    n = len(chances)
    truth = np.repeat(classes, n)
    answers = kept.take(np.tile(np.arange(n), len(classes)))
    value = float(resample_metric(truth, answers, contract, basis.metric, chances.T.reshape(1, -1))[0])
    rng, edges = np.random.default_rng(seed), np.cumsum(chances, axis=1)[:, :-1]
    drawn = np.empty((_DRAWS, len(truth)), dtype=np.uint8)
    for row in drawn:
        label = (rng.random((n, 1)) > edges).sum(axis=1)
        row[:] = (label == np.arange(len(classes))[:, None]).reshape(-1)
    return percentile_interval(value, resample_metric(truth, answers, contract, basis.metric, drawn))


def calibrated(basis: EstimatorState, probabilities: np.ndarray) -> np.ndarray:
    """(n, k) the chance of each class, by the curves; rows sum to 1."""
    columns = [np.interp(probabilities[:, at], curve.given, curve.true) for at, curve in enumerate(basis.curves)]
    chances = np.column_stack(columns)
    total = chances.sum(axis=1, keepdims=True)
    found: np.ndarray = np.divide(chances, total, out=np.full_like(chances, 1 / chances.shape[1]), where=total > 0)
    return found


def _parts(work: Workspace, config: PipelineConfig, candidate: str, contract: Contract) -> list[_Part]:
    """The folds' test sides and the holdout, oldest first."""
    features, truth, rows = work.part("holdout")
    holdout = _Part(features, truth, load_evaluation_predictions(work)[1])
    if config.data.time:
        holdout = holdout.take(np.argsort(rows[config.data.time].to_numpy(), kind="stable"))
    path = work.file(f"oof-{candidate}.npz")
    if not path.exists():
        return [holdout.take(half) for half in np.array_split(np.arange(len(truth)), 2)]
    with np.load(path, allow_pickle=False) as saved:
        content = {name: saved[name] for name in saved.files}
    labels = content["predicted"] if contract.task == "regression" else _named(contract)[content["classes"]]
    found = Predictions(labels, content.get("probabilities"))
    features, truth, _ = work.part("train")
    places = content["rows"]
    folded = _Part(features.iloc[places].reset_index(drop=True), truth[places], found)
    return [*(folded.take(np.flatnonzero(content["fold"] == fold)) for fold in np.unique(content["fold"])), holdout]


def _joined(parts: Sequence[_Part]) -> _Part:
    found = [part.predictions.probabilities for part in parts]
    known = [one for one in found if one is not None]
    return _Part(
        pd.concat([part.features for part in parts], ignore_index=True),
        np.concatenate([part.truth for part in parts]),
        Predictions(
            np.concatenate([part.predictions.labels for part in parts]),
            np.concatenate(known) if len(known) == len(found) else None,
        ),
    )


def _learn_curves(
    parts: Sequence[_Part], contract: Contract, metric: Metric, _: int, *, ages: bool
) -> tuple[EstimatorState, None]:
    """From all parts; where what they say ages, from the newest, and older ones only as far as that is too small."""
    count = 1 if ages else len(parts)
    while count < len(parts) and not _enough(parts[-count:]):
        count += 1
    joined = _joined(parts[-count:])
    part = joined.take(_thinned(len(joined.truth), _MOST))
    given = part.predictions.probabilities
    assert given is not None  # noqa: S101 - learn has seen to it
    curves = [_curve(given[:, at], part.truth == label) for at, label in enumerate(contract.classes)]
    return EstimatorState(metric=metric, rows=len(part.truth), curves=tuple(curves)), None


def _enough(parts: Sequence[_Part]) -> bool:
    truth = pd.Series(np.concatenate([part.truth for part in parts]), dtype=object)
    return len(truth) >= _ENOUGH and int(truth.value_counts().min()) >= _EACH


def _curve(given: np.ndarray, true: np.ndarray) -> CalibrationCurve:
    """Isotonic over means of bins where there are rows enough, else Platt's sigmoid (Niculescu-Mizil & Caruana, 2005).

    Isotonic over single rows bends after their labels, and so makes any model look better than it is.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    rate, rarer = float(true.mean()), int(min(true.sum(), (~true).sum()))
    if rarer >= _ENOUGH // 10 and len(true) >= _ENOUGH:
        bins = np.array_split(np.argsort(given, kind="stable"), min(_KNOTS, len(given) // _BIN))
        means, rates = (np.array([values[rows].mean() for rows in bins]) for values in (given, true))
        sizes = np.array([len(rows) for rows in bins])
        rising = IsotonicRegression(y_min=0.0, y_max=1.0).fit(means, rates, sample_weight=sizes)
        return CalibrationCurve(given=rising.X_thresholds_.tolist(), true=rising.y_thresholds_.tolist())
    flat = CalibrationCurve(given=(0.0, 1.0), true=(rate, rate))
    if rarer == 0:
        return flat
    sigmoid = LogisticRegression(C=1e6).fit(_logit(given), true)
    if sigmoid.coef_[0, 0] <= 0:
        return flat
    knots = 1 / (1 + np.exp(-np.linspace(-10, 10, _KNOTS)))
    return CalibrationCurve(given=knots.tolist(), true=sigmoid.predict_proba(_logit(knots))[:, 1].tolist())


def _logit(chances: np.ndarray) -> np.ndarray:
    inside = np.clip(chances, 1e-6, 1 - 1e-6)
    odds: np.ndarray = np.log(inside / (1 - inside))[:, None]
    return odds


def _learn_losses(parts: Sequence[_Part], contract: Contract, metric: Metric, seed: int) -> tuple[EstimatorState, Any]:
    joined = _joined(parts)
    losses = _losses(joined, metric)
    places = np.flatnonzero(np.isfinite(losses))
    if len(places) < _LEAST // 2:
        return EstimatorState(
            metric=metric, why_not=f"{metric} is defined on {len(places)} rows, too few to learn it from"
        ), None
    places = places[_thinned(len(places), _MOST)]
    candidate = Candidate(estimator="boosting", params=_SMALL)
    model = build_model(candidate, _of_losses(contract), seed)
    part = joined.take(places)
    model.fit(_with_answers(part.features, part.predictions, contract), losses[places])
    return EstimatorState(metric=metric, rows=len(places)), model


def _noise(part: _Part, basis: EstimatorState, model: Any, contract: Contract) -> float:
    """The variance of one row's loss around its estimate that, divided by n, is that of a mean over n neighbours."""
    if contract.task != "regression" or basis.why_not:
        return 0.0
    rest = _losses(part, basis.metric) - model.predict(_with_answers(part.features, part.predictions, contract))
    rest = rest[np.isfinite(rest)]
    length = math.isqrt(len(rest))
    if length < 2:
        return 0.0
    blocks = rest[: len(rest) // length * length].reshape(-1, length)
    return float(blocks.mean(axis=1).var(ddof=1) * length)


def _losses(part: _Part, metric: Metric) -> np.ndarray:
    """(n,) what the metric is the mean of (rmse: the square of it); NaN for rows that do not count."""
    errors: np.ndarray = np.abs(part.truth - part.predictions.labels)
    if metric == "rmse":
        return errors**2
    if metric == "mape":
        some = part.truth != 0
        errors = np.divide(errors, np.abs(part.truth), out=np.full(len(errors), np.nan), where=some)
    return errors


def _of_losses(contract: Contract) -> Contract:
    """A regression on the same columns and the prediction, which has the target's name: no feature can have it."""
    facts: dict[str, Any] = {"min": None, "max": None, "categories": None, "levels": 0}
    answer = Column(name=contract.target, kind="numeric", role="feature", nullable=False, **facts)
    others = tuple(column for column in contract.columns if column.name != contract.target)
    return contract.model_copy(update={"columns": (*others, answer), "target": "loss"})


def _with_answers(features: pd.DataFrame, predictions: Predictions, contract: Contract) -> pd.DataFrame:
    return features.assign(**{contract.target: predictions.labels.astype(np.float64)})


def _widened(chance: Interval, times: float, more: float, task: Task) -> Interval:
    if chance.value is None or chance.low is None or chance.high is None:
        return chance
    low = chance.value - math.hypot(times * (chance.value - chance.low), more)
    high = chance.value + math.hypot(times * (chance.high - chance.value), more)
    return Interval(value=chance.value, low=max(0.0, low) if task == "regression" else low, high=high)


def _thinned(count: int, most: int) -> np.ndarray:
    """At most so many positions of ``count``, evenly spaced."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _named(contract: Contract) -> np.ndarray:
    classes = np.empty(len(contract.classes), dtype=object)
    classes[:] = contract.classes
    return classes
