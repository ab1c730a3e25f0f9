"""The gain of a training, measured window by window: the champion against refits of its recipe.

The recipe is the champion's candidate with its hyperparameters, calibration, threshold and history; nothing is
searched. The window is divided into periods of equal length. For each period the recipe is fitted on the rows that were
labelled before it, and predicts the labelled rows of the period. So neither the champion nor a refit predicts rows that
it was fitted on, and a change within the window shows in the window's later periods. ``gain_evidence`` judges the
differences of their losses.
"""

import datetime as dt
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Subset
from towline.errors import TowlineError
from towline.manifest import read_manifest
from towline.monitoring.performance.logged_predictions import (
    logged_features,
    pad_probabilities,
    read_times,
    select_labels,
    select_predictions,
    to_datetime64,
    unmodified_features,
)
from towline.monitoring.performance.quality import MAX_UNKNOWN_CLASS, limit_rows
from towline.monitoring.results import GainResult
from towline.times import to_utc
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import Predictions
from towline.training.evaluation.row_losses import choose_loss, row_losses
from towline.training.history import History, fit_history
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.user_code import describe_error

MAX_BLOCKS = 50  # of a window
MAX_REFITS = 4  # for a window: each costs a fit


class Recipe(NamedTuple):
    """How the model of a release was fitted."""

    candidate: CrossValidationResult
    history: History


def read_recipe(release: Path, config: PipelineConfig) -> Recipe:
    """The recipe of a release; it is fitted on at most ``cross_validation.max_rows`` rows.

    Raises:
        ReleaseError: the release has no valid manifest.
        ValueError: the config has no such candidate any more.
    """
    metrics: dict[str, Any] = json.loads((release / "metrics.json").read_bytes())
    name = metrics["evaluation"]["candidate"]
    if name not in {candidate.name for candidate in config.candidates}:
        raise ValueError(f"the config has no candidate {name} any more")
    record = next(record for record in metrics["cross_validation"] if record["candidate"] == name)
    candidate = CrossValidationResult.model_validate(record)
    history = History.model_validate(read_manifest(release).dataset["history"])
    limit = config.cross_validation.max_rows
    return Recipe(candidate, history.model_copy(update={"sample": min(history.sample or limit, limit)}))


