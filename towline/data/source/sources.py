"""A dataset is a snapshot of the rows that a run uses: one Parquet file, identified by the digest of its content.

The source is files or a database query. Columns are converted to the types that their values mean, so that the same
rows give the same snapshot from CSV, Parquet and SQL.
"""

import contextlib
import functools
import hashlib
import math
import secrets
import tempfile
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.config import DataConfig, Frozen, Kind, LookupConfig, SqlSource, format_duration, suggest
from towline.config.passwords import mask_passwords
from towline.data import snapshot
from towline.data.schema import text_columns
from towline.data.schema.columns import list_examples
from towline.data.schema.detection import notation
from towline.data.schema.values import ValueFormat, category_name, column_format, parse_number
from towline.data.snapshot import SnapshotWriter, snapshot_to_frame
from towline.data.source import formats, sql_source
from towline.data.source.source_columns import (
    TIME,
    SourceFiles,
    SourceTables,
    as_text,
    duration_seconds,
    is_large,
    read_tables,
    spool_files,
)
from towline.errors import ConfigError, DataError
from towline.files import LOADING, disk, replacing, sweep
from towline.remote_files import is_url, list_remote_files, local_path, naming_originals
from towline.store import StoreLayout

SUMMARIES = "at the end that are totals or means of the others"  # reasons why rows are left out
UNLABELLED, UNDATED = "without a target", "without a time"
_POSITION = "\0position"  # a column of the positions of rows
_READ_AGAIN = "run the same command again: it reads the source again"


class CoercedValues(Frozen):
    """Values in a column of numbers or times that are none, or not finite, and were read as null."""

    column: str
    kind: Literal["numeric", "datetime"] = "numeric"
    count: int
    share: float
    examples: str


class Dataset(Frozen):
    """A snapshot of the rows that a run uses.

    Attributes:
        path: relative to the store.
        digest: sha256 of column names, types, values and row order; independent of the source's format.
        start, end: of the time column (ISO).
        source: the files, or the query.
        formats: how columns are written, if their values show more than the config says.
        coerced: values that were read as null.
        left_out: rows that were left out, by the reason.
        encodings: of CSV files that are not UTF-8.
    """

    path: str
    digest: str
    rows: int
    columns: tuple[str, ...]
    start: str | None
    end: str | None
    source: str
    formats: tuple[tuple[str, ValueFormat], ...] = ()
    coerced: tuple[CoercedValues, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    encodings: tuple[str, ...] = ()


def load_dataset(
    config: DataConfig, project: Path, store: Path, as_of: datetime | None, pii: Collection[str] = ()
) -> Dataset:
    """Reads the source and writes a snapshot without dropped columns and without rows outside ``as_of`` and the window.

    Rows stay in their order. Rows without a time are included: validation reports them. With ``data.keep_snapshot:
    false`` the snapshot has a random name; the caller moves it into the workspace (``open_workspace``) or removes it
    (``remove_snapshot``).

    Args:
        config: names the source and the columns.
        project: relative paths of the source start here.
        store: the snapshot is written here.
        as_of: later rows are left out.
        pii: columns whose values are not shown in errors.

    Raises:
        ConfigError: a column or an environment variable that the config names does not exist, or there is no access to
            a URL.
        DataError: the source is missing, empty or malformed, or has a column of unusable values.
        TransientError: the database or the server of a URL is down, or the store cannot be written.
    """
    for key in ("window", "half_life", "detrend"):
        if getattr(config, key) and not config.time:
            raise ConfigError(f"data.{key} needs a time column", where=f"data.{key}", remedy="name it in data.time")
    datasets = StoreLayout(store).dataset(StoreLayout.dataset_name("")).parent
    with contextlib.ExitStack() as stack:

        def make_folder() -> Path:
            stack.enter_context(disk(datasets))
            datasets.mkdir(parents=True, exist_ok=True)
            return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=datasets, prefix=LOADING)))

        stack.enter_context(naming_originals(datasets))
        encodings: set[str] = set()
        source, columns = _open_source(config, project, encodings, make_folder)
        summaries = 0
        if isinstance(columns, SourceTables):
            columns, summaries = columns.without_summary_rows()
        writer = SnapshotWriter(make_folder() if isinstance(columns, SourceFiles) else None)
        try:
            dataset = _convert_source(columns, config, as_of, source, writer)
        except DataError as error:
            if any(repr(name) in error.what for name in pii):
                remedy = "correct the values, or declare a kind under data.columns"
                raise DataError(error.what, where=error.where, remedy=remedy) from None
            raise
        coerced = tuple(c.model_copy(update={"examples": ""}) if c.column in pii else c for c in dataset.coerced)
        name = dataset.digest[:16] if config.keep_snapshot else f".{secrets.token_hex(16)}"
        changes = {
            "path": StoreLayout.dataset_name(name),
            "coerced": coerced,
            "encodings": tuple(sorted(encodings - {"UTF-8"})),
            "left_out": (*([(SUMMARIES, summaries)] if summaries else []), *dataset.left_out),
        }
        dataset = dataset.model_copy(update=changes)
        snapshot = StoreLayout(store).dataset(dataset.path)
        with replacing(snapshot) as file:
            writer.write(file)
    sweep(snapshot.parent)
    return dataset


