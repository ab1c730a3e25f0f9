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

from towline.config import DataConfig, Frozen, SqlSource, span
from towline.config.passwords import masked
from towline.data import formats
from towline.data.columns import examples, iso_times
from towline.errors import ConfigError, DataError
from towline.files import replacing, sweep

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_TIME = pa.timestamp("us")


class Dataset(Frozen):
    """A snapshot of the rows a run works on.

    ``path`` is relative to the store. ``digest`` is the sha256 of the content: column names, types, values and row
    order, whatever format or chunking they came in. ``start`` and ``end`` are the extremes of the time column (ISO).
    """

    path: str
    digest: str
    rows: int
    columns: tuple[str, ...]
    start: str | None
    end: str | None
    source: str


def load(config: DataConfig, project: Path, store: Path, as_of: datetime | None, pii: Collection[str] = ()) -> Dataset:
    """Reads the source, leaves out dropped columns and rows outside ``as_of`` and the window, keeps a snapshot.

    Relative paths start at ``project``. Rows keep their order; rows without a time are kept for validation to name.
    Errors do not show values of the columns ``pii``. A snapshot that is not to outlive its run has a file of its own,
    which whoever loads it removes (``drop``) or moves (``workspace.open_workspace``).

    Raises:
        ConfigError: a column or an environment variable the config names does not exist.
        DataError: the source is missing, empty, malformed or holds what no model can learn from.
        Unavailable: the database is away, or the store cannot be written.
    """
    for key in ("window", "half_life", "level"):
        if getattr(config, key) and not config.time:
            raise ConfigError(f"data.{key} needs a time column", where=f"data.{key}", remedy="name it in data.time")
    if isinstance(config.source, SqlSource):
        source = masked(config.source.url)
        tables = iter([(source, formats.query(config.source, project))])
        source = f"{source} {config.source.query}"
    else:
        source = config.source if isinstance(config.source, str) else ", ".join(config.source)
        tables = ((str(path), formats.file(path, config.separator)) for path in formats.paths(config.source, project))
    try:
        table = _canonical(_cut(_joined(tables, config), config, as_of, source), config.time)
    except DataError as error:
        if any(repr(name) in error.what for name in pii):
            raise DataError(error.what, where=error.where, remedy=error.remedy) from None
        raise
    digest = _digest(table)
    dataset = Dataset(
        path=f"datasets/{digest[:16]}.parquet"
        if config.keep_snapshot
        else f"datasets/.{secrets.token_hex(16)}.parquet",
        digest=digest,
        rows=table.num_rows,
        columns=tuple(table.column_names),
        start=_iso(pc.min(table[config.time])) if config.time else None,
        end=_iso(pc.max(table[config.time])) if config.time else None,
        source=source,
    )
    with replacing(store / dataset.path) as file:
        pq.write_table(table, file, compression="zstd")
    sweep((store / dataset.path).parent)
    return dataset


def drop(dataset: Dataset, config: DataConfig, store: Path) -> None:
    """Removes a snapshot that is not to be kept."""
    if not config.keep_snapshot:
        (store / dataset.path).unlink(missing_ok=True)


def read(dataset: Dataset, store: Path) -> pd.DataFrame:
    """The snapshot's rows, of dtypes int64, float64, bool, str and datetime64[us] (UTC, naive).

    Raises:
        DataError: the file is gone, or its content is not what the digest says.
    """
    path = store / dataset.path
    remedy = "run the load step again: the source is read anew"
    if not path.is_file():
        raise DataError("the snapshot of the data is gone", where=str(path), remedy=remedy)
    table = formats.parquet(path, remedy)
    if _digest(table) != dataset.digest:
        raise DataError("the snapshot of the data was changed", where=str(path), remedy=remedy)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _joined(tables: Iterator[tuple[str, pa.Table]], config: DataConfig) -> pa.Table:
    pieces: list[pa.Table] = []
    first, names, kept = "", list[str](), list[str]()
    for where, table in tables:
        if not names:
            first, names = where, table.column_names
            _check_names(names, config, where)
            kept = [name for name in names if name not in config.drop]
        if sorted(table.column_names) != sorted(names):
            absent, more = sorted(set(names) - set(table.column_names)), sorted(set(table.column_names) - set(names))
            found = [f"missing: {', '.join(absent[:10])}"] if absent else []
            found += [f"only here: {', '.join(more[:10])}"] if more else []
            raise DataError(
                f"other columns than {Path(first).name}",
                where=where,
                remedy="leave the file out of data.source, or give it the same columns",
                details=tuple(found or ["a column stands twice"]),
            )
        columns = [_plain(table[name], name, config, where) for name in kept]
        piece = pa.Table.from_arrays(columns, kept)
        for name, column in zip(kept, columns, strict=True):
            clash = next((k for k in pieces if not _compatible(k[name].type, column.type)), None)
            if clash is not None:
                raise DataError(
                    f"column {name!r} is {column.type} here and {clash[name].type} in an earlier file",
                    where=where,
                    remedy="make it one type in all files, or name it in data.drop",
                )
        pieces.append(piece)
    return pa.concat_tables(pieces, promote_options="permissive")