def measure_gain(
    rows: pa.Table,
    release: Path,
    config: PipelineConfig,
    table: pd.DataFrame,
    *,
    start: dt.datetime,
    end: dt.datetime,
    now: dt.datetime,
) -> GainResult:
    """Compares the champion with refits of its recipe on the labelled rows of a window.

    Args:
        rows: predictions with labels, as ``labels.read`` returns them.
        release: directory of the champion's release.
        config: for the metric, the candidates, the minimum number of labels.
        table: the rows of the source that were labelled before ``end``.
        start: start of the window.
        end: end of the window, not included.
        now: labels that came later are ignored.

    Raises:
        ConfigError: the metric does not fit the task.
        ReleaseError: the release has no valid manifest.
    """
    started, version, contract = time.process_time(), read_manifest(release).version, Contract.read(release)
    metric = primary_metric(config, contract.task)
    logged = select_predictions(rows, version, contract, metric, start, end)
    labels = select_labels(logged, contract, now)
    due = read_times(logged.rows["time"]) <= to_datetime64(now - config.quality.delay)
    positions = limit_rows(np.flatnonzero(due & labels.labelled & labels.usable & logged.usable))
    window = GainResult(
        state="unknown", version=version, start=to_utc(start), end=to_utc(end), rows=len(positions), reason=""
    )
    if len(positions) < config.quality.min_labels:
        reason = f"{len(positions):,} labelled rows, {config.quality.min_labels} are needed"
        return window.model_copy(update={"reason": reason})
    if labels.unknown_class >= MAX_UNKNOWN_CLASS * int((due & labels.labelled).sum()):
        reason = f"{labels.unknown_class:,} labels are of a class that the champion's recipe does not know"
        return window.model_copy(update={"state": "unavailable", "reason": reason})
    shared = logged.rows.take(pa.array(positions))
    try:
        recipe = read_recipe(release, config)
        periods = _divide_window(start, end, min(MAX_REFITS, len(positions) // config.quality.min_labels))
        refit, fitted_rows = _predict_with_refits(recipe, contract, config, table, shared, release, periods)
    except Exception as error:  # noqa: BLE001 - an estimator may raise anything
        reason = error.what if isinstance(error, TowlineError) else describe_error(error)
        reason = f"the champion's recipe cannot be fitted again: {reason}"
        return window.model_copy(update={"state": "unavailable", "reason": reason})
    champion = logged.predictions.take(positions)
    truth, loss = labels.truth[positions], choose_loss(metric, contract, champion)
    losses = np.column_stack(
        [row_losses(truth, pad_probabilities(each, labels.contract), labels.contract, loss)
         for each in (champion, refit)]
    )  # fmt: skip
    losses = losses[np.isfinite(losses).all(axis=1)]
    parts = np.array_split(losses, min(MAX_BLOCKS, math.isqrt(len(losses)))) if len(losses) else []
    means = losses.mean(axis=0) if len(losses) else (math.nan, math.nan)
    return window.model_copy(
        update={
            "state": "measured" if len(losses) else "unknown",
            "loss": loss,
            "champion": float(means[0]) if len(losses) else None,
            "refit": float(means[1]) if len(losses) else None,
            "blocks": tuple((float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts),
            "fitted_rows": fitted_rows,
            "cpu_s": time.process_time() - started,
            "reason": f"{loss} {means[0]:.4g}, and {means[1]:.4g} of refits on at most {fitted_rows:,} earlier rows, "
            f"on {len(losses):,} labels",
        }
    )


def _divide_window(start: dt.datetime, end: dt.datetime, count: int) -> list[dt.datetime]:
    """The starts of ``count`` periods of equal length."""
    length = (end - start) / count
    return [start + number * length for number in range(count)]


def _predict_with_refits(
    recipe: Recipe,
    contract: Contract,
    config: PipelineConfig,
    table: pd.DataFrame,
    rows: pa.Table,
    release: Path,
    periods: Sequence[dt.datetime],
) -> tuple[Predictions, int]:
    """The predictions for logged rows, oldest first, of the recipe fitted before each period.

    Returns:
        The predictions, and the largest number of rows that the recipe was fitted on.
    """
    unmodified = unmodified_features(release, contract)
    names = [column.name for column in contract.input_columns]
    if hidden := sorted(set(names) - unmodified):
        raise ValueError(f"{', '.join(hidden[:5])} is not logged unmodified")
    if contract.task != "regression":
        known = contract.class_of(contract.class_names(table[contract.target])) >= 0
        table = table[np.asarray(known)].reset_index(drop=True)
    starts = np.array([to_datetime64(start) for start in periods[1:]], dtype="datetime64[us]")
    parts = np.split(np.arange(len(rows)), np.searchsorted(read_times(rows["time"]), starts))
    predictions, counts = list[Predictions](), list[int]()
    for start, part in zip(periods, parts, strict=True):
        if not len(part):
            continue
        labelled = _labelled_before(table, config, start)
        subset = Subset(contract.features(labelled), contract.labels(labelled), labelled)
        trained = fit_history(config, contract, recipe.candidate, recipe.history, subset)
        features = contract.features(logged_features(rows.take(pa.array(part)), names))
        predictions.append(predict(trained.model, features, contract))
        counts.append(len(trained.positions))
    return Predictions.concatenate(predictions), max(counts)


def _labelled_before(table: pd.DataFrame, config: PipelineConfig, moment: dt.datetime) -> pd.DataFrame:
    """The rows that a training at a time would use."""
    known, times = to_datetime64(moment - config.quality.delay), table[config.data.time]
    selected = times <= known
    if config.data.reach:
        selected &= times > known - np.timedelta64(config.data.reach)
    return table[selected.to_numpy()].reset_index(drop=True)
