"""Cross-validation of the candidates on folds of the train part, and the selection of one of them.

The candidate with the best mean of the primary metric is selected; the baseline is measured too, but never selected. An
ensemble is selected only if its advantage is larger than the noise. The calibration of the probabilities is fitted on
the out-of-fold predictions (``calibrate``). The decision thresholds are chosen on them afterwards.
"""

import logging
import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline

from towline import files
from towline.config import (
    Candidate,
    Frozen,
    PipelineConfig,
    Settings,
    Task,
    TrainingConfig,
)
from towline.data.schema.contract import Contract
from towline.data.splits import Fold, make_folds, sample_positions
from towline.data.workspace import Workspace
from towline.errors import ConfigError, FitError, TowlineError
from towline.extras import BOOSTING_LIBRARIES
from towline.processes import thread_pools
from towline.provenance import code_digest
from towline.training import model_io
from towline.training.boosting.histogram import EarlyStoppingBoosting
from towline.training.calibration import Calibration
from towline.training.estimators import (
    TIME_TREND,
    VARIANT_ROWS,
    build_model,
    create_transformer,
    default_search_space,
    list_variants,
    pipeline_of,
)
from towline.training.evaluation.definitions import Metric, metrics_of, primary_metric
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions, Threshold, encode_labels
from towline.training.model_selection import shared_study
from towline.training.model_selection.budget import BudgetLimits, CandidateLimits, count_workers
from towline.training.model_selection.config_checks import check_columns, check_config
from towline.training.model_selection.fold_scores import FoldScores, measure_folds, score_folds
from towline.training.model_selection.tuning import TrialPlan, search_parameters
from towline.training.pipeline_components import Classifier, Model
from towline.training.user_code import describe_error

