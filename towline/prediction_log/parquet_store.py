"""The log as tables: segments become daily Parquet parts, and both are read as one.

``python -m towline.prediction_log.parquet_store FOLDER`` converts segments in its own process, so the service never
loads pyarrow.
A part is named after its segment, so doing it again after a kill makes the same part; the segment goes last.
"""

import datetime as dt
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline import files
from towline.data.schema.values import category_name
from towline.errors import DataError, TowlineError
from towline.prediction_log import clock_skew, segments
from towline.prediction_log.column_storage import TYPES, arrow_field, input_array, prediction_array
from towline.prediction_log.privacy import Field

INPUT = "input."  # before the name of a logged column
REPLACES = b"replaces"  # the names of the parts that a merged one stands for
MERGED = "merged-"
_CHUNK = 20_000  # rows in memory at once
_DAY = 86_400_000_000  # microseconds
_NAME = re.compile(r"part-(.+)-v(\d+)\.parquet")
_UTC = pa.timestamp("us", "UTC")
_FIRST = [
    pa.field("request_id", pa.string()), pa.field("row", pa.int32()), pa.field("time", _UTC),
    pa.field("version", pa.int32()), pa.field("model", pa.string()),
]  # fmt: skip
_LAST = [pa.field("prediction", pa.float64()), pa.field("probabilities", pa.list_(pa.float64()))]
_logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A Parquet file: predictions of one version on one day, out of one segment or merged from several parts."""

    path: Path
    day: dt.date
    version: int
    source: str


def read(
    folder: Path,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The predictions from ``start`` up to but not at ``end``, also those that are not in Parquet yet; in no order.

    Args:
        folder: ``predictions/<name>`` of the store.
        start: in UTC where it has no zone.
        end: the same.
        columns: only these.

    Returns:
        request_id (string), row (int32), time (timestamp[us, UTC]), version (int32), model (string), ``input.<name>``
        (float64, bool, string, or timestamp[us] in UTC without a zone), prediction, probabilities (list of float64).
        What a version did not log is null; a column whose type is not the same in all versions is string.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    start, end = utc(start), utc(end)
    if not folder.is_dir():
        return joined([], columns)
    with held(folder):
        return joined([table for _, table in tables(folder, start, end, columns)], columns)


def tables(
    folder: Path,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[Path, pa.Table]]:
    """The same file by file, each with its path; for callers that hold the folder."""
    wanted = None if columns is None else [*dict.fromkeys([*columns, "time"])]
    for part in parts(folder, start and start.date(), end and end.date()):
        file = opened(part.path)
        have = None if wanted is None else [name for name in file.schema_arrow.names if name in wanted]
        yield part.path, between(file.read(columns=have), start, end)
    for path, _, table in unconverted(folder):
        yield path, between(table if wanted is None else _only(table, wanted), start, end)


def unconverted(
    folder: Path, odd: list[clock_skew.SetBack] | None = None
) -> Iterator[tuple[Path, tuple[dt.date, int], pa.Table]]:
    """What is in segments alone: the segment, day and version, and a table; for callers that hold the folder.

    Args:
        folder: ``predictions/<name>`` of the store.
        odd: takes what segments show of a clock that was set back.
    """
    for path in segments.paths(folder):
        order = clock_skew.Order(path.stem)
        for (day, version), table in _pieces(path, order):
            if not part_path(folder, day, path.stem, version).exists():  # else a kill came before the segment went
                yield path, (day, version), table
        if odd is not None:
            odd += order.found


def count_unconverted(folder: Path) -> Counter[dt.date]:
    """Rows by day of what is in segments alone; for callers that do not hold the folder."""
    count: Counter[dt.date] = Counter()
    for path in segments.paths(folder):
        rows: Counter[tuple[dt.date, int]] = Counter()
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # converted meanwhile
            continue
        for line in content.splitlines(keepends=True):
            try:
                record = orjson.loads(line) if line.endswith(b"\n") else {}
                if "of" in record:
                    rows[_key((record["at"] // _DAY, record["of"]))] += len(record["rows"])
            except (ValueError, KeyError, TypeError):  # the disk's doing
                continue
        for (day, version), written in rows.items():
            if not part_path(folder, day, path.stem, version).exists():
                count[day] += written
    return count


def parts(folder: Path, start: dt.date | None = None, end: dt.date | None = None) -> list[Part]:
    """The parts of the days from ``start`` to ``end``, both included, in order."""
    found = []
    for path in sorted(folder.glob("day=*/part-*.parquet")):
        named = _NAME.fullmatch(path.name)
        if named:
            day = dt.date.fromisoformat(path.parent.name.removeprefix("day="))
            if (start is None or day >= start) and (end is None or day <= end):
                found.append(Part(path, day, int(named[2]), named[1]))
    return found


def part_path(folder: Path, day: dt.date, source: str, version: int) -> Path:
    return folder / f"day={day.isoformat()}" / f"part-{source}-v{version}.parquet"


def opened(path: Path, levels: Sequence[str] = ()) -> pq.ParquetFile:
    """A part to read from, columns of text as dictionaries where they are named in ``levels``.

    Raises:
        DataError: it is no whole Parquet file.
    """
    try:
        return pq.ParquetFile(path, read_dictionary=list(levels))
    except pa.ArrowException as error:
        raise DataError(
            f"a part of the prediction log cannot be read: {str(error)[:200]}",
            where=str(path),
            remedy="restore the file, or move it out of the folder: its predictions are then missing",
        ) from None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps every other process from changing the parts; first clears what a killed one left.

    Raises:
        TransientError: the folder cannot be written.
    """
    with files.disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.exclusive_lock(folder / ".lock"), files.disk(folder):
        for draft in folder.glob("day=*/.part-*"):
            draft.unlink()
        for path in folder.glob(f"day=*/part-{MERGED}*.parquet"):
            for name in json.loads((opened(path).schema_arrow.metadata or {}).get(REPLACES, b"[]")):
                path.with_name(name).unlink(missing_ok=True)
        yield


