"""Logged predictions and their labels in the form that metrics need.

Rows that cannot be used are counted, and the reason is noted.
"""

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from towline.config import PipelineConfig
from towline.data.schema.contract import Contract
from towline.data.schema.values import category_name, parse_number
from towline.prediction_log.label_store import REQUEST, TIME
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.prediction_log.privacy import HashKeys, read_privacy_filter
from towline.times import to_utc
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.holdout import SliceRows, find_slices, slice_members
from towline.training.evaluation.predictions import Predictions


class LoggedPredictions(NamedTuple):
    """The predictions of one version, oldest first, each row of a request once.

    Attributes:
        rows: the log's rows, n of them.
        predictions: labels (NaN or None if there is none); for a classification also probabilities (NaN if none).
        usable: (n,) whether the metric can use the row's prediction.
        notes: the rows that had to be left out, and why.
    """

    rows: pa.Table
    predictions: Predictions
    usable: np.ndarray
    notes: tuple[str, ...]


class LoggedLabels(NamedTuple):
    """The labels of logged predictions.

    Attributes:
        contract: the model's contract. Of several classes, those that only labels have are added; the model is always
            wrong about them.
        truth: (n,) labels; arbitrary where not usable.
        labelled: (n,) whether there is a label.
        usable: (n,) whether the metric can use the label.
        unknown_class: number of labels of a class that the model does not have.
        notes: the labels that had to be left out, and why.
    """

    contract: Contract
    truth: np.ndarray
    labelled: np.ndarray
    usable: np.ndarray
    unknown_class: int
    notes: tuple[str, ...]


def to_datetime64(moment: dt.datetime) -> np.datetime64:
    """The time in UTC without a time zone, as ``read_times`` gives them."""
    return np.datetime64(to_utc(moment).replace(tzinfo=None), "us")