def _open_source(
    config: DataConfig, project: Path, encodings: set[str], make_folder: Callable[[], Path]
) -> tuple[str, SourceTables | SourceFiles]:
    """A description of the source, and its columns.

    Args:
        config: names the source.
        project: relative paths start here.
        encodings: those of CSV files are added.
        make_folder: creates a folder for copies of remote files, and for data that is too large for memory.
    """
    if isinstance(config.source, SqlSource):
        url = mask_passwords(config.source.url)
        rows = sql_source.read_query(config.source, project, snapshot.MAX_CELLS, make_folder)
        opened = SourceFiles if isinstance(rows, Path) else SourceTables
        return f"{url} {config.source.query}", opened([(url, rows)], config)
    source = ", ".join(config.masked().source_files)
    paths = _list_files(config, project, make_folder)
    if is_large(paths):
        return source, SourceFiles(spool_files(paths, config.separator, encodings, make_folder()), config)
    return source, SourceTables(list(read_tables(paths, config.separator, encodings)), config)


def _list_files(config: DataConfig, project: Path, make_folder: Callable[[], Path]) -> list[Path]:
    """The files of a source; those behind URLs are copied."""
    paths = list[Path]()
    for source in map(local_path, config.source_files):
        if is_url(source):
            remote, folder = list_remote_files(source, formats.TABLES, "data.source"), make_folder()
            paths += [file.copy_to(folder) for file in remote]
        else:
            paths += formats.list_files(source, project)
    return paths


def _convert_source(
    columns: SourceTables | SourceFiles, config: DataConfig, as_of: datetime | None, where: str, writer: SnapshotWriter
) -> Dataset:
    """Converts one column after the other and passes it to the writer; the dataset has no path yet."""
    names, conversions = columns.names, dict[str, _Conversion]()
    for name in names:
        if name in (config.time, config.target):
            conversions[name] = _convert_column(columns.column(name), name, config, where)
    keys = {name: conversion.column for name, conversion in conversions.items()}
    rows, available, left_out = _select(pa.table(keys), config, as_of, where)
    digest, coerced, shown = hashlib.sha256(), list[CoercedValues](), list[tuple[str, ValueFormat]]()
    start = end = None
    for name in names:
        conversion = conversions.get(name) or _convert_column(columns.column(name), name, config, where)
        coerced += [conversion.coerced] if conversion.coerced else []
        shown += [(name, conversion.format)] if conversion.format else []
        column = rows[name] if name == config.target else conversion.column
        if rows.num_rows < available and name != config.target:
            column = column.take(rows[_POSITION])
        column = _canonicalize(column, is_time=name == config.time)
        if name == config.time:
            start, end = _iso(pc.min(column)), _iso(pc.max(column))
        _add_to_digest(digest, name, column)
        writer.add(name, column)
    return Dataset(
        path="",
        digest=digest.hexdigest(),
        rows=rows.num_rows,
        columns=tuple(names),
        start=start,
        end=end,
        source=where,
        formats=tuple(shown),
        coerced=tuple(coerced),
        left_out=tuple(left_out.items()),
    )


