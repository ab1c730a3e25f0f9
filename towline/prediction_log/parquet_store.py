"""The Parquet store of the prediction log: daily Parquet files ("parts") converted from segments.

Readers get parts and unconverted segments as one table. A part is named after its segment and the segment is removed
last, so an interrupted conversion can be repeated: it writes the same part.
"""

import datetime as dt
import json
import logging
import re
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
from towline.errors import DataError
from towline.prediction_log import clock_skew, segments
from towline.prediction_log.column_storage import ARROW_TYPES, input_array, prediction_array, to_arrow_field
from towline.prediction_log.privacy import LoggedColumn
from towline.times import to_utc

INPUT_PREFIX = "input."  # before the name of a logged column
REPLACED_PARTS = b"replaces"  # metadata of a merged part: the names of the parts that it replaces
MERGED_PREFIX = "merged-"
_CHUNK_ROWS = 20_000  # rows in memory at once
_DAY = 86_400_000_000  # microseconds
_PART_NAME = re.compile(r"part-(.+)-v(\d+)\.parquet")
_UTC = pa.timestamp("us", "UTC")
_LEADING_FIELDS = [
    pa.field("request_id", pa.string()), pa.field("row", pa.int32()), pa.field("time", _UTC),
    pa.field("version", pa.int32()), pa.field("model", pa.string()), pa.field("trace_id", pa.string()),
]  # fmt: skip
_TRAILING_FIELDS = [pa.field("prediction", pa.float64()), pa.field("probabilities", pa.list_(pa.float64()))]
_logger = logging.getLogger(__name__)


class LogPart(NamedTuple):
    """A Parquet file with the predictions of one version on one day, from one segment or merged from several parts."""

    path: Path
    day: dt.date
    version: int
    source: str


