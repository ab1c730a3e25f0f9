"""From files or a database to one content-addressed Parquet snapshot."""

import difflib
import hashlib
import secrets
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.config import DataConfig, Frozen, Kind, SqlSource, format_duration
from towline.config.passwords import mask_passwords
from towline.data import formats
from towline.data.schema import notation, text_columns
from towline.data.schema.columns import list_examples
from towline.data.schema.values import ValueFormat, ValueReader, category_name, column_format
from towline.errors import ConfigError, DataError
from towline.files import replacing, sweep
from towline.store import StoreLayout

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_TIME = pa.timestamp("us")


class CoercedValues(Frozen):
    """Values of a column that is declared numeric which are no numbers, and were read as null."""

    column: str
    count: int
    share: float
    examples: str


class Dataset(Frozen):
    """A snapshot of the rows a run works on.

    ``path`` is relative to the store. ``digest`` is the sha256 of the content: column names, types, values and row
    order, whatever format or chunking they came in. ``start`` and ``end`` are the extremes of the time column (ISO);
    ``time_format`` is how its values are written, where not as ISO 8601.
    """

    path: str
    digest: str
    rows: int
    columns: tuple[str, ...]
    start: str | None
    end: str | None
    source: str
    time_format: str | None = None
    coerced: tuple[CoercedValues, ...] = ()


def load_dataset(
    config: DataConfig, project: Path, store: Path, as_of: datetime | None, pii: Collection[str] = ()
) -> Dataset:
    """Reads the source, leaves out dropped columns and rows outside ``as_of`` and the window, keeps a snapshot.

    Relative paths start at ``project``. Rows keep their order; rows without a time are kept for validation to name.
    Errors do not show values of the columns ``pii``. A snapshot that is not to outlive its run has a file of its own,
    which whoever loads it removes (``drop``) or moves (``workspace.open_workspace``).

    Raises:
        ConfigError: a column or an environment variable the config names does not exist.
        DataError: the source is missing, empty, malformed or holds what no model can learn from.
        TransientError: the database is away, or the store cannot be written.
    """
    for key in ("window", "half_life", "detrend"):
        if getattr(config, key) and not config.time:
            raise ConfigError(f"data.{key} needs a time column", where=f"data.{key}", remedy="name it in data.time")
    if isinstance(config.source, SqlSource):
        source = mask_passwords(config.source.url)
        tables = iter([(source, formats.run_query(config.source, project))])
        source = f"{source} {config.source.query}"
    else:
        source = config.source if isinstance(config.source, str) else ", ".join(config.source)
        tables = (
            (str(path), formats.read_file(path, config.separator))
            for path in formats.list_files(config.source, project)
        )
    try:
        table, coerced, time_format = _convert_columns(_concatenate(tables, config), config, source)
        table = _canonicalize(_select_rows(table, config, as_of, source), config.time)
    except DataError as error:
        if any(repr(name) in error.what for name in pii):
            raise DataError(
                error.what, where=error.where, remedy="correct the values, or declare a kind under data.columns"
            ) from None
        raise
    coerced = tuple(c.model_copy(update={"examples": ""}) if c.column in pii else c for c in coerced)
    digest = _digest(table)
    dataset = Dataset(
        path=StoreLayout.dataset_name(digest[:16] if config.keep_snapshot else f".{secrets.token_hex(16)}"),
        digest=digest,
        rows=table.num_rows,
        columns=tuple(table.column_names),
        start=_iso(pc.min(table[config.time])) if config.time else None,
        end=_iso(pc.max(table[config.time])) if config.time else None,
        source=source,
        time_format=time_format,
        coerced=coerced,
    )
    snapshot = StoreLayout(store).dataset(dataset.path)
    with replacing(snapshot) as file:
        pq.write_table(table, file, compression="zstd")
    sweep(snapshot.parent)
    return dataset


def remove_snapshot(dataset: Dataset, config: DataConfig, store: Path) -> None:
    """Removes a snapshot that is not to be kept."""
    if not config.keep_snapshot:
        StoreLayout(store).dataset(dataset.path).unlink(missing_ok=True)