def _select(
    keys: pa.Table, config: DataConfig, as_of: datetime | None, where: str
) -> tuple[pa.Table, int, dict[str, int]]:
    """The selected rows with their target and position, the number of all rows, and the rows left out by reason.

    Args:
        keys: the target and the time of all rows.
        config: names the columns, the window and the treatment of classes.
        as_of: later rows are left out.
        where: the source.
    """
    positions = pa.array(np.arange(keys.num_rows))
    selected = _select_rows(keys.append_column(_POSITION, positions), config, as_of, where)
    selected, undated = _select_dated(selected, config, where)
    selected, left_out = _select_labelled(selected, config, where)
    return selected, keys.num_rows, undated | left_out


def read_lookup_source(lookup: LookupConfig, name: str, project: Path) -> tuple[pa.Table, str]:
    """Reads the key, the time, the chosen columns, and all columns that may hold times; returns the table's digest too.

    Raises:
        ConfigError: the table lacks a column.
        DataError: the table is missing or malformed.
    """
    try:
        paths = formats.list_files(lookup.table, project)
    except DataError as error:
        remedy = f"correct lookups.{name}.table, or put the file there"
        raise DataError(error.what, where=f"lookups.{name}: {error.where}", remedy=remedy) from None
    tables = list(read_tables(paths, None, set()))
    where, first = tables[0]
    columns = [*lookup.key_columns.values(), *lookup.names.values(), *([lookup.time] if lookup.time else [])]
    if missing := [column for column in dict.fromkeys(columns) if column not in first.column_names]:
        what = f"no column {', '.join(map(repr, missing))} in {where}"
        remedy = "; ".join(dict.fromkeys(suggest(column, first.column_names) for column in missing))
        used = {"key": lookup.key_columns.values(), "columns": lookup.names.values(), "time": (lookup.time,)}
        setting = next(key for key, names in used.items() if missing[0] in names)
        raise ConfigError(what, where=f"lookups.{name}.{setting}: {missing[0]}", remedy=remedy)
    unread = [
        field.name
        for field in first.schema
        if field.name not in columns and not (pa.types.is_temporal(field.type) or text_columns.is_text(field.type))
    ]
    source = SourceTables(tables, DataConfig(source=lookup.table, target=columns[0], drop=tuple(unread)))
    table = pa.table({column: source.column(column) for column in source.names}).combine_chunks()
    return table, _digest(table)


def convert_lookup_table(
    kinds: dict[str, Kind], *, table: pa.Table, lookup: LookupConfig, config: DataConfig
) -> pa.Table:
    """The table with columns converted as those of ``data.source``; ``kinds`` are declared for columns of the table."""
    key = next(iter(lookup.key_columns.values()))
    settings = {name: getattr(config, name) for name in ("decimal", "thousands", "na_values", "max_unreadable")}
    dates = config.date_format if isinstance(config.date_format, str) else None
    converted = DataConfig(
        source=lookup.table, target=key, time=lookup.time, columns=kinds, date_format=dates, **settings
    )
    columns = {}
    for name in table.column_names:
        column = _convert_column(table[name], name, converted, lookup.table).column
        columns[name] = _canonicalize(column, is_time=name == lookup.time)
    return pa.table(columns)


def remove_snapshot(dataset: Dataset, config: DataConfig, store: Path) -> None:
    """Removes a snapshot, unless ``data.keep_snapshot`` keeps it."""
    if not config.keep_snapshot:
        StoreLayout(store).dataset(dataset.path).unlink(missing_ok=True)


def read_snapshot(dataset: Dataset, store: Path) -> pd.DataFrame:
    """The snapshot's rows, of dtypes int64, float64, bool (boolean with nulls), str and datetime64[us] (UTC, naive).

    Raises:
        DataError: the file is missing, or its content does not have the digest.
    """
    path = _snapshot_file(dataset, store)
    table = formats.read_parquet(path, _READ_AGAIN)
    if _digest(table) != dataset.digest:
        raise _changed_snapshot(path)
    return snapshot_to_frame(table)