def convert(folder: Path) -> int:
    """Turns the finished segments into parts, for callers that hold the folder; returns how many segments.

    Raises:
        TransientError: the disk is full or cannot be written. What is not converted stays as it is.
    """
    count = 0
    for path in segments.finished(folder):
        with ExitStack() as stack, files.disk(folder):
            writers: dict[tuple[dt.date, int], pq.ParquetWriter] = {}
            order = clock_skew.Order(path.stem)
            for key, table in _pieces(path, order):
                if key not in writers:
                    file = stack.enter_context(files.replacing(part_path(folder, key[0], path.stem, key[1])))
                    writers[key] = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writers[key].write_table(table)
        for day, _ in writers:
            files.sync(folder / f"day={day.isoformat()}")
        clock_skew.keep(folder, order.found)
        files.sync(folder)
        path.unlink()
        count += 1
    return count


def joined(found: Sequence[pa.Table], columns: Sequence[str] | None = None) -> pa.Table:
    """Tables of several versions as one: a column whose types differ becomes string."""
    types: dict[str, pa.DataType] = {}
    names = [name for table in found for name in table.column_names if name.startswith(INPUT)]
    for field in (*_FIRST, *(pa.field(name, pa.null()) for name in dict.fromkeys(names)), *_LAST):
        kinds = {table.schema.field(field.name).type for table in found if field.name in table.column_names}
        types[field.name] = kinds.pop() if len(kinds) == 1 else pa.string() if kinds else field.type
    wanted = [name for name in types if columns is None or name in columns]
    schema = pa.schema([(name, types[name]) for name in wanted])
    return pa.concat_tables([schema.empty_table(), *(_as(table, schema) for table in found)]).combine_chunks()


