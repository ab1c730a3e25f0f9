"""Comparison of two champions on the same labelled rows: it shows whether a rollback would help."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import PipelineConfig, finite_or_none
from towline.data.schema.contract import Contract
from towline.errors import DataError, ReleaseError
from towline.inference.predictor import Model, open_release
from towline.manifest import ReleaseLocation, read_manifest
from towline.monitoring.performance.logged_predictions import (
    logged_features,
    pad_probabilities,
    read_times,
    select_labels,
    select_predictions,
    unmodified_features,
)
from towline.monitoring.performance.quality import limit_rows, log_resampling_units, resampled_interval
from towline.monitoring.results import ChampionComparison, DriftResult
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.training.evaluation.bootstrap import draw_weights, resample_metric
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.predictions import Predictions

MIN_DRAWS = 500  # a limit at 2.5 % needs more draws than an interval that is only shown


def compare_champions_on_rows(
    rows: pa.Table,
    champion: ReleaseLocation,
    previous: ReleaseLocation | None,
    config: PipelineConfig,
    drift: DriftResult | None,
) -> ChampionComparison:
    """Scores the labelled rows that the champion predicted with both champions.

    Only rows newer than the training rows of both count: by the time column if it is logged, else by the time of the
    request. The previous champion is better only if a paired 95 % interval of the difference, from a block bootstrap,
    lies on its side of 0.

    Args:
        rows: as ``labels.read`` returns them.
        champion: the release that serves.
        previous: the release before it; None if there is none.
        config: for the metric and the minimum number of labels.
        drift: the last drift result; tells whether the input is valid.

    Raises:
        ConfigError: the metric does not fit the task.
        ReleaseError: the champion's release cannot be read.
    """
    invalid = drift.reason if drift is not None and drift.state == "invalid_schema" else ""

    def result(reason: str, count: int = 0, **measured: Any) -> ChampionComparison:
        values = {"champion": None, "previous": None, "previous_is_better": False, **measured}
        values["previous_is_better"] = values["previous_is_better"] and not invalid
        reason = f"{invalid}; {reason}" if invalid else reason
        return ChampionComparison(rows=count, input_valid=not invalid, reason=reason, **values)

    if previous is None:
        return result("there is no champion before this one")
    contract = Contract.read(champion.directory)
    metric = primary_metric(config, contract.task)
    logged = select_predictions(rows, read_manifest(champion.directory).version, contract, metric)
    labels = select_labels(logged, contract)
    unmodified = unmodified_features(champion.directory, contract)
    try:
        splits = [read_manifest(release.directory).dataset["split"] for release in (champion, previous)]
        newer = _newer_than_training(logged.rows, splits, unmodified)
        positions = limit_rows(np.flatnonzero(labels.labelled & labels.usable & logged.usable & newer))
        count, shared = len(positions), logged.rows.take(pa.array(positions))
        if count < config.quality.min_labels:
            return result(
                f"{count:,} labelled rows are new to both champions, {config.quality.min_labels} are needed", count
            )
        models = [open_release(release.directory, digest=release.digest) for release in (champion, previous)]
        predictions = [_predict(model, contract, shared, unmodified) for model in models]
    except (ReleaseError, DataError) as error:
        return result("; ".join((f"the champions cannot be compared: {error.what}", *error.details[:3])))
    score = partial(resample_metric, labels.truth[positions], contract=labels.contract, metric=metric)
    padded = [pad_probabilities(each, labels.contract) for each in predictions]
    units = log_resampling_units(shared, config)
    draws = draw_weights(count, max(MIN_DRAWS, config.evaluation.resamples), config.seed, units)
    values = [float(score(each, weights=np.ones((1, count)))[0]) for each in padded]
    resampled = [score(each, weights=draws) for each in padded]
    sign = 1.0 if metric.greater_is_better else -1.0
    gain = resampled_interval(
        sign * (values[1] - values[0]), sign * (resampled[1] - resampled[0]), len(np.unique(units))
    )
    finite = [finite_or_none(value) for value in values]
    measured = {"champion": finite[0], "previous": finite[1]}
    if gain.value is None or gain.low is None or gain.high is None:
        return result(f"{metric} cannot be compared on these {count:,} rows", count, **measured)
    version = models[1].version
    reason = (
        f"{metric} {values[0]:.4g}, and {values[1]:.4g} of version {version}, on {count:,} rows: version {version} is "
        f"{'better' if gain.value >= 0 else 'worse'} by {abs(gain.value):.4g} "
        f"(95 % interval {gain.low:+.4g} to {gain.high:+.4g}, + is better)"
    )
    return result(reason, count, **measured, previous_is_better=gain.low > 0)


def _newer_than_training(rows: pa.Table, splits: Sequence[dict[str, Any]], unmodified: frozenset[str]) -> np.ndarray:
    """(n,) whether a row is newer than the training rows of each split. Logged rows always are, if it was random."""
    newer = np.ones(len(rows), dtype=bool)
    for split in splits:
        if split["by"] == "time":
            column = INPUT_PREFIX + split["time"]
            logged = split["time"] in unmodified and column in rows.column_names
            times = read_times(rows[column if logged else "time"])
            newer &= times > pd.Timestamp(split["train_end"]).to_datetime64()
    return newer


def _predict(model: Model, contract: Contract, rows: pa.Table, unmodified: frozenset[str]) -> Predictions:
    """A model's predictions, with probabilities in the order of the contract's classes.

    Raises:
        DataError: a column that the model needs is not logged unmodified, or cannot be read.
        ReleaseError: the model has another target, task or classes.
    """
    model_contract, where = model.contract, str(model.directory)
    same_target = (model_contract.target, model_contract.task) == (contract.target, contract.task)
    if not same_target or not set(model_contract.classes) <= set(contract.classes):
        what = f"version {model.version} has another target, task or classes"
        raise ReleaseError(what, where=where, remedy="no action is needed: the version is not compared")
    names = [column.name for column in model_contract.input_columns]
    if missing := sorted(set(names) - unmodified):
        what = f"version {model.version} needs {', '.join(missing[:5])}, which the log does not have unmodified"
        raise DataError(what, where=where, remedy="log these columns unmodified, if privacy allows")
    predictions = model.predict_frame(model.to_features(logged_features(rows, names)))
    return predictions.align(model_contract.classes, contract.classes) if contract.classes else predictions
