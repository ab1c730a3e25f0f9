"""A bounded sample of a table: one pass over its files or its query, and at most ``MAX_CELLS`` cells in memory.

The sample keeps the order of the rows. Each file's part is written as Parquet, with the text of a CSV as it is, so that
``load_dataset`` reads the sample exactly as a run reads the table.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from towline.config import SqlSource
from towline.data.schema.arrow_types import readable_rows
from towline.data.source import formats
from towline.data.source.sql_source import MIN_SAMPLE_ROWS, sample_query
from towline.errors import DataError
from towline.remote_files import is_url, list_remote_files, local_path

MAX_CELLS = 3_000_000
SEED = 42  # of the sample
STREAMED_BYTES = 64 * 2**20  # larger files are read batch by batch


class TableSample(NamedTuple):
    """A sample of a table.

    Attributes:
        parts: Parquet files, one for each file of the source.
        table: all parts as one table; columns of a CSV are text.
        rows: number of rows of the whole table.
        separator: of its CSV files.
        files: of the source, in the order of the parts; none for a query.
    """

    parts: tuple[Path, ...]
    table: pa.Table
    rows: int
    separator: str
    files: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the sample is the whole table."""
        return bool(self.table.num_rows == self.rows)


class _RowSampler:
    """Draws a uniform sample from batches whose total number is unknown: the rows with the smallest random keys."""

    def __init__(self, limit: int, seed: int) -> None:
        self._limit, self._rng, self._threshold = limit, np.random.default_rng(seed), 1.0
        self._tables: list[pa.Table] = []
        self._keys: list[np.ndarray] = []
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        keys = self._rng.random(table.num_rows)
        self.rows += table.num_rows
        chosen = keys < self._threshold
        self._tables.append(table if chosen.all() else table.filter(pa.array(chosen)))
        self._keys.append(keys[chosen])
        if sum(map(len, self._keys)) > 2 * self._limit:
            self._shrink()

    def _shrink(self) -> None:
        keys = np.concatenate(self._keys)
        if len(keys) > self._limit:
            self._threshold = float(np.partition(keys, self._limit)[self._limit])
        chosen = keys < self._threshold
        self._tables = [pa.concat_tables(self._tables).filter(pa.array(chosen)).combine_chunks()]
        self._keys = [keys[chosen]]

    def result(self) -> pa.Table:
        self._shrink()
        return self._tables[0]


def read_sample(source: str | SqlSource, project: Path, folder: Path) -> TableSample:
    """Reads a bounded sample of a table.

    Args:
        source: as ``data.source`` of a config.
        project: relative paths start here.
        folder: an empty folder for the parts of the sample.

    Raises:
        ConfigError: the URL of the database cannot be used.
        DataError: the source is missing, empty or malformed.
        TransientError: the database is down.
    """
    if isinstance(source, SqlSource):
        table, rows = sample_query(source, project, MAX_CELLS, SEED)
        _check_names(table.column_names)
        part = folder / "part-00000.parquet"
        pq.write_table(table, part, compression="none")
        return TableSample((part,), table, rows, ",")
    parts, tables, files, rows = [], [], [], 0
    paths, names = _list_files(source, project, folder / "remote")
    separator = formats.detect_separator(paths[0])
    for position, path in enumerate(paths):
        sampler: _RowSampler | None = None
        for batch in _batches(path, separator):
            if sampler is None:
                _check_names(batch.column_names)
                limit = max(MIN_SAMPLE_ROWS, MAX_CELLS // max(batch.num_columns, 1) // len(paths))
                sampler = _RowSampler(limit, SEED + position)
            sampler.add(batch)
        if sampler is None:
            continue
        table, part = sampler.result(), folder / f"part-{position:05d}.parquet"
        pq.write_table(table, part, compression="none")
        parts.append(part)
        files.append(names[position])
        tables.append(table)
        rows += sampler.rows
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # load_dataset names the file that differs
        table = tables[0]
    return TableSample(tuple(parts), table, rows, separator, tuple(files))


def _list_files(source: str, project: Path, copies: Path) -> tuple[list[Path], list[str]]:
    """The files of a source and their names; those behind a URL are copied."""
    source = local_path(source)
    if not is_url(source):
        paths = formats.list_files(source, project)
        return paths, [str(path) for path in paths]
    remote = list_remote_files(source, formats.TABLES, "DATA")
    return [file.copy_to(copies) for file in remote], [str(file) for file in remote]


def _batches(path: Path, separator: str) -> Iterator[pa.Table]:
    """The rows of a file; those of a large file batch by batch."""
    file_format = formats.detect_format(path)
    if path.stat().st_size <= STREAMED_BYTES or file_format == "json":
        yield formats.read_file(path, separator)
    elif file_format == "parquet":
        try:
            file = pq.ParquetFile(path)
            index = formats.unnamed_index(file.schema_arrow)
            for batch in file.iter_batches(2**17):
                table = pa.Table.from_batches([readable_rows(batch)])
                yield table.drop_columns(index).replace_schema_metadata(None)
        except (pa.ArrowException, OSError):
            formats.read_file(path, separator)  # raises the error with its remedy
            raise
    else:
        yield from formats.stream_csv(path, separator)


def _check_names(names: list[str]) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates or "" in names:
        shown = ", ".join(map(repr, duplicates[:10]))
        what = f"several columns have the same name: {shown}" if duplicates else "a column has no name"
        raise DataError(what, where="the header", remedy="rename or remove one of them")


def check_rows(sample: TableSample) -> None:
    """Raises a DataError if the table has no rows or only one column."""
    if not sample.table.num_rows:
        raise DataError("no rows", where="data.source", remedy="give a table with rows")
    if sample.table.num_columns < 2:
        raise DataError(
            "the table has only one column", where="data.source", remedy="give a table with a target and features"
        )