def _compatible(one: pa.DataType, other: pa.DataType) -> bool:
    numbers = (pa.int64(), pa.float64())
    return one == other or pa.null() in (one, other) or (one in numbers and other in numbers)


def _check_names(names: list[str], config: DataConfig, where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"columns stand twice: {', '.join(map(repr, twice[:10]))}", where=where, remedy="rename or remove one"
        )
    if "" in names:
        raise DataError(f"column {names.index('') + 1} has no name", where=where, remedy="name it in the header")
    wanted = [("data.target", config.target), ("data.time", config.time), ("data.group", config.group)]
    wanted += [("data.drop", name) for name in config.drop] + [("data.columns", name) for name in config.columns]
    for key, name in wanted:
        if name is not None and name not in names:
            near = difflib.get_close_matches(name, names, 1)
            known = f"did you mean {near[0]!r}?" if near else "the columns are: " + ", ".join(map(repr, names[:30]))
            raise ConfigError(f"no column {name!r} in {where}", where=key, remedy=known)


def _plain(column: pa.ChunkedArray, name: str, config: DataConfig, where: str) -> pa.ChunkedArray:
    """One of int64, float64, bool, large_string, timestamp[us] or null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, is_time = column.type, name == config.time
    if pa.types.is_null(kind):
        return column.cast(_TIME) if is_time else column
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(_TIME)
    if isinstance(kind, pa.UuidType):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        column, kind = pa.chunked_array([pa.array(texts, pa.large_string())]), pa.large_string()
    if kind in (pa.string(), pa.large_string(), pa.string_view()):
        column = column.cast(pa.large_string())
        # CSV cannot tell an empty string from a null, so nothing does
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.large_string()), column)
        if is_time:
            return _times(column, name, where)
        if config.columns.get(name) not in ("category", "text", "ignore"):
            _refuse_mixed(column, name, where)
        return column
    if is_time:
        raise DataError(
            f"time column {name!r} holds {kind} values, not dates",
            where=where,
            remedy="write ISO 8601, e.g. 2026-01-31T13:00:00; seconds since 1970 must be converted first",
        )
    return _scalars(column, name, where)


def _scalars(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_boolean(kind):
        return column
    if pa.types.is_time(kind):
        return column.cast(pa.string()).cast(pa.large_string())
    if pa.types.is_integer(kind):
        wide = kind == pa.uint64() and (pc.max(column).as_py() or 0) >= 2**63
        return column.cast(pa.float64() if wide else pa.int64(), safe=False)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = pc.add(column.cast(pa.float64(), safe=False), 0.0)  # SQLite knows no -0.0
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    raise DataError(
        f"column {name!r} holds {str(kind)[:80]} values", where=where, remedy="name it in data.drop, or store scalars"
    )


def _times(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    values = column.to_pandas()
    times = iso_times(values)
    bad = np.flatnonzero(times.isna() & values.notna())
    if len(bad):
        raise DataError(
            f"time column {name!r}: {len(bad)} of {len(values)} values are not ISO 8601 dates",
            where=where,
            remedy="write them as 2026-01-31 or 2026-01-31T13:00:00",
            details=(examples(values, bad),),
        )
    return pa.chunked_array([pa.array(times, _TIME)])


def _refuse_mixed(column: pa.ChunkedArray, name: str, where: str) -> None:
    numbers = pc.match_substring_regex(column, _NUMBER)
    share = pc.mean(numbers).as_py()
    if share is None or not 0.5 <= share < 1.0:
        return
    bad = np.flatnonzero(pc.fill_null(pc.invert(numbers), False).to_numpy())
    raise DataError(
        f"column {name!r} is mixed: {share:.1%} of its values are numbers, {len(bad)} are not",
        where=where,
        remedy=f"mend or empty the values, or set data.columns: {{{name}: category}}",
        details=(examples(column.to_pandas(), bad),),
    )


def _cut(table: pa.Table, config: DataConfig, as_of: datetime | None, where: str) -> pa.Table:
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
    kept = table.filter(pc.fill_null(keep, True))
    if not kept.num_rows:
        raise DataError(
            f"no rows are left of {table.num_rows}: as of {newest.isoformat()}, window {span(config.reach)}",
            where=where,
            remedy=f"rows run from {_iso(pc.min(times))} to {_iso(pc.max(times))}: move --as-of or widen data.window",
        )
    return kept


def _canonical(table: pa.Table, time: str | None) -> pa.Table:
    """Types that depend on the values alone: the same table from CSV, Parquet and SQL is the same snapshot."""
    for index, name in enumerate(table.column_names):
        column = table[name]
        if name != time and column.null_count == len(column):
            table = table.set_column(index, name, pa.nulls(len(column), pa.float64()))
        elif column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
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