@functools.lru_cache(maxsize=1)
def check_snapshot(dataset: Dataset, store: Path) -> Path:
    """The snapshot's file; its digest is checked by reading one column after the other.

    Raises:
        DataError: the file is missing, or its content does not have the digest.
    """
    path, digest = _snapshot_file(dataset, store), hashlib.sha256()
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for name in file.schema_arrow.names:
                _add_to_digest(digest, name, file.read(columns=[name], use_threads=False)[name])
    except (pa.ArrowException, OSError):
        raise _changed_snapshot(path) from None
    if digest.hexdigest() != dataset.digest:
        raise _changed_snapshot(path)
    return path


def _snapshot_file(dataset: Dataset, store: Path) -> Path:
    path = StoreLayout(store).dataset(dataset.path)
    if not path.is_file():
        raise DataError("the snapshot of the data is missing", where=str(path), remedy=_READ_AGAIN)
    return path


def _changed_snapshot(path: Path) -> DataError:
    return DataError("the snapshot of the data was changed", where=str(path), remedy=_READ_AGAIN)


class _Conversion(NamedTuple):
    """A converted column, the values that were read as null, and its format if its values show it."""

    column: pa.ChunkedArray
    coerced: CoercedValues | None = None
    format: ValueFormat | None = None


def _convert_column(column: pa.ChunkedArray, name: str, config: DataConfig, where: str) -> _Conversion:
    declared, kind, shown = column_format(config, name), config.columns.get(name), None
    fmt = declared
    nulls = np.zeros(0, dtype=bool)
    if pa.types.is_duration(column.type):
        column = duration_seconds(column)
        shown = fmt = fmt.model_copy(update={"measure": "duration"})
    if name == config.time:
        converted, shown = _convert_times(column, name, fmt, where)
    elif kind == "numeric" and text_columns.is_text(column.type):
        converted, detected, nulls = notation.read_declared_numbers(column, fmt)
        shown = fmt = detected
    elif kind == "numeric":
        converted, nulls = _remove_infinities(column)
    elif kind is not None and kind != "ignore":
        converted = column if kind == "text" else _convert_declared(column, kind, fmt)
    elif text_columns.is_inexact(column):
        converted = as_text(column)
    elif text_columns.is_text(column.type):
        converted, detected, nulls = notation.read_text_column(column, fmt, config.max_unreadable)
        shown = fmt = detected
        if fmt.spelling == "caseless" and text_columns.is_text(converted.type):
            converted = text_columns.parse_categories(converted, fmt)
    else:
        converted, nulls = _remove_infinities(column)
    coerced = None
    if nulls.any():
        examples = list_examples(column.to_pandas(), np.flatnonzero(nulls))
        coerced = CoercedValues(
            column=name,
            kind="datetime" if pa.types.is_timestamp(converted.type) else "numeric",
            count=int(nulls.sum()),
            share=float(nulls.mean()),
            examples=examples,
        )
    shown = None if shown == declared and name != config.time else shown
    return _Conversion(_remove_null_markers(converted, fmt), coerced, shown)


def _convert_declared(column: pa.ChunkedArray, kind: Kind, fmt: ValueFormat) -> pa.ChunkedArray:
    """A column as its declared kind; unchanged if values do not fit, so that the contract reports them."""
    text = text_columns.is_text(column.type)
    if kind == "category":
        return text_columns.parse_categories(column, fmt)
    if kind == "boolean" and column.type != pa.bool_():
        flags, unread = text_columns.parse_booleans(column if text else as_text(column), fmt)
        return column if unread.any() else text_columns.flag_array(flags)
    if kind == "datetime" and (text or (fmt.date_format and not pa.types.is_temporal(column.type))):
        moments, unread = text_columns.parse_times(column if text else as_text(column), fmt)
        return column if unread.any() else pa.chunked_array([pa.array(moments, TIME)])
    return column


