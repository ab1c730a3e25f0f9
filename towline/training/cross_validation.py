"""Cross-validation of the candidates on folds of the train part, and the selection of one of them.

The candidate with the best mean of the primary metric is selected; the baseline is measured too, but never selected. In
a binary task the decision threshold is chosen on the out-of-fold predictions.
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from threadpoolctl import ThreadpoolController

from towline import files
from towline.config import (
    Candidate,
    Frozen,
    PipelineConfig,
    Task,
    TrainingConfig,
)
from towline.data.schema.contract import Contract
from towline.data.splits import Fold, make_folds
from towline.data.workspace import Workspace
from towline.errors import ConfigError, FitError, TowlineError
from towline.training import model_io
from towline.training.config_checks import check_config
from towline.training.estimators import Model, build_model, default_search_space, pipeline_of
from towline.training.evaluation.definitions import metrics_of, primary_metric
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.evaluation.predictions import Predictions
from towline.training.tuning import search_parameters
from towline.training.user_code import describe_error

log = logging.getLogger("towline.steps")
_COMPARED_ROWS = 100  # rows that a model predicts before and after it was stored
_SINGLE_THREADED = ("baseline", "linear")  # most of their time is preparation, which holds the interpreter's lock

# base classes of scikit-learn whose fitted estimators contain rows of the table
ROW_STORING_CLASSES = frozenset({
    "BaseLabelPropagation", "BaseLibSVM", "GaussianProcessClassifier", "GaussianProcessRegressor", "KernelRidge",
    "NeighborsBase",
})  # fmt: skip


class CrossValidationResult(Frozen):
    """The scores of one candidate.

    Attributes:
        candidate, estimator: its name and its estimator.
        params: hyperparameters; after a search, the best ones.
        folds: metrics of each fold; a metric that is undefined in a fold is left out.
        mean, sd: of each metric, over the folds in which it is defined.
        threshold: binary: a row is positive from this probability on; None: the estimator's own rule.
        seconds, cpu_seconds: wall and process time, including the search.
        trials: of the search.
        rows, rows_available: rows that the largest fold was fitted on, and could have been.
        failed: why the candidate could not be fitted, in one line; else empty.
        notes: warnings of the libraries, each once.
    """

    candidate: str
    estimator: str
    params: dict[str, Any]
    folds: tuple[dict[str, float], ...]
    mean: dict[str, float]
    sd: dict[str, float]
    threshold: float | None
    seconds: float
    cpu_seconds: float
    trials: int = 0
    rows: int = 0
    rows_available: int = 0
    failed: str = ""
    notes: tuple[str, ...] = ()


class _FoldScores(NamedTuple):
    """Predictions for the test rows of each fold, the threshold behind their labels, and the metrics of each fold."""

    predictions: list[Predictions]
    threshold: float | None
    metrics: list[dict[str, float]]

    def summary(self, statistic: Callable[[list[float]], Any]) -> dict[str, float]:
        """Each metric over the folds in which it is defined."""
        names = dict.fromkeys(name for fold in self.metrics for name in fold)
        return {name: float(statistic([fold[name] for fold in self.metrics if name in fold])) for name in names}


@dataclass(frozen=True)
class _CrossValidation:
    """The train part and its folds, with the candidate that is scored on them."""

    work: Workspace
    config: TrainingConfig
    candidate: Candidate
    contract: Contract
    features: pd.DataFrame
    labels: np.ndarray
    folds: list[Fold]
    untested: threading.Lock  # free until the first fitted model was stored and read back

    def score(self, params: dict[str, Any]) -> _FoldScores:
        """Fits and scores the candidate with these hyperparameters."""
        predictions, threshold = self._predict_folds(params), None
        truth = [self.labels[test] for _, test in self.folds]
        metric = self.config.evaluation.threshold if self.contract.task == "binary" else "none"
        has_probabilities = all(part.probabilities is not None for part in predictions)
        if metric != "none" and has_probabilities and self.candidate.estimator != "baseline":
            chances = _positive_probabilities(predictions, self.contract)
            threshold = best_threshold(np.concatenate(truth), chances, self.contract.positive, metric)
            predictions = [_apply_threshold(part, threshold, self.contract) for part in predictions]
        names = metrics_of(self.config, self.contract.task)
        metrics = [
            {
                name: value
                for name, value in compute_metrics(fold_truth, part, self.contract, metrics=names).items()
                if np.isfinite(value)
            }
            for fold_truth, part in zip(truth, predictions, strict=True)
        ]
        return _FoldScores(predictions, threshold, metrics)

    def _predict_folds(self, params: dict[str, Any]) -> list[Predictions]:
        """Predictions for the test rows of each fold, by a model that is fitted on its train rows.

        Folds run in threads if that saves time. Each fold computes in one thread, so that no result depends on the
        number of processors.
        """
        pools = ThreadpoolController()

        def predict_fold(fold: int) -> Predictions:
            started, (train, test) = time.perf_counter(), self.folds[fold]
            train = self._sample_rows(train)
            with pools.limit(limits=1, user_api="openmp"):  # OpenMP keeps its limit by thread
                trusted = self.config.package.trusted
                model = build_model(self.candidate, self.contract, self.config.seed, params, trusted)
                model.fit(self.features.iloc[train], self.labels[train])
                predictions = predict(model, self.features.iloc[test], self.contract)
                self._check_storage(model)
            log.debug("%s: fold %d in %.1f s", self.candidate.name, fold + 1, time.perf_counter() - started)
            return predictions

        parallel = self.candidate.estimator not in _SINGLE_THREADED
        workers = min(len(self.folds), joblib.cpu_count()) if parallel else 1
        with pools.limit(limits=1):
            # the longest first: the last of expanding folds would else run alone at the end
            order = sorted(range(len(self.folds)), key=lambda fold: -len(self.folds[fold][0]))
            jobs = (joblib.delayed(predict_fold)(fold) for fold in order)
            by_fold = dict(zip(order, joblib.Parallel(n_jobs=workers, backend="threading")(jobs), strict=True))
            return [by_fold[fold] for fold in range(len(self.folds))]

    def _sample_rows(self, train: np.ndarray) -> np.ndarray:
        """At most ``cross_validation.max_rows`` of the positions, in order."""
        limit = self.config.cross_validation.max_rows
        if len(train) <= limit:
            return train
        return np.sort(np.random.default_rng(self.config.seed).choice(train, limit, replace=False))

    def _check_storage(self, model: Model) -> None:
        """Stores the first fitted model and reads it back; towline's own candidates need no such check."""
        if "." in self.candidate.estimator and self.untested.acquire(blocking=False):
            path, rows = self.work.file(f"trial-{self.candidate.name}.skops"), self.features.head(_COMPARED_ROWS)
            trusted, where = model_io.trusted_packages(self.config), f"candidates.{self.candidate.name}"
            model_io.check_round_trip(model, path, where, trusted, lambda model: predict(model, rows, self.contract))

    def save(self, predictions: list[Predictions]) -> None:
        """Writes the out-of-fold predictions: rows (positions in the train part), fold, and the predictions."""
        rows = np.concatenate([test for _, test in self.folds])
        fold = np.concatenate([np.full(len(test), fold) for fold, (_, test) in enumerate(self.folds)])
        arrays = Predictions.concatenate(predictions).to_arrays(self.contract.classes)
        files.write_arrays(self.work.file(f"oof-{self.candidate.name}.npz"), rows=rows, fold=fold, **arrays)


