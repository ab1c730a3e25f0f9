"""How much of the past a model learns from: windows and half-lives, compared on the newest rows of the train part.

Where the world changes, old rows teach what is no longer true, and few rows teach little; which weighs more is seen
only in the data. Each history is fitted on the rows before a recent stretch, as long as the holdout, and measured on
that stretch (the last block of a time-ordered validation; Bergmeir & Benitez, 2012). A half-life lets rows count less
the older they are (exponential forgetting); a level brings the target of old rows to what it is now (``level``).
"""

import datetime as dt
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.utils.validation import has_fit_parameter
from threadpoolctl import ThreadpoolController

from towline.config import GREATER_IS_BETTER, HistoryConfig, PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.training.classifier import Classifier
from towline.training.cross_validation import CrossValidationResult, primary_metric
from towline.training.detrend import Trend, remove_trend
from towline.training.estimator_import import describe_error
from towline.training.estimators import Model, build_model, pipeline_of
from towline.training.evaluation.metrics import compute_metrics, predict

MIN_ROWS = 200
MIN_CLASS = 10  # rows of each class


class HistoryTrial(HistoryConfig):
    """One history: how many rows it had, and the metric on the stretch after them."""

    rows: int
    value: float | None
    failed: str = ""


class History(HistoryConfig):
    """What is learnt from.

    Attributes:
        metric, rows, start, end: what the choice was made on, and the times (ISO) of those rows; empty without one.
        trials: every history, as configured.
    """

    metric: str = ""
    rows: int = 0
    start: str = ""
    end: str = ""
    trials: tuple[HistoryTrial, ...] = ()

    def learnt(self, times: pd.Series | None, labels: np.ndarray) -> np.ndarray:
        """Positions of the rows to learn from, oldest first.

        A window that holds few rows reaches further back, to 200 rows and 10 of each class, or to all there are.

        Args:
            times: (n,) of the rows; None where they have none.
            labels: (n,) their target; object for classification.
        """
        if times is None or self.window is None:
            return np.arange(len(labels))
        order = np.argsort(times.to_numpy(), kind="stable")
        ordered = times.to_numpy()[order]
        start = int(np.searchsorted(ordered, ordered[-1] - np.timedelta64(self.window), side="right"))
        start = min(start, max(0, len(order) - MIN_ROWS))
        for label in set(labels) if labels.dtype == object else ():
            places = np.flatnonzero(labels[order] == label)
            start = min(start, int(places[max(0, len(places) - MIN_CLASS)]))
        return order[start:]

    def weights(self, times: pd.Series | None) -> np.ndarray | None:
        """(n,) how much each row counts; the newest counts 1."""
        if times is None or self.half_life is None:
            return None
        age = (times.max() - times).dt.total_seconds().to_numpy()
        return np.asarray(0.5 ** (age / self.half_life.total_seconds()))


class TrainedCandidate(NamedTuple):
    """A fitted candidate, the positions of the rows it learnt from, and the level their targets were brought to."""

    model: Model
    places: np.ndarray
    trend: Trend | None


