"""Rows as a program or a request gives them, in the canonical form that ``Contract.features`` gives a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from towline.config import Kind
from towline.data.contract import Contract
from towline.data.pseudonyms import disguised
from towline.data.values import LARGEST, blank, instant, level, number
from towline.errors import Fault, InputRefused

Row = list[Any]
Odd = tuple[str, str]
_LISTED = 20
_KINDS: Mapping[Kind, str] = {
    "numeric": "is not a number", "boolean": "is neither true nor false", "category": "is not a text, number or flag",
    "datetime": "is not an ISO 8601 time",
}  # fmt: skip


class _Field(NamedTuple):
    """``known``: the categories of the training table; None where any text is one."""

    name: str
    kind: Kind
    low: float
    high: float
    known: frozenset[str] | None

    def oddity(self, value: Any) -> str | None:
        """What is odd about a canonical value against the training table."""
        if value is None or value != value:  # noqa: PLR0124 - NaN
            return "null"
        if self.kind == "category":
            return "unseen" if self.known is not None and value not in self.known else None
        return None if self.kind == "datetime" or self.low <= value <= self.high else "out_of_range"


class Reader:
    """Reads rows against a contract; made once for a model.

    Canonical values are float (NaN for null) for numeric and boolean, str or None for category, naive UTC datetime or
    None for datetime.
    """

    def __init__(self, contract: Contract) -> None:
        self._fields = tuple(
            _Field(
                column.name,
                column.kind,
                -LARGEST if column.min is None else column.min,
                LARGEST if column.max is None else column.max,
                None if column.categories is None else frozenset(column.categories),
            )
            for column in contract.feature_columns
        )
        self.fields = tuple(field.name for field in self._fields)
        self._salt = contract.salt
        self._private = [(at, column) for at, column in enumerate(contract.feature_columns) if column.pii]

    def read(self, rows: Sequence[Mapping[str, Any]], odd: list[Odd] | None = None) -> list[Row]:
        """Canonical values of the features, in the contract's order; other fields of a row are left out.

        Args:
            rows: as they came.
            odd: is told each value that the training table had not: its column, and whether it is ``null``,
                ``out_of_range`` or ``unseen``.

        Raises:
            InputRefused: a field is missing or does not fit its kind, with each such field and row.
        """
        faults: list[Fault] = []
        odd = [] if odd is None else odd
        found = [self._row(row, position, faults, odd) for position, row in enumerate(rows)]
        if faults:
            raise InputRefused(faults[:_LISTED], len(faults))
        for at, column in self._private:
            for row in found:
                row[at] = disguised(column, self._salt, row[at])
        return found

    def columns(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Canonical rows as one array (n,) a column: float64, object or datetime64[us]."""
        values = zip(*rows, strict=True) if rows else ((),) * len(self._fields)
        return [_array(column, field.kind) for field, column in zip(self._fields, values, strict=True)]

    def _row(self, row: Mapping[str, Any], position: int, faults: list[Fault], odd: list[Odd]) -> Row:
        found: Row = []
        for field in self._fields:
            name, kind, low, high, known = field
            try:
                value = row[name]
            except KeyError:
                faults.append(Fault(position, name, "is missing"))
                continue
            seen = value.__class__
            if seen is str:
                if kind == "category" and value and (known is None or value in known):
                    found.append(value)
                    continue
            elif (seen is float or seen is int) and kind == "numeric" and low <= value <= high:
                found.append(float(value))
                continue
            read = _canonical(value, kind, position, name, faults)
            found.append(read)
            if (what := field.oddity(read)) is not None:
                odd.append((name, what))
        return found


def _canonical(value: Any, kind: Kind, position: int, name: str, faults: list[Fault]) -> Any:
    if value is None:
        return None if kind in ("category", "datetime") else math.nan
    read: Any
    if kind == "category":
        read = level(value)
        missed = read is None
    elif kind == "datetime":
        read = instant(value)
        missed = read is None
    else:
        read = number(value, kind == "boolean")
        missed = read != read or (kind == "boolean" and read not in (0.0, 1.0))  # noqa: PLR0124 - NaN
    if missed and not blank(value):
        faults.append(Fault(position, name, _KINDS[kind]))
    elif isinstance(read, float) and abs(read) > LARGEST:
        faults.append(Fault(position, name, "is too large"))
    return read


def _array(values: Sequence[Any], kind: Kind) -> np.ndarray:
    if kind == "datetime":
        return np.array(values, dtype="datetime64[us]")
    if kind != "category":
        return np.array(values, dtype=np.float64)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
