"""What is done to a log that exists: tell of it, merge its parts, forget what is old or asked for."""

import datetime as dt
import hashlib
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline import files
from towline.errors import ConfigError, TransientError
from towline.prediction_log import segments
from towline.prediction_log.column_storage import logged_field
from towline.prediction_log.parquet_store import (
    INPUT,
    MERGED,
    REPLACES,
    Part,
    convert,
    held,
    joined,
    opened,
    part_path,
    parts,
    read,
    unconverted,
)
from towline.prediction_log.privacy import HASH_KEYS, Field, HashKeys

_LARGE = 128_000_000  # bytes; a part that has them is left alone
_GROUP = 65_536  # rows
_GRACE = 2.0  # seconds for services to write what waits
_PATIENCE = 10.0  # seconds for them to close their segments


class Forgotten(NamedTuple):
    """What was removed from a log.

    Attributes:
        rows: predictions.
        files: parts or days.
        keys: months whose hash keys went.
        blind: predictions that could not be looked at, as their version does not log the column.
    """

    rows: int
    files: int
    keys: tuple[str, ...] = ()
    blind: int = 0


def close_segments(folder: Path) -> None:
    """Has running services end the segments they write to, with all that was sent before; they go on in new ones.

    Raises:
        TransientError: one does not within ten seconds.
    """
    time.sleep(_GRACE)
    before = set(segments.paths(folder))
    until = time.monotonic() + _PATIENCE
    while still := before & (set(segments.paths(folder)) - set(segments.finished(folder))):
        if time.monotonic() > until:
            raise TransientError(
                "a service still writes to the log",
                where=str(min(still)),
                remedy="run the same command again; if the service hangs, end it",
            )
        with files.disk(folder):
            segments.ask(folder)
        time.sleep(0.1)


class Summary(NamedTuple):
    """What a log holds: rows by day and version, the columns as the newest version logs them, and the rest."""

    rows: int
    first: str | None
    last: str | None
    days: list[dict[str, Any]]
    fields: list[Field]
    waiting: int
    bytes: int
    hash_keys: list[str]


def summary(folder: Path) -> Summary:
    """Tells of a log; ``waiting`` are the rows that are not in Parquet yet.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    rows: Counter[tuple[dt.date, int]] = Counter()
    fields: dict[int, list[Field]] = {}
    with held(folder):
        for part in parts(folder):
            file = opened(part.path)
            rows[part.day, part.version] += file.metadata.num_rows
            fields[part.version] = _fields(file.schema_arrow)
        done = rows.total()
        for _, (day, version), table in unconverted(folder):
            rows[day, version] += len(table)
            fields[version] = _fields(table.schema)
        paths = [*folder.glob("day=*/*.parquet"), *segments.paths(folder)]
        size = sum(path.stat().st_size for path in paths)
    ends: list[str | None] = [None, None]
    if rows:
        for place, day in enumerate((min(rows)[0], max(rows)[0])):
            start = dt.datetime.combine(day, dt.time(), dt.UTC)
            times = read(folder, start, start + dt.timedelta(days=1), ["time"])["time"]
            ends[place] = (pc.min(times), pc.max(times))[place].as_py().isoformat()
    return Summary(
        rows=rows.total(),
        first=ends[0],
        last=ends[1],
        days=[
            {"day": day.isoformat(), "version": version, "rows": rows[day, version]} for day, version in sorted(rows)
        ],
        fields=fields[max(fields)] if fields else [],
        waiting=rows.total() - done,
        bytes=size,
        hash_keys=HashKeys(folder / HASH_KEYS).months(),
    )


def tail(folder: Path, count: int) -> pa.Table:
    """The last predictions, in order of time.

    Raises:
        DataError, TransientError: as ``read``.
    """
    table = read(folder, dt.datetime.now(dt.UTC))
    for facts in reversed(summary(folder).days):
        table = read(folder, dt.datetime.fromisoformat(facts["day"]))
        if len(table) >= count:
            break
    ordered = table.sort_by([("time", "ascending"), ("request_id", "ascending"), ("row", "ascending")])
    return ordered.slice(max(0, len(ordered) - count))


def _fields(schema: pa.Schema) -> list[Field]:
    return [_field(column) for column in schema if column.name.startswith(INPUT)]


def _field(column: pa.Field) -> Field:
    return logged_field(column.name.removeprefix(INPUT), column)


def compact(folder: Path) -> tuple[int, int, int]:
    """Converts finished segments and merges small parts; returns segments, and parts before and after.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    with held(folder):
        converted = convert(folder)
        before = len(parts(folder))
        merge(folder)
        return converted, before, len(parts(folder))


