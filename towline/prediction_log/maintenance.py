"""Maintenance of the prediction log: summary, conversion, compaction, purge of old days, erasure of one person's rows.

``python -m towline.prediction_log.maintenance FOLDER`` converts finished segments in a separate process, so that the
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
    iter_unconverted,
    list_parts,
    lock_store,
    open_part,
    part_path,
    read_predictions,
)
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, LoggedColumn

_MAX_MERGED_BYTES = 128_000_000  # bytes; larger parts are not merged
_ROW_GROUP_ROWS = 65_536  # rows
_GRACE_S = 2.0  # seconds for services to write their queues
_CLOSE_TIMEOUT_S = 10.0  # seconds for services to close their segments


class DeletionResult(NamedTuple):
    """The result of a purge or an erasure.

    Attributes:
        rows: number of removed predictions.
        files: number of parts that were rewritten, or of days that were removed.
        keys: months whose hash keys were removed.
        not_searched: number of predictions that were not searched, as their version does not log the column.
    """

    rows: int
    files: int
    keys: tuple[str, ...] = ()
    not_searched: int = 0


def close_segments(folder: Path) -> None:
    """Makes running services close their open segments; later predictions go to new segments.

    Raises:
        TransientError: a service does not close its segment within ten seconds.
    """
    time.sleep(_GRACE_S)
    before = set(segments.list_segments(folder))
    until = time.monotonic() + _CLOSE_TIMEOUT_S
    while still := before & (set(segments.list_segments(folder)) - set(segments.finished_segments(folder))):
        if time.monotonic() > until:
            raise TransientError(
                "a service still writes to the log",
                where=str(min(still)),
                remedy="run the same command again; if the service hangs, stop it",
            )
        with files.disk(folder):
            segments.request_roll(folder)
        time.sleep(0.1)


class LogSummary(NamedTuple):
    """A summary of a log.

    Attributes:
        rows: number of predictions.
        first: time of the earliest prediction.
        last: time of the latest prediction.
        days: rows by day and version.
        fields: the columns that the newest version logs.
        waiting: number of rows that are not in Parquet yet.
        bytes: size of all files.
        hash_keys: months that have a hash key.
    """

    rows: int
    first: str | None
    last: str | None
    days: list[dict[str, Any]]
    fields: list[LoggedColumn]
    waiting: int
    bytes: int
    hash_keys: list[str]


def summarize(folder: Path) -> LogSummary:
    """Summarizes a log.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder, which holds the lock file, cannot be written.
    """
    rows: Counter[tuple[dt.date, int]] = Counter()
    fields: dict[int, list[LoggedColumn]] = {}
    with lock_store(folder):
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
    """The last ``count`` predictions, in order of time.

    Raises:
        DataError, TransientError: as ``read_predictions``.
    """
    table = read_predictions(folder, dt.datetime.now(dt.UTC))
    for day in reversed(summarize(folder).days):
        table = read_predictions(folder, dt.datetime.fromisoformat(day["day"]))
        if len(table) >= count:
            break
    ordered = table.sort_by([("time", "ascending"), ("request_id", "ascending"), ("row", "ascending")])
    return ordered.slice(max(0, len(ordered) - count))


def _fields(schema: pa.Schema) -> list[LoggedColumn]:
    return [_field(column) for column in schema if column.name.startswith(INPUT_PREFIX)]


def _field(column: pa.Field) -> LoggedColumn:
    return from_arrow_field(column.name.removeprefix(INPUT_PREFIX), column)


def compact(folder: Path) -> tuple[int, int, int]:
    """Converts finished segments and merges small parts.

    Returns:
        Number of converted segments, number of parts before merging, and after.

    Raises:
        TransientError: the disk is full or cannot be written.
    """
    with lock_store(folder):
        converted = convert_segments(folder)
        before = len(list_parts(folder))
        merge_parts(folder)
        return converted, before, len(list_parts(folder))


def merge_parts(folder: Path, before: dt.date | None = None) -> None:
    """Merges the small parts of each day and version before a day; for callers that hold the lock.

    The metadata of the merged part names the parts that it replaces. If the process is killed before they are removed,
    the next ``lock_store`` removes them.
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
    with lock_store(folder):
        convert_segments(folder)
        rows = sum(
            open_part(part.path).metadata.num_rows for part in list_parts(folder, end=before - dt.timedelta(days=1))
        )
        days = [path for path in sorted(folder.glob("day=*")) if path.name < f"day={before.isoformat()}"]
        for day in days:
            shutil.rmtree(day)
        return DeletionResult(rows, len(days), tuple(HashKeys(folder / HASH_KEYS).remove(before)))


