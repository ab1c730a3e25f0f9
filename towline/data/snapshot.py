"""A snapshot that is too large to be held: its columns are read one by one, its rows in batches.

``SnapshotColumns`` has the part of a pandas frame that the steps before training use: ``columns``, ``len`` and
``table[name]``. A step that needs one column after the other holds one column.
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

MAX_CELLS = 40_000_000  # rows × columns of a table that is held in memory
BATCH_ROWS = 131_072
_GROUP_ROWS = 2**19  # of a row group of a large snapshot
_COMPACT = 3  # bytes a value: a text column with fewer is read as a dictionary


class SnapshotColumns:
    """The columns of a snapshot; only the schema is in memory.

    Args:
        path: of the Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with pq.ParquetFile(path) as file:
            self._rows, self._schema, self._compact = file.metadata.num_rows, file.schema_arrow, _compact_texts(file)

    def __len__(self) -> int:
        return int(self._rows)

    @property
    def columns(self) -> list[str]:
        return list(self._schema.names)

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def __getitem__(self, name: str) -> pd.Series:
        """A column, with the dtype that it has in ``sources.read_snapshot``."""
        kind = self._schema.field(name).type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
            values, end = np.empty(self._rows, kind.to_pandas_dtype()), 0
            for batch in self.batches([name]):  # never the Arrow column and its copy together
                start, end = end, end + batch.num_rows
                if batch.column(0).null_count and values.dtype.kind == "i":
                    values = values.astype(np.float64)
                values[start:end] = batch.column(0).to_numpy(zero_copy_only=False)
            return pd.Series(values, name=name)
        with pq.ParquetFile(self.path) as file:
            column: pd.Series = snapshot_to_frame(file.read(columns=[name], use_threads=False))[name]
        return column

    def batches(self, names: Collection[str] | None = None, rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches; text with few distinct values is dictionary-encoded.

        Args:
            names: of the columns; None: all.
            rows: of a batch; None: ``BATCH_ROWS``.
        """
        compact = [name for name in self._compact if names is None or name in names]
        with pq.ParquetFile(self.path, read_dictionary=compact, pre_buffer=False) as file:
            columns = None if names is None else [name for name in self._schema.names if name in names]
            yield from file.iter_batches(rows or BATCH_ROWS, columns=columns)

    def take_batches(self, ordered: np.ndarray, names: Collection[str] | None = None) -> Iterator[pa.Table]:
        """The rows at positions (n,) that ascend, in several tables; the first one may have no rows."""
        start = done = 0
        for batch in self.batches(names):
            end = int(np.searchsorted(ordered, start + batch.num_rows))
            if end > done or not start:
                yield _plain(pa.Table.from_batches([batch.take(pa.array(ordered[done:end] - start))]))
            start, done = start + batch.num_rows, end
            if done == len(ordered):
                break

    def take(self, positions: np.ndarray, names: Collection[str] | None = None) -> pd.DataFrame:
        """The rows at these positions, in their order, with index 0…n-1.

        Args:
            positions: (n,) from 0.
            names: of the columns; None: all.
        """
        order = np.argsort(positions, kind="stable")
        frame = snapshot_to_frame(pa.concat_tables(self.take_batches(positions[order], names)))
        if not np.array_equal(order, np.arange(len(order))):
            places = np.empty(len(order), dtype=np.int64)
            places[order] = np.arange(len(order))
            frame = frame.take(places).reset_index(drop=True)
        return frame


class SnapshotWriter:
    """Collects the columns of a snapshot, one after the other, and writes the file.

    Args:
        folder: holds a file for each column until the snapshot is written; None: memory holds them.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._columns = folder, dict[str, pa.ChunkedArray | Path]()

    def add(self, name: str, column: pa.ChunkedArray) -> None:
        """Adds a column."""
        if self._folder is None:
            self._columns[name] = column
            return
        file = self._folder / f"column-{len(self._columns)}.parquet"
        pq.write_table(pa.table({"value": column}), file, compression="lz4", row_group_size=_GROUP_ROWS)
        self._columns[name] = file
        pa.default_memory_pool().release_unused()

    def write(self, file: IO[bytes]) -> None:
        """Writes the snapshot."""
        if self._folder is None:
            pq.write_table(pa.table(self._columns).combine_chunks(), file, compression="zstd")
            return
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(pq.ParquetFile(path, pre_buffer=False)) for path in self._columns.values()]
            types = [column.schema_arrow.field("value").type for column in files]
            schema = pa.schema(list(zip(self._columns, types, strict=True)))
            writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            for group in range(files[0].metadata.num_row_groups):
                parts = [column.read_row_group(group, use_threads=False)["value"] for column in files]
                writer.write_table(pa.Table.from_arrays(parts, schema=schema), row_group_size=_GROUP_ROWS)


Table = pd.DataFrame | SnapshotColumns


def take_rows(table: Table, positions: np.ndarray, names: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a table at these positions, with index 0…n-1."""
    if isinstance(table, SnapshotColumns):
        return table.take(positions, names)
    return (table if names is None else table[list(names)]).iloc[positions].reset_index(drop=True)


def iterate_rows(table: Table, positions: np.ndarray) -> Iterator[pd.DataFrame]:
    """The rows of a table at positions (n,) that ascend, in frames of at most ``BATCH_ROWS`` rows."""
    if isinstance(table, SnapshotColumns):
        yield from (snapshot_to_frame(rows) for rows in table.take_batches(positions) if rows.num_rows)
        return
    for start in range(0, len(positions), BATCH_ROWS):
        yield take_rows(table, positions[start : start + BATCH_ROWS])


def select_columns(table: Table, names: Sequence[str]) -> pd.DataFrame:
    """A frame of some columns of a table."""
    return pd.DataFrame({name: table[name] for name in names})


def snapshot_to_frame(table: pa.Table) -> pd.DataFrame:
    """The rows with dtypes int64, float64, bool (boolean with nulls), str and datetime64[us]."""
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and pa.types.is_boolean(column.type):
            frame[name] = frame[name].astype("boolean")
    return frame


def _plain(table: pa.Table) -> pa.Table:
    """The table without dictionaries; a dictionary would become a categorical."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table[field.name].cast(field.type.value_type))
    return table


def _compact_texts(file: pq.ParquetFile) -> list[str]:
    """The text columns that the file stores as dictionaries."""
    sizes = dict.fromkeys(file.schema_arrow.names, 0)
    for group in range(file.metadata.num_row_groups):
        metadata = file.metadata.row_group(group)
        for place, name in enumerate(file.schema_arrow.names):
            sizes[name] += metadata.column(place).total_uncompressed_size
    rows = max(file.metadata.num_rows, 1)
    return [
        field.name
        for field in file.schema_arrow
        if pa.types.is_large_string(field.type) and sizes[field.name] <= _COMPACT * rows
    ]