log = logging.getLogger("towline.steps")
MARGIN = 0.5  # standard errors that a variant of a candidate must be better by
ENSEMBLE_MARGIN = -1.0  # standard errors; negative: an ensemble may be worse by so much
SMALL_ROWS = 20_000  # of a smaller train part, boosting stops by the folds: no row is set aside
_COMPARED_ROWS = 100  # rows that a model predicts before and after it was stored

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
        threshold: of the decision; None: the estimator's own rule.
        calibration: of the probabilities; None: they are not calibrated.
        calibration_notes: what differs from ``calibrate`` of the config, in one line each.
        seconds, cpu_seconds: wall and process time, including the search.
        trials: of the search.
        rows, rows_available: rows that the largest fold was fitted on, and could have been.
        final_rows: size of the sample that the final model is fitted on; None: all rows.
        reductions: by the budget or ``cross_validation.max_rows``, each in one line.
        failed: why the candidate could not be fitted, in one line; else empty.
        notes: warnings of the libraries, each once.
    """

    candidate: str
    estimator: str
    params: dict[str, Any]
    folds: tuple[dict[str, float], ...]
    mean: dict[str, float]
    sd: dict[str, float]
    threshold: Threshold | None
    calibration: Calibration | None = None
    calibration_notes: tuple[str, ...] = ()
    seconds: float
    cpu_seconds: float
    trials: int = 0
    rows: int = 0
    rows_available: int = 0
    final_rows: int | None = None
    reductions: tuple[str, ...] = ()
    failed: str = ""
    notes: tuple[str, ...] = ()


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
    max_rows: int  # that a fold is fitted on
    storage_check: threading.Lock  # free until the first fitted model was stored and read back
    is_slow: bool = False  # pilot fits were made; boosting stops in the folds as it did in them

    @property
    def is_small(self) -> bool:
        """Whether boosting stops by the folds."""
        return len(self.labels) <= SMALL_ROWS and not self.is_slow

    def score(self, params: dict[str, Any]) -> FoldScores:
        """Fits and scores the candidate with these hyperparameters."""
        return self.score_predictions(self.predict_folds(params).predictions)

    def objective(self, params: dict[str, Any]) -> float:
        """The mean of the primary metric with these hyperparameters; NaN if it is undefined."""
        return self.score(params).summary(np.mean).get(primary_metric(self.config, self.contract.task), np.nan)

    def score_predictions(self, predictions: list[Predictions]) -> FoldScores:
        """Calibrates and scores predictions of ``predict_folds``; the baseline gets no calibration and no threshold."""
        truth = [self.labels[test] for _, test in self.folds]
        if self.candidate.estimator == "baseline":
            metrics = metrics_of(self.config, self.contract.task)
            return measure_folds(truth, FoldScores(predictions, None, []), self.contract, metrics)
        return score_folds(truth, predictions, self.contract, self.config)

    def predict_folds(self, params: dict[str, Any]) -> "FoldPredictions":
        """Predictions for the test rows of each fold, by a model that is fitted on its train rows.

        Folds run in threads if that saves time. Each fold computes in one thread, so that no result depends on the
        number of processors. In a small table, boosting stops early by the test rows.
        """
        pools = thread_pools()

        def fit_fold(fold: int) -> Model | Predictions:
            started, (train, test) = time.perf_counter(), self.folds[fold]
            train = sample_positions(train, self.max_rows, self.config.seed, self.labels)
            with pools.limit(limits=1, user_api="openmp"):  # OpenMP keeps its limit by thread
                trusted, transformer = self.config.package.trusted, create_transformer(self.config)
                model = build_model(self.candidate, self.contract, self.config.seed, params, trusted, transformer)
                estimate = pipeline_of(model).named_steps["estimate"]
                stops = self.is_small and isinstance(estimate, EarlyStoppingBoosting) and estimate.stops_early
                if stops:
                    estimate.validation = lambda: self._validation_rows(model, test)
                model.fit(self.features.iloc[train], self.labels[train])
                fitted = model if stops else predict(model, self.features.iloc[test], self.contract)
                self._check_storage(model)
            log.debug("%s: fold %d in %.1f s", self.candidate.name, fold + 1, time.perf_counter() - started)
            return fitted

        workers = count_workers(self.candidate, len(self.folds))
        with pools.limit(limits=1):
            # the longest first: the last of expanding folds would else run alone at the end
            order = sorted(range(len(self.folds)), key=lambda fold: -len(self.folds[fold][0]))
            jobs = (joblib.delayed(fit_fold)(fold) for fold in order)
            by_fold = dict(zip(order, joblib.Parallel(n_jobs=workers, backend="threading")(jobs), strict=True))
            fitted = [by_fold[fold] for fold in range(len(self.folds))]
            predictions = [each for each in fitted if isinstance(each, Predictions)]
            models = [each for each in fitted if not isinstance(each, Predictions)]
            return self._predict_with_equal_iterations(models) if models else FoldPredictions(predictions, {})

    def _validation_rows(self, model: Model, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The prepared test rows and the targets of boosting; without rows of a class that the fold does not train."""
        features, labels = self.features.iloc[test], self.labels[test]
        if isinstance(model, Classifier):
            codes = np.full(len(self.contract.classes), -1)
            codes[model.positions_] = np.arange(len(model.positions_))
            labels = codes[encode_labels(labels, self.contract.classes)]
            features, labels = features[labels >= 0], labels[labels >= 0]
        prepare = pipeline_of(model).named_steps["prepare"]
        return prepare.transform(features) if len(labels) else np.empty((0, 0)), labels

    def _predict_with_equal_iterations(self, models: list[Model]) -> "FoldPredictions":
        """Predictions of boosting with the mean of the best numbers of iterations, weighted by the train rows.

        A fold that stopped with fewer iterations keeps these.
        """
        estimates = [pipeline_of(model).named_steps["estimate"] for model in models]
        best = [estimate.best_iterations for estimate in estimates]
        iterations = round(float(np.average(best, weights=[len(train) for train, _ in self.folds])))
        for estimate in estimates:
            estimate.remove_iterations(iterations)
        predictions = [
            predict(model, self.features.iloc[test], self.contract)
            for model, (_, test) in zip(models, self.folds, strict=True)
        ]
        return FoldPredictions(predictions, {"max_iter": iterations, "early_stopping": False})

    def _check_storage(self, model: Model) -> None:
        """Stores the first fitted model and reads it back; those of linear, forest and boosting need no check."""
        estimator = self.candidate.estimator
        may_be_unstorable = "." in estimator or estimator in BOOSTING_LIBRARIES or self.config.prepare is not None
        if may_be_unstorable and self.storage_check.acquire(blocking=False):
            path, rows = self.work.file(f"trial-{self.candidate.name}.skops"), self.features.head(_COMPARED_ROWS)
            trusted, where = model_io.trusted_packages(self.config), f"candidates.{self.candidate.name}"
            model_io.check_round_trip(model, path, where, trusted, lambda model: predict(model, rows, self.contract))

    def save(self, predictions: list[Predictions], scores: FoldScores) -> None:
        """Saves the predictions of ``predict_folds`` and the scored ones."""
        rows = np.concatenate([test for _, test in self.folds])
        fold = np.concatenate([np.full(len(test), fold) for fold, (_, test) in enumerate(self.folds)])
        uncalibrated = Predictions.concatenate(predictions).probabilities if scores.calibration else None
        out_of_fold = OutOfFoldPredictions(rows, fold, Predictions.concatenate(scores.predictions), uncalibrated)
        save_out_of_fold_predictions(self.work, self.candidate.name, out_of_fold)


