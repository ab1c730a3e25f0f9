"""Rows of the prediction log as the metrics take them; what cannot be used is counted, with the reason."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from towline.config import Metric
from towline.data.schema.contract import Contract
from towline.data.schema.values import category_name, parse_number
from towline.prediction_log.label_store import REQUEST, TIME
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.training.evaluation.predictions import Predictions

PROBABILITY_METRICS: frozenset[Metric] = frozenset(("roc_auc", "average_precision", "log_loss", "brier"))


class LoggedPredictions(NamedTuple):
    """What one version answered, oldest first, each request's row once.

    Attributes:
        table: the log's rows, n of them.
        predictions: labels (NaN or None where there is none) and, of a classification, probabilities (NaN where there
            are none).
        usable: (n,) whether the metric can take the row's prediction.
        notes: what had to be left out.
    """

    table: pa.Table
    predictions: Predictions
    usable: np.ndarray
    notes: tuple[str, ...]


class LoggedLabels(NamedTuple):
    """Which rows have a label that the metric can take.

    Attributes:
        contract: the model's; of several classes, with those besides that only labels have: the model is always wrong
            about them.
        truth: (n,) labels; of rows that are not usable, anything.
        labelled: (n,) whether there is a label.
        usable: (n,) whether it is one that can be measured against.
        strange: how many are of a class that the model never saw.
        notes: what had to be left out.
    """

    contract: Contract
    truth: np.ndarray
    labelled: np.ndarray
    usable: np.ndarray
    strange: int
    notes: tuple[str, ...]


def utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def moments(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) datetime64[us] in naive UTC; NaT for null."""
    times: np.ndarray = column.cast(pa.timestamp("us")).to_numpy()
    return times


def answered(
    table: pa.Table,
    version: int,
    contract: Contract,
    metric: Metric,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
) -> LoggedPredictions:
    """What a version answered from ``start`` up to but not at ``end``.

    A request's row that stands twice counts once, as it was answered last.
    """
    kept = table.filter(pc.equal(table["version"], version))
    for moment, holds in ((start, pc.greater_equal), (end, pc.less)):
        if moment is not None:
            kept = kept.filter(holds(kept["time"], pa.scalar(utc(moment), TIME)))
    kept = kept.sort_by([("time", "ascending"), (REQUEST, "ascending"), ("row", "ascending")])
    places = kept.select([REQUEST, "row"]).to_pandas()
    twice = (places.duplicated(keep="last") & places[REQUEST].notna()).to_numpy(dtype=bool)
    kept = kept.filter(pa.array(~twice))
    predictions, given = _predictions(kept, contract)
    notes = [f"{int(twice.sum())} rows of requests stand twice"] if twice.any() else []
    if not given.all():
        notes.append(f"{int((~given).sum())} rows have no prediction that can be read")
    usable = given
    if metric in PROBABILITY_METRICS and predictions.probabilities is not None:
        usable = given & np.isfinite(predictions.probabilities).all(axis=1)
        if (without := int((given & ~usable).sum())) > 0:
            notes.append(f"{without} rows have no probabilities")
    return LoggedPredictions(kept, predictions, usable, tuple(notes))


def known(found: LoggedPredictions, contract: Contract, now: dt.datetime | None = None) -> LoggedLabels:
    """The labels that there were at a moment (default: all)."""
    table = found.table
    given = table["label"].to_pylist()
    labelled = np.array([value is not None for value in given], dtype=bool)
    if now is not None:
        at = moments(table["labelled_at"])
        labelled &= np.isnat(at) | (at <= np.datetime64(utc(now).replace(tzinfo=None), "us"))
    if contract.task == "regression":
        values = np.array([parse_number(value) for value in given], dtype=np.float64)
        usable = labelled & np.isfinite(values)
        notes = _told(labelled & ~usable, "labels are no numbers", [])
        return LoggedLabels(contract, values, labelled, usable, 0, notes)
    texts = [category_name(value) for value in given]
    places = _places(texts, contract)
    strange = labelled & (places < 0)
    names = sorted({str(texts[row]) for row in np.flatnonzero(strange)})
    notes = _told(strange, "labels are of a class that the model never saw", names)
    if contract.task == "multiclass" and names:
        contract = contract.model_copy(update={"classes": (*contract.classes, *names)})
        places = _places(texts, contract)
    return LoggedLabels(
        contract, _labels(contract, places), labelled, labelled & (places >= 0), int(strange.sum()), notes
    )


def padded(predictions: Predictions, contract: Contract) -> Predictions:
    """The same with a probability of 0 for each class that the model never saw."""
    given = predictions.probabilities
    if given is None or given.shape[1] >= len(contract.classes):
        return predictions
    more = np.zeros((len(given), len(contract.classes) - given.shape[1]))
    return Predictions(predictions.labels, np.hstack([given, more]))


def plain(release: Path, contract: Contract) -> frozenset[str]:
    """The features that the log keeps as they are."""
    fields = read_privacy_filter(release, contract, HashKeys(release)).fields  # no key is asked for
    features = {column.name for column in contract.feature_columns}
    return frozenset(field.name for field in fields if field.policy == "keep" and field.name in features)


def frame(table: pa.Table, names: Sequence[str]) -> pd.DataFrame:
    """The logged columns of these features, by their own names; those that the table lacks are left out."""
    there = [name for name in names if INPUT_PREFIX + name in table.column_names]
    found: pd.DataFrame = table.select([INPUT_PREFIX + name for name in there]).rename_columns(there).to_pandas()
    return found


def _predictions(table: pa.Table, contract: Contract) -> tuple[Predictions, np.ndarray]:
    given = table["prediction"].to_pylist()
    if contract.task == "regression":
        values = np.array([parse_number(value) for value in given], dtype=np.float64)
        return Predictions(values), np.isfinite(values)
    places = _places([category_name(value) for value in given], contract)
    chances = np.full((len(given), len(contract.classes)), np.nan)
    for row, each in enumerate(table["probabilities"].to_pylist()):
        if each is not None and len(each) == len(contract.classes):
            chances[row] = [np.nan if one is None else one for one in each]
    return Predictions(_labels(contract, places), chances), places >= 0


def _places(texts: Sequence[str | None], contract: Contract) -> np.ndarray:
    at: dict[Any, int] = {category_name(label): place for place, label in enumerate(contract.classes)}
    return np.array([at.get(text, -1) for text in texts], dtype=np.int64)


def _labels(contract: Contract, places: np.ndarray) -> np.ndarray:
    """(n,) the classes' own values; None where there is no place."""
    classes = np.empty(len(contract.classes) + 1, dtype=object)
    classes[:-1] = contract.classes
    labels: np.ndarray = classes[places]
    return labels


def _told(rows: np.ndarray, what: str, names: Sequence[str]) -> tuple[str, ...]:
    count = int(rows.sum())
    if not count:
        return ()
    shown = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
    return (f"{count} {what}" + (f" ({shown})" if shown else ""),)
