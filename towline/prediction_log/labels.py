"""Ground-truth labels: labels that arrive after the predictions, and the join of both.

Labels are stored under the key they came with: a request id, or a column that is logged unmodified or hashed. They are
joined when they are read, so a label may arrive before its prediction is in the log.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from towline import files
from towline.data.schema.columns import list_examples
from towline.data.schema.contract import Contract
from towline.data.schema.values import ValueReader, category_name, parse_boolean, parse_number
from towline.data.source import formats
from towline.errors import ConfigError, DataError
from towline.formatting import shorten_lines
from towline.prediction_log import parquet_store
from towline.prediction_log.label_store import REQUEST, TIME, LabelStore
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, LoggedColumn
from towline.times import to_utc

MAX_DETAILS = 5  # lines of an error
MAX_ROW = 2**31 - 1  # number of a row in a request, as the log stores it
_Key = tuple[str, int | None]  # the key's text; for request ids also the row


class LoggedModel(NamedTuple):
    """The folders of a model's predictions and labels, and the columns that are logged now."""

    predictions: Path
    labels: Path
    fields: Sequence[LoggedColumn]


@dataclass(frozen=True)
class LabelFile:
    """A file of labels: CSV, Parquet or JSON.

    Attributes:
        path: the file.
        by: its column with the keys: ``request_id``, or a column that is logged unmodified or hashed. With request
            ids, a column ``row`` counts the rows of a request from 0; without it, labels are of row 0.
        column: its column with the labels; default: the target's name, else the only other column.
        separator: of a CSV; None: the one that the file seems to have.
    """

    path: Path
    by: str = REQUEST
    column: str | None = None
    separator: str | None = None

    def target_contract(self, table: pa.Table, contract: Contract) -> Contract:
        """The contract of the label column, under its name in the file.

        Raises:
            ConfigError: the file does not have the columns.
        """
        others, column = [name for name in table.column_names if name not in (self.by, "row")], self.column
        available = f"columns: {', '.join(others)}"
        if self.by not in table.column_names:
            raise ConfigError(f"no column {self.by!r}", where=str(self.path), remedy=f"use --by; {available}")
        if column is None:
            column = contract.target if contract.target in others else others[0] if len(others) == 1 else None
        if column not in others:
            what = f"no column {column!r}" if column else f"no column {contract.target!r} with the labels"
            raise ConfigError(what, where=str(self.path), remedy=f"use --column; {available}")
        target = contract.target_column.model_copy(update={"name": column})
        return contract.model_copy(update={"target": column, "columns": (target,)})

    def refusal(self, what: str, lines: Sequence[str], remedy: str) -> DataError:
        return DataError(what, where=str(self.path), remedy=remedy, details=tuple(shorten_lines(lines, MAX_DETAILS)))


class AddedLabels(NamedTuple):
    """The result of adding a file; a duplicated row counts once, except in ``rows``.

    Attributes:
        rows: number of rows in the file.
        added: number of new labels.
        known: number of labels that were known with the same value.
        replaced: number of labels that were known with another value.
        waiting: number of all these labels whose prediction is not in the log yet.
    """

    rows: int
    added: int
    known: int
    replaced: int
    waiting: int


class _FileLabel(NamedTuple):
    label: str
    line: int
    log_keys: list[str]  # the key in the log: unmodified, or hashed with every hash key