class FoldPredictions(NamedTuple):
    """The predictions for the test rows of each fold.

    Attributes:
        predictions: of each fold.
        chosen: hyperparameters that the folds have chosen: the number of iterations of boosting in a small table.
    """

    predictions: list[Predictions]
    chosen: dict[str, Any]


class OutOfFoldPredictions(NamedTuple):
    """Predictions for rows of the train part, each by a model that was not fitted on that row.

    Attributes:
        rows: (n,) positions in the train part.
        fold: (n,) number of the fold.
        predictions: of the n rows; if they are calibrated, each fold by the calibration of the other folds.
        uncalibrated: (n, classes) probabilities before the calibration; None: they are not calibrated.
    """

    rows: np.ndarray
    fold: np.ndarray
    predictions: Predictions
    uncalibrated: np.ndarray | None = None


def save_out_of_fold_predictions(work: Workspace, candidate: str, out_of_fold: OutOfFoldPredictions) -> None:
    """Writes the predictions of a candidate to ``oof-<name>.npz``."""
    arrays = out_of_fold.predictions.to_arrays(work.contract().classes)
    if out_of_fold.uncalibrated is not None:
        arrays["uncalibrated"] = out_of_fold.uncalibrated
    path = work.file(f"oof-{candidate}.npz")
    files.write_arrays(path, rows=out_of_fold.rows, fold=out_of_fold.fold, **arrays)


def load_out_of_fold_predictions(work: Workspace, candidate: str) -> OutOfFoldPredictions | None:
    """The predictions that ``save_out_of_fold_predictions`` has written; None if there are none."""
    path = work.file(f"oof-{candidate}.npz")
    if not path.exists():
        return None
    arrays = files.read_arrays(path)
    predictions = Predictions.from_arrays(arrays, work.contract().classes)
    return OutOfFoldPredictions(arrays["rows"], arrays["fold"], predictions, arrays.get("uncalibrated"))


def check_candidates(config: PipelineConfig, contract: Contract) -> None:
    """Checks that all candidates and keys fit these columns and this task, before anything is fitted.

    Raises:
        ConfigError: a candidate or a key that cannot be used.
        FitError: no feature column remains.
    """
    check_config(config, contract.task)
    check_columns(config, contract)
    for candidate in config.single_candidates:
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


