"""The columns of a source before their conversion: of a table in memory, or of files that are read column by column.

Text stays as it is written. All files of a source have the same columns; a column has one of a few plain types.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.config import DataConfig, suggest
from towline.data import snapshot
from towline.data.schema import arrow_types, text_columns
from towline.data.schema.detection.summary_rows import count_summary_rows
from towline.data.schema.values import category_name, column_format, seconds_of
from towline.data.source import formats
from towline.data.source.compression import is_compressed, read_decompressed
from towline.data.source.encodings import copy_as_utf8, is_utf16
from towline.data.source.text_layouts import is_plain
from towline.errors import ConfigError, DataError

TIME = pa.timestamp("us")
_CSV_CELL = 8  # bytes of a value of a CSV, roughly
_COMPRESSION = 4  # of a compressed CSV, roughly


class SourceTables(NamedTuple):
    """The columns of tables in memory, each given with the place that errors name."""

    tables: Sequence[tuple[str, pa.Table]]
    config: DataConfig

    @property
    def names(self) -> list[str]:
        """The names of the columns that are read."""
        return _read_names([(where, table.column_names) for where, table in self.tables], self.config)

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of all tables, with one type."""
        return _join_pieces([(where, table[name]) for where, table in self.tables], name)

    def without_summary_rows(self) -> "tuple[SourceTables, int]":
        """The tables without the totals and means at their ends, and the number of these rows."""
        tables, count = [], 0
        for where, table in self.tables:
            format_of = partial(column_format, self.config)
            number = count_summary_rows(table, format_of, self.config.max_unreadable)
            tables.append((where, table.slice(0, table.num_rows - number) if number else table))
            count += number
        return SourceTables(tables, self.config), count


