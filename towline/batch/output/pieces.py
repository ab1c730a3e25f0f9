"""Pieces: the output of one shard, in the format that the assembly needs."""

import io
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towline import files
from towline.batch.job_options import ShardTask
from towline.batch.output.direct_text import DirectText
from towline.batch.output.parquet_groups import open_parquet_writer
from towline.batch.output.text_output import csv_fields, csv_lines, json_lines, json_values
from towline.batch.work_folder import WorkFolder
from towline.data.schema.arrow_types import null_far_times
from towline.errors import DataError
from towline.inference.predictor import Model
from towline.training.evaluation.predictions import Label, Predictions

MAX_PARTITIONS = 1_000
_RELEASE_COLUMNS = ("model", "version")  # the same in each row
AddedColumns = Mapping[str, pa.Array | pa.Scalar]


class PieceWriter(Protocol):
    """Writes scored rows."""

    def write(self, records: pa.Array | None, copied: pa.RecordBatch | None, added: AddedColumns, count: int) -> None:
        """Writes ``count`` rows: their text or their copied columns, and the added columns."""


def addable_columns(model: Model) -> tuple[str, ...]:
    """The columns that can be added, without the prefix."""
    return ("prediction", *(f"probability_{label}" for label in model.contract.classes), *_RELEASE_COLUMNS)


def name_added_columns(model: Model, task: ShardTask) -> dict[str, str]:
    """The added columns: name without the prefix → name in the output.

    If the output has a column ``model`` or ``version`` of the input, that of the release gets the prefix ``scored_``.
    """
    options = task.options
    names = {name: options.prefix + name for name in addable_columns(model)}
    copied = task.source.columns if options.keep is None else options.keep
    names |= {name: "scored_" + names[name] for name in _RELEASE_COLUMNS if names[name] in copied}
    return {name: names[name] for name in names if options.columns is None or name in options.columns}


def added_columns(model: Model, task: ShardTask, predictions: Predictions) -> AddedColumns:
    """The added columns of some rows by name; a scalar is the same in each row."""
    contract, count = model.contract, len(predictions.labels)
    columns: dict[str, pa.Array | pa.Scalar] = {}
    for name, written in name_added_columns(model, task).items():
        if name == "prediction":
            column = _label_column(contract.classes, predictions)
        elif name == "model":
            column = pa.scalar(model.name, pa.string())
        elif name == "version":
            column = pa.scalar(model.version, pa.int64())
        else:
            place = [f"probability_{label}" for label in contract.classes].index(name)
            shares = predictions.probabilities
            column = pa.nulls(count, pa.float64()) if shares is None else pa.array(shares[:, place])
        columns[written] = column
    return columns


def _label_column(classes: tuple[Label, ...], predictions: Predictions) -> pa.Array:
    """The labels, each class stored once; the values of a regression."""
    if not classes:
        return pa.array(predictions.labels, pa.float64())
    return pa.DictionaryArray.from_arrays(predictions.encode(classes), pa.array(list(classes)))


def label_type(classes: Sequence[object]) -> pa.DataType:
    """The Arrow type of class labels; float64 for a regression."""
    return pa.array(list(classes)).type if classes else pa.float64()


@contextmanager
def open_piece(task: ShardTask, shard: int, direct: DirectText | None = None) -> Iterator[PieceWriter]:
    """The piece of a shard, which appears when the block succeeds; with ``direct`` its text in the output."""
    work = WorkFolder(path=task.work)
    path = work.piece(shard)
    if task.output == "folder":
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        with files.disk(path):
            partial.mkdir(parents=True)
            folder = _FolderPiece(partial, task.options.partition_by)
            try:
                yield folder
            finally:
                folder.close()
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
        return
    with direct.open(work, shard) if direct else files.replacing(path) as file:
        if task.output == "parquet":
            parquet = _ParquetPiece(file)
            yield parquet
            parquet.close()
        elif task.compression:
            with pa.CompressedOutputStream(pa.PythonFile(_Unclosed(file), "w"), task.compression) as stream:
                yield _TextPiece(stream, task)
        else:
            yield _TextPiece(file, task)