def read_snapshot(dataset: Dataset, store: Path) -> pd.DataFrame:
    """The snapshot's rows, of dtypes int64, float64, bool (boolean with nulls), str and datetime64[us] (UTC, naive).

    Raises:
        DataError: the file is gone, or its content is not what the digest says.
    """
    path = StoreLayout(store).dataset(dataset.path)
    remedy = "run the load step again: the source is read anew"
    if not path.is_file():
        raise DataError("the snapshot of the data is gone", where=str(path), remedy=remedy)
    table = formats.read_parquet(path, remedy)
    if _digest(table) != dataset.digest:
        raise DataError("the snapshot of the data was changed", where=str(path), remedy=remedy)
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and pa.types.is_boolean(column.type):
            frame[name] = frame[name].astype("boolean")
    return frame


def _concatenate(tables: Iterator[tuple[str, pa.Table]], config: DataConfig) -> pa.Table:
    pieces: list[pa.Table] = []
    first, names, columns = "", list[str](), list[str]()
    for where, table in tables:
        if not names:
            first, names = where, table.column_names
            _check_names(names, config, where)
            columns = [name for name in names if name not in config.drop]
        if sorted(table.column_names) != sorted(names):
            absent, more = sorted(set(names) - set(table.column_names)), sorted(set(table.column_names) - set(names))
            differences = [f"missing: {', '.join(absent[:10])}"] if absent else []
            differences += [f"only here: {', '.join(more[:10])}"] if more else []
            raise DataError(
                f"other columns than {Path(first).name}",
                where=where,
                remedy="leave the file out of data.source, or give it the same columns",
                details=tuple(differences or ["a column stands twice"]),
            )
        piece = pa.Table.from_arrays([_to_plain_type(table[name], name, where) for name in columns], columns)
        for name in columns:
            clash = next((p for p in pieces if not _compatible(p[name].type, piece[name].type)), None)
            if clash is not None:
                raise DataError(
                    f"column {name!r} is {piece[name].type} here and {clash[name].type} in an earlier file",
                    where=where,
                    remedy="make it one type in all files, or name it in data.drop",
                )
        pieces.append(piece)
    for name in columns:
        if len(kinds := {piece[name].type for piece in pieces} - {pa.null()}) > 1 and pa.large_string() in kinds:
            pieces = [piece.set_column(piece.column_names.index(name), name, _as_text(piece[name])) for piece in pieces]
    return pa.concat_tables(pieces, promote_options="permissive")


def _compatible(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether two files may hold these types of a column; text is read as whatever all of its rows spell."""
    numeric = (pa.int64(), pa.float64())
    return (
        one == other or {one, other} & {pa.null(), pa.large_string()} != set() or (one in numeric and other in numeric)
    )


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == pa.large_string():
        return column
    return pa.chunked_array([pa.array([category_name(value) for value in column.to_pylist()], pa.large_string())])


def _check_names(names: list[str], config: DataConfig, where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"columns stand twice: {', '.join(map(repr, twice[:10]))}", where=where, remedy="rename or remove one"
        )
    if "" in names:
        raise DataError(f"column {names.index('') + 1} has no name", where=where, remedy="name it in the header")
    configured = [("data.target", config.target), ("data.time", config.time), ("data.group", config.group)]
    configured += [("data.drop", name) for name in config.drop] + [("data.columns", name) for name in config.columns]
    for key, name in configured:
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            known = f"did you mean {near[0]!r}?" if near else "the columns are: " + ", ".join(map(repr, names[:30]))
            raise ConfigError(f"no column {name!r} in {where}", where=key, remedy=known)


def _to_plain_type(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """One of int64, float64, bool, large_string, timestamp[us] or null; text as it is written."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(_TIME)
    if isinstance(kind, pa.UuidType):
        return pa.chunked_array(
            [pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.large_string())]
        )
    if text_columns.is_text(kind):
        return text_columns.large_text(column)
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return column
    if pa.types.is_time(kind):
        return _as_text(column)
    if pa.types.is_integer(kind):
        wide = kind == pa.uint64() and (pc.max(column).as_py() or 0) >= 2**63
        return column.cast(pa.float64() if wide else pa.int64(), safe=False)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = pc.add(column.cast(pa.float64(), safe=False), 0.0)  # SQLite knows no -0.0
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    raise DataError(
        f"column {name!r} holds {str(kind)[:80]} values", where=where, remedy="name it in data.drop, or store scalars"
    )