class SourceFiles(NamedTuple):
    """The columns of Parquet files, which are read one by one; each file is given with the place that errors name."""

    paths: Sequence[tuple[str, Path]]
    config: DataConfig

    @property
    def names(self) -> list[str]:
        """The names of the columns that are read."""
        schemas = [(where, pq.read_schema(path)) for where, path in self.paths]
        indexes = {name for _, schema in schemas for name in formats.unnamed_index(schema)}
        headers = [(where, [name for name in schema.names if name not in indexes]) for where, schema in schemas]
        return _read_names(headers, self.config)

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of all files, with one type."""
        return _join_pieces([(where, formats.read_parquet_column(path, name)) for where, path in self.paths], name)


def is_large(paths: Iterable[Path]) -> bool:
    """Whether files probably hold more values than are held in memory."""
    cells = 0.0
    for path in paths:
        if path.name.lower().endswith(formats.PARQUET):
            try:
                metadata = pq.read_metadata(path)
            except (pa.ArrowException, OSError):
                return False  # reading the file reports it
            cells += metadata.num_rows * metadata.num_columns
        else:
            factor = _COMPRESSION if is_compressed(path.name) else 1
            cells += path.stat().st_size * factor / _CSV_CELL
    return cells > snapshot.MAX_CELLS


def read_tables(paths: Iterable[Path], separator: str | None, encodings: set[str]) -> Iterator[tuple[str, pa.Table]]:
    """The name and table of each file; adds the encodings of CSV files."""
    for path in paths:
        yield str(path), _note_encoding(formats.read_file(path, separator), encodings)


def spool_files(
    paths: Iterable[Path], separator: str | None, encodings: set[str], folder: Path
) -> list[tuple[str, Path]]:
    """Parquet files with the rows of all files. A CSV is copied a block after the other, JSON as a whole.

    Args:
        paths: of the files.
        separator: of the columns of a CSV; None: it is detected.
        encodings: those of CSV files are added.
        folder: for the copies.

    Raises:
        DataError: a file is malformed.
    """
    spooled = []
    for number, path in enumerate(paths):
        file_format = formats.detect_format(path)
        if file_format == "parquet":
            formats.check_parquet(path)
            spooled.append((str(path), path))
            continue
        copy = folder / f"source-{number}.parquet"
        spooled.append((str(path), copy))
        if file_format == "json":
            _write_tables(iter([formats.read_file(path, None)]), copy, encodings)
            continue
        mark = separator or formats.detect_separator(path)
        if not is_plain(mark):
            _write_tables(iter([formats.read_file(path, mark)]), copy, encodings)
        elif is_utf16(path) or not _copy_utf8(path, mark, copy):
            decoded = folder / f"source-{number}.csv"
            encoding = copy_as_utf8(path, decoded)
            if encoding and _copy_utf8(decoded, mark, copy):
                encodings.add(encoding)
            else:  # the reader of the whole file names the fault
                _write_tables(iter([formats.read_file(path, separator)]), copy, encodings)
            decoded.unlink(missing_ok=True)
    return spooled


def _copy_utf8(path: Path, separator: str, copy: Path) -> bool:
    """Copies a CSV in UTF-8; returns whether it has no fault."""
    try:
        _write_tables(formats.stream_utf8_csv(path, separator), copy, set())
        formats.check_header(pq.read_schema(copy).names, separator, str(path))
    except DataError:
        return False
    return not _has_open_quote(path)


def _has_open_quote(path: Path) -> bool:
    """Whether a CSV file has an odd number of quotes: one of them is never closed."""
    quotes = 0
    for block in read_decompressed(path):
        quotes += block.count(b'"')
    return quotes % 2 == 1


def _write_tables(tables: Iterator[pa.Table], path: Path, encodings: set[str]) -> None:
    writer = None
    try:
        for table in tables:
            rows = _note_encoding(table, encodings)
            writer = writer or pq.ParquetWriter(path, rows.schema, compression="lz4")
            writer.write_table(rows)
    finally:
        if writer:
            writer.close()
    if writer is None:
        raise DataError("no rows", where=str(path), remedy="give a table with rows")


def _note_encoding(table: pa.Table, encodings: set[str]) -> pa.Table:
    if encoding := (table.schema.metadata or {}).get(formats.ENCODING):
        encodings.add(encoding.decode())
    return table.replace_schema_metadata(None)


def _read_names(headers: Sequence[tuple[str, list[str]]], config: DataConfig) -> list[str]:
    """The names of the columns that are read; all files must have the same columns."""
    first, names = headers[0]
    _check_names(names, config, first)
    for where, others in headers[1:]:
        if sorted(others) != sorted(names):
            missing, extra = sorted(set(names) - set(others)), sorted(set(others) - set(names))
            differences = [f"missing: {', '.join(missing[:10])}"] if missing else []
            differences += [f"only here: {', '.join(extra[:10])}"] if extra else []
            raise DataError(
                f"the columns differ from those of {Path(first).name}",
                where=where,
                remedy="leave the file out of data.source, or give it the same columns",
                details=tuple(differences or ["two columns have the same name"]),
            )
    return [name for name in names if name not in config.drop]


def _join_pieces(columns: Iterable[tuple[str, pa.ChunkedArray]], name: str) -> pa.ChunkedArray:
    """One column of the values of all files, each given with its path."""
    pieces = list[pa.ChunkedArray]()
    for where, column in columns:
        piece = _to_plain_type(column, name, where)
        clash = next((other for other in pieces if not _compatible(other.type, piece.type)), None)
        if clash is not None:
            raise DataError(
                f"column {name!r} is {piece.type} here and {clash.type} in an earlier file",
                where=where,
                remedy="make it one type in all files, or name it in data.drop",
            )
        pieces.append(piece)
    types = {piece.type for piece in pieces} - {pa.null()}
    if len(types) > 1:
        pieces = [duration_seconds(piece) if pa.types.is_duration(piece.type) else piece for piece in pieces]
    if len(types) > 1 and pa.large_string() in types:
        pieces = [as_text(piece) for piece in pieces]
    tables = [pa.Table.from_arrays([piece], [name]) for piece in pieces]
    return pa.concat_tables(tables, promote_options="permissive")[name]


def _compatible(first: pa.DataType, second: pa.DataType) -> bool:
    """Whether a column may have these types in two files: text is converted to the type that all of its values have."""
    types = {first, second}
    return (
        len(types) == 1
        or bool(types & {pa.null(), pa.large_string()})
        or all(type_ in (pa.int64(), pa.float64()) or pa.types.is_duration(type_) for type_ in types)
    )


def duration_seconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of durations as seconds."""
    return pa.chunked_array([pa.array(seconds_of(column.to_numpy()), from_pandas=True)])


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as text; numbers are spelled as levels of a category."""
    return column if column.type == pa.large_string() else text_array(map(category_name, column.to_pylist()))


def text_array(texts: Iterable[str | None]) -> pa.ChunkedArray:
    """A column of texts."""
    return pa.chunked_array([pa.array(list(texts), pa.large_string())])


def _check_names(names: list[str], config: DataConfig, where: str) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        what = f"several columns have the same name: {', '.join(map(repr, duplicates[:10]))}"
        raise DataError(what, where=where, remedy="rename or remove one")
    if "" in names:
        raise DataError(f"column {names.index('') + 1} has no name", where=where, remedy="name it in the header")
    configured = [("data.target", config.target), ("data.time", config.time), ("data.group", config.group)]
    configured += [("data.drop", name) for name in config.drop] + [("data.columns", name) for name in config.columns]
    configured += [("data.ignore_case", name) for name in config.ignore_case]
    for key, name in configured:
        if name is not None and name not in names:
            raise ConfigError(f"no column {name!r} in {where}", where=key, remedy=suggest(name, names))


def is_readable(kind: pa.DataType) -> bool:
    """Whether a column of this type can be read: its values are scalars, not lists, structs or bytes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    try:
        _to_plain_type(pa.chunked_array([], kind), "", "")
    except DataError:
        return False
    return True


def _to_plain_floats(values: pa.Array) -> pa.Array:
    if pa.types.is_decimal(values.type):  # Arrow's own cast is inexact: 9334.88 becomes 9334.880000000001
        values = values.cast(pa.string())
    floats = pc.add(values.cast(pa.float64(), safe=False), 0.0)  # -0.0 becomes 0.0, as in SQLite
    return pc.if_else(pc.is_nan(floats), pa.scalar(None, pa.float64()), floats)


def _to_plain_type(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """The column as int64, float64, bool, large_string, timestamp[us], duration or null.

    Text stays as it is written.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        near = arrow_types.null_far_times(column)
        return near.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(TIME)
    if isinstance(kind, pa.UuidType):
        return text_array(None if value is None else str(value) for value in column.to_pylist())
    if text_columns.is_text(kind):
        return text_columns.large_text(column)
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or pa.types.is_duration(kind):
        return column
    if pa.types.is_time(kind):
        return as_text(column)
    if pa.types.is_integer(kind):
        wide = kind == pa.uint64() and (pc.max(column).as_py() or 0) >= 2**63
        if wide and text_columns.is_inexact(column):
            return as_text(column)
        return column.cast(pa.float64() if wide else pa.int64(), safe=False)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        pieces = [_to_plain_floats(piece) for piece in text_columns.iterate_pieces(column)]
        return pa.chunked_array(pieces, pa.float64())
    what = f"column {name!r} has values of the type {str(kind)[:80]}"
    raise DataError(what, where=where, remedy="name it in data.drop, or store scalars")
