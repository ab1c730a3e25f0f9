"""What turned out to be true: labels that come after the predictions, and the two joined.

Labels are stored by the key they came with, a request's id or a column that the log keeps or hashes, and joined when
they are read: a label may come before its prediction is in the log.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from towline import files
from towline.data import formats
from towline.data.schema.columns import list_examples
from towline.data.schema.contract import Contract
from towline.data.schema.values import ValueReader, category_name, parse_boolean, parse_number
from towline.errors import ConfigError, DataError
from towline.prediction_log import parquet_store
from towline.prediction_log.label_store import REQUEST, TIME, LabelStore
from towline.prediction_log.parquet_store import INPUT
from towline.prediction_log.privacy import HASH_KEYS, Field, HashKeys

_LISTED = 5
_Place = tuple[str, int | None]  # a key and, by request, the row


class Log(NamedTuple):
    """A model's predictions and labels, each a folder, and the columns that are logged now."""

    predictions: Path
    labels: Path
    fields: Sequence[Field]


class Added(NamedTuple):
    """What a file of labels came to; a row that stands twice counts once, but in ``rows``.

    Attributes:
        rows: rows of the file.
        added: labels that were not known before.
        known: that were, with the same value.
        replaced: that were, with another value.
        waiting: of all of these, those whose prediction is not in the log yet.
    """

    rows: int
    added: int
    known: int
    replaced: int
    waiting: int


class _Given(NamedTuple):
    label: str
    line: int
    names: list[str]  # what the key is called in the log: itself, or its hash under every key


def add(
    log: Log,
    contract: Contract,
    file: Path,
    now: dt.datetime,
    *,
    by: str = REQUEST,
    column: str | None = None,
    separator: str = ",",
    replace: bool = False,
) -> Added:
    """Takes the labels of a file: all of them, or none.

    Args:
        log: where they belong.
        contract: says which labels there are.
        file: CSV, CSV.gz or Parquet.
        now: noted with the labels; in UTC.
        by: the file's column that says whose label it is: ``request_id``, or a column that the log keeps or hashes. By
            request, a column ``row`` counts the request's rows from 0; without it the label is of row 0.
        column: the file's column with the labels; default: the target's name, else the only other column.
        separator: of a CSV.
        replace: let a label take the place of another value that was given before.

    Raises:
        ConfigError: a column that the file or the log does not hold.
        DataError: the file cannot be read, or holds labels that are none, that contradict each other, or that
            contradict what is known and are not to replace it. Names rows.
        TransientError: the store cannot be written.
    """
    field = _field(log.fields, by)
    table = formats.read_file(file, separator)
    keys = HashKeys(log.predictions / HASH_KEYS)
    with files.disk(log.predictions):
        if field.kept == "hash":
            keys.of(f"{now:%Y-%m}")  # so that predictions of this month may still come
        given = _given(table, _named(table, contract, by, column, file), field, keys, file)
    store = LabelStore(log.labels)
    with store.held():
        known = store.known(by)
        before = {
            (key, row): next((known[name, row] for name in each.names if (name, row) in known), None)
            for (key, row), each in given.items()
        }
        new = [place for place in given if before[place] is None]
        other = [place for place, each in given.items() if before[place] not in (None, each.label)]
        seen = _seen(log.predictions, field, [name for each in given.values() for name in each.names])
        if by == REQUEST and "row" not in table.column_names:
            _refuse_ambiguous(given, seen, file)
        waiting = sum(not any((name, row) in seen for name in each.names) for (_, row), each in given.items())
        facts = {"at": now, "file": file.name, "sha256": files.sha256(file), "by": by, "rows": len(table)}
        if other and not replace:
            store.note({**facts, "refused": len(other)})
            lines = [f"row {given[p].line + 1}: {before[p]!r} is known, {given[p].label!r} is given" for p in other]
            raise _refusal(
                f"{len(other)} labels contradict earlier ones", file, lines, "correct them, or add --replace"
            )
        if changed := [*new, *other]:
            store.append([(by, given[place].names, place[1], given[place].label, now) for place in changed])
            store.note({**facts, "added": len(new), "replaced": len(other), "waiting": waiting})
    return Added(len(table), len(new), len(given) - len(changed), len(other), waiting)