def _convert_columns(
    table: pa.Table, config: DataConfig, where: str
) -> tuple[pa.Table, tuple[CoercedValues, ...], str | None]:
    """Each column in the type of what its values mean; what was made null on the way; the time column's format."""
    columns, coerced, time_format = [], [], None
    for name in table.column_names:
        column, fmt = table[name], column_format(config, name)
        kind = config.columns.get(name)
        if name == config.time:
            column, time_format = _convert_times(column, name, fmt, where)
        elif kind == "numeric" and text_columns.is_text(column.type):
            floats, unread = text_columns.parse_numbers(column, fmt)
            if unread.any():
                rows = np.flatnonzero(unread)
                shown = list_examples(column.to_pandas(), rows)
                coerced.append(
                    CoercedValues(column=name, count=len(rows), share=len(rows) / len(column), examples=shown)
                )
            column = text_columns.whole_or_float(floats, column) or pa.chunked_array(
                [pa.array(floats, from_pandas=True)]
            )
        elif kind is None or kind == "ignore":
            column = _infer_column(column, name, fmt, where, refuse_mixed=kind is None)
        elif kind != "text":
            column = _convert_declared(column, kind, fmt)
        columns.append(_null_markers(column, fmt))
    return pa.Table.from_arrays(columns, table.column_names), tuple(coerced), time_format


def _infer_column(
    column: pa.ChunkedArray, name: str, fmt: ValueFormat, where: str, *, refuse_mixed: bool
) -> pa.ChunkedArray:
    if not text_columns.is_text(column.type):
        return _as_text(column) if text_columns.is_inexact(column) else column
    column = text_columns.infer_text(column, fmt)
    if refuse_mixed and text_columns.is_text(column.type):
        _refuse_mixed(column, name, where)
    return column


def _convert_declared(column: pa.ChunkedArray, kind: Kind, fmt: ValueFormat) -> pa.ChunkedArray:
    """A column of a declared kind; as it is where values do not fit, for the contract to name them."""
    text = text_columns.is_text(column.type)
    if kind == "category":
        return text_columns.parse_categories(column, fmt)
    if kind == "boolean" and column.type != pa.bool_():
        flags, unread = text_columns.parse_booleans(column if text else _as_text(column), fmt)
        return column if unread.any() else text_columns.flag_array(flags)
    if kind == "datetime" and (text or (fmt.date_format and not pa.types.is_temporal(column.type))):
        moments, unread = text_columns.parse_times(column if text else _as_text(column), fmt)
        return column if unread.any() else pa.chunked_array([pa.array(moments, _TIME)])
    return column