class OutOfFoldPredictions(NamedTuple):
    """Predictions for rows of the train part, each by a model that was not fitted on that row.

    Attributes:
        rows: (n,) positions in the train part.
        fold: (n,) number of the fold.
        predictions: of the n rows.
    """

    rows: np.ndarray
    fold: np.ndarray
    predictions: Predictions


def load_out_of_fold_predictions(work: Workspace, candidate: str) -> OutOfFoldPredictions | None:
    """The predictions that ``cross_validate`` saved for a candidate; None if there are none."""
    path = work.file(f"oof-{candidate}.npz")
    if not path.exists():
        return None
    arrays = files.read_arrays(path)
    predictions = Predictions.from_arrays(arrays, work.contract().classes)
    return OutOfFoldPredictions(arrays["rows"], arrays["fold"], predictions)


def check_candidates(config: PipelineConfig, contract: Contract) -> None:
    """Checks that all candidates can be used with these columns and this task, before anything is fitted.

    Raises:
        ConfigError: a candidate or a key that cannot be used.
        FitError: no feature column remains.
    """
    check_config(config, contract.task)
    for candidate in config.candidates:
        model = build_model(candidate, contract, config.seed, trusted=config.package.trusted)
        _check_stored_rows(candidate, pipeline_of(model), contract)


def _check_stored_rows(candidate: Candidate, pipeline: Pipeline, contract: Contract) -> None:
    """Refuses estimators that would contain the numbers of each person that they are fitted on."""
    classes = {base.__name__ for base in type(pipeline.named_steps["estimate"]).__mro__}
    numbers = [column.name for column in contract.feature_columns if column.pii and column.kind == "numeric"]
    if numbers and classes & ROW_STORING_CLASSES:
        raise ConfigError(
            f"{candidate.estimator} stores the rows that it is fitted on, and {numbers[0]!r} is pii",
            where=f"candidates.{candidate.name}",
            remedy=f"choose another estimator, or list {numbers[0]!r} under data.drop",
        )


