"""Predicts batches of rows: finds the bad rows, scores the others, and counts both for the drift of the batch."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from towline.batch.input.canonical_columns import complete_columns, convert_inputs
from towline.batch.input.row_batch import RejectedRow, RowBatch
from towline.data.coded_column import CanonicalColumn, CodedColumn
from towline.data.schema.arrow_types import null_far_times
from towline.data.schema.contract import Contract
from towline.data.schema.values import category_name
from towline.errors import DataError, InputValidationError
from towline.inference.predictor import Model
from towline.training.evaluation.predictions import Predictions


class ScoredRows(NamedTuple):
    """The rows of a batch that are scored, and those that are not.

    Attributes:
        good: (n,) bool, the rows of the batch that are scored.
        predictions: of these rows.
        inputs: their canonical input columns, before pseudonyms.
        rejected: the other rows, and those that could not be read, in the order of their numbers.
    """

    good: np.ndarray
    predictions: Predictions
    inputs: list[CanonicalColumn]
    rejected: list[RejectedRow]


def score_batch(model: Model, batch: RowBatch) -> ScoredRows:
    """Scores the rows of a batch whose values fit the contract."""
    rejected = list(batch.rejected)
    if batch.objects is not None:
        canonical, bad = _read_objects(model, batch.objects)
        inputs = canonical[: len(model.contract.input_columns)]
    else:
        inputs, bad = convert_inputs(model.contract, batch.inputs, len(batch))
        inputs = [_select(column, ~bad) for column in inputs] if bad.any() else inputs
        canonical = complete_columns(model.contract, inputs, int(np.count_nonzero(~bad)))
    good, count = ~bad, int(np.count_nonzero(~bad))
    if bad.any():
        rejected += _explain(model, batch, np.flatnonzero(bad))
    predictions, refused = _predict(model, canonical, count)
    if len(refused):
        places = np.flatnonzero(good)[[place for place, _ in refused]]
        for place, (_, reason) in zip(places.tolist(), refused, strict=True):
            rejected.append(RejectedRow(int(batch.numbers[place]), "", reason, _row_text(batch, place)))
        good[places] = False
        accepted = np.ones(count, dtype=bool)
        accepted[[place for place, _ in refused]] = False
        inputs = [_select(column, accepted) for column in inputs]
    return ScoredRows(good, predictions, inputs, sorted(rejected, key=lambda row: row.number))


def input_batch(contract: Contract, inputs: Sequence[CanonicalColumn]) -> pa.RecordBatch:
    """Canonical input columns as Arrow columns, which the counts of drift read."""
    names = [column.name for column in contract.input_columns]
    return pa.RecordBatch.from_arrays([_to_arrow(column) for column in inputs], names)


def output_batch(contract: Contract, predictions: Predictions, prediction: str, probability: str) -> pa.RecordBatch:
    """Predictions as the columns that the counts of drift read; ``probability`` is that of the positive class."""
    columns: dict[str, pa.Array] = {}
    if contract.task == "regression":
        columns[prediction] = pa.array(predictions.labels, pa.float64())
    else:
        names = pa.array([category_name(label) for label in contract.classes], pa.string())
        columns[prediction] = pa.DictionaryArray.from_arrays(predictions.encode(contract.classes), names)
    if contract.task == "binary" and predictions.probabilities is not None and contract.positive is not None:
        columns[probability] = pa.array(predictions.probabilities[:, contract.classes.index(contract.positive)])
    return pa.RecordBatch.from_pydict(columns)


def _predict(model: Model, columns: Sequence[CanonicalColumn], count: int) -> tuple[Predictions, list[tuple[int, str]]]:
    """The predictions, and the positions of rows that the model refuses with the reasons."""
    try:
        return model.predict_columns(columns, count), []
    except DataError as error:
        if count == 1:
            return model.predict_columns([_select(column, np.zeros(1, dtype=bool)) for column in columns], 0), [
                (0, error.what)
            ]
    half, parts, refused = count // 2, [], list[tuple[int, str]]()
    for start, end in ((0, half), (half, count)):
        part = [_select(column, np.arange(start, end)) for column in columns]
        predictions, places = _predict(model, part, end - start)
        parts.append(predictions)
        refused += [(start + place, reason) for place, reason in places]
    return Predictions.concatenate(parts), refused


def _read_objects(model: Model, objects: Sequence[Any]) -> tuple[list[CanonicalColumn], np.ndarray]:
    """The canonical columns of the rows of JSON lines without the bad rows, and which rows are bad."""
    bad = np.zeros(len(objects), dtype=bool)
    try:
        rows = model.reader.read(objects)
    except InputValidationError:
        rows = []
        for place, row in enumerate(objects):
            try:
                rows += model.reader.read([row])
            except InputValidationError:
                bad[place] = True
    columns = model.reader.columns(rows)
    for column in columns:
        if column.dtype == object:
            column[[value is None for value in column]] = np.nan
    return list(columns), bad


def _explain(model: Model, batch: RowBatch, places: np.ndarray) -> list[RejectedRow]:
    """The faults of bad rows, as the service names them."""
    rejected = []
    columns = {name: values.take(pa.array(places)).to_pylist() for name, values in batch.inputs.items()}
    for number, place in enumerate(places.tolist()):
        values = {name: column[number] for name, column in columns.items()}
        row = batch.objects[place] if batch.objects is not None else values
        try:
            model.reader.read([row])
            field, reason = "", "a value does not fit its column"
        except InputValidationError as error:
            field = error.faults[0].field
            reason = "; ".join(f"{fault.field} {fault.message}" for fault in error.faults)
        rejected.append(RejectedRow(int(batch.numbers[place]), field, reason, _row_text(batch, place)))
    return rejected


def _row_text(batch: RowBatch, place: int) -> str:
    """The text of a row; JSON if the input is not text."""
    if batch.records is not None and batch.places is not None:
        text: bytes = batch.records.take(batch.places[[place]])[0].as_py()
        return text.decode(errors="replace")
    values = {name: column[place].as_py() for name, column in batch.inputs.items()}
    if batch.copied is not None:
        row = batch.copied.slice(int(place), 1)
        values |= {name: null_far_times(row.column(name))[0].as_py() for name in row.schema.names}
    return json.dumps(values, ensure_ascii=False, default=str)


def _select(column: CanonicalColumn, rows: np.ndarray) -> CanonicalColumn:
    return CodedColumn(column.codes[rows], column.levels) if isinstance(column, CodedColumn) else column[rows]


def _to_arrow(column: CanonicalColumn) -> pa.Array:
    if isinstance(column, CodedColumn):
        null = np.array([not isinstance(level, str) for level in column.levels], dtype=bool)
        codes = pa.array(column.codes, pa.int32(), mask=null[column.codes] if null[:-1].any() or len(null) else None)
        levels = pa.array([level if isinstance(level, str) else "" for level in column.levels], pa.string())
        return pa.DictionaryArray.from_arrays(codes, levels)
    if column.dtype == object:
        return pa.array(column, pa.string(), from_pandas=True)
    return pa.array(column)