def cross_validate(
    work: Workspace,
    config: TrainingConfig,
    candidate: Candidate,
    limits: BudgetLimits | None = None,
    settings: Settings | None = None,
) -> CrossValidationResult:
    """Fits and scores a candidate on the folds of the train part, after its hyperparameter search if it has one.

    Saves the out-of-fold predictions as ``oof-<name>.npz``. In a binary task the labels are decided by the threshold
    that maximises ``evaluation.threshold`` on all out-of-fold predictions; the baseline has no threshold.

    Args:
        work: the run's workspace.
        config: of the training.
        candidate: to score.
        limits: of the time budget; default: none.
        settings: with ``search_url``, other machines evaluate trials of the search, too.

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
    own, available = (limits or BudgetLimits()).limits_of(candidate), max(len(train) for train, _ in folds)
    max_rows, is_slow = own.fold_rows or config.cross_validation.max_rows, own.seconds is not None
    storage_check = threading.Lock()
    run = _CrossValidation(work, config, candidate, contract, features, labels, folds, max_rows, storage_check, is_slow)
    build_model(candidate, contract, config.seed, trusted=config.package.trusted)  # raises before anything is fitted

    params, trials, scores, failed = candidate.params, 0, FoldScores([], None, []), ""
    with _collect_warnings() as notes:
        try:
            if own.left_out:
                failed = "left out (budget)"
            else:
                params, trials = _search(run, own.trials, settings)
                params, predictions, scores = _choose_variants(run, params)
                run.save(predictions, scores)
                if metric not in scores.summary(np.mean):
                    are_finite = all(fold.are_finite for fold in scores.predictions)
                    failed = f"{metric} is undefined in every fold" if are_finite else "predictions are not finite"
        except TowlineError:
            raise
        except Exception as error:  # noqa: BLE001 - an estimator may raise anything; the other candidates continue
            failed = describe_error(error)
    return CrossValidationResult(
        candidate=candidate.name,
        estimator=candidate.estimator,
        params=params,
        folds=tuple(scores.metrics),
        mean=scores.summary(np.mean),
        sd=scores.summary(np.std),
        threshold=scores.threshold,
        calibration=scores.calibration,
        calibration_notes=scores.calibration_notes,
        seconds=round(time.perf_counter() - started[0], 3),
        cpu_seconds=round(time.process_time() - started[1], 3),
        trials=trials,
        rows=min(available, max_rows),
        rows_available=available,
        final_rows=own.final_rows,
        reductions=_describe_reductions(candidate, own, min(available, max_rows), available),
        failed=failed,
        notes=tuple(notes),
    )


def _describe_reductions(candidate: Candidate, limits: CandidateLimits, rows: int, available: int) -> tuple[str, ...]:
    """The reduction for this candidate: it is left out, or has fewer rows or trials."""
    name = candidate.name
    if limits.left_out:
        return (f"{name} is left out: {limits.left_out}",)
    reductions = []
    if limits.fold_rows:
        reductions.append(f"{name}: folds fitted on {rows:,} of {available:,} rows (budget)")
    elif rows < available and candidate.estimator != "baseline":
        reductions.append(f"folds fitted on {rows:,} of {available:,} rows (cross_validation.max_rows)")
    if limits.trials and candidate.search:
        reductions.append(f"{name}: {limits.trials} of {candidate.search.trials} trials of the search (budget)")
    if limits.final_rows:
        reductions.append(f"{name}: the model is fitted on a sample of {limits.final_rows:,} rows (budget)")
    return tuple(reductions)


def _search(run: _CrossValidation, max_trials: int | None, settings: Settings | None) -> tuple[dict[str, Any], int]:
    """The best hyperparameters and the number of trials; without a search, the candidate's own and 0."""
    candidate, work = run.candidate, run.work
    if not candidate.search:
        return candidate.params, 0
    if max_trials is not None:
        limited = candidate.search.model_copy(update={"trials": max_trials})
        run = replace(run, candidate=candidate.model_copy(update={"search": limited}))
    plan, file = _plan_trials(run), work.file(f"search-{candidate.name}.json")
    if settings is None or not settings.search_url:
        return search_parameters(plan, file, run.objective)
    study = f"{work.path.name}-{candidate.name}"
    search = SharedSearch(
        model=run.config.name,
        training=run.config.digest,
        code=code_digest(run.config, settings.project),
        workspace=work,
        candidate=run.candidate,
        max_rows=run.max_rows,
        is_slow=run.is_slow,
    )
    with shared_study.create_study(
        settings.search_url, study, search.model_dump(mode="json"), maximize=plan.maximize
    ) as shared:
        return search_parameters(plan, file, run.objective, shared)


def _choose_variants(
    run: _CrossValidation, params: dict[str, Any]
) -> tuple[dict[str, Any], list[Predictions], FoldScores]:
    """The hyperparameters with those of ``list_variants`` that improve the score, and their predictions and scores."""
    variants = list_variants(run.candidate, run.contract, run.config, rows=len(run.labels), is_small=run.is_small)
    largest = min(run.max_rows, max(len(train) for train, _ in run.folds))
    compared = replace(run, max_rows=VARIANT_ROWS) if variants and largest > VARIANT_ROWS else run
    predicted = compared.predict_folds(params)
    scores = compared.score_predictions(predicted.predictions)
    metric = primary_metric(run.config, run.contract.task)
    for steps in variants:
        for variant in steps:
            varied = {**params, **variant}
            if varied == params:
                continue
            varied_predicted = compared.predict_folds(varied)
            varied_scores = compared.score_predictions(varied_predicted.predictions)
            margin = 0.0 if variant == {TIME_TREND: False} else MARGIN  # without the trend, a model is simpler
            if not _is_better(varied_scores.metrics, scores.metrics, metric, margin):
                break
            params, predicted, scores = varied, varied_predicted, varied_scores
    if compared is not run:
        predicted = run.predict_folds(params)
        scores = run.score_predictions(predicted.predictions)
    return {**params, **predicted.chosen}, predicted.predictions, scores