def baseline_candidate(config: TrainingConfig) -> Candidate:
    """The candidate that every other one must beat: class shares, or the constant that is best for the metric."""
    squared = config.evaluation.metric in ("rmse", "r2")
    return Candidate(estimator="baseline", params={"strategy": "mean"} if squared else {})


def cross_validate(work: Workspace, config: TrainingConfig, candidate: Candidate) -> CrossValidationResult:
    """Fits and scores a candidate on the folds of the train part, after its hyperparameter search if it has one.

    Saves the out-of-fold predictions as ``oof-<name>.npz``. In a binary task the labels are decided by the threshold
    that maximises ``evaluation.threshold`` on all out-of-fold predictions; the baseline has no threshold.

    Args:
        work: the run's workspace.
        config: of the training.
        candidate: to score.

    Raises:
        ConfigError: an estimator, parameter, search space or metric that cannot be used.
        DataValidationError: the rows cannot be split into the folds.
        FitError: no feature column remains; or the model cannot be stored or read back.
    """
    started = time.perf_counter(), time.process_time()
    contract = work.contract()
    metric = primary_metric(config, contract.task)
    features, labels, rows = work.subset("train")
    folds = make_folds(rows, labels, config)
    run = _CrossValidation(work, config, candidate, contract, features, labels, folds, threading.Lock())
    build_model(candidate, contract, config.seed, trusted=config.package.trusted)  # raises before anything is fitted

    failed, params, trials, scores = "", candidate.params, 0, _FoldScores([], None, [])
    with _collect_warnings() as notes:
        try:
            if candidate.search:

                def objective(params: dict[str, Any]) -> float:
                    return run.score(params).summary(np.mean).get(metric, np.nan)

                file, space = work.file(f"search-{candidate.name}.json"), default_search_space(candidate, contract.task)
                params, trials = search_parameters(file, candidate, space, metric, config.seed, objective)
            scores = run.score(params)
            run.save(scores.predictions)
            if metric not in scores.summary(np.mean):
                failed = f"{metric} is undefined in every fold"
        except TowlineError:
            raise
        except Exception as error:  # noqa: BLE001 - an estimator may raise anything; the other candidates continue
            failed = describe_error(error)
    available = max(len(train) for train, _ in folds)
    return CrossValidationResult(
        candidate=candidate.name,
        estimator=candidate.estimator,
        params=params,
        folds=tuple(scores.metrics),
        mean=scores.summary(np.mean),
        sd=scores.summary(np.std),
        threshold=scores.threshold,
        seconds=round(time.perf_counter() - started[0], 3),
        cpu_seconds=round(time.process_time() - started[1], 3),
        trials=trials,
        rows=min(available, config.cross_validation.max_rows),
        rows_available=available,
        failed=failed,
        notes=tuple(notes),
    )


def choose_candidate(
    scores: Sequence[CrossValidationResult], config: TrainingConfig, task: Task
) -> CrossValidationResult:
    """Selects the candidate with the best mean of the primary metric, not the baseline; the first one on a tie.

    Raises:
        FitError: no candidate could be fitted; the details give the reason for each.
    """
    metric = primary_metric(config, task)
    candidates = [result for result in scores if result.estimator != "baseline"]
    fitted = [result for result in candidates if not result.failed]
    if not fitted:
        raise FitError(
            "no candidate could be fitted",
            where="candidates",
            remedy="correct their params, or use others: linear, forest, boosting",
            details=tuple(f"{result.candidate}: {result.failed}" for result in candidates),
        )
    sign = 1 if metric.greater_is_better else -1
    return max(fitted, key=lambda result: sign * result.mean[metric])


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


def _positive_probabilities(predictions: list[Predictions], contract: Contract) -> np.ndarray:
    column = contract.classes.index(contract.positive)
    return np.concatenate([part.probabilities[:, column] for part in predictions if part.probabilities is not None])


def _apply_threshold(predictions: Predictions, threshold: float, contract: Contract) -> Predictions:
    (negative,) = (label for label in contract.classes if label != contract.positive)
    labels = np.full(len(predictions.labels), negative, dtype=object)
    labels[_positive_probabilities([predictions], contract) >= threshold] = contract.positive
    return Predictions(labels, predictions.probabilities)


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Collects the libraries' warnings, each once and in one line, instead of printing them.

    If folds run in threads, a warning may be missed: before Python 3.14 all threads share one set of filters.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    lines = (f"{item.category.__name__}: {str(item.message).strip().splitlines()[0][:160]}" for item in caught)
    notes.extend(dict.fromkeys(lines))
