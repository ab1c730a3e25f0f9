"""Which of two champions does better on the same labelled rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import GREATER_IS_BETTER, PipelineConfig
from towline.data.schema.contract import Contract
from towline.errors import DataError, ReleaseError
from towline.inference.predictor import Model, open_release
from towline.manifest import Recorded, read
from towline.monitoring.performance.logged_predictions import answered, frame, known, moments, padded, plain
from towline.monitoring.performance.quality import MOST, blocks, widened
from towline.monitoring.results import ChampionComparison, DriftResult
from towline.prediction_log.parquet_store import INPUT
from towline.training.cross_validation import primary
from towline.training.evaluation.bootstrap import interval, resample, weights
from towline.training.evaluation.interval import Interval
from towline.training.evaluation.predictions import Predictions

DRAWS = 500  # at least: a limit at 2.5 % needs more of them than an interval that is only shown


class _Judged(NamedTuple):
    """Both on the same rows; ``gain`` is the metric's difference in favour of the previous champion."""

    champion: float | None
    previous: float | None
    gain: Interval


def triage(
    table: pa.Table, champion: Recorded, previous: Recorded | None, config: PipelineConfig, drift: DriftResult | None
) -> ChampionComparison:
    """Asks both champions about the labelled rows that the present one has answered, as the log kept them.

    Only rows newer than what either was trained on count: by the time column where the log keeps it, else by when they
    were asked. The previous one is better only if a paired 95 % interval of the difference, drawn in blocks of time,
    lies on its side of 0.

    Args:
        table: as ``labels.read`` gives it.
        champion: the release that serves.
        previous: the one before; None if there is none.
        config: says the metric and how many labels there must be.
        drift: the last night; says whether the input is sound.

    Raises:
        ConfigError: the metric is not one of the task.
        ReleaseError: the champion's release cannot be read.
    """
    sound = drift is None or drift.state != "invalid_schema"

    def told(reason: str, rows: int = 0, found: _Judged | None = None, *, better: bool = False) -> ChampionComparison:
        return ChampionComparison(
            rows=rows,
            champion=found.champion if found else None,
            previous=found.previous if found else None,
            better=better and sound,
            sound=sound,
            reason=reason if sound or drift is None else f"{drift.reason}; {reason}",
        )

    if previous is None:
        return told("there is no champion before this one")
    contract = Contract.read(champion.directory)
    metric = primary(config, contract.task)
    found = answered(table, read(champion.directory).version, contract, metric)
    labels = known(found, contract)
    usable = labels.labelled & labels.usable & found.usable
    kept = plain(champion.directory, contract)
    try:
        ends = [_trained(release.directory) for release in (champion, previous)]
        usable &= _newer(found.table, ends, kept)
        places = np.flatnonzero(usable)
        places = places[np.linspace(0, len(places) - 1, MOST).astype(np.int64)] if len(places) > MOST else places
        rows = found.table.take(pa.array(places))
        count = len(places)
        if count < config.quality.min_labels:
            return told(f"{count:,} labelled rows are new to both, {config.quality.min_labels} are needed", count)
        models = [open_release(release.directory, digest=release.digest) for release in (champion, previous)]
        answers = [_ask(model, contract, rows, kept) for model in models]
    except (ReleaseError, DataError) as error:
        return told("; ".join((f"they cannot be compared: {error.what}", *error.details[:3])))
    truth = labels.truth[places]
    units = blocks(rows, config)
    draws = weights(count, max(DRAWS, config.evaluation.resamples), config.seed, units)
    once = np.ones((1, count))
    asked = [padded(answer, labels.contract) for answer in answers]
    points = [float(resample(truth, answer, labels.contract, metric, once)[0]) for answer in asked]
    drawn = [resample(truth, answer, labels.contract, metric, draws) for answer in asked]
    sign = 1.0 if GREATER_IS_BETTER[metric] else -1.0
    gain = _difference(sign * (points[1] - points[0]), sign * (drawn[1] - drawn[0]), len(np.unique(units)))
    finite = [value if np.isfinite(value) else None for value in points]
    judged = _Judged(finite[0], finite[1], gain)
    if gain.value is None or gain.low is None or gain.high is None:
        return told(f"{metric} cannot be compared on these {count:,} rows", count, judged)
    version = models[1].version
    reason = (
        f"{metric} {points[0]:.4g} against {points[1]:.4g} of version {version} on {count:,} rows, version {version} "
        f"{'better' if gain.value >= 0 else 'worse'} by {abs(gain.value):.4g} "
        f"(95 % interval {gain.low:+.4g} to {gain.high:+.4g}, + is better)"
    )
    return told(reason, count, judged, better=gain.low > 0)


def _trained(release: Path) -> dict[str, Any]:
    """How a release's training rows were set apart."""
    split: dict[str, Any] = read(release).dataset["split"]
    return split


def _newer(table: pa.Table, splits: Sequence[dict[str, Any]], kept: frozenset[str]) -> np.ndarray:
    """(n,) which rows are newer than what the models were trained on. Of a split at random all are: they came later."""
    newer = np.ones(len(table), dtype=bool)
    for split in splits:
        if split["by"] == "time":
            logged = INPUT + split["time"]
            times = moments(table[logged if split["time"] in kept and logged in table.column_names else "time"])
            newer &= times > pd.Timestamp(split["train_end"]).to_datetime64()
    return newer


def _ask(model: Model, contract: Contract, rows: pa.Table, kept: frozenset[str]) -> Predictions:
    """A model's answers in the order of the contract's classes.

    Raises:
        DataError: the log does not keep a column that it needs, or holds what it cannot read.
        ReleaseError: it predicts something else.
    """
    own, where = model.contract, str(model.directory)
    if (own.target, own.task) != (contract.target, contract.task) or not set(own.classes) <= set(contract.classes):
        what = f"version {model.version} predicts something else"
        raise ReleaseError(what, where=where, remedy="nothing: it is no alternative")
    needed = [column.name for column in own.feature_columns]
    if lacking := sorted(set(needed) - kept):
        what = f"version {model.version} needs {', '.join(lacking[:5])}, which the log does not keep as they are"
        raise DataError(what, where=where, remedy="keep them, if privacy allows")
    found = model.predictions(model.features(frame(rows, needed)))
    if found.probabilities is None:
        return found
    aligned = np.zeros((len(rows), len(contract.classes)))
    aligned[:, [contract.classes.index(label) for label in own.classes]] = found.probabilities
    return Predictions(found.labels, aligned)


def _difference(value: float, drawn: np.ndarray, units: int) -> Interval:
    if np.isfinite(drawn).sum() < len(drawn) / 2:
        return Interval(value=None)
    return widened(interval(value, drawn), units)
