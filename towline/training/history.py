"""The history that a model learns from: how far back, with which weights, and with or without the target's trend.

If the world changes, old rows mislead and few rows teach little; only the data shows which effect is larger. Each
configured history is fitted on the rows before the most recent stretch, which is as long as the holdout, and scored on
that stretch (the last block of a time-ordered validation; Bergmeir & Benitez, 2012). ``window`` limits the age of the
rows, ``half_life`` weights rows by their age (exponential forgetting), ``detrend`` adjusts old targets to the newest
trend (see ``detrend``).
"""

import datetime as dt
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

from towline.config import HistoryConfig, TrainingConfig
from towline.data.schema.contract import Contract
from towline.data.splits import sample_positions
from towline.data.workspace import HOLDOUT_ALL, Subset, Workspace
from towline.processes import thread_pools
from towline.training.detrend import Trend, remove_trend
from towline.training.estimators import build_candidate
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.pipeline_components import Classifier, EnsembleClassifier, Model, fit_model
from towline.training.user_code import describe_error

MIN_ROWS = 200
MIN_CLASS_ROWS = 10


class HistoryTrial(HistoryConfig):
    """The score of one history: rows it was fitted on, and the metric on the recent rows after them."""

    rows: int
    value: float | None
    failed: str = ""


class History(HistoryConfig):
    """The selected history.

    Attributes:
        metric, rows, start, end: the selection's metric, its recent rows and their times (ISO); empty if there was only
            one history.
        trials: every configured history with its score.
        sample: maximum rows that a model is fitted on, a random sample; None: all rows of the history.
    """

    metric: str = ""
    rows: int = 0
    start: str = ""
    end: str = ""
    trials: tuple[HistoryTrial, ...] = ()
    sample: int | None = None

    def __str__(self) -> str:
        return super().__str__() + (f", a sample of {self.sample:,}" if self.sample else "")

    def select_rows(self, times: pd.Series | None, labels: np.ndarray) -> np.ndarray:
        """Positions of the rows to learn from, oldest first; a sample of them if there are more than ``sample``.

        A window with few rows is extended into the past, to 200 rows and 10 of each class, or to all rows.

        Args:
            times: (n,) time of each row; None if the table has no time column.
            labels: (n,) target values; object for classification.
        """
        positions = self._select_window(times, labels)
        if self.sample is None:
            return positions
        sample = sample_positions(np.arange(len(positions)), self.sample, seed=0, labels=labels[positions])
        return np.asarray(positions[sample])

    def _select_window(self, times: pd.Series | None, labels: np.ndarray) -> np.ndarray:
        if times is None or (self.window is None and self.sample is None):
            return np.arange(len(labels))
        order = np.argsort(times.to_numpy(), kind="stable")
        if self.window is None:
            return order
        ordered = times.to_numpy()[order]
        start = int(np.searchsorted(ordered, ordered[-1] - np.timedelta64(self.window), side="right"))
        start = min(start, max(0, len(order) - MIN_ROWS))
        for label in set(labels) if labels.dtype == object else ():
            positions = np.flatnonzero(labels[order] == label)
            start = min(start, int(positions[max(0, len(positions) - MIN_CLASS_ROWS)]))
        return order[start:]

    def weights(self, times: pd.Series | None) -> np.ndarray | None:
        """(n,) weight of each row; the newest row has the weight 1. None without a half-life."""
        if times is None or self.half_life is None:
            return None
        age = (times.max() - times).dt.total_seconds().to_numpy()
        return np.asarray(0.5 ** (age / self.half_life.total_seconds()))


class TrainedCandidate(NamedTuple):
    """A fitted candidate.

    Attributes:
        model: the fitted pipeline.
        positions: of the rows that it was fitted on.
        trend: that was removed from their targets; None if none was.
    """

    model: Model
    positions: np.ndarray
    trend: Trend | None


def load_rows(work: Workspace, config: TrainingConfig, *, all_rows: bool) -> Subset:
    """The train part, or all rows, ordered by time if there is a time column."""
    if not all_rows:
        return work.subset("train")
    if "all" in work.split_positions():
        return work.subset("all")
    contract, rows = work.contract(), work.table()
    if config.data.time:
        rows = rows.iloc[np.argsort(rows[config.data.time].to_numpy(), kind="stable")]
    rows = rows.reset_index(drop=True)
    return Subset(contract.features(rows), contract.labels(rows), rows)