def _as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            arrays.append(pa.nulls(len(table), field.type))
        elif table[field.name].type == field.type:
            arrays.append(table[field.name])
        else:
            arrays.append(pa.array([category_name(value) for value in table[field.name].to_pylist()], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _only(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.select([name for name in table.column_names if name in names])


def between(table: pa.Table, start: dt.datetime | None, end: dt.datetime | None) -> pa.Table:
    if start:
        table = table.filter(pc.greater_equal(table["time"], pa.scalar(start, _UTC)))
    if end:
        table = table.filter(pc.less(table["time"], pa.scalar(end, _UTC)))
    return table


def utc(moment: dt.datetime | None) -> dt.datetime | None:
    if moment is None:
        return None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


class _Collected:
    """Rows of one version and day, on their way to a table."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.fields = [Field(*field) for field in head["fields"]]
        self.width = len(self.fields)
        self.model, self.version = head["model"], head["version"]
        self.prediction = head["prediction"]
        self.clear()

    def clear(self) -> None:
        self.ids: list[str] = []
        self.places: list[int] = []
        self.times: list[int] = []
        self.rows: list[list[Any]] = []
        self.predictions: list[Any] = []
        self.probabilities: list[list[float] | None] = []

    def add(self, record: dict[str, Any]) -> None:
        count = len(record["rows"])
        probabilities = record["probabilities"] or [None] * count
        if {len(record["predictions"]), len(probabilities)} != {count} or {*map(len, record["rows"])} != {self.width}:
            raise ValueError("not as many values as the head says")
        self.ids += [record["id"]] * count
        self.places += range(record["first"], record["first"] + count)
        self.times += [record["at"]] * count
        self.rows += record["rows"]
        self.predictions += record["predictions"]
        self.probabilities += probabilities

    def table(self) -> pa.Table:
        count = len(self.ids)
        columns = list(zip(*self.rows, strict=True)) if self.fields else []
        inputs = [arrow_field(INPUT + field.name, field) for field in self.fields]
        arrays = [
            pa.array(self.ids, pa.string()), pa.array(self.places, pa.int32()), pa.array(self.times, _UTC),
            pa.array([self.version] * count, pa.int32()), pa.array([self.model] * count, pa.string()),
            *(input_array(values, field) for field, values in zip(self.fields, columns, strict=True)),
            prediction_array(self.predictions, self.prediction),
            pa.array(self.probabilities, pa.list_(pa.float64())),
        ]  # fmt: skip
        schema = pa.schema([*_FIRST, *inputs, pa.field("prediction", TYPES[self.prediction]), _LAST[1]])
        self.clear()
        return pa.Table.from_arrays(arrays, schema=schema)


def _pieces(path: Path, order: clock_skew.Order) -> Iterator[tuple[tuple[dt.date, int], pa.Table]]:
    """A segment's rows by day and version, in tables of a limited size; ``order`` sees them as they were written."""
    heads: dict[int | None, dict[str, Any]] = {}
    collected: dict[tuple[int, int], _Collected] = {}
    unread = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # under way, or cut short by a kill: never counted as written
            try:
                record = orjson.loads(line)
                if "of" not in record:
                    order.see(record.get(clock_skew.AFTER, 0), 0)
                    heads[record.get("version")] = record
                    continue
                key = record["at"] // _DAY, record["of"]
                if key not in collected:
                    collected[key] = _Collected(heads[record["of"]])
                collected[key].add(record)
                order.see(record["at"], len(record["rows"]))
            except (ValueError, KeyError, TypeError):
                unread += 1  # the disk's doing
                continue
            if len(collected[key].ids) >= _CHUNK:
                yield _key(key), collected[key].table()
    if unread:
        _logger.warning("%s: %d lines cannot be read and are left out", path, unread)
    for key, rows in collected.items():
        if rows.ids:
            yield _key(key), rows.table()


def _key(key: tuple[int, int]) -> tuple[dt.date, int]:
    return dt.date(1970, 1, 1) + dt.timedelta(days=key[0]), key[1]


def main(words: Sequence[str]) -> int:
    """Converts a folder's finished segments and merges the parts of days that are over."""
    from towline.prediction_log import maintenance

    os.nice(10)
    folder = Path(words[0])
    try:
        with held(folder):
            convert(folder)
            maintenance.merge(folder, before=dt.datetime.now(dt.UTC).date())
    except TowlineError as error:
        print(f"the prediction log stays as it is: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
