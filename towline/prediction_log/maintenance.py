"""Maintenance of the prediction log: summary, conversion, compaction, purge of old days, erasure of one person's rows.

``python -m towline.prediction_log.maintenance FOLDER`` converts finished segments in a process of its own, so that the
service does not load pyarrow.
"""

import datetime as dt
import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline import files
from towline.errors import ConfigError, TowlineError, TransientError
from towline.prediction_log import segments
from towline.prediction_log.column_storage import from_arrow_field
from towline.prediction_log.parquet_store import (
    INPUT_PREFIX,
    MERGED_PREFIX,
    REPLACED_PARTS,
    LogPart,
    concat_tables,
    convert_segments,
    exclusive_lock,
    iter_unconverted,
    list_parts,
    open_part,
    part_path,
    read_predictions,
)
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, LoggedColumn

_MAX_MERGED_BYTES = 128_000_000  # bytes; a part that has them is left alone
_ROW_GROUP_ROWS = 65_536  # rows
_GRACE_S = 2.0  # seconds for services to write what waits
_CLOSE_TIMEOUT_S = 10.0  # seconds for them to close their segments


class DeletionResult(NamedTuple):
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
    not_searched: int = 0


def close_segments(folder: Path) -> None:
    """Has running services end the segments they write to, with all that was sent before; they go on in new ones.

    Raises:
        TransientError: one does not within ten seconds.
    """
    time.sleep(_GRACE_S)
    before = set(segments.list_segments(folder))
    until = time.monotonic() + _CLOSE_TIMEOUT_S
    while still := before & (set(segments.list_segments(folder)) - set(segments.finished_segments(folder))):
        if time.monotonic() > until:
            raise TransientError(
                "a service still writes to the log",
                where=str(min(still)),
                remedy="run the same command again; if the service hangs, end it",
            )
        with files.disk(folder):
            segments.request_roll(folder)
        time.sleep(0.1)


class LogSummary(NamedTuple):
    """What a log holds: rows by day and version, the columns as the newest version logs them, and the rest."""

    rows: int
    first: str | None
    last: str | None
    days: list[dict[str, Any]]
    fields: list[LoggedColumn]
    waiting: int
    bytes: int
    hash_keys: list[str]


def summarize(folder: Path) -> LogSummary:
    """Tells of a log; ``waiting`` are the rows that are not in Parquet yet.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    rows: Counter[tuple[dt.date, int]] = Counter()
    fields: dict[int, list[LoggedColumn]] = {}
    with exclusive_lock(folder):
        for part in list_parts(folder):
            file = open_part(part.path)
            rows[part.day, part.version] += file.metadata.num_rows
            fields[part.version] = _fields(file.schema_arrow)
        done = rows.total()
        for _, (day, version), table in iter_unconverted(folder):
            rows[day, version] += len(table)
            fields[version] = _fields(table.schema)
        paths = [*folder.glob("day=*/*.parquet"), *segments.list_segments(folder)]
        size = sum(path.stat().st_size for path in paths)
    ends: list[str | None] = [None, None]
    if rows:
        for place, day in enumerate((min(rows)[0], max(rows)[0])):
            start = dt.datetime.combine(day, dt.time(), dt.UTC)
            times = read_predictions(folder, start, start + dt.timedelta(days=1), ["time"])["time"]
            ends[place] = (pc.min(times), pc.max(times))[place].as_py().isoformat()
    return LogSummary(
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


def read_latest(folder: Path, count: int) -> pa.Table:
    """The last predictions, in order of time.

    Raises:
        DataError, TransientError: as ``read``.
    """
    table = read_predictions(folder, dt.datetime.now(dt.UTC))
    for facts in reversed(summarize(folder).days):
        table = read_predictions(folder, dt.datetime.fromisoformat(facts["day"]))
        if len(table) >= count:
            break
    ordered = table.sort_by([("time", "ascending"), ("request_id", "ascending"), ("row", "ascending")])
    return ordered.slice(max(0, len(ordered) - count))


def _fields(schema: pa.Schema) -> list[LoggedColumn]:
    return [_field(column) for column in schema if column.name.startswith(INPUT_PREFIX)]


def _field(column: pa.Field) -> LoggedColumn:
    return from_arrow_field(column.name.removeprefix(INPUT_PREFIX), column)


def compact(folder: Path) -> tuple[int, int, int]:
    """Converts finished segments and merges small parts; returns segments, and parts before and after.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    with exclusive_lock(folder):
        converted = convert_segments(folder)
        before = len(list_parts(folder))
        merge_parts(folder)
        return converted, before, len(list_parts(folder))