def add_labels(
    log: LoggedModel, contract: Contract, file: LabelFile, now: dt.datetime, *, replace: bool = False
) -> AddedLabels:
    """Adds the labels of a file: all of them, or none.

    Args:
        log: the model's log.
        contract: the model's contract; defines valid labels.
        file: the file.
        now: recorded with the labels; in UTC.
        replace: allow labels to replace earlier ones with another value.

    Raises:
        ConfigError: the file or the log does not have a column.
        DataError: the file cannot be read, or has labels that are invalid, contradict each other, or contradict earlier
            labels without ``replace``. The error lists rows.
        TransientError: the store cannot be written.
    """
    field = _key_field(log.fields, file.by)
    table = formats.read_file(file.path, file.separator)
    hash_keys = HashKeys(log.predictions / HASH_KEYS)
    with files.disk(log.predictions):
        if field.policy == "hash":
            hash_keys.month_key(f"{now:%Y-%m}")  # creates the key of this month, so that later predictions match
        labels = _read_labels(table, file.target_contract(table, contract), field, hash_keys, file)
    store = LabelStore(log.labels)
    names = [name for label in labels.values() for name in label.log_keys]
    with store.lock():
        known = store.known(file.by, names)
        before = {
            (key, row): next((known[name, row] for name in label.log_keys if (name, row) in known), None)
            for (key, row), label in labels.items()
        }
        new = [key for key in labels if before[key] is None]
        changed = [key for key, label in labels.items() if before[key] not in (None, label.label)]
        logged = _find_logged_keys(log.predictions, field, names)
        if file.by == REQUEST and "row" not in table.column_names:
            _refuse_ambiguous_requests(labels, logged, file)
        waiting = sum(not any((name, row) in logged for name in label.log_keys) for (_, row), label in labels.items())
        record = {
            "at": now,
            "file": file.path.name,
            "sha256": files.sha256(file.path),
            "by": file.by,
            "rows": len(table),
        }
        if changed and not replace:
            store.add_history({**record, "refused": len(changed)})
            lines = [f"row {labels[key].line + 1}: {labels[key].label!r}, known as {before[key]!r}" for key in changed]
            what = f"{len(changed)} labels contradict earlier ones"
            raise file.refusal(what, lines, "correct them, or add --replace")
        if updated := [*new, *changed]:
            store.append([(file.by, labels[key].log_keys, key[1], labels[key].label, now) for key in updated])
            store.add_history({**record, "added": len(new), "replaced": len(changed), "waiting": waiting})
    return AddedLabels(len(table), len(new), len(labels) - len(updated), len(changed), waiting)


def read(
    log: LoggedModel,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Sequence[str] | None = None,
    known: dt.datetime | None = None,
) -> pa.Table:
    """Predictions with their labels.

    Args:
        log: the model's log.
        start: earliest time of the predictions, as in ``parquet_store.read_predictions``.
        end: latest time, not included.
        columns: columns of the predictions; default: all.
        known: time until which labels were added; of a label that was replaced later, the earlier value counts.

    Returns:
        The table of ``parquet_store.read_predictions`` with ``label`` (of the prediction's type, or text if one is of
        an unknown class; null without a label) and ``labelled_at`` (timestamp[us, UTC]). A label by request id takes
        precedence.

    Raises:
        DataError, TransientError: as ``parquet_store.read_predictions``.
    """
    stored = LabelStore(log.labels).table()
    if known is not None:
        stored = stored.filter(pc.less_equal(stored["added"], pa.scalar(to_utc(known), TIME)))
    labels = stored.to_pandas().explode("keys")
    key_columns = [by for by in labels["by"].unique() if by != REQUEST]
    needed = (
        None
        if columns is None
        else [*columns, REQUEST, "row", "prediction", *(INPUT_PREFIX + by for by in key_columns)]
    )
    table = parquet_store.read_predictions(log.predictions, start, end, needed)
    by_request = labels[labels["by"] == REQUEST].drop_duplicates(["keys", "row"], keep="last")
    requests = table.select([REQUEST, "row"]).to_pandas()
    joined = requests.merge(by_request, how="left", left_on=[REQUEST, "row"], right_on=["keys", "row"])
    joined = joined[["label", "added"]]
    for by in key_columns:
        if INPUT_PREFIX + by in table.column_names:
            by_key = labels[labels["by"] == by].drop_duplicates("keys", keep="last").set_index("keys")
            texts = pd.Series(_to_texts(table[INPUT_PREFIX + by], _value_reader(log.fields, by)), dtype=object)
            for name in ("label", "added"):
                joined[name] = joined[name].where(joined[name].notna(), texts.map(by_key[name]))
    selected = table if columns is None else table.select([name for name in table.column_names if name in columns])
    label = _parse_labels(joined["label"], table.schema.field("prediction").type)
    return selected.append_column("label", label).append_column("labelled_at", pa.array(joined["added"], TIME))