class SharedSearch(Frozen):
    """The description of a search for a worker on another machine, which evaluates its trials.

    Attributes:
        model: name of the model.
        training, code: digests of the training part of the config, and of the code; a worker must have the same.
        workspace: of the run; the worker reads the rows from it.
        candidate: with its ``search``.
        max_rows: that a fold is fitted on.
        is_slow: whether the candidate has pilot fits.
    """

    model: str
    training: str
    code: str
    workspace: Workspace
    candidate: Candidate
    max_rows: int
    is_slow: bool

    def evaluator(self, config: TrainingConfig, store: Path) -> shared_study.Evaluate:
        """Evaluates trials with the rows of the run.

        Args:
            config: of the training.
            store: the store's folder on this machine.
        """
        work = self.workspace.model_copy(update={"store": store})
        tested = threading.Lock()
        tested.acquire()  # the run itself checks how models are stored
        contract = work.contract()
        features, labels, rows = work.subset("train")
        folds = make_folds(rows, labels, config)
        run = _CrossValidation(
            work, config, self.candidate, contract, features, labels, folds, self.max_rows, tested, self.is_slow
        )
        plan = _plan_trials(run)
        return lambda drawn: plan.evaluate(drawn, run.objective)


def _plan_trials(run: _CrossValidation) -> TrialPlan:
    task = run.contract.task
    space = default_search_space(run.candidate, task)
    return TrialPlan(run.candidate, space, primary_metric(run.config, task), run.config.seed)


def score_on_last_folds(
    work: Workspace, config: TrainingConfig, candidate: Candidate, folds: int, max_rows: int
) -> list[float]:
    """The primary metric of a candidate, with its own parameters, in each of the last folds; NaN if it is undefined.

    Args:
        work: the run's workspace.
        config: of the training.
        candidate: to score.
        folds: number of folds.
        max_rows: maximum rows that a fold is fitted on.
    """
    contract = work.contract()
    metric = primary_metric(config, contract.task)
    features, labels, rows = work.subset("train")
    last = make_folds(rows, labels, config)[-folds:]
    run = _CrossValidation(work, config, candidate, contract, features, labels, last, max_rows, threading.Lock())
    return [fold.get(metric, np.nan) for fold in run.score({}).metrics]


def choose_candidate(
    scores: Sequence[CrossValidationResult], config: TrainingConfig, task: Task
) -> CrossValidationResult:
    """Selects the candidate with the best mean of the primary metric, not the baseline; the first one on a tie.

    An ensemble is selected unless it is worse than the best other candidate by more than a standard error of their
    difference over the folds. The best score of several candidates is too good by chance, the score of a mean less so,
    and on new rows the mean is the better model more often than not (benchmarks/ensembles.py).

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
    best = max(fitted, key=lambda result: (result.estimator != "ensemble", sign * result.mean[metric]))
    ensembles = (each for each in fitted if each.estimator == "ensemble")
    eligible = [each for each in ensembles if _is_better(each.folds, best.folds, metric, ENSEMBLE_MARGIN)]
    return max(eligible, key=lambda result: sign * result.mean[metric], default=best)


def _is_better(
    scores: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], metric: Metric, margin: float
) -> bool:
    """Whether the mean gain over the folds is larger than ``margin`` standard errors."""
    sign = 1 if metric.greater_is_better else -1
    pairs = zip(scores, others, strict=True)
    gains = [sign * (fold[metric] - other[metric]) for fold, other in pairs if metric in fold and metric in other]
    error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return bool(gains) and float(np.mean(gains)) > margin * error


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Collects the libraries' warnings, each once and in one line, instead of printing them.

    If folds run in threads, a warning may be missed: before Python 3.14 all threads share one set of filters.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    texts = ((item.category.__name__, str(item.message).strip().partition("\n")[0]) for item in caught)
    notes.extend(dict.fromkeys(f"{name}: {text[:160]}" for name, text in texts))
