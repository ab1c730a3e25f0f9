"""A table given in Python becomes a file below the store, which is the source of its dataset."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from towline.errors import DataError
from towline.files import replacing
from towline.store import StoreLayout


def store_table(data: Any, layout: StoreLayout, project: Path) -> Path:
    """Writes a pandas, polars or Arrow table, named by the digest of its content, so that equal tables are one source.

    Returns:
        The path of the file; relative to the project if the store is in it.

    Raises:
        DataError: ``data`` is not a table.
    """
    if not hasattr(data, "__arrow_c_stream__"):
        raise DataError(
            f"a {type(data).__name__} is not a table", where="data", remedy="give a pandas, polars or Arrow table"
        )
    table = pa.table(data)
    if "__index_level_0__" in table.column_names:
        table = table.drop_columns(["__index_level_0__"])
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(None).combine_chunks(), content, compression="zstd")
    path = layout.table(hashlib.sha256(content.getbuffer()).hexdigest())
    if not path.exists():
        with replacing(path) as file:
            file.write(content.getbuffer())
    return path.relative_to(project) if path.is_relative_to(project) else path
