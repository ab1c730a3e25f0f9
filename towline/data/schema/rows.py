"""Reads rows of a request or a program into the canonical form in which ``Contract.features`` gives a table.

Values that the training table did not have (null, out of range, an unseen category) are *input anomalies*: they are
counted, not refused. Values that do not fit their column's kind are faults, and the rows are refused.
"""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from towline.config import Kind
from towline.data.schema.contract import Column, Contract
from towline.data.schema.pseudonyms import pseudonymize_value
from towline.data.schema.values import LARGEST, TEXT_KINDS
from towline.errors import Fault, InputValidationError

Row = list[Any]
InputAnomaly = tuple[str, str]
MAX_LISTED = 20  # faults of an error
_KINDS: Mapping[Kind, str] = {
    "numeric": "is not a number", "boolean": "is neither true nor false",
    "category": "is not a text, number or boolean", "text": "is not a text, number or boolean",
    "datetime": "is not an ISO 8601 time",
}  # fmt: skip


class _Field(NamedTuple):
    """The fast path for one column: a number within ``low`` and ``high``, or a text among ``levels``, is canonical.

    ``checker`` reads every other value.
    """

    name: str
    kind: Kind
    low: float
    high: float
    levels: Container[str]
    checker: "_ValueChecker"


class _ValueChecker:
    """Reads any value of one column and reports faults and anomalies."""

    def __init__(self, column: Column) -> None:
        self.name, self.kind, self.reader = column.name, column.kind, column.reader
        self.low = -LARGEST if column.min is None else column.min
        self.high = LARGEST if column.max is None else column.max
        self.known = None if column.categories is None else frozenset(column.categories)
        self.null = self.reader.read(None)

    def read(self, value: Any, position: int, faults: list[Fault], anomalies: list[InputAnomaly]) -> Any:
        """The canonical value; appends its fault or anomaly."""
        read = self.reader.read(value)
        if read is None or read != read:  # noqa: PLR0124 - NaN
            if self.reader.is_null(value):
                anomalies.append((self.name, "null"))
            elif self.reader.format.coerce and isinstance(value, str):
                anomalies.append((self.name, "unreadable"))
            else:
                faults.append(Fault(position, self.name, self._expected()))
        elif isinstance(read, float) and abs(read) > LARGEST:
            faults.append(Fault(position, self.name, "is too large"))
        elif self.kind in TEXT_KINDS:
            if self.known is not None and read not in self.known:
                anomalies.append((self.name, "unseen"))
        elif self.kind != "datetime" and not self.low <= read <= self.high:
            anomalies.append((self.name, "out_of_range"))
        return read

    def _expected(self) -> str:
        date_format = self.reader.format.date_format
        if self.kind == "datetime" and date_format:
            return f"is neither written as {date_format} nor an ISO 8601 time"
        return _KINDS[self.kind]


class _AnyText:
    """Contains every text that is not blank."""

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(text) and not text.isspace()


def _field(column: Column) -> _Field:
    checker, plain = _ValueChecker(column), not column.format.na_values
    low, high = (checker.low, checker.high) if plain else (math.inf, -math.inf)
    levels: Container[str] = checker.known or ()
    if column.kind in TEXT_KINDS and checker.known is None and plain and column.format.spelling == "text":
        levels = _AnyText()
    return _Field(column.name, column.kind, low, high, levels, checker)


class RowReader:
    """Reads rows against a contract; create one for each model. ``fields`` are the columns that a row must have.

    Args:
        contract: of the rows.
        used: positions of the canonical columns that predictions depend on; other derived features are not computed
            and null. None: all.
        deferred: positions of features that ``columns`` computes and ``read`` leaves null.

    Canonical values are float (NaN for null) for numeric and boolean, str or None for category and text, naive UTC
    datetime or None for datetime.
    """

    def __init__(self, contract: Contract, used: Container[int] | None = None, deferred: Container[int] = ()) -> None:
        self._fields = tuple(_field(column) for column in contract.input_columns)
        self.fields = tuple(field.name for field in self._fields)
        derived = dict(enumerate(contract.derived_features, len(self._fields)))
        computed = [column for place, column in derived.items() if used is None or place in used]
        names = {name for column in computed for name in (column.name, *column.joined)}
        self._joins = [join.fill for join in contract.compile_joins(names)]
        features = contract.compile_features()
        evaluated = [
            (place, features[column.name].evaluate)
            for place, column in derived.items()
            if column.name in names and not column.lookup
        ]
        self._features = [feature for feature in evaluated if feature[0] not in deferred]
        self._deferred = [feature for feature in evaluated if feature[0] in deferred]
        self._underived = [math.nan if c.kind in ("numeric", "boolean") else None for c in contract.derived_features]
        self._salt = contract.salt
        self._columns = contract.canonical_columns
        columns = enumerate(self._columns)
        self._pii = [(index, column.name, column.kind) for index, column in columns if column.pii]

    def read(self, rows: Sequence[Mapping[str, Any]], anomalies: list[InputAnomaly] | None = None) -> list[Row]:
        """Canonical values in the order of ``Contract.canonical_columns``; other fields of a row are ignored.

        Args:
            rows: of a request or a program.
            anomalies: a list to which anomalies are appended: the column, and ``null``, ``out_of_range``, ``unseen`` or
                ``unreadable`` (text in a column that is declared numeric, read as null).

        Raises:
            InputValidationError: fields are missing or do not fit their kind; names each of them.
        """
        faults: list[Fault] = []
        anomalies = [] if anomalies is None else anomalies
        canonical = [self._row(row, position, faults, anomalies) for position, row in enumerate(rows)]
        if faults:
            raise InputValidationError(faults[:MAX_LISTED], len(faults))
        if self._underived:
            for row in canonical:
                row.extend(self._underived)
                for fill in self._joins:
                    fill(row)
                for place, evaluate in self._features:
                    row[place] = evaluate(row)
        for index, name, kind in self._pii:
            for row in canonical:
                row[index] = pseudonymize_value(row[index], name, kind, self._salt)
        return canonical

    def columns(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Canonical rows as one array (n,) for each column: float64, object or datetime64[us]."""
        for row in rows:
            for place, evaluate in self._deferred:
                row[place] = evaluate(row)
        values = zip(*rows, strict=True) if rows else ((),) * len(self._columns)
        return [_array(array, column.kind) for column, array in zip(self._columns, values, strict=True)]

    def _row(self, row: Mapping[str, Any], position: int, faults: list[Fault], anomalies: list[InputAnomaly]) -> Row:
        canonical: Row = []
        for name, kind, low, high, levels, checker in self._fields:
            try:
                value = row[name]
            except KeyError:
                faults.append(Fault(position, name, "is missing"))
                continue
            type_ = value.__class__
            if type_ is str:
                if kind in TEXT_KINDS and value in levels:
                    canonical.append(value)
                    continue
            elif (type_ is float or type_ is int) and kind == "numeric" and low <= value <= high:
                canonical.append(float(value))
                continue
            elif value is None:
                canonical.append(checker.null)
                anomalies.append((name, "null"))
                continue
            canonical.append(checker.read(value, position, faults, anomalies))
        return canonical


def _array(values: Sequence[Any], kind: Kind) -> np.ndarray:
    if kind == "datetime":
        return np.array(values, dtype="datetime64[us]")
    if kind not in TEXT_KINDS:
        return np.array(values, dtype=np.float64)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
