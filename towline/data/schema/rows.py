"""Rows as a program or a request gives them, in the canonical form that ``Contract.features`` gives a table."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from towline.config import Kind
from towline.data.schema.contract import Column, Contract
from towline.data.schema.pseudonyms import pseudonymize_value
from towline.data.schema.values import LARGEST
from towline.errors import Fault, InputValidationError

Row = list[Any]
InputAnomaly = tuple[str, str]
_LISTED = 20
_KINDS: Mapping[Kind, str] = {
    "numeric": "is not a number", "boolean": "is neither true nor false", "category": "is not a text, number or flag",
    "datetime": "is not an ISO 8601 time",
}  # fmt: skip


class _Field(NamedTuple):
    """What a row's value is tested against, to be taken as it is; else ``slow`` reads it.

    ``low`` and ``high`` are of numbers; ``levels`` are the categories that need no reading.
    """

    name: str
    kind: Kind
    low: float
    high: float
    levels: Container[str]
    slow: "_ValueChecker"


class _ValueChecker:
    """Reads any value of one column."""

    def __init__(self, column: Column) -> None:
        self.name, self.kind, self.reader = column.name, column.kind, column.reader
        self.low = -LARGEST if column.min is None else column.min
        self.high = LARGEST if column.max is None else column.max
        self.known = None if column.categories is None else frozenset(column.categories)
        self.null = self.reader.read(None)

    def read(self, value: Any, position: int, faults: list[Fault], odd: list[InputAnomaly]) -> Any:
        """The canonical value; appends what is wrong or odd about it."""
        read = self.reader.read(value)
        if read is None or read != read:  # noqa: PLR0124 - NaN
            if self.reader.is_null(value):
                odd.append((self.name, "null"))
            elif self.reader.format.coerce and isinstance(value, str):
                odd.append((self.name, "unreadable"))
            else:
                faults.append(Fault(position, self.name, self._expected()))
        elif isinstance(read, float) and abs(read) > LARGEST:
            faults.append(Fault(position, self.name, "is too large"))
        elif self.kind == "category":
            if self.known is not None and read not in self.known:
                odd.append((self.name, "unseen"))
        elif self.kind != "datetime" and not self.low <= read <= self.high:
            odd.append((self.name, "out_of_range"))
        return read

    def _expected(self) -> str:
        date_format = self.reader.format.date_format
        if self.kind == "datetime" and date_format:
            return f"is neither written as {date_format} nor an ISO 8601 time"
        return _KINDS[self.kind]


class _AnyText:
    """Every text that is not blank."""

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(text) and not text.isspace()


def _field(column: Column) -> _Field:
    slow, plain = _ValueChecker(column), not column.format.na_values
    low, high = (slow.low, slow.high) if plain else (math.inf, -math.inf)
    levels: Container[str] = slow.known or ()
    if column.kind == "category" and slow.known is None and plain and column.format.spelling == "text":
        levels = _AnyText()
    return _Field(column.name, column.kind, low, high, levels, slow)


class RowReader:
    """Reads rows against a contract; made once for a model.

    Canonical values are float (NaN for null) for numeric and boolean, str or None for category, naive UTC datetime or
    None for datetime.
    """

    def __init__(self, contract: Contract) -> None:
        self._fields = tuple(_field(column) for column in contract.feature_columns)
        self.fields = tuple(field.name for field in self._fields)
        self._salt = contract.salt
        self._private = [(at, column) for at, column in enumerate(contract.feature_columns) if column.pii]

    def read(self, rows: Sequence[Mapping[str, Any]], odd: list[InputAnomaly] | None = None) -> list[Row]:
        """Canonical values of the features, in the contract's order; other fields of a row are left out.

        Args:
            rows: as they came.
            odd: is told each value that the training table had not: its column, and whether it is ``null``,
                ``out_of_range``, ``unseen`` or ``unreadable`` (null, for the column is declared numeric).

        Raises:
            InputValidationError: a field is missing or does not fit its kind, with each such field and row.
        """
        faults: list[Fault] = []
        odd = [] if odd is None else odd
        found = [self._row(row, position, faults, odd) for position, row in enumerate(rows)]
        if faults:
            raise InputValidationError(faults[:_LISTED], len(faults))
        for at, column in self._private:
            for row in found:
                row[at] = pseudonymize_value(column, self._salt, row[at])
        return found

    def columns(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Canonical rows as one array (n,) a column: float64, object or datetime64[us]."""
        values = zip(*rows, strict=True) if rows else ((),) * len(self._fields)
        return [_array(column, field.kind) for field, column in zip(self._fields, values, strict=True)]

    def _row(self, row: Mapping[str, Any], position: int, faults: list[Fault], odd: list[InputAnomaly]) -> Row:
        canonical: Row = []
        for name, kind, low, high, levels, slow in self._fields:
            try:
                value = row[name]
            except KeyError:
                faults.append(Fault(position, name, "is missing"))
                continue
            given = value.__class__
            if given is str:
                if kind == "category" and value in levels:
                    canonical.append(value)
                    continue
            elif (given is float or given is int) and kind == "numeric" and low <= value <= high:
                canonical.append(float(value))
                continue
            elif value is None:
                canonical.append(slow.null)
                odd.append((name, "null"))
                continue
            canonical.append(slow.read(value, position, faults, odd))
        return canonical


def _array(values: Sequence[Any], kind: Kind) -> np.ndarray:
    if kind == "datetime":
        return np.array(values, dtype="datetime64[us]")
    if kind != "category":
        return np.array(values, dtype=np.float64)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