def _remove_infinities(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """The column with null in place of infinities, and (n,) bool where they were."""
    if not pa.types.is_floating(column.type):
        return column, np.zeros(len(column), dtype=bool)
    infinite = pc.fill_null(pc.is_inf(column), False)
    if not pc.any(infinite).as_py():
        return column, infinite.to_numpy()
    return pc.if_else(infinite, pa.scalar(None, column.type), column), infinite.to_numpy()


def _remove_null_markers(column: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """The column with null in place of ``data.na_values``."""
    if column.type not in (pa.int64(), pa.float64()) or not fmt.na_values:
        return text_columns.null_markers(column, fmt) if text_columns.is_text(column.type) else column
    numbers = [number for text in fmt.na_values if math.isfinite(number := parse_number(text))]
    if column.type == pa.int64():
        numbers = [int(number) for number in numbers if number.is_integer() and abs(number) < 2**63]
    return pc.if_else(pc.is_in(column, pa.array(numbers, column.type)), pa.scalar(None, column.type), column)


def _convert_times(
    column: pa.ChunkedArray, name: str, fmt: ValueFormat, where: str
) -> tuple[pa.ChunkedArray, ValueFormat]:
    if pa.types.is_timestamp(column.type):
        return column, fmt
    if pa.types.is_null(column.type):
        return column.cast(TIME), fmt
    if column.type == pa.bool_():
        raise DataError(f"time column {name!r} has booleans, not dates", where=where, remedy="name another data.time")
    texts = column if text_columns.is_text(column.type) else as_text(column)
    if fmt.date_format is None:
        fmt = fmt.model_copy(update={"date_format": text_columns.detect_digits_format(texts)})
    moments, unread = text_columns.parse_times(texts, fmt)
    formats: list[str] = []
    if unread.any() and fmt.date_format is None:
        formats = notation.detect_date_formats(texts.to_pandas())
        if len(formats) == 1:
            fmt = fmt.model_copy(update={"date_format": formats[0]})
            moments, unread = text_columns.parse_times(texts, fmt)
    if unread.any():
        rows = np.flatnonzero(unread)
        examples = [f"'{date_format}'" for date_format in formats[:2]] or ["'%d.%m.%Y'", "'%m/%d/%Y'", "epoch_s"]
        raise DataError(
            f"time column {name!r}: {len(rows)} of {len(column)} values are not "
            + (f"written as {fmt.date_format}" if fmt.date_format else "ISO 8601 dates"),
            where=where,
            remedy=f"set data.date_format{' to' if formats else ', e.g.'} {' or '.join(examples)}; or write 2026-01-31,"
            " or list texts that mean null in data.na_values",
            details=(list_examples(column.to_pandas(), rows),),
        )
    return pa.chunked_array([pa.array(moments, TIME)]), fmt


def _select_dated(table: pa.Table, config: DataConfig, where: str) -> tuple[pa.Table, dict[str, int]]:
    """The rows with a time, and the number of those without one."""
    if config.time is None or not (count := table[config.time].null_count):
        return table, {}
    share, place = count / table.num_rows, f"{where}, column {config.time!r}"
    if count == table.num_rows:
        remedy = "name another column in data.time, or set data.time: null"
        raise DataError("no row has a time", where=place, remedy=remedy)
    if share > config.max_undated:
        raise DataError(
            f"{share:.1%} of the rows have no time, at most {config.max_undated:.0%} may lack it",
            where=place,
            remedy=f"correct the source, set data.max_undated: {math.ceil(share * 20) / 20:g} to leave these rows out, "
            "or set data.time: null",
        )
    return table.filter(pc.is_valid(table[config.time])), {UNDATED: count}


def _select_labelled(table: pa.Table, config: DataConfig, where: str) -> tuple[pa.Table, dict[str, int]]:
    """The rows with a target, and without rare classes if the config says so; the rows left out by reason."""
    target, rows, left_out = table[config.target], table.num_rows, {}
    if target.null_count:
        share = target.null_count / rows
        if target.null_count == rows:
            what = f"no row has a target: {rows:,} rows of column {config.target!r} are null"
            raise DataError(what, where=where, remedy="correct the source, or name another column in data.target")
        if share > config.max_unlabelled:
            raise DataError(
                f"{share:.1%} of the rows have no target, at most {config.max_unlabelled:.0%} may lack it",
                where=f"{where}, column {config.target!r}",
                remedy=f"correct the source, or set data.max_unlabelled: {math.ceil(share * 20) / 20:g} to "
                "leave these rows out",
            )
        left_out[UNLABELLED] = target.null_count
        table = table.filter(pc.is_valid(target))
    if config.classes.rare == "keep":
        return table, left_out
    names = pa.array([category_name(value) for value in table[config.target].to_pylist()], pa.large_string())
    counts = {entry["values"]: entry["counts"] for entry in names.value_counts().to_pylist()}
    rare = pa.array([name for name, count in counts.items() if count < config.classes.min_rows], pa.large_string())
    is_rare = pc.is_in(names, value_set=rare)
    if config.classes.rare == "drop":
        if dropped := pc.sum(is_rare).as_py():
            left_out[f"of {len(rare)} rare classes"] = dropped
        return table.filter(pc.invert(is_rare)), left_out
    merged = pc.if_else(is_rare, pa.scalar(config.classes.other, pa.large_string()), names)
    index = table.column_names.index(config.target)
    return table.set_column(index, config.target, pa.chunked_array([merged])), left_out


def _select_rows(table: pa.Table, config: DataConfig, as_of: datetime | None, where: str) -> pa.Table:
    if not table.num_rows:
        raise DataError("no rows", where=where, remedy="give a table with rows")
    if not config.time or not (as_of or config.reach) or table[config.time].null_count == table.num_rows:
        return table
    times = table[config.time]
    if as_of and as_of.tzinfo:
        as_of = as_of.astimezone(UTC).replace(tzinfo=None)
    newest = as_of or pc.max(times).as_py()
    in_time = pc.less_equal(times, pa.scalar(newest, TIME))
    if config.reach:
        in_time = pc.and_(in_time, pc.greater(times, pa.scalar(newest - config.reach, TIME)))
    selected = table.filter(pc.fill_null(in_time, True))
    if not selected.num_rows:
        raise DataError(
            f"no rows are left of {table.num_rows}: as of {newest.isoformat()}, window {format_duration(config.reach)}",
            where=where,
            remedy=f"rows are from {_iso(pc.min(times))} to {_iso(pc.max(times))}: change --as-of or data.window",
        )
    return selected


def _canonicalize(column: pa.ChunkedArray, *, is_time: bool) -> pa.ChunkedArray:
    """Makes types depend on values only, so that the same rows from CSV, Parquet and SQL give the same snapshot."""
    if not is_time and column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column), pa.float64())])
    if column.null_count and pa.types.is_integer(column.type):
        return column.cast(pa.float64(), safe=False)
    return column


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        _add_to_digest(digest, name, column)
    return digest.hexdigest()


def _add_to_digest(digest: "hashlib._Hash", name: str, column: pa.ChunkedArray) -> None:
    text = pa.types.is_large_string(column.type)
    digest.update(f"{len(name.encode())}:{name}:{column.type}:{len(column)};".encode())
    digest.update(np.packbits(column.is_valid().to_numpy()).tobytes())
    if pa.types.is_null(column.type):
        return
    # the bytes of a null are arbitrary: they are set to one value
    filler = "" if text else pa.scalar(0).cast(column.type)
    for piece in text_columns.iterate_pieces(column):
        filled = piece.fill_null(filler)
        digest.update((pc.binary_length(filled) if text else filled).to_numpy(zero_copy_only=False).tobytes())
    for piece in text_columns.iterate_pieces(column) if text else ():
        filled = piece.fill_null(filler)
        _, offsets, data = filled.buffers()
        bounds = np.frombuffer(offsets, np.int64)[[filled.offset, filled.offset + len(filled)]]
        digest.update(memoryview(data)[bounds[0] : bounds[1]] if data else b"")


def _iso(scalar: pa.Scalar) -> str | None:
    return scalar.as_py().isoformat() if scalar.is_valid else None