def erase(log: LoggedModel, column: str, value: str, predictions: pa.Table | None = None) -> int:
    """Removes the labels of a key, and those of predictions that will be erased; returns their number.

    Args:
        log: the model's log.
        column: column of the key, or ``request_id``.
        value: its value, as in a request.
        predictions: the predictions that have it.

    Raises:
        TransientError: the store cannot be written.
    """
    text = _value_reader(log.fields, column).spell(value)
    hashes = HashKeys(log.predictions / HASH_KEYS).hashes(column, text) if text else []
    keys = {(column, name) for name in [text, *hashes]}
    request_rows = set()
    if predictions is not None:
        request_rows = set(zip(predictions[REQUEST].to_pylist(), predictions["row"].to_pylist(), strict=True))
        for name in (name for name in predictions.column_names if name.startswith(INPUT_PREFIX)):
            by = name.removeprefix(INPUT_PREFIX)
            texts = _to_texts(predictions[name], _value_reader(log.fields, by))
            keys |= {(by, key) for key in texts if key is not None}

    def matches(label: Mapping[str, Any]) -> bool:
        if label["by"] == REQUEST and any((key, label["row"]) in request_rows for key in label["keys"]):
            return True
        return any((label["by"], key) in keys for key in label["keys"])

    return LabelStore(log.labels).remove(matches)


def purge(folder: Path, before: dt.date) -> int:
    """Removes the labels that were added before a day (UTC); returns their number.

    Raises:
        TransientError: the store cannot be written.
    """
    return LabelStore(folder).remove(lambda label: label["added"].date() < before)


def _key_field(fields: Sequence[LoggedColumn], by: str) -> LoggedColumn:
    """The logged column that labels are joined by."""
    if by == REQUEST:
        return LoggedColumn(REQUEST, "category", "keep", "string")
    usable = [field for field in fields if field.policy in ("keep", "hash")]
    for field in usable:
        if field.name == by:
            return field
    available = ", ".join([REQUEST, *(field.name for field in usable)])
    raise ConfigError(f"predictions are not logged with {by!r}", where="--by", remedy=f"use one of: {available}")


def _value_reader(fields: Iterable[LoggedColumn], by: str) -> ValueReader:
    readers = (field.reader for field in fields if field.name == by and field.policy == "keep")
    return next(readers, ValueReader("category"))


def _read_labels(
    table: pa.Table, contract: Contract, by: LoggedColumn, hash_keys: HashKeys, file: LabelFile
) -> dict[_Key, _FileLabel]:
    """The labels of the file by their key."""
    frame = table.to_pandas()
    labels = _canonical_labels(frame, contract, file)
    texts = [by.reader.spell(value) for value in table[by.name].to_pylist()]
    has_rows = by.name == REQUEST and "row" in table.column_names
    rows = [parse_number(value) for value in frame["row"]] if has_rows else [0.0] * len(texts)
    invalid = {
        by.name: [line for line, text in enumerate(texts) if text is None],
        "row": [line for line, row in enumerate(rows) if not (row.is_integer() and 0 <= row <= MAX_ROW)],
        contract.target: [line for line, label in enumerate(labels) if label in ("inf", "-inf")],
    }
    for column, lines in invalid.items():
        if lines:
            what = f"column {column!r}: {len(lines)} of {len(texts)} values are invalid"
            examples = list_examples(frame[column].tolist(), lines)
            raise file.refusal(what, [examples], "correct or remove these rows")
    by_key: dict[_Key, _FileLabel] = {}
    contradictions = []
    for line, (text, row, label) in enumerate(zip(texts, rows, labels, strict=True)):
        key = str(text), int(row) if by.name == REQUEST else None
        if key not in by_key:
            log_keys = hash_keys.hashes(by.name, key[0]) if by.policy == "hash" else [key[0]]
            by_key[key] = _FileLabel(label, line, log_keys)
        elif by_key[key].label != label:
            first = by_key[key]
            contradictions.append(f"rows {first.line + 1} and {line + 1}: {first.label!r} and {label!r}")
    if contradictions:
        what = f"{len(contradictions)} labels contradict each other"
        raise file.refusal(what, contradictions, "keep one of each")
    return by_key


