"""Conversion of whole columns to canonical values; ``values`` defines the meaning of a single value."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Kind
from towline.data.schema import arrow_types, text_columns
from towline.data.schema.values import PLAIN, TEXT_KINDS, ValueFormat, ValueReader, seconds_of
from towline.formatting import shorten_list

MAX_EXAMPLES = 5


def list_examples(
    values: Iterable[Any], rows: Sequence[int] | np.ndarray, *, hidden: bool = False, total: int | None = None
) -> str:
    """Up to five examples such as ``row 3: 'n/a'``; row numbers are from 1, headers are not counted.

    Args:
        values: of all rows, or by row.
        rows: of the examples, from 0.
        hidden: whether only row numbers are shown.
        total: number of such rows; default: that of ``rows``.
    """
    by_position = values.iloc if isinstance(values, pd.Series) else values if isinstance(values, dict) else list(values)
    first, total = [int(row) for row in rows[:MAX_EXAMPLES]], len(rows) if total is None else total
    examples = [f"row {row + 1}" + ("" if hidden else f": {_format(by_position[row])[:60]}") for row in first]
    return shorten_list(examples, MAX_EXAMPLES, total=total)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """An Arrow table as a frame; whole numbers with nulls that float64 cannot represent become Python integers.

    UUIDs are text. Dates that Python cannot represent are null.
    """
    table = arrow_types.readable_rows(table)
    frame: pd.DataFrame = table.to_pandas()
    for index, column in enumerate(table.columns):
        if column.null_count and text_columns.is_inexact(column):
            frame.isetitem(index, np.array(column.to_pylist(), dtype=object))
    return frame


def convert_column(values: pd.Series, kind: Kind, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Canonical values (n,), and the positions of values that do not fit the kind.

    Numeric and boolean are float64 (NaN for null), category and text are object of str (NaN for null), datetime is
    datetime64[us].
    """
    if isinstance(values.dtype, pd.CategoricalDtype) or getattr(values.dtype, "na_value", None) is pd.NA:
        values = values.astype(object)
    if values.dtype.kind == "m":
        values = pd.Series(seconds_of(values.to_numpy()), index=values.index)
    read, bad = (
        _convert_typed(values, kind, fmt) if values.dtype.kind in "biufM" else _convert_objects(values, kind, fmt)
    )
    if fmt.coerce:
        bad = np.array([row for row in bad if not isinstance(values.iloc[row], str)], dtype=np.int64)
    return read, bad


def convert_numbers(values: pd.Series, fmt: ValueFormat = PLAIN) -> np.ndarray:
    """(n,) the values of a numeric column as float64, NaN for null and for what is not a number."""
    return np.asarray(convert_column(values, "numeric", fmt)[0], dtype=np.float64)


def _convert_typed(values: pd.Series, kind: Kind, fmt: ValueFormat) -> tuple[np.ndarray, np.ndarray]:
    """Converts columns of numbers, booleans or times."""
    none = np.empty(0, dtype=np.int64)
    code = values.dtype.kind
    if kind == "datetime" and code == "M":
        times = values.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(values.dt, "tz", None) else values
        return times.to_numpy("datetime64[us]"), none
    if kind in TEXT_KINDS or (kind == "datetime" and code != "b") or fmt.na_values or code == "M":
        codes, distinct = pd.factorize(values)
        read, bad = _convert_objects(pd.Series(list(distinct), dtype=object), kind, fmt)
        read = np.concatenate([read, np.array([_null(kind)], dtype=read.dtype)])
        return read[codes], np.flatnonzero(np.isin(codes, bad))
    if kind == "datetime":
        return np.full(len(values), "NaT", dtype="datetime64[us]"), np.arange(len(values))
    floats = values.to_numpy(np.float64)
    infinite = np.isinf(floats)
    floats = np.where(infinite, np.nan, floats) if infinite.any() else floats
    return floats, np.flatnonzero(~np.isin(floats, (0.0, 1.0)) & ~np.isnan(floats)) if kind == "boolean" else none


def _convert_objects(values: pd.Series, kind: Kind, fmt: ValueFormat) -> tuple[np.ndarray, np.ndarray]:
    """Converts columns of text or of mixed values."""
    texts = _to_text(values)
    if texts is not None and kind in ("numeric", "datetime"):
        read, unread = (text_columns.parse_numbers if kind == "numeric" else text_columns.parse_times)(texts, fmt)
        return read, np.flatnonzero(unread)
    reader = ValueReader(kind, fmt)
    if texts is not None:
        codes, distinct = pd.factorize(values)
        inputs = [*distinct, None]
    else:  # not only distinct values: 1, 1.0 and True are equal in a hash table
        codes, inputs = np.arange(len(values)), values.tolist()
    dtype = "datetime64[us]" if kind == "datetime" else object if kind in TEXT_KINDS else np.float64
    read = np.empty(len(inputs), dtype=dtype)
    read[:] = [math.nan if value is None and kind in TEXT_KINDS else value for value in map(reader.read, inputs)]
    bad = np.array([reader.misfits(value) for value in inputs], dtype=bool)
    return read[codes], np.flatnonzero(bad[codes])


def _to_text(values: pd.Series) -> pa.ChunkedArray | None:
    """The column as Arrow text; None if it has other values."""
    if values.dtype == object and not (len(values) and pd.api.types.infer_dtype(values, skipna=True) == "string"):
        return None
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowException, UnicodeError):  # UnicodeError: half of a surrogate pair
        return None
    chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    return chunked.cast(pa.large_string()) if text_columns.is_text(chunked.type) else None


def _null(kind: Kind) -> Any:
    return np.datetime64("NaT", "us") if kind == "datetime" else math.nan


def _format(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return "null" if value is None or value is pd.NA or value != value else repr(value)  # noqa: PLR0124 - NaN, NaT