class _Unclosed(io.RawIOBase):
    """A file that is not closed with its stream of compressed bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data)


class _TextPiece:
    def __init__(self, file: IO[bytes] | pa.NativeFile, task: ShardTask) -> None:
        self._file, self._task = file, task

    def write(self, records: pa.Array | None, copied: pa.RecordBatch | None, added: AddedColumns, count: int) -> None:  # noqa: ARG002
        columns = [*(copied.columns if copied is not None else ()), *added.values()]
        if self._task.output == "json lines":
            names = [*(copied.schema.names if copied is not None else ()), *added]
            self._file.write(json_lines(records, names, [json_values(column) for column in columns]))
            return
        options, source = self._task.options, self._task.source
        fields = [csv_fields(column, source.separator, safe=options.safe_csv) for column in columns]
        self._file.write(csv_lines(records, fields, source.separator, source.newline.decode()))


class _ParquetPiece:
    """A Parquet file, whose row groups the assembly copies; empty without rows."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None

    def write(self, records: pa.Array | None, copied: pa.RecordBatch | None, added: AddedColumns, count: int) -> None:  # noqa: ARG002
        batch = join_columns(copied, added, count)
        self._writer = self._writer or open_parquet_writer(pa.PythonFile(self._file, "w"), batch)
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class _FolderPiece:
    """Parquet files of one shard, one for each value of the partition column."""

    def __init__(self, folder: Path, partition_by: str | None) -> None:
        self._folder, self._by = folder, partition_by
        self._writers: dict[str, pq.ParquetWriter] = {}

    def write(self, records: pa.Array | None, copied: pa.RecordBatch | None, added: AddedColumns, count: int) -> None:  # noqa: ARG002
        batch = join_columns(copied, added, count)
        if self._by is None:
            self._writer("", batch).write_batch(batch)
            return
        keys = _partition_keys(batch.column(self._by)).dictionary_encode(null_encoding="encode")
        values, codes = keys.dictionary.to_pylist(), keys.indices.to_numpy()
        batch = batch.drop_columns([self._by])
        counts = np.bincount(codes, minlength=len(values))
        parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(counts)[:-1])
        for value, places in zip(values, parts, strict=False):  # without rows there is no value, but an empty part
            rows = batch.take(pa.array(places))
            self._writer(_partition_name(self._by, value), rows).write_batch(rows)

    def _writer(self, name: str, first: pa.RecordBatch) -> pq.ParquetWriter:
        if name not in self._writers:
            if len(self._writers) >= MAX_PARTITIONS:
                raise DataError(
                    f"more than {MAX_PARTITIONS:,} values of {self._by!r} in one shard",
                    where="--partition-by",
                    remedy="partition by a column with fewer values",
                )
            path = self._folder / name
            path.mkdir(parents=True, exist_ok=True)
            self._writers[name] = open_parquet_writer(path / "rows.parquet", first)
        return self._writers[name]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def join_columns(copied: pa.RecordBatch | None, added: AddedColumns, count: int) -> pa.RecordBatch:
    """The copied columns of ``count`` rows, followed by the added ones."""
    columns = [_plain_column(column, count) for column in added.values()]
    fields = [pa.field(name, column.type) for name, column in zip(added, columns, strict=True)]
    if copied is None:
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
    return pa.RecordBatch.from_arrays([*copied.columns, *columns], schema=pa.schema([*copied.schema, *fields]))


def _plain_column(column: pa.Array | pa.Scalar, count: int) -> pa.Array:
    if isinstance(column, pa.Scalar):
        return pa.repeat(column, count)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _partition_keys(keys: pa.Array) -> pa.Array:
    """The values of a partition column; floats of one folder are one value: NaN is null, -0.0 is 0.0."""
    if pa.types.is_dictionary(keys.type):
        return keys.dictionary_decode()
    if not pa.types.is_floating(keys.type):
        return null_far_times(keys)
    floats = pc.add(keys.cast(pa.float64()), 0.0)
    return pc.if_else(pc.is_nan(floats), pa.scalar(None, pa.float64()), floats)


def _partition_name(column: str, value: object) -> str:
    from urllib.parse import quote

    return f"{quote(column)}={'__HIVE_DEFAULT_PARTITION__' if value is None else quote(str(value), safe='')}"