def _canonical_labels(frame: pd.DataFrame, contract: Contract, file: LabelFile) -> list[str]:
    """Each label as it is stored. Classes that the model does not know are valid labels; they are counted later."""
    if contract.task == "regression" or contract.target_column.kind == "boolean":
        try:
            values = contract.labels(frame).tolist()
        except DataError as error:
            raise DataError(error.what, where=str(file.path), remedy=error.remedy, details=error.details) from None
        return [repr(value) if contract.task == "regression" else str(category_name(value)) for value in values]
    names = contract.class_names(frame[contract.target])
    if len(missing := np.flatnonzero(pd.isna(names))):
        what = f"column {contract.target!r}: {len(missing)} of {len(names)} values are null"
        examples = list_examples(frame[contract.target].tolist(), missing)
        raise file.refusal(what, [examples], "correct or remove these rows")
    return [str(name) for name in names]


def _find_logged_keys(folder: Path, by: LoggedColumn, names: Sequence[str]) -> set[_Key]:
    """The keys that are in the log; request ids with each of their rows."""
    if not folder.is_dir():
        return set()
    column = REQUEST if by.name == REQUEST else INPUT_PREFIX + by.name
    searched, logged = pa.array(names, pa.string()), set[_Key]()
    with parquet_store.lock_store(folder):
        for _, table in parquet_store.iter_tables(folder, columns=[column, "row"]):
            if column not in table.column_names:
                continue
            texts = pa.array(_to_texts(table[column], by.reader), pa.string())
            matching = pc.is_in(texts, searched, skip_nulls=True)
            rows = table["row"].filter(matching).to_pylist() if by.name == REQUEST else None
            keys = texts.filter(matching).to_pylist()
            logged |= set(zip(keys, rows or [None] * len(keys), strict=True))
    return logged


def _to_texts(column: pa.ChunkedArray, reader: ValueReader) -> list[str | None]:
    values = column.to_pylist()
    return values if pa.types.is_string(column.type) else [reader.spell(value) for value in values]


def _parse_labels(labels: "pd.Series[Any]", kind: pa.DataType) -> pa.Array:
    """Labels in the type of the predictions; as text if one of them is of a class with another type."""
    if pa.types.is_floating(kind):
        parse: Callable[[str], Any] = float
    elif pa.types.is_integer(kind):
        parse = int
    else:
        parse = (lambda text: parse_boolean(text) == 1.0) if pa.types.is_boolean(kind) else str
    texts = [label if isinstance(label, str) else None for label in labels]
    try:
        return pa.array([None if text is None else parse(text) for text in texts], kind)
    except (ValueError, pa.ArrowException):
        return pa.array(texts, pa.string())


def _refuse_ambiguous_requests(labels: Mapping[_Key, _FileLabel], logged: set[_Key], file: LabelFile) -> None:
    several = {key for key, row in logged if row}
    lines = [f"row {label.line + 1}: request {key!r}" for (key, _), label in labels.items() if key in several]
    if lines:
        what = f"{len(lines)} requests have more than one row"
        raise file.refusal(what, lines, "add a column 'row' that counts the rows of a request from 0")