def erase(folder: Path, column: str, value: str, first: Callable[[pa.Table], None]) -> DeletionResult:
    """Removes every row in which a column has a value, whether the value is logged unmodified or hashed.

    Only parts with such rows are rewritten, each in one rename. After an interruption, the same call can be repeated.

    Args:
        folder: ``predictions/<name>`` of the store.
        column: a logged column, or ``request_id``.
        value: the value as in a request.
        first: called with the matching rows (without probabilities) before any of them is removed.

    Raises:
        ConfigError: the column is not logged, or only as a bucket.
        TransientError: a service does not close its segment, or the disk is full or cannot be written.
    """
    close_segments(folder)
    if not folder.is_dir():
        return DeletionResult(0, 0)
    with lock_store(folder):
        convert_segments(folder)
        keys = HashKeys(folder / HASH_KEYS)
        masks: dict[Path, pa.Array] = {}
        matching: list[pa.Table] = []
        policies: dict[str, set[str]] = defaultdict(set)
        not_searched = 0
        for part in list_parts(folder):
            file = open_part(part.path)
            for field in file.schema_arrow:
                policies[field.name].add(_field(field).policy)
            name = column if column == "request_id" else INPUT_PREFIX + column
            if name not in file.schema_arrow.names or _field(file.schema_arrow.field(name)).policy == "bucket":
                not_searched += file.metadata.num_rows
                continue
            table = file.read(columns=[other for other in file.schema_arrow.names if other != "probabilities"])
            mask = match_rows(table, column, value, keys)
            if pc.any(mask).as_py():
                masks[part.path] = mask
                matching.append(table.filter(mask))
        _check_searchable(column, policies)
        if matching:
            first(concat_tables(matching))
        for path, mask in masks.items():
            _remove_rows(path, mask)
        return DeletionResult(sum(map(len, matching)), len(matching), not_searched=not_searched)


def erase_answers(folder: Path, is_erased: Callable[[str, int], bool]) -> int:
    """Removes answers from the shadow log of a rollout, which holds no input; returns their number.

    Args:
        folder: of the shadow log.
        is_erased: whether the answer for a row of a request, given by its id and number, is removed.

    Raises:
        TransientError: a service does not close its segment, or the disk is full or cannot be written.
    """
    if len(segments.list_segments(folder)) > len(list(segments.finished_segments(folder))):
        close_segments(folder)
    count = 0
    with lock_store(folder):
        convert_segments(folder)
        for part in list_parts(folder):
            table = open_part(part.path).read(columns=["request_id", "row"])
            mask = list(map(is_erased, table["request_id"].to_pylist(), table["row"].to_pylist()))
            if any(mask):
                count += sum(mask)
                _remove_rows(part.path, pa.array(mask))
    return count


def match_rows(table: pa.Table, column: str, value: str, keys: HashKeys) -> pa.Array:
    """A mask (n,) of the rows in which a column has a value, whether it is logged unmodified or hashed."""
    if column == "request_id":
        return pc.equal(table[column], value)
    field = _field(table.schema.field(INPUT_PREFIX + column))
    values = table[INPUT_PREFIX + column]
    stored: Any  # the forms in which the log may hold the value
    if field.policy == "hash":
        text = field.reader.spell(value)
        stored = [] if text is None else keys.hashes(column, text)
    elif field.policy == "keep":
        read = field.reader.read(value)
        stored = [None if read != read else bool(read) if field.kind == "boolean" else read]  # noqa: PLR0124 - NaN
    else:
        stored = [value]
    return pc.is_in(values, pa.array(stored, values.type, from_pandas=True), skip_nulls=True)


def _check_searchable(column: str, policies: dict[str, set[str]]) -> None:
    if not policies or column == "request_id" or policies[INPUT_PREFIX + column] & {"keep", "hash"}:
        return
    names = [
        name.removeprefix(INPUT_PREFIX)
        for name, used in policies.items()
        if name.startswith(INPUT_PREFIX) and used - {"bucket"}
    ]
    is_bucket = "bucket" in policies[INPUT_PREFIX + column]
    raise ConfigError(
        f"{column!r} is logged as a bucket, which many values share" if is_bucket else f"{column!r} is not logged",
        where="--key",
        remedy=f"use one of: {', '.join(['request_id', *names])}",
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
    """Converts the finished segments of a folder and merges the parts of past days."""
    os.nice(10)
    folder = Path(arguments[0])
    try:
        with lock_store(folder):
            convert_segments(folder)
            merge_parts(folder, before=dt.datetime.now(dt.UTC).date())
    except TowlineError as error:
        print(f"the prediction log was not converted: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
