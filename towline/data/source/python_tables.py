"""A table given in Python becomes a file below the store, which is the source of its dataset."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from towline.data.schema.values import category_name, is_blank
from towline.errors import DataError
from towline.files import replacing
from towline.store import StoreLayout

_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)  # of a conversion to Arrow
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def store_table(data: Any, layout: StoreLayout, project: Path) -> Path:
    """Writes a pandas, polars or Arrow table, named by the digest of its content, so that equal tables are one source.

    Returns:
        The path of the file; relative to the project if the store is in it.

    Raises:
        DataError: ``data`` is not a table, or a column cannot be stored.
    """
    if not hasattr(data, "__arrow_c_stream__"):
        raise DataError(
            f"a {type(data).__name__} is not a table", where="data", remedy="give a pandas, polars or Arrow table"
        )
    try:
        table = _frame_to_arrow(data) if isinstance(data, pd.DataFrame) else pa.table(data)
    except _ERRORS as error:
        raise _unreadable(f"the table cannot be read as an Arrow table: {_reason(error)}") from None
    if "__index_level_0__" in table.column_names:
        table = table.drop_columns(["__index_level_0__"])
    content = _to_parquet(table.replace_schema_metadata(None).combine_chunks())
    path = layout.table(hashlib.sha256(content.getbuffer()).hexdigest())
    if not path.exists():
        with replacing(path) as file:
            file.write(content.getbuffer())
    return path.relative_to(project) if path.is_relative_to(project) else path


def _frame_to_arrow(frame: pd.DataFrame) -> pa.Table:
    """The columns of a pandas table, without its index."""
    names = [_HALF_SURROGATE.sub("\ufffd", str(name)) for name in frame.columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        what = f"several columns have the same name: {twice!r}"
        raise DataError(what, where="data", remedy="rename or remove one")
    columns = [_column_to_arrow(frame.iloc[:, place], name) for place, name in enumerate(names)]
    return pa.table(columns, names)


def _column_to_arrow(column: pd.Series, name: str) -> pa.Array | pa.ChunkedArray:
    """One column; intervals, periods and mixed values are text, which is read as that of a CSV is."""
    kind = column.dtype
    levels = kind.categories.dtype if isinstance(kind, pd.CategoricalDtype) else kind
    if isinstance(levels, (pd.IntervalDtype, pd.PeriodDtype)):
        return pa.array([None if is_blank(value) else str(value) for value in column], pa.large_string())
    if isinstance(kind, pd.SparseDtype):
        column = pd.Series(np.asarray(column))
    try:
        return pa.array(column, from_pandas=True)
    except _ERRORS:
        return pa.array([_to_text(value, name) for value in column], pa.large_string())


def _to_text(value: Any, name: str) -> str | None:
    text = category_name(value)
    if text is None and not is_blank(value):
        raise _unreadable(f"column {name!r} has values of the type {type(value).__name__}")
    return text and _HALF_SURROGATE.sub("\ufffd", text)


def _to_parquet(table: pa.Table) -> io.BytesIO:
    content = io.BytesIO()
    try:
        pq.write_table(table, content, compression="zstd")
    except _ERRORS as error:
        for name in table.column_names if table.num_columns > 1 else ():
            _to_parquet(table.select([name]))  # the error names the column
        raise _unreadable(f"column {table.column_names[0]!r} cannot be stored: {_reason(error)}") from None
    return content


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0][:200]


def _unreadable(what: str) -> DataError:
    return DataError(what, where="data", remedy="convert the column to numbers, texts or dates, or remove it")