def read_predictions(
    folder: Path,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The predictions from ``start`` (included) to ``end`` (excluded), in no order; also those not yet in Parquet.

    Args:
        folder: ``predictions/<name>`` of the store.
        start: earliest time; UTC if it has no time zone.
        end: latest time, excluded; UTC if it has no time zone.
        columns: columns to read; default: all.

    Returns:
        request_id (string), row (int32), time (timestamp[us, UTC]), version (int32), model (string), trace_id
        (string; null if no traces were exported), ``input.<name>``
        (float64, bool, string, or timestamp[us] in UTC without a zone), prediction, probabilities (list of float64).
        A column that a version did not log is null; a column whose type differs between versions is string.

    Raises:
        DataError: a part cannot be read.
        TransientError: the folder, which holds the lock file, cannot be written.
    """
    start, end = to_utc(start), to_utc(end)
    if not folder.is_dir():
        return concat_tables([], columns)
    with lock_store(folder):
        return concat_tables([table for _, table in iter_tables(folder, start, end, columns)], columns)


def iter_tables(
    folder: Path,
    start: dt.datetime | None = None,
    end: dt.datetime | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[Path, pa.Table]]:
    """The same predictions as one table per file, with its path; for callers that hold the lock."""
    needed = None if columns is None else [*dict.fromkeys([*columns, "time"])]
    for part in list_parts(folder, start and start.date(), end and end.date()):
        file = open_part(part.path)
        present = None if needed is None else [name for name in file.schema_arrow.names if name in needed]
        yield part.path, filter_time(file.read(columns=present), start, end)
    for path, _, table in iter_unconverted(folder):
        yield path, filter_time(table if needed is None else _select_columns(table, needed), start, end)


def iter_unconverted(
    folder: Path, skews: list[clock_skew.ClockSkew] | None = None
) -> Iterator[tuple[Path, tuple[dt.date, int], pa.Table]]:
    """The predictions that are only in segments: path of the segment, day and version, and a table.

    For callers that hold the lock.

    Args:
        folder: ``predictions/<name>`` of the store.
        skews: a list to which clock skews of the segments are added.
    """
    for path in segments.list_segments(folder):
        detector = clock_skew.ClockSkewDetector(path.stem)
        for (day, version), table in _segment_tables(path, detector):
            if not part_path(folder, day, path.stem, version).exists():  # else it was converted, and not yet removed
                yield path, (day, version), table
        if skews is not None:
            skews += detector.skews


def count_unconverted(folder: Path) -> Counter[dt.date]:
    """Number of rows by day that are only in segments; for callers that do not hold the lock."""
    count: Counter[dt.date] = Counter()
    for path in segments.list_segments(folder):
        rows: Counter[tuple[dt.date, int]] = Counter()
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # converted in the meantime
            continue
        for line in content.splitlines(keepends=True):
            try:
                record = orjson.loads(line) if line.endswith(b"\n") else {}
                if "of" in record:
                    rows[_day_and_version((record["at"] // _DAY, record["of"]))] += len(record["rows"])
            except (ValueError, KeyError, TypeError):  # a damaged line
                continue
        for (day, version), written in rows.items():
            if not part_path(folder, day, path.stem, version).exists():
                count[day] += written
    return count


def list_parts(folder: Path, start: dt.date | None = None, end: dt.date | None = None) -> list[LogPart]:
    """The parts of the days from ``start`` to ``end``, both included, in order."""
    parts = []
    for path in sorted(folder.glob("day=*/part-*.parquet")):
        match = _PART_NAME.fullmatch(path.name)
        if match:
            day = dt.date.fromisoformat(path.parent.name.removeprefix("day="))
            if (start is None or day >= start) and (end is None or day <= end):
                parts.append(LogPart(path, day, int(match[2]), match[1]))
    return parts


def part_path(folder: Path, day: dt.date, source: str, version: int) -> Path:
    return folder / f"day={day.isoformat()}" / f"part-{source}-v{version}.parquet"


def open_part(path: Path, levels: Sequence[str] = ()) -> pq.ParquetFile:
    """Opens a part; the text columns named in ``levels`` are read as Arrow dictionaries.

    Raises:
        DataError: it is not a complete Parquet file.
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
def lock_store(folder: Path) -> Iterator[None]:
    """Locks the log against changes by other processes; first removes the leftovers of an interrupted process.

    Raises:
        TransientError: the folder cannot be written.
    """
    with files.disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.exclusive_lock(folder / ".lock"), files.disk(folder):
        for draft in folder.glob("day=*/.part-*"):
            draft.unlink()
        for path in folder.glob(f"day=*/part-{MERGED_PREFIX}*.parquet"):
            for name in json.loads((open_part(path).schema_arrow.metadata or {}).get(REPLACED_PARTS, b"[]")):
                path.with_name(name).unlink(missing_ok=True)
        yield


def convert_segments(folder: Path) -> int:
    """Converts the finished segments to parts, for callers that hold the lock; returns the number of segments.

    Raises:
        TransientError: the disk is full or cannot be written. Segments that are not converted stay unchanged.
    """
    count = 0
    for path in segments.finished_segments(folder):
        with ExitStack() as stack, files.disk(folder):
            writers: dict[tuple[dt.date, int], pq.ParquetWriter] = {}
            detector = clock_skew.ClockSkewDetector(path.stem)
            for key, table in _segment_tables(path, detector):
                if key not in writers:
                    file = stack.enter_context(files.replacing(part_path(folder, key[0], path.stem, key[1])))
                    writers[key] = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writers[key].write_table(table)
        for day, _ in writers:
            files.sync(folder / f"day={day.isoformat()}")
        clock_skew.write_skews(folder, detector.skews)
        files.sync(folder)
        path.unlink()
        count += 1
    return count


def concat_tables(tables: Sequence[pa.Table], columns: Sequence[str] | None = None) -> pa.Table:
    """Tables of several versions as one: a column whose types differ becomes string."""
    types: dict[str, pa.DataType] = {}
    names = [name for table in tables for name in table.column_names if name.startswith(INPUT_PREFIX)]
    for field in (*_LEADING_FIELDS, *(pa.field(name, pa.null()) for name in dict.fromkeys(names)), *_TRAILING_FIELDS):
        kinds = {table.schema.field(field.name).type for table in tables if field.name in table.column_names}
        types[field.name] = kinds.pop() if len(kinds) == 1 else pa.string() if kinds else field.type
    selected = [name for name in types if columns is None or name in columns]
    schema = pa.schema([(name, types[name]) for name in selected])
    return pa.concat_tables([schema.empty_table(), *(_cast_table(table, schema) for table in tables)]).combine_chunks()


def _cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        if field.name not in table.column_names:
            arrays.append(pa.nulls(len(table), field.type))
        elif table[field.name].type == field.type:
            arrays.append(table[field.name])
        else:
            arrays.append(pa.array([category_name(value) for value in table[field.name].to_pylist()], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _select_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.select([name for name in table.column_names if name in names])


def filter_time(table: pa.Table, start: dt.datetime | None, end: dt.datetime | None) -> pa.Table:
    if start:
        table = table.filter(pc.greater_equal(table["time"], pa.scalar(start, _UTC)))
    if end:
        table = table.filter(pc.less(table["time"], pa.scalar(end, _UTC)))
    return table


class LogRows:
    """Collects rows of one version and day for a table; ``head`` is the first line of a segment."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.fields = [LoggedColumn(*field) for field in head["fields"]]
        self.width = len(self.fields)
        self.model, self.version = head["model"], head["version"]
        self.prediction = head["prediction"]
        self.clear()

    def clear(self) -> None:
        self.ids: list[str] = []
        self.traces: list[str | None] = []
        self.places: list[int] = []
        self.times: list[int] = []
        self.rows: list[list[Any]] = []
        self.predictions: list[Any] = []
        self.probabilities: list[list[float] | None] = []

    def add(self, record: dict[str, Any]) -> None:
        """Adds the rows of a line of a segment."""
        count = len(record["rows"])
        probabilities = record["probabilities"] or [None] * count
        if {len(record["predictions"]), len(probabilities)} != {count} or {*map(len, record["rows"])} != {self.width}:
            raise ValueError("the number of values differs from that in the head")
        self.ids += [record["id"]] * count
        self.traces += [record.get("trace")] * count
        self.places += range(record["first"], record["first"] + count)
        self.times += [record["at"]] * count
        self.rows += record["rows"]
        self.predictions += record["predictions"]
        self.probabilities += probabilities

    def table(self) -> pa.Table:
        """The collected rows, which are then forgotten."""
        count = len(self.ids)
        columns = list(zip(*self.rows, strict=True)) if self.fields else []
        inputs = [to_arrow_field(INPUT_PREFIX + field.name, field) for field in self.fields]
        arrays = [
            pa.array(self.ids, pa.string()), pa.array(self.places, pa.int32()), pa.array(self.times, _UTC),
            pa.array([self.version] * count, pa.int32()), pa.array([self.model] * count, pa.string()),
            pa.array(self.traces, pa.string()),
            *(input_array(values, field) for field, values in zip(self.fields, columns, strict=True)),
            prediction_array(self.predictions, self.prediction),
            pa.array(self.probabilities, pa.list_(pa.float64())),
        ]  # fmt: skip
        schema = pa.schema(
            [*_LEADING_FIELDS, *inputs, pa.field("prediction", ARROW_TYPES[self.prediction]), _TRAILING_FIELDS[1]]
        )
        self.clear()
        return pa.Table.from_arrays(arrays, schema=schema)


def _segment_tables(
    path: Path, detector: clock_skew.ClockSkewDetector
) -> Iterator[tuple[tuple[dt.date, int], pa.Table]]:
    """A segment's rows by day and version, in tables of limited size; ``detector`` observes all rows in order."""
    heads: dict[int | None, dict[str, Any]] = {}
    collected: dict[tuple[int, int], LogRows] = {}
    unread = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # being written, or truncated by a kill: it was never counted as written
            try:
                record = orjson.loads(line)
                if "of" not in record:
                    detector.observe(record.get(clock_skew.PREVIOUS_CLOCK, 0), 0)
                    heads[record.get("version")] = record
                    continue
                key = record["at"] // _DAY, record["of"]
                if key not in collected:
                    collected[key] = LogRows(heads[record["of"]])
                collected[key].add(record)
                detector.observe(record["at"], len(record["rows"]))
            except (ValueError, KeyError, TypeError):
                unread += 1  # a damaged line
                continue
            if len(collected[key].ids) >= _CHUNK_ROWS:
                yield _day_and_version(key), collected[key].table()
    if unread:
        _logger.warning("%s: %d lines cannot be read and are left out", path, unread)
    for key, rows in collected.items():
        if rows.ids:
            yield _day_and_version(key), rows.table()


def _day_and_version(key: tuple[int, int]) -> tuple[dt.date, int]:
    return dt.date(1970, 1, 1) + dt.timedelta(days=key[0]), key[1]
