"""Rows as a program or a request gives them, in the canonical form that ``Contract.features`` gives a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from towline.config import Kind
from towline.data.contract import Contract
from towline.data.values import LARGEST, blank, instant, level, number
from towline.errors import Fault, InputRefused

Row = list[Any]
_LISTED = 20
_KINDS: Mapping[Kind, str] = {
    "numeric": "is not a number", "boolean": "is neither true nor false", "category": "is not a text, number or flag",
    "datetime": "is not an ISO 8601 time",
}  # fmt: skip


class _Field(NamedTuple):
    name: str
    kind: Kind
    low: float
    high: float
    known: frozenset[str] | None


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
                -math.inf if column.min is None else column.min,
                math.inf if column.max is None else column.max,
                None if column.categories is None else frozenset(column.categories),
            )
            for column in contract.feature_columns
        )
        self.fields = tuple(field.name for field in self._fields)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Canonical values of the features, in the contract's order; other fields of a row are left out.

        Raises:
            InputRefused: a field is missing or does not fit its kind, with each such field and row.
        """
        faults: list[Fault] = []
        found = [self._row(row, position, faults) for position, row in enumerate(rows)]
        if faults:
            raise InputRefused(faults[:_LISTED], len(faults))
        return found

    def oddities(self, row: Row) -> list[tuple[str, str]]:
        """Which columns of a canonical row are ``null``, ``out_of_range`` or ``unseen``, against the training table."""
        odd = []
        for field, value in zip(self._fields, row, strict=True):
            if value is None or value != value:  # noqa: PLR0124 - NaN
                odd.append((field.name, "null"))
            elif field.kind == "category":
                if field.known is not None and value not in field.known:
                    odd.append((field.name, "unseen"))
            elif field.kind != "datetime" and not field.low <= value <= field.high:
                odd.append((field.name, "out_of_range"))
        return odd

    def columns(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Canonical rows as one array (n,) a column: float64, object or datetime64[us]."""
        values = zip(*rows, strict=True) if rows else ((),) * len(self._fields)
        return [_array(column, field.kind) for field, column in zip(self._fields, values, strict=True)]

    def _row(self, row: Mapping[str, Any], position: int, faults: list[Fault]) -> Row:
        found: Row = []
        for name, kind, *_ in self._fields:
            try:
                value = row[name]
            except KeyError:
                faults.append(Fault(position, name, "is missing"))
                continue
            seen = value.__class__
            if (seen is float and kind == "numeric" and not abs(value) > LARGEST) or (
                seen is str and kind == "category" and value
            ):
                found.append(value)
            else:
                found.append(_canonical(value, kind, position, name, faults))
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