def merge(folder: Path, before: dt.date | None = None) -> None:
    """Makes one part of the small ones of a day and version, for callers that hold the folder; the days before a day.

    The merged part names those it stands for and takes its place in one rename: ``held`` finishes what a kill left.
    """
    groups: dict[tuple[dt.date, int], list[Part]] = defaultdict(list)
    unconverted = {path.stem for path in segments.paths(folder)}
    for part in parts(folder, end=before and before - dt.timedelta(days=1)):
        if part.source not in unconverted and part.path.stat().st_size < _LARGE:
            groups[part.day, part.version].append(part)
    for (day, version), group in groups.items():
        schemas = [opened(part.path).schema_arrow.remove_metadata() for part in group]
        if len(group) < 2 or any(schema != schemas[0] for schema in schemas):
            continue
        names = [part.path.name for part in group]
        source = MERGED + hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        schema = opened(group[0].path).schema_arrow.with_metadata({REPLACES: json.dumps(names).encode()})
        path = part_path(folder, day, source, version)
        with files.replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for part in group:
                for batch in opened(part.path).iter_batches(_GROUP):
                    waiting.append(pa.Table.from_batches([batch]).cast(schema))
                    if sum(map(len, waiting)) >= _GROUP:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        files.sync(path.parent)
        for part in group:
            part.path.unlink()


def purge(folder: Path, before: dt.date) -> Forgotten:
    """Removes the days before a day, and the hash keys of the months before its month.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    with held(folder):
        convert(folder)
        rows = sum(opened(part.path).metadata.num_rows for part in parts(folder, end=before - dt.timedelta(days=1)))
        days = [path for path in sorted(folder.glob("day=*")) if path.name < f"day={before.isoformat()}"]
        for day in days:
            shutil.rmtree(day)
        return Forgotten(rows, len(days), tuple(HashKeys(folder / HASH_KEYS).remove(before)))


def erase(folder: Path, column: str, value: str, first: Callable[[pa.Table], None]) -> Forgotten:
    """Removes every row in which a column has a value, also where the value is hashed.

    Only the parts that hold such a row are written anew, each whole or not at all; after a kill the same call goes on.

    Args:
        folder: ``predictions/<name>`` of the store.
        column: a logged column, or ``request_id``.
        value: as a request would give it.
        first: is given the rows (without their probabilities) before any of them is removed.

    Raises:
        ConfigError: the column is not logged, or only as a bucket.
        TransientError: a service does not close its segment, or the disk is full or cannot be written.
    """
    close_segments(folder)
    if not folder.is_dir():
        return Forgotten(0, 0)
    with held(folder):
        convert(folder)
        keys = HashKeys(folder / HASH_KEYS)
        masks: dict[Path, pa.Array] = {}
        found: list[pa.Table] = []
        ways: dict[str, set[str]] = defaultdict(set)
        blind = 0
        for part in parts(folder):
            file = opened(part.path)
            for field in file.schema_arrow:
                ways[field.name].add(_field(field).kept)
            name = column if column == "request_id" else INPUT + column
            if name not in file.schema_arrow.names or _field(file.schema_arrow.field(name)).kept == "bucket":
                blind += file.metadata.num_rows
                continue
            table = file.read(columns=[each for each in file.schema_arrow.names if each != "probabilities"])
            mask = matching(table, column, value, keys)
            if pc.any(mask).as_py():
                masks[part.path] = mask
                found.append(table.filter(mask))
        _check(column, ways)
        if found:
            first(joined(found))
        for path, mask in masks.items():
            _without(path, mask)
        return Forgotten(sum(map(len, found)), len(found), blind=blind)


def matching(table: pa.Table, column: str, value: str, keys: HashKeys) -> pa.Array:
    """Which rows (n,) of a table hold a value in a column, kept as it is or hashed."""
    if column == "request_id":
        return pc.equal(table[column], value)
    field = _field(table.schema.field(INPUT + column))
    values = table[INPUT + column]
    wanted: Any
    if field.kept == "hash":
        text = field.reader.spell(value)
        wanted = [] if text is None else keys.hashes(column, text)
    elif field.kept == "keep":
        read = field.reader.read(value)
        wanted = [None if read != read else bool(read) if field.kind == "boolean" else read]  # noqa: PLR0124 - NaN
    else:
        wanted = [value]
    return pc.is_in(values, pa.array(wanted, values.type, from_pandas=True), skip_nulls=True)


def _check(column: str, ways: dict[str, set[str]]) -> None:
    if not ways or column == "request_id" or ways[INPUT + column] & {"keep", "hash"}:
        return
    names = [name.removeprefix(INPUT) for name, how in ways.items() if name.startswith(INPUT) and how - {"bucket"}]
    coarse = "bucket" in ways[INPUT + column]
    raise ConfigError(
        f"{column!r} is logged as a bucket, which is nobody's own" if coarse else f"{column!r} is not logged",
        where="--key",
        remedy=f"there are: {', '.join(['request_id', *names])}",
    )


def _without(path: Path, mask: pa.Array) -> None:
    file = opened(path)
    table = file.read().filter(pc.invert(mask))
    if len(table):
        with files.replacing(path) as replaced:
            pq.write_table(table, replaced, compression="zstd", row_group_size=_GROUP)
    else:
        path.unlink()
    files.sync(path.parent)