def choose_history(
    work: Workspace, config: TrainingConfig, chosen: CrossValidationResult, *, all_rows: bool = False
) -> History:
    """Selects the history from which the chosen candidate learns best; the first one on a tie.

    With one configured history there is nothing to select. If no history could be scored, it is the longest one, with
    equal weights and without detrending.

    Args:
        work: the run's workspace.
        config: ``data`` names the histories.
        chosen: the selected candidate.
        all_rows: use all rows instead of the train part; in both cases the most recent stretch is for scoring.
    """
    options = config.data.histories
    if len(options) == 1:
        return History(**dict(options[0]), sample=chosen.final_rows)
    metric, subset = primary_metric(config, work.contract().task), load_rows(work, config, all_rows=all_rows)
    times = subset.rows[config.data.time]
    recent_span = min(_holdout_length(work, config), (times.max() - times.min()) / 3)
    recent = (times > times.max() - recent_span).to_numpy()
    trials = [_try_history(option, work.contract(), config, chosen, subset, recent) for option in options]
    scored = [trial for trial in trials if trial.value is not None]
    sign = 1 if metric.greater_is_better else -1
    best = max(scored, key=lambda trial: sign * (trial.value or 0.0)) if scored else _longest_history(trials)
    return History(
        **{name: getattr(best, name) for name in HistoryConfig.model_fields},
        metric=metric,
        rows=int(recent.sum()),
        start=times[recent].min().isoformat(),
        end=times[recent].max().isoformat(),
        trials=tuple(trials),
        sample=chosen.final_rows,
    )


def fit_history(
    config: TrainingConfig, contract: Contract, chosen: CrossValidationResult, history: History, subset: Subset
) -> TrainedCandidate:
    """Fits the chosen candidate on the rows that a history selects.

    The calibration and the decision threshold are those of cross-validation. An estimator that takes no sample weights
    is fitted without them. Detrending needs three more fits, whose predictions are the expected targets.

    Args:
        config: of the training.
        contract: of the rows.
        chosen: the selected candidate.
        history: selects and weights the rows.
        subset: the rows to select from.
    """
    times = subset.rows[config.data.time] if config.data.time else None
    positions = history.select_rows(times, subset.labels)
    candidate = next(candidate for candidate in config.candidates if candidate.name == chosen.candidate)
    selected_times = None if times is None else times.iloc[positions]
    weights = history.weights(selected_times)
    features, targets, trend = subset.features.iloc[positions], subset.labels[positions], None

    def fit_rows(rows: np.ndarray, target: np.ndarray) -> Model:
        model = build_candidate(candidate, contract, config, chosen.params)
        if isinstance(model, Classifier | EnsembleClassifier):
            model.threshold, model.calibration = chosen.threshold, chosen.calibration
        return fit_model(model, features.iloc[rows], target[rows], None if weights is None else weights[rows])

    with warnings.catch_warnings(action="ignore"), thread_pools().limit(limits=1):
        if history.detrend is not None and selected_times is not None:
            observed = targets
            targets, trend = remove_trend(
                observed,
                selected_times,
                history.detrend,
                lambda train, test: fit_rows(train, observed).predict(features.iloc[test]),
            )
        return TrainedCandidate(fit_rows(np.arange(len(positions)), targets), positions, trend)


def _try_history(
    option: HistoryConfig,
    contract: Contract,
    config: TrainingConfig,
    chosen: CrossValidationResult,
    subset: Subset,
    recent: np.ndarray,
) -> HistoryTrial:
    """Fits on the rows before the recent ones (n,) and scores on the recent ones."""
    older, metric = np.flatnonzero(~recent), primary_metric(config, contract.task)
    before = Subset(subset.features.iloc[older], subset.labels[older], subset.rows.iloc[older])
    value, failed, rows = None, "", 0
    try:
        trained = fit_history(config, contract, chosen, History(**dict(option), sample=chosen.final_rows), before)
        rows = len(trained.positions)
        predictions = predict(trained.model, subset.features[recent], contract)
        score = compute_metrics(subset.labels[recent], predictions, contract, metrics=[metric])[metric]
        value, failed = (float(score), "") if np.isfinite(score) else (None, f"{metric} is undefined")
    except Exception as error:  # noqa: BLE001 - an estimator may raise anything; the other histories continue
        failed = describe_error(error)
    return HistoryTrial(**dict(option), rows=rows, value=value, failed=failed)


def _holdout_length(work: Workspace, config: TrainingConfig) -> dt.timedelta:
    times, positions = work.columns()[str(config.data.time)], work.split_positions()
    train, holdout = times.iloc[positions["train"]], times.iloc[positions.get(HOLDOUT_ALL, positions["holdout"])]
    length: dt.timedelta = holdout.max() - (train.max() if config.by_time else holdout.min())
    configured = config.split.holdout
    return configured if isinstance(configured, dt.timedelta) else length


def _longest_history(trials: list[HistoryTrial]) -> HistoryTrial:
    def rank(trial: HistoryTrial) -> tuple[bool, bool, bool, dt.timedelta]:
        return trial.detrend is None, trial.half_life is None, trial.window is None, trial.window or dt.timedelta(0)

    return max(trials, key=rank)