def load_rows(work: Workspace, config: PipelineConfig, *, whole: bool) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Features, target values and raw rows of the train part, or of all rows, oldest first."""
    if not whole:
        return work.part("train")
    contract, rows = work.contract(), work.table()
    if config.data.time:
        rows = rows.iloc[np.argsort(rows[config.data.time].to_numpy(), kind="stable")]
    rows = rows.reset_index(drop=True)
    return contract.features(rows), contract.labels(rows), rows


def choose_history(
    work: Workspace, config: PipelineConfig, chosen: CrossValidationResult, *, whole: bool = False
) -> History:
    """The history from which the chosen candidate learns best; the first one on a tie.

    Each is fitted on the train part (or, ``whole``, on all rows) without its newest stretch, which is as long as the
    holdout, and measured there by the primary metric. With one configured there is nothing to choose. Where no history
    could be measured it is the longest one, evenly weighted.
    """
    options = config.data.histories
    if len(options) == 1:
        return History(**dict(options[0]))
    contract, metric = work.contract(), primary_metric(config, work.contract().task)
    features, labels, rows = load_rows(work, config, whole=whole)
    times = rows[config.data.time]
    recent = (times > times.max() - min(_holdout_length(work, config), (times.max() - times.min()) / 3)).to_numpy()
    tried = [
        _try_history(option, config, contract, chosen, features, labels, times, recent, metric) for option in options
    ]
    able = [one for one in tried if one.value is not None]
    sign = 1 if GREATER_IS_BETTER[metric] else -1
    best = max(able, key=lambda one: sign * (one.value or 0.0)) if able else _longest_history(tried)
    return History(
        **{name: getattr(best, name) for name in HistoryConfig.model_fields},
        metric=metric,
        rows=int(recent.sum()),
        start=times[recent].min().isoformat(),
        end=times[recent].max().isoformat(),
        trials=tuple(tried),
    )


def fit_history(
    config: PipelineConfig,
    contract: Contract,
    chosen: CrossValidationResult,
    history: History,
    features: pd.DataFrame,
    labels: np.ndarray,
    times: pd.Series | None,
) -> TrainedCandidate:
    """The chosen candidate fitted on what a history takes of some rows.

    Labels are decided by the threshold that cross-validation chose. An estimator that takes no weights learns evenly.
    With a level the candidate is fitted four times: its folds say what is expected of each row.
    """
    learnt = history.learnt(times, labels)
    candidate = next(one for one in config.candidates if one.name == chosen.candidate)
    own = None if times is None else times.iloc[learnt]
    weights = history.weights(own)
    table, truth, trend = features.iloc[learnt], labels[learnt], None

    def learn(rows: np.ndarray, target: np.ndarray) -> Model:
        model = build_model(candidate, contract, config.seed, chosen.params, config.package.trusted)
        if isinstance(model, Classifier):
            model.threshold = chosen.threshold
        more: dict[str, Any] = {}
        if weights is not None and has_fit_parameter(pipeline_of(model).named_steps["estimate"], "sample_weight"):
            more = {"estimate__sample_weight": weights[rows]}
        return model.fit(table.iloc[rows], target[rows], **more)

    with warnings.catch_warnings(action="ignore"), ThreadpoolController().limit(limits=1):
        if history.detrend is not None and own is not None:
            raw = truth
            truth, trend = remove_trend(
                raw, own, history.detrend, lambda seen, asked: learn(seen, raw).predict(table.iloc[asked])
            )
        return TrainedCandidate(learn(np.arange(len(learnt)), truth), learnt, trend)


def _try_history(
    option: HistoryConfig,
    config: PipelineConfig,
    contract: Contract,
    chosen: CrossValidationResult,
    features: pd.DataFrame,
    labels: np.ndarray,
    times: pd.Series,
    recent: np.ndarray,
    metric: str,
) -> HistoryTrial:
    history, before = History(**dict(option)), np.flatnonzero(~recent)
    value, failed, used = None, "", 0
    try:
        one = fit_history(config, contract, chosen, history, features.iloc[before], labels[before], times.iloc[before])
        used = len(one.places)
        found = compute_metrics(labels[recent], predict(one.model, features[recent], contract), contract)[metric]
        value, failed = (float(found), "") if np.isfinite(found) else (None, f"{metric} is undefined")
    except Exception as error:  # noqa: BLE001 - an estimator may raise anything; the other histories go on
        failed = describe_error(error)
    return HistoryTrial(**dict(option), rows=used, value=value, failed=failed)


def _holdout_length(work: Workspace, config: PipelineConfig) -> dt.timedelta:
    """How long the holdout is."""
    table, parts = work.table()[config.data.time], work.parts()
    train, holdout = table.iloc[parts["train"]], table.iloc[parts["holdout"]]
    asked = config.split.holdout
    whole: dt.timedelta = holdout.max() - (train.max() if config.by_time else holdout.min())
    return asked if isinstance(asked, dt.timedelta) else whole


def _longest_history(tried: list[HistoryTrial]) -> HistoryTrial:
    nothing = dt.timedelta(0)
    return max(
        tried, key=lambda one: (one.detrend is None, one.half_life is None, one.window is None, one.window or nothing)
    )