def read(
    log: Log,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Predictions with what turned out to be true of them.

    Args:
        log: where they are.
        start: of the predictions' time, as in ``parts.read``.
        end: the same.
        columns: only these of the predictions.

    Returns:
        The table of ``parts.read`` with ``label`` (of the prediction's type, or text where one is of a class that the
        model does not know; null where there is no label) and ``labelled_at`` (timestamp[us, UTC]). A label by request
        goes before one by another column.

    Raises:
        DataError, TransientError: as ``parts.read``.
    """
    labels = LabelStore(log.labels).table().to_pandas().explode("keys")
    others = [by for by in labels["by"].unique() if by != REQUEST]
    needed = None if columns is None else [*columns, REQUEST, "row", "prediction", *(INPUT + by for by in others)]
    table = parquet_store.read(log.predictions, start, end, needed)
    places = table.select([REQUEST, "row"]).to_pandas()
    mine = labels[labels["by"] == REQUEST].drop_duplicates(["keys", "row"], keep="last")
    found = places.merge(mine, how="left", left_on=[REQUEST, "row"], right_on=["keys", "row"])[["label", "added"]]
    for by in others:
        if INPUT + by in table.column_names:
            mine = labels[labels["by"] == by].drop_duplicates("keys", keep="last").set_index("keys")
            texts = pd.Series(_texts(table[INPUT + by], _reader(log.fields, by)), dtype=object)
            for name in ("label", "added"):
                found[name] = found[name].where(found[name].notna(), texts.map(mine[name]))
    kept = table if columns is None else table.select([name for name in table.column_names if name in columns])
    label = _labels(found["label"], table.schema.field("prediction").type)
    return kept.append_column("label", label).append_column("labelled_at", pa.array(found["added"], TIME))


def erase(log: Log, column: str, value: str, found: pa.Table | None = None) -> int:
    """Forgets the labels of a key, and those of predictions that are about to be erased; returns how many.

    Args:
        log: where they are.
        column: the column by which is erased, or ``request_id``.
        value: its value, as a request would give it.
        found: the predictions that hold it.

    Raises:
        TransientError: the store cannot be written.
    """
    text = _reader(log.fields, column).spell(value)
    hashes = HashKeys(log.predictions / HASH_KEYS).hashes(column, text) if text else []
    gone = {(column, name) for name in [text, *hashes]}
    rows = set()
    if found is not None:
        rows = set(zip(found[REQUEST].to_pylist(), found["row"].to_pylist(), strict=True))
        for name in (name for name in found.column_names if name.startswith(INPUT)):
            by = name.removeprefix(INPUT)
            gone |= {(by, each) for each in _texts(found[name], _reader(log.fields, by)) if each is not None}

    def concerned(label: Mapping[str, Any]) -> bool:
        if label["by"] == REQUEST and any((key, label["row"]) in rows for key in label["keys"]):
            return True
        return any((label["by"], key) in gone for key in label["keys"])

    return LabelStore(log.labels).remove(concerned)


def purge(folder: Path, before: dt.date) -> int:
    """Removes the labels that were added before a day (UTC); returns how many.

    Raises:
        TransientError: the store cannot be written.
    """
    return LabelStore(folder).remove(lambda label: label["added"].date() < before)


def _field(fields: Sequence[Field], by: str) -> Field:
    """The logged column that labels are joined by."""
    if by == REQUEST:
        return Field(REQUEST, "category", "keep", "string")
    for field in fields:
        if field.name == by and field.kept in ("keep", "hash"):
            return field
    known = [field.name for field in fields if field.kept in ("keep", "hash")]
    raise ConfigError(
        f"predictions are not logged with {by!r}", where="--by", remedy=f"there are: {', '.join([REQUEST, *known])}"
    )


def _reader(fields: Iterable[Field], by: str) -> ValueReader:
    readers = (field.reader for field in fields if field.name == by and field.kept == "keep")
    return next(readers, ValueReader("category"))


def _named(table: pa.Table, contract: Contract, by: str, column: str | None, file: Path) -> Contract:
    """The contract with the target under the name that it has in the file."""
    others = [name for name in table.column_names if name not in (by, "row")]
    if by not in table.column_names:
        raise ConfigError(f"no column {by!r}", where=str(file), remedy=f"say --by; there are: {', '.join(others)}")
    if column is None:
        column = contract.target if contract.target in others else others[0] if len(others) == 1 else None
    if column not in others:
        what = f"no column {column!r}" if column else f"which column holds the labels? No {contract.target!r} is there"
        raise ConfigError(what, where=str(file), remedy=f"say --column; there are: {', '.join(others)}")
    target = contract.target_column.model_copy(update={"name": column})
    return contract.model_copy(update={"target": column, "columns": (target,)})


def _given(table: pa.Table, contract: Contract, by: Field, keys: HashKeys, file: Path) -> dict[_Place, _Given]:
    """The file's labels by their place."""
    frame = table.to_pandas()
    labels = _spelled(frame, contract, file)
    texts = [by.reader.spell(value) for value in table[by.name].to_pylist()]
    counted = by.name == REQUEST and "row" in table.column_names
    places = [parse_number(value) for value in frame["row"]] if counted else [0.0] * len(texts)
    bad = {
        by.name: [line for line, text in enumerate(texts) if text is None],
        "row": [line for line, place in enumerate(places) if not place.is_integer() or place < 0],
        contract.target: [line for line, label in enumerate(labels) if label in ("inf", "-inf")],
    }
    for column, lines in bad.items():
        if lines:
            what = f"column {column!r}: {len(lines)} of {len(texts)} values cannot be used"
            raise _refusal(
                what, file, [list_examples(frame[column].tolist(), lines)], "correct or leave out these rows"
            )
    given: dict[_Place, _Given] = {}
    twice = []
    for line, (text, place, label) in enumerate(zip(texts, places, labels, strict=True)):
        at = str(text), int(place) if by.name == REQUEST else None
        if at not in given:
            names = keys.hashes(by.name, at[0]) if by.kept == "hash" else [at[0]]
            given[at] = _Given(label, line, names)
        elif given[at].label != label:
            twice.append(f"rows {given[at].line + 1} and {line + 1}: {given[at].label!r} and {label!r}")
    if twice:
        raise _refusal(f"{len(twice)} labels contradict each other", file, twice, "leave one of each")
    return given


def _spelled(frame: pd.DataFrame, contract: Contract, file: Path) -> list[str]:
    """Each label as the store holds it. A class that the model does not know is a label, too: it is counted later."""
    if contract.task == "regression" or contract.target_column.kind == "boolean":
        try:
            values = contract.labels(frame).tolist()
        except DataError as error:
            raise DataError(error.what, where=str(file), remedy=error.remedy, details=error.details) from None
        return [repr(value) if contract.task == "regression" else str(category_name(value)) for value in values]
    names = contract.class_names(frame[contract.target])
    if len(missing := np.flatnonzero(pd.isna(names))):
        what = f"column {contract.target!r}: {len(missing)} of {len(names)} values are null"
        raise _refusal(
            what, file, [list_examples(frame[contract.target].tolist(), missing)], "correct or leave out these rows"
        )
    return [str(name) for name in names]


def _seen(folder: Path, by: Field, names: Sequence[str]) -> set[_Place]:
    """Which of the keys are in the log; by request, with each row of theirs."""
    if not folder.is_dir():
        return set()
    column = REQUEST if by.name == REQUEST else INPUT + by.name
    wanted, seen = pa.array(names, pa.string()), set[_Place]()
    with parquet_store.held(folder):
        for _, table in parquet_store.tables(folder, columns=[column, "row"]):
            if column not in table.column_names:
                continue
            texts = pa.array(_texts(table[column], by.reader), pa.string())
            found = pc.is_in(texts, wanted, skip_nulls=True)
            rows = table["row"].filter(found).to_pylist() if by.name == REQUEST else None
            texts = texts.filter(found).to_pylist()
            seen |= set(zip(texts, rows or [None] * len(texts), strict=True))
    return seen


def _texts(column: pa.ChunkedArray, reader: ValueReader) -> list[str | None]:
    values = column.to_pylist()
    return values if pa.types.is_string(column.type) else [reader.spell(value) for value in values]


def _labels(labels: "pd.Series[Any]", kind: pa.DataType) -> pa.Array:
    """Labels in the type of the predictions; as text where one of them is of a class that has another type."""
    if pa.types.is_floating(kind):
        read: Callable[[str], Any] = float
    elif pa.types.is_integer(kind):
        read = int
    else:
        read = (lambda text: parse_boolean(text) == 1.0) if pa.types.is_boolean(kind) else str
    texts = [label if isinstance(label, str) else None for label in labels]
    try:
        return pa.array([None if text is None else read(text) for text in texts], kind)
    except (ValueError, pa.ArrowException):
        return pa.array(texts, pa.string())


def _refuse_ambiguous(given: Mapping[_Place, _Given], seen: set[_Place], file: Path) -> None:
    several = {key for key, row in seen if row}
    lines = [f"row {each.line + 1}: request {key!r}" for (key, _), each in given.items() if key in several]
    if lines:
        what = f"{len(lines)} requests had more than one row"
        raise _refusal(what, file, lines, "say which row a label is of, in a column 'row' that counts from 0")


def _refusal(what: str, file: Path, lines: Sequence[str], remedy: str) -> DataError:
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return DataError(what, where=str(file), remedy=remedy, details=(*lines[:_LISTED], *more))
