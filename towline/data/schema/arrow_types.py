"""Arrow values that Python and CSV cannot represent: UUIDs, bytes, string views, times outside of years 1 to 9999."""

from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)
Values = TypeVar("Values", pa.Array, pa.ChunkedArray)


def is_binary(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in kinds)


def plain_texts(rows: Rows) -> Rows:
    """The rows of a Parquet file with UUIDs as text, as most tools write them, and with string views as strings."""
    for place, field in enumerate(rows.schema):
        column = rows.column(place)
        if isinstance(field.type, pa.UuidType):
            texts = [None if value is None else str(value) for value in column.to_pylist()]
            rows = rows.set_column(place, field.name, pa.array(texts, pa.string()))
        elif field.type == pa.string_view():
            rows = rows.set_column(place, field.name, column.cast(pa.string()))
    return rows


def readable_rows(rows: Rows) -> Rows:
    """The rows of a table with values that Python represents: UUIDs and string views are text, far times null."""
    rows = plain_texts(rows)
    for place, field in enumerate(rows.schema):
        column = rows.column(place)
        if (near := null_far_times(column)) is not column:
            rows = rows.set_column(place, field.name, near)
    return rows


def null_far_times(values: Values) -> Values:
    """The column; dates and times before the year 1 or after 9999 are null, as texts that are no time are."""
    kind = values.type
    is_time = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if not is_time or getattr(kind, "unit", "") == "ns":  # which ends in 2262
        return values
    unit = {pa.date32(): "D", pa.date64(): "ms"}.get(kind) or kind.unit
    first, last = (
        np.array(["0001-01-01", "9999-12-31T23:59:59.999999"], f"datetime64[{unit}]").astype(np.int64).tolist()
    )
    numbers = values.cast(pa.int32() if unit == "D" else pa.int64())  # a scalar of a time would import pandas
    bounds = pc.min_max(numbers)
    if bounds["min"].as_py() is None or (bounds["min"].as_py() >= first and bounds["max"].as_py() <= last):
        return values
    near = pc.and_(pc.greater_equal(numbers, first), pc.less_equal(numbers, last))
    return pc.if_else(near, values, pa.scalar(None, kind))