def read_times(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) datetime64[us] in UTC without a time zone; NaT for null."""
    times: np.ndarray = column.cast(pa.timestamp("us")).to_numpy()
    return times


def select_predictions(
    rows: pa.Table,
    version: int,
    contract: Contract,
    metric: Metric,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
) -> LoggedPredictions:
    """The predictions of a version from ``start`` until ``end``, which is not included.

    If a row of a request was logged twice, the last prediction counts.

    Args:
        rows: as ``labels.read`` returns them.
        version: version that made the predictions.
        contract: the version's contract.
        metric: metric that will be computed.
        start: earliest time.
        end: latest time, not included.
    """
    selected = rows.filter(pc.equal(rows["version"], version))
    for bound, compare in ((start, pc.greater_equal), (end, pc.less)):
        if bound is not None:
            selected = selected.filter(compare(selected["time"], pa.scalar(to_utc(bound), TIME)))
    selected = selected.sort_by([("time", "ascending"), (REQUEST, "ascending"), ("row", "ascending")])
    keys = selected.select([REQUEST, "row"]).to_pandas()
    duplicate = (keys.duplicated(keep="last") & keys[REQUEST].notna()).to_numpy(dtype=bool)
    selected = selected.filter(pa.array(~duplicate))
    predictions, readable = read_logged_predictions(selected, contract)
    notes = [f"{int(duplicate.sum())} rows of requests are logged twice"] if duplicate.any() else []
    if not readable.all():
        notes.append(f"{int((~readable).sum())} rows have no readable prediction")
    usable = readable
    if metric.needs_probabilities and predictions.probabilities is not None:
        usable = readable & np.isfinite(predictions.probabilities).all(axis=1)
        if (missing := int((readable & ~usable).sum())) > 0:
            notes.append(f"{missing} rows have no probabilities")
    return LoggedPredictions(selected, predictions, usable, tuple(notes))


def select_labels(logged: LoggedPredictions, contract: Contract, now: dt.datetime | None = None) -> LoggedLabels:
    """The labels that were known at a time (default: all)."""
    values = logged.rows["label"].to_pylist()
    labelled = np.array([value is not None for value in values], dtype=bool)
    if now is not None:
        labelled_at = read_times(logged.rows["labelled_at"])
        labelled &= np.isnat(labelled_at) | (labelled_at <= to_datetime64(now))
    if contract.task == "regression":
        numbers = np.array([parse_number(value) for value in values], dtype=np.float64)
        usable = labelled & np.isfinite(numbers)
        notes = _note(labelled & ~usable, "labels are not numbers", [])
        return LoggedLabels(contract, numbers, labelled, usable, 0, notes)
    texts = [category_name(value) for value in values]
    codes = _class_codes(texts, contract)
    unknown = labelled & (codes < 0)
    names = sorted({str(texts[row]) for row in np.flatnonzero(unknown)})
    notes = _note(unknown, "labels are of a class that the model does not know", names)
    if contract.task == "multiclass" and names:
        contract = contract.model_copy(update={"classes": (*contract.classes, *names)})
        codes = _class_codes(texts, contract)
    truth = _class_labels(contract, codes)
    return LoggedLabels(contract, truth, labelled, labelled & (codes >= 0), int(unknown.sum()), notes)


def pad_probabilities(predictions: Predictions, contract: Contract) -> Predictions:
    """Adds a probability of 0 for each class of the contract that the model does not have."""
    probabilities = predictions.probabilities
    if probabilities is None or probabilities.shape[1] >= len(contract.classes):
        return predictions
    zeros = np.zeros((len(probabilities), len(contract.classes) - probabilities.shape[1]))
    return Predictions(predictions.labels, np.hstack([probabilities, zeros]))


def unmodified_features(release: Path, contract: Contract) -> frozenset[str]:
    """The features that are logged as they are, neither hashed nor coarsened."""
    fields = read_privacy_filter(release, contract, HashKeys(release)).fields  # no hash key is needed
    features = {column.name for column in contract.input_columns}
    return frozenset(field.name for field in fields if field.policy == "keep" and field.name in features)


def logged_features(rows: pa.Table, names: Sequence[str]) -> pd.DataFrame:
    """The logged features under their own names; those that are not logged are left out."""
    logged = [name for name in names if INPUT_PREFIX + name in rows.column_names]
    frame: pd.DataFrame = rows.select([INPUT_PREFIX + name for name in logged]).rename_columns(logged).to_pandas()
    return frame


def find_logged_slices(
    rows: pa.Table, release: Path, contract: Contract, config: PipelineConfig
) -> tuple[SliceRows, ...]:
    """The slices of the evaluation whose columns are logged unmodified."""
    frame = logged_features(rows, sorted(unmodified_features(release, contract)))
    columns = tuple(column for column in contract.columns if column.name in frame.columns)
    names = config.evaluation.slices
    if names is not None:
        names = tuple(name for name in names if name in frame.columns)
    evaluation = config.evaluation.model_copy(update={"slices": names})
    config = config.model_copy(update={"evaluation": evaluation})
    return find_slices(frame, contract.model_copy(update={"columns": columns}), config)[0]


def select_evaluated_slices(rows: pa.Table, release: Path, contract: Contract) -> dict[str, np.ndarray]:
    """Name of a slice → (n,) whether a logged row is in it, for each slice of the release's evaluation.

    They do not depend on the rows. Left out are slices by time, which no later row is in, and by columns that are not
    logged unmodified.
    """
    evaluation = json.loads((release / "metrics.json").read_bytes())["evaluation"]
    times = {column.name for column in contract.columns if column.kind == "datetime"}
    frame = logged_features(rows, sorted(unmodified_features(release, contract) - times))
    members: dict[str, np.ndarray] = {}
    for column in frame.columns:
        values = [each["value"] for each in evaluation["slices"] if each["column"] == column]
        members |= zip((f"{column} = {value}" for value in values), slice_members(frame[column], values), strict=True)
    return members


def read_logged_predictions(rows: pa.Table, contract: Contract) -> tuple[Predictions, np.ndarray]:
    """The predictions of logged rows, and (n,) whether they can be read."""
    values = rows["prediction"].to_pylist()
    if contract.task == "regression":
        numbers = np.array([parse_number(value) for value in values], dtype=np.float64)
        return Predictions(numbers), np.isfinite(numbers)
    codes = _class_codes([category_name(value) for value in values], contract)
    probabilities = np.full((len(values), len(contract.classes)), np.nan)
    for row, logged in enumerate(rows["probabilities"].to_pylist()):
        if logged is not None and len(logged) == len(contract.classes):
            probabilities[row] = [np.nan if value is None else value for value in logged]
    labels, has_probabilities = _class_labels(contract, codes), not np.isnan(probabilities).all()
    return Predictions(labels, probabilities if has_probabilities else None), codes >= 0


def _class_codes(texts: Sequence[str | None], contract: Contract) -> np.ndarray:
    """(n,) index of each class; -1 for an unknown class."""
    codes: dict[Any, int] = {category_name(label): code for code, label in enumerate(contract.classes)}
    return np.array([codes.get(text, -1) for text in texts], dtype=np.int64)


def _class_labels(contract: Contract, codes: np.ndarray) -> np.ndarray:
    """(n,) the classes' own values; None for an unknown class."""
    classes = np.empty(len(contract.classes) + 1, dtype=object)
    classes[:-1] = contract.classes
    labels: np.ndarray = classes[codes]
    return labels


def _note(rows: np.ndarray, problem: str, names: Sequence[str]) -> tuple[str, ...]:
    count = int(rows.sum())
    if not count:
        return ()
    examples = ", ".join(repr(name) for name in names[:5]) + (", …" if len(names) > 5 else "")
    return (f"{count} {problem}" + (f" ({examples})" if examples else ""),)
