"""The parts of a compiled expression: typed functions of one row and of columns, and the columns that they read.

In the function of one row, numbers are float with NaN for null, booleans are bool, and null of other types is None. In
that of columns, a value is an array and an array of nulls; values in null rows have no meaning.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from towline.expressions.operations import Type

Row = Sequence[Any]
RowFunction = Callable[[Row], Any]
Masked = tuple[np.ndarray, np.ndarray]  # values (n,), and whether they are null (n,)
LARGEST_FLOAT = 1.7976931348623157e308
DTYPES: Mapping[str, Any] = {"number": np.float64, "boolean": np.bool_, "text": object, "datetime": "datetime64[us]"}
EMPTY: Mapping[str, Any] = {"number": 0.0, "boolean": False, "text": "", "datetime": np.datetime64(0, "us")}
NULL: Mapping[Type | None, Any] = {"number": math.nan}  # in functions of one row; of other types None
_FIRST, _LAST = np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31T23:59:59.999999", "us")


class Compiled(NamedTuple):
    """A typed part of an expression.

    Attributes:
        type: of its value; None: it is always null.
        row: its function of one row.
        columns: its function of columns.
        is_constant: whether it is a literal.
        constant: its value then.
        place: of a column that is not boolean: its position in the row.
        build: of an operation: ``row`` with another limit of numbers and other values of booleans, which saves a call.
    """

    type: Type | None
    row: RowFunction
    columns: Callable[["Columns"], Masked]
    is_constant: bool = False
    constant: Any = None
    place: int | None = None
    build: Callable[..., RowFunction] | None = None


class Columns:
    """The canonical columns that expressions read; each is converted once."""

    def __init__(self, arrays: Sequence[np.ndarray], count: int) -> None:
        self.count, self.arrays = count, arrays
        self._read: dict[int, Masked] = {}

    def read(self, place: int, type_: Type) -> Masked:
        """A column as values and nulls."""
        if place not in self._read:
            self._read[place] = _to_masked(self.arrays[place], type_)
        return self._read[place]


def _to_masked(array: np.ndarray, type_: Type) -> Masked:
    """A canonical column as values and nulls."""
    if type_ == "text":
        null = np.array([value.__class__ is not str for value in array], dtype=bool)
        values = array.copy()
        values[null] = ""
        return values, null
    if type_ == "datetime":
        null = ~((array >= _FIRST) & (array <= _LAST))  # NaT too
        return np.where(null, EMPTY["datetime"], array), null
    null = np.isnan(array)
    return (array == 1.0 if type_ == "boolean" else array), null


def make_null(type_: Type | None) -> Compiled:
    """The constant null, of a type if it is used where one is needed."""
    single = np.empty(1, dtype=DTYPES[type_ or "number"])
    single[0] = EMPTY[type_ or "number"]

    def columns(columns: Columns) -> Masked:
        return np.broadcast_to(single, columns.count), np.broadcast_to(np.True_, columns.count)

    value = NULL.get(type_)
    return Compiled(type_, lambda _: value, columns, is_constant=True, constant=value)