def merge_parts(folder: Path, before: dt.date | None = None) -> None:
    """Makes one part of the small ones of a day and version, for callers that hold the folder; the days before a day.

    The merged part names those it stands for and takes its place in one rename: ``held`` finishes what a kill left.
    """
    groups: dict[tuple[dt.date, int], list[LogPart]] = defaultdict(list)
    unconverted = {path.stem for path in segments.list_segments(folder)}
    for part in list_parts(folder, end=before and before - dt.timedelta(days=1)):
        if part.source not in unconverted and part.path.stat().st_size < _MAX_MERGED_BYTES:
            groups[part.day, part.version].append(part)
    for (day, version), group in groups.items():
        schemas = [open_part(part.path).schema_arrow.remove_metadata() for part in group]
        if len(group) < 2 or any(schema != schemas[0] for schema in schemas):
            continue
        names = [part.path.name for part in group]
        source = MERGED_PREFIX + hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        schema = open_part(group[0].path).schema_arrow.with_metadata({REPLACED_PARTS: json.dumps(names).encode()})
        path = part_path(folder, day, source, version)
        with files.replacing(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for part in group:
                for batch in open_part(part.path).iter_batches(_ROW_GROUP_ROWS):
                    waiting.append(pa.Table.from_batches([batch]).cast(schema))
                    if sum(map(len, waiting)) >= _ROW_GROUP_ROWS:
                        writer.write_table(pa.concat_tables(waiting))
                        waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
        files.sync(path.parent)
        for part in group:
            part.path.unlink()


def purge(folder: Path, before: dt.date) -> DeletionResult:
    """Removes the days before a day, and the hash keys of the months before its month.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    with exclusive_lock(folder):
        convert_segments(folder)
        rows = sum(
            open_part(part.path).metadata.num_rows for part in list_parts(folder, end=before - dt.timedelta(days=1))
        )
        days = [path for path in sorted(folder.glob("day=*")) if path.name < f"day={before.isoformat()}"]
        for day in days:
            shutil.rmtree(day)
        return DeletionResult(rows, len(days), tuple(HashKeys(folder / HASH_KEYS).remove(before)))


def erase(folder: Path, column: str, value: str, first: Callable[[pa.Table], None]) -> DeletionResult:
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
        return DeletionResult(0, 0)
    with exclusive_lock(folder):
        convert_segments(folder)
        keys = HashKeys(folder / HASH_KEYS)
        masks: dict[Path, pa.Array] = {}
        found: list[pa.Table] = []
        ways: dict[str, set[str]] = defaultdict(set)
        blind = 0
        for part in list_parts(folder):
            file = open_part(part.path)
            for field in file.schema_arrow:
                ways[field.name].add(_field(field).policy)
            name = column if column == "request_id" else INPUT_PREFIX + column
            if name not in file.schema_arrow.names or _field(file.schema_arrow.field(name)).policy == "bucket":
                blind += file.metadata.num_rows
                continue
            table = file.read(columns=[each for each in file.schema_arrow.names if each != "probabilities"])
            mask = match_rows(table, column, value, keys)
            if pc.any(mask).as_py():
                masks[part.path] = mask
                found.append(table.filter(mask))
        _check_searchable(column, ways)
        if found:
            first(concat_tables(found))
        for path, mask in masks.items():
            _remove_rows(path, mask)
        return DeletionResult(sum(map(len, found)), len(found), not_searched=blind)


def match_rows(table: pa.Table, column: str, value: str, keys: HashKeys) -> pa.Array:
    """Which rows (n,) of a table hold a value in a column, kept as it is or hashed."""
    if column == "request_id":
        return pc.equal(table[column], value)
    field = _field(table.schema.field(INPUT_PREFIX + column))
    values = table[INPUT_PREFIX + column]
    wanted: Any
    if field.policy == "hash":
        text = field.reader.spell(value)
        wanted = [] if text is None else keys.hashes(column, text)
    elif field.policy == "keep":
        read = field.reader.read(value)
        wanted = [None if read != read else bool(read) if field.kind == "boolean" else read]  # noqa: PLR0124 - NaN
    else:
        wanted = [value]
    return pc.is_in(values, pa.array(wanted, values.type, from_pandas=True), skip_nulls=True)


def _check_searchable(column: str, ways: dict[str, set[str]]) -> None:
    if not ways or column == "request_id" or ways[INPUT_PREFIX + column] & {"keep", "hash"}:
        return
    names = [
        name.removeprefix(INPUT_PREFIX)
        for name, how in ways.items()
        if name.startswith(INPUT_PREFIX) and how - {"bucket"}
    ]
    coarse = "bucket" in ways[INPUT_PREFIX + column]
    raise ConfigError(
        f"{column!r} is logged as a bucket, which is nobody's own" if coarse else f"{column!r} is not logged",
        where="--key",
        remedy=f"there are: {', '.join(['request_id', *names])}",
    )


def _remove_rows(path: Path, mask: pa.Array) -> None:
    file = open_part(path)
    table = file.read().filter(pc.invert(mask))
    if len(table):
        with files.replacing(path) as replaced:
            pq.write_table(table, replaced, compression="zstd", row_group_size=_ROW_GROUP_ROWS)
    else:
        path.unlink()
    files.sync(path.parent)


def main(arguments: Sequence[str]) -> int:
    """Converts a folder's finished segments and merges the parts of days that are over."""
    os.nice(10)
    folder = Path(arguments[0])
    try:
        with exclusive_lock(folder):
            convert_segments(folder)
            merge_parts(folder, before=dt.datetime.now(dt.UTC).date())
    except TowlineError as error:
        print(f"the prediction log was not converted: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
