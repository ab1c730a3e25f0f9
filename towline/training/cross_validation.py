"""Candidates compared on folds of the train part, and one of them chosen."""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from threadpoolctl import ThreadpoolController

from towline import files
from towline.config import DEFAULT_METRIC, GREATER_IS_BETTER, METRICS, Candidate, Frozen, Metric, PipelineConfig, Task
from towline.data.schema.contract import Contract
from towline.data.splits import SplitSummary, make_folds
from towline.data.workspace import Workspace
from towline.errors import ConfigError, FitError, TowlineError
from towline.training import model_io
from towline.training.config_checks import check_config
from towline.training.estimator_import import describe_error
from towline.training.estimators import Model, build_model, default_search_space, pipeline_of
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.evaluation.predictions import Predictions, encode_labels
from towline.training.tuning import search_parameters

log = logging.getLogger("towline.steps")
_COMPARED = 100  # rows that a model answers before and after it was stored

# classes of scikit-learn whose fitted state holds rows of the table
ROW_STORING_CLASSES = frozenset({
    "BaseLabelPropagation", "BaseLibSVM", "GaussianProcessClassifier", "GaussianProcessRegressor", "KernelRidge",
    "NeighborsBase",
})  # fmt: skip


class CrossValidationResult(Frozen):
    """A candidate's cross-validation.

    Attributes:
        candidate, estimator, params: what was tried; with a search, the best parameters found.
        folds: each fold's metrics; one that is undefined there is left out.
        mean, sd: over the folds that have the metric.
        threshold: binary: from this probability on a row is called positive; None is the estimator's own rule.
        seconds, cpu_seconds: wall and process time, a search included.
        trials: of the search.
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
    failed: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Folds:
    """The train part and its cut; positions count within the part."""

    contract: Contract
    features: pd.DataFrame
    labels: np.ndarray
    pairs: list[tuple[np.ndarray, np.ndarray]]

    def predict(
        self, make: Callable[[], Model], candidate: Candidate, fitted: Callable[[Model], None]
    ) -> list[Predictions]:
        """Predictions for the test side of each fold, of a pipeline fitted on its train side; ``fitted`` is told each.

        Folds run in threads where that pays: trees free the interpreter, a linear fit is mostly preparation, which
        does not. Each fold computes in one thread, so that no result depends on the number of processors.
        """
        pools = ThreadpoolController()

        def one(fold: int, train: np.ndarray, test: np.ndarray) -> Predictions:
            started = time.perf_counter()
            with pools.limit(limits=1, user_api="openmp"):  # OpenMP keeps its limit by thread
                model = make().fit(self.features.iloc[train], self.labels[train])
                found = predict(model, self.features.iloc[test], self.contract)
                fitted(model)
            log.debug("%s: fold %d in %.1f s", candidate.name, fold + 1, time.perf_counter() - started)
            return found

        workers = 1 if candidate.estimator in ("baseline", "linear") else min(len(self.pairs), joblib.cpu_count())
        with pools.limit(limits=1):
            # the longest first: expanding folds would otherwise leave one thread alone with the last
            order = sorted(range(len(self.pairs)), key=lambda fold: -len(self.pairs[fold][0]))
            jobs = (joblib.delayed(one)(fold, *self.pairs[fold]) for fold in order)
            found = dict(zip(order, joblib.Parallel(n_jobs=workers, backend="threading")(jobs), strict=True))
            return [found[fold] for fold in range(len(self.pairs))]

    def truth(self) -> list[np.ndarray]:
        return [self.labels[test] for _, test in self.pairs]


def primary_metric(config: PipelineConfig, task: Task) -> Metric:
    """The metric that decides.

    Raises:
        ConfigError: the one configured is not a metric of the task.
    """
    metric = config.evaluation.metric or DEFAULT_METRIC[task]
    if metric not in METRICS[task]:
        remedy = f"the task is {task}: use one of " + ", ".join(METRICS[task])
        raise ConfigError(f"{metric} is not a metric of this task", where="evaluation.metric", remedy=remedy)
    return metric


def check_candidates(config: PipelineConfig, contract: Contract) -> None:
    """Finds what cannot be used with these columns and this task, before time is spent on anything.

    Raises:
        ConfigError: names it.
        FitError: no column to learn from.
    """
    check_config(config, contract.task)
    for candidate in config.candidates:
        model = build_model(candidate, contract, config.seed, trusted=config.package.trusted)
        _check_rows_kept(candidate, pipeline_of(model), contract)


def _check_rows_kept(candidate: Candidate, pipeline: Pipeline, contract: Contract) -> None:
    """Such a model would hold the numbers of each person it was fitted on."""
    classes = {one.__name__ for one in type(pipeline.named_steps["estimate"]).__mro__}
    numbers = [column.name for column in contract.feature_columns if column.pii and column.kind == "numeric"]
    if numbers and classes & ROW_STORING_CLASSES:
        raise ConfigError(
            f"{candidate.estimator} keeps the rows that it is fitted on, and {numbers[0]!r} is pii",
            where=f"candidates.{candidate.name}",
            remedy=f"choose another estimator, or list {numbers[0]!r} under data.drop",
        )


def baseline_candidate(config: PipelineConfig) -> Candidate:
    """The candidate each other must beat: the class shares, or the constant that is best for the metric."""
    squares = config.evaluation.metric in ("rmse", "r2")
    return Candidate(estimator="baseline", params={"strategy": "mean"} if squares else {})


def cross_validate(work: Workspace, config: PipelineConfig, candidate: Candidate) -> CrossValidationResult:
    """Fits and scores a candidate on the folds of the train part, after its search if it has one.

    Saves ``oof-<name>.npz``: rows (positions in the train part), fold, and predicted values, or classes (positions in
    ``contract.classes``) and probabilities (n, k). In a binary task the threshold that is best on all of these
    predictions together (``evaluation.threshold``) decides the labels that are scored; the baseline has none.

    Raises:
        ConfigError: an estimator, a parameter, a search or a metric that cannot be used.
        DataValidationError: the rows cannot be cut into the folds.
        FitError: no column to learn from; a model that cannot be stored or read back, told after the first fold.
    """
    started = time.perf_counter(), time.process_time()
    contract = work.contract()
    metric = primary_metric(config, contract.task)
    features, labels, rows = work.part("train")
    by = SplitSummary.model_validate_json(work.file("parts.json").read_bytes()).by
    cut = _Folds(contract, features, labels, make_folds(rows, labels, config, by))
    where, untried = f"candidates.{candidate.name}", threading.Lock()

    def fitted(model: Model) -> None:
        """Whether it can be stored is tried on the first model; of our own candidates it is known."""
        if "." in candidate.estimator and untried.acquire(blocking=False):
            path, few = work.file(f"trial-{candidate.name}.skops"), features.head(_COMPARED)
            model_io.check_round_trip(
                model, path, where, model_io.trusted_packages(config), lambda one: predict(one, few, contract)
            )

    deciding = None if candidate.estimator == "baseline" else _threshold_metric(config, contract.task)

    def attempt(params: dict[str, Any]) -> tuple[list[Predictions], float | None, list[dict[str, float]]]:
        found = cut.predict(
            lambda: build_model(candidate, contract, config.seed, params, config.package.trusted), candidate, fitted
        )
        limit = None
        if deciding and all(part.probabilities is not None for part in found):
            limit = best_threshold(
                np.concatenate(cut.truth()), _positive_probabilities(found, contract), contract.positive, deciding
            )
            found = [_apply_threshold(part, limit, contract) for part in found]
        measured = (compute_metrics(truth, part, contract) for truth, part in zip(cut.truth(), found, strict=True))
        return found, limit, [{k: v for k, v in fold.items() if np.isfinite(v)} for fold in measured]

    def objective(params: dict[str, Any]) -> float:
        return _summarize(attempt(params)[2], np.mean).get(metric, np.nan)

    build_model(candidate, contract, config.seed, trusted=config.package.trusted)  # before anything is fitted
    failed, params, trials = "", candidate.params, 0
    limit, measured = None, list[dict[str, float]]()
    with _collect_warnings() as notes:
        try:
            if candidate.search:
                kept = work.file(f"search-{candidate.name}.json")
                default = default_search_space(candidate, contract.task)
                params, trials = search_parameters(kept, candidate, default, metric, config.seed, objective)
            found, limit, measured = attempt(params)
            _save_predictions(work, candidate, cut, found)
            if metric not in _summarize(measured, np.mean):
                failed = f"{metric} is undefined in every fold"
        except TowlineError:
            raise
        except Exception as error:  # noqa: BLE001 - an estimator may raise anything; the other candidates go on
            failed = describe_error(error)
    return CrossValidationResult(
        candidate=candidate.name,
        estimator=candidate.estimator,
        params=params,
        folds=tuple(measured),
        mean=_summarize(measured, np.mean),
        sd=_summarize(measured, np.std),
        threshold=limit,
        seconds=round(time.perf_counter() - started[0], 3),
        cpu_seconds=round(time.process_time() - started[1], 3),
        trials=trials,
        failed=failed,
        notes=tuple(notes),
    )


def choose_candidate(
    scores: Sequence[CrossValidationResult], config: PipelineConfig, task: Task
) -> CrossValidationResult:
    """The candidate with the best mean of the primary metric, the baseline aside; the first one on a tie.

    Raises:
        FitError: none could be fitted; says why for each.
    """
    metric = primary_metric(config, task)
    tried = [one for one in scores if one.estimator != "baseline"]
    able = [one for one in tried if not one.failed]
    if not able:
        raise FitError(
            "no candidate could be fitted",
            where="candidates",
            remedy="mend their params, or try others: linear, forest, boosting",
            details=tuple(f"{one.candidate}: {one.failed}" for one in tried),
        )
    sign = 1 if GREATER_IS_BETTER[metric] else -1
    return max(able, key=lambda one: sign * one.mean[metric])


def best_threshold(truth: np.ndarray, chance: np.ndarray, positive: object, metric: str) -> float:
    """The threshold on ``chance`` (n,) that maximises a metric of the labels; the highest one on a tie.

    Every distinct probability is tried in one sorted pass. The threshold lies midway to the next lower one, so that a
    difference in the last digit moves no row across it.
    """
    order = np.argsort(-chance, kind="stable")
    ordered, hits = chance[order], np.cumsum(truth[order] == positive)
    last = np.flatnonzero(np.diff(ordered, append=-1.0))  # rows of equal probability are called positive together
    hit, called = hits[last], last + 1
    total, n = hits[-1], len(truth)
    value = {
        "f1": 2 * hit / (called + total),
        "precision": hit / called,
        "recall": hit / max(total, 1),
        "accuracy": (n - total - called + 2 * hit) / n,
    }[metric]
    best = int(np.argmax(value))
    at = ordered[last[best]]
    below = ordered[last[best + 1]] if best + 1 < len(last) else 0.0
    middle = (at + below) / 2
    return float(middle if middle > below else at)


def _threshold_metric(config: PipelineConfig, task: Task) -> str | None:
    """The metric a binary threshold maximises."""
    metric = config.evaluation.threshold
    return None if task != "binary" or metric == "none" else metric


def _positive_probabilities(found: list[Predictions], contract: Contract) -> np.ndarray:
    column = contract.classes.index(contract.positive)
    return np.concatenate([part.probabilities[:, column] for part in found if part.probabilities is not None])


def _apply_threshold(part: Predictions, threshold: float, contract: Contract) -> Predictions:
    (negative,) = (label for label in contract.classes if label != contract.positive)
    labels = np.full(len(part.labels), negative, dtype=object)
    labels[_positive_probabilities([part], contract) >= threshold] = contract.positive
    return Predictions(labels, part.probabilities)


def _summarize(measured: list[dict[str, float]], summary: Callable[[list[float]], Any]) -> dict[str, float]:
    """Each metric over the folds in which it is defined."""
    names = dict.fromkeys(name for fold in measured for name in fold)
    return {name: float(summary([fold[name] for fold in measured if name in fold])) for name in names}


def _save_predictions(work: Workspace, candidate: Candidate, cut: _Folds, found: list[Predictions]) -> None:
    arrays = {
        "rows": np.concatenate([test for _, test in cut.pairs]),
        "fold": np.concatenate([np.full(len(test), fold) for fold, (_, test) in enumerate(cut.pairs)]),
    }
    labels = np.concatenate([part.labels for part in found])
    regression = cut.contract.task == "regression"
    arrays["predicted" if regression else "classes"] = (
        labels if regression else encode_labels(labels, cut.contract.classes)
    )
    if all(part.probabilities is not None for part in found):
        arrays["probabilities"] = np.concatenate([part.probabilities for part in found])
    with files.replacing(work.file(f"oof-{candidate.name}.npz")) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Collects the libraries' warnings, each once and in one line, instead of printing them.

    Where folds run in threads one may be missed: until Python 3.14 all threads share one set of filters.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    lines = (f"{one.category.__name__}: {str(one.message).strip().splitlines()[0][:160]}" for one in caught)
    notes.extend(dict.fromkeys(lines))