def _null_markers(column: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """The same without numbers that stand for null; ``parsing`` has done it for text."""
    if column.type not in (pa.int64(), pa.float64()) or not fmt.na_values:
        return text_columns.null_markers(column, fmt) if text_columns.is_text(column.type) else column
    reader = ValueReader("numeric", fmt)
    marked = [reader.is_null(value) for value in column.to_pylist()]
    return pc.if_else(pa.array(marked), pa.scalar(None, column.type), column)


def _convert_times(
    column: pa.ChunkedArray, name: str, fmt: ValueFormat, where: str
) -> tuple[pa.ChunkedArray, str | None]:
    if pa.types.is_timestamp(column.type):
        return column, fmt.date_format
    if pa.types.is_null(column.type):
        return column.cast(_TIME), fmt.date_format
    if column.type == pa.bool_():
        raise DataError(f"time column {name!r} holds flags, not dates", where=where, remedy="name another data.time")
    texts = column if text_columns.is_text(column.type) else _as_text(column)
    if fmt.date_format is None:
        fmt = fmt.model_copy(update={"date_format": text_columns.detect_digits_format(texts)})
    moments, unread = text_columns.parse_times(texts, fmt)
    if unread.any():
        rows = np.flatnonzero(unread)
        raise DataError(
            f"time column {name!r}: {len(rows)} of {len(column)} values are not "
            + (f"written as {fmt.date_format}" if fmt.date_format else "ISO 8601 dates"),
            where=where,
            remedy="set data.date_format, e.g. '%d.%m.%Y', '%m/%d/%Y', epoch_s or epoch_ms; or write 2026-01-31",
            details=(list_examples(column.to_pandas(), rows),),
        )
    return pa.chunked_array([pa.array(moments, _TIME)]), fmt.date_format


def _refuse_mixed(column: pa.ChunkedArray, name: str, where: str) -> None:
    numbers = pc.match_substring_regex(column, _NUMBER)
    share = pc.mean(numbers).as_py()
    if share is None or not 0.5 <= share < 1.0 or text_columns.has_zero_padding(column):
        return
    bad = np.flatnonzero(pc.fill_null(pc.invert(numbers), False).to_numpy())
    texts = column.filter(pc.fill_null(pc.invert(numbers), False)).unique().to_pylist()
    other = notation.detect_notation(column.to_pandas().rename(name))
    first = f"{other.remedy}, or " if other else f"data.na_values: {texts!r}, or " if len(texts) <= 3 else ""
    raise DataError(
        f"column {name!r} is mixed: {share:.1%} of its values are numbers, {len(bad)} are not",
        where=where,
        remedy=f"set {first}data.columns: {{{name}: numeric}} (they become null), or {{{name}: category}}",
        details=(list_examples(column.to_pandas(), bad),),
    )


def _select_rows(table: pa.Table, config: DataConfig, as_of: datetime | None, where: str) -> pa.Table:
    if not table.num_rows:
        raise DataError("no rows", where=where, remedy="give a table with rows")
    if not config.time or not (as_of or config.reach) or table[config.time].null_count == table.num_rows:
        return table
    times = table[config.time]
    if as_of and as_of.tzinfo:
        as_of = as_of.astimezone(UTC).replace(tzinfo=None)
    newest = as_of or pc.max(times).as_py()
    keep = pc.less_equal(times, pa.scalar(newest, _TIME))
    if config.reach:
        keep = pc.and_(keep, pc.greater(times, pa.scalar(newest - config.reach, _TIME)))
    selected = table.filter(pc.fill_null(keep, True))
    if not selected.num_rows:
        raise DataError(
            f"no rows are left of {table.num_rows}: as of {newest.isoformat()}, window {format_duration(config.reach)}",
            where=where,
            remedy=f"rows run from {_iso(pc.min(times))} to {_iso(pc.max(times))}: move --as-of or widen data.window",
        )
    return selected


def _canonicalize(table: pa.Table, time: str | None) -> pa.Table:
    """Types that depend on the values alone: the same table from CSV, Parquet and SQL is the same snapshot."""
    for index, name in enumerate(table.column_names):
        column = table[name]
        if name != time and column.null_count == len(column):
            table = table.set_column(index, name, pa.nulls(len(column), pa.float64()))
        elif column.null_count and pa.types.is_integer(column.type):
            table = table.set_column(index, name, column.cast(pa.float64(), safe=False))
    return table.combine_chunks()


def _digest(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        text = pa.types.is_large_string(column.type)
        digest.update(f"{len(name.encode())}:{name}:{column.type}:{len(column)};".encode())
        digest.update(np.packbits(column.is_valid().to_numpy()).tobytes())
        # what lies beneath a null is arbitrary: make it one value
        filled = pc.fill_null(column, "") if text else pc.fill_null(column, pa.scalar(0).cast(column.type))
        if not text:
            digest.update(filled.to_numpy().tobytes())
            continue
        digest.update(pc.binary_length(filled).to_numpy().tobytes())
        for chunk in filled.chunks:
            if len(chunk):
                _, offsets, data = chunk.buffers()
                bounds = np.frombuffer(offsets, np.int64)[[chunk.offset, chunk.offset + len(chunk)]]
                digest.update(memoryview(data)[bounds[0] : bounds[1]] if data else b"")
    return digest.hexdigest()


def _iso(scalar: pa.Scalar) -> str | None:
    return scalar.as_py().isoformat() if scalar.is_valid else None
