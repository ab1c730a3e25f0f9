"""Current rows for drift detection, in batches: from the prediction log, or from a file."""

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline.data.schema import arrow_types, text_columns
from towline.data.schema.contract import Contract
from towline.data.source import formats
from towline.errors import DataError
from towline.monitoring.drift.histograms import CHUNK_ROWS
from towline.monitoring.drift.row_checks import ClockCheck
from towline.prediction_log import parquet_store
from towline.prediction_log.clock_skew import ClockSkew
from towline.prediction_log.parquet_store import INPUT_PREFIX
from towline.prediction_log.privacy import LoggedColumn
from towline.release.reference import PREDICTION, PROBABILITY
from towline.times import to_utc

BATCH_ROWS = 131_072


def read_log(
    folder: Path,
    version: int,
    start: dt.datetime | None,
    end: dt.datetime | None,
    fields: Sequence[LoggedColumn],
    positive: int | None = None,
    clock: ClockCheck | None = None,
) -> Iterator[pa.Table]:
    """The inputs and predictions of a version from the prediction log, under the names of the contract.

    Text columns are strings or dictionaries, as in the file.

    Args:
        folder: the model's prediction log.
        version: version that made the predictions.
        start: earliest time of the predictions; without a time zone it is in UTC.
        end: latest time, not included.
        fields: the logged columns. Columns that are hashed or coarsened are left out.
        positive: for a binary task, the index of the positive class.
        clock: receives the times of the rows of all versions.

    Raises:
        DataError: a part of the log cannot be read.
        TransientError: the folder cannot be written, which its lock needs.
    """
    if not folder.is_dir():
        return
    names = [field.name for field in fields if field.policy == "keep"]
    columns = {*(INPUT_PREFIX + name for name in names), "time", "prediction", "probabilities"}
    start, end = to_utc(start), to_utc(end)
    with parquet_store.lock_store(folder):
        for rows in _logged_rows(folder, version, start, end, columns, clock):
            available = rows.schema.names
            renamed = {name: rows[INPUT_PREFIX + name] for name in names if INPUT_PREFIX + name in available}
            if PREDICTION in available:
                renamed[PREDICTION] = rows[PREDICTION]
            if positive is not None and "probabilities" in available:
                renamed[PROBABILITY] = pc.list_element(rows["probabilities"], positive)
            yield pa.table(renamed)


def _logged_rows(
    folder: Path,
    version: int,
    start: dt.datetime | None,
    end: dt.datetime | None,
    columns: Collection[str],
    clock: ClockCheck | None,
) -> Iterator[pa.Table]:
    """Batches of rows: the file of a day may not fit into memory."""
    for part in parquet_store.list_parts(folder, start and start.date(), end and end.date()):
        if part.version == version:
            schema = parquet_store.open_part(part.path).schema_arrow
            file = parquet_store.open_part(part.path, _text_columns(schema))
            for batch in file.iter_batches(BATCH_ROWS, columns=[name for name in schema.names if name in columns]):
                yield parquet_store.filter_time(pa.Table.from_batches([batch]), start, end)
    skews = list[ClockSkew]()
    for _, (_, segment_version), rows in parquet_store.iter_unconverted(folder, skews):
        if clock:
            clock.add_times(rows["time"])
        if segment_version == version:
            yield parquet_store.filter_time(rows, start, end)
    if clock:
        clock.add_skews(skews)
        clock.add_log(folder)


def read_table(path: Path, contract: Contract, separator: str = ",") -> Iterator[pa.Table | pa.RecordBatch]:
    """The rows of a file, with text read by the contract.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), remedy="give a CSV, Parquet or JSON file")
    readers = {column.name: column.reader for column in contract.input_columns}
    file_format = formats.detect_format(path)
    if file_format != "parquet":
        tables = formats.stream_csv(path, separator) if file_format == "csv" else [formats.read_file(path, None)]
        for table in tables:
            yield from (text_columns.conform_batch(batch, readers) for batch in table.to_batches(BATCH_ROWS))
        return
    try:
        # with pre-buffering and threads, most of the file would be in memory at once
        file = pq.ParquetFile(path, pre_buffer=False, read_dictionary=_text_columns(pq.read_schema(path)))
        yield from map(arrow_types.readable_rows, file.iter_batches(CHUNK_ROWS, use_threads=False))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:200]
        raise DataError(f"not a Parquet file: {reason}", where=str(path), remedy="write it again") from None


def _text_columns(schema: pa.Schema) -> list[str]:
    """Text columns are read as dictionaries, so that categories are counted without building each string."""
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
