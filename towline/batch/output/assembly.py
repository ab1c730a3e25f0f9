"""Assembly: the pieces of all shards become the output, which is complete or absent."""

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from towline import files
from towline.batch.input.shards import Shard
from towline.batch.job_options import ShardTask
from towline.batch.output.parquet_groups import RowGroupJoiner
from towline.batch.output.text_output import csv_name
from towline.batch.work_folder import ShardResult, WorkFolder

COPY_BYTES = 1 << 22


class Assembly(Protocol):
    """Adds pieces in the order of the shards to the output in the work folder."""

    def add(self, shard: Shard, result: ShardResult) -> None: ...
    def close(self) -> str:
        """Completes the output; returns its SHA-256."""


def open_assembly(task: ShardTask, schema: pa.Schema) -> Assembly:
    """The assembly of a job.

    Args:
        task: of the job.
        schema: of the output.
    """
    work = WorkFolder(path=task.work)
    if task.output == "folder":
        return _FolderAssembly(work, schema)
    return _ParquetAssembly(work, schema) if task.output == "parquet" else _TextAssembly(work, task, schema)


class _DigestingFile(io.BufferedWriter):
    """A file that is written once, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)

    def finish(self) -> str:
        """Completes the file; returns its digest."""
        self.flush()
        os.fsync(self.fileno())
        self.close()
        return self.digest.hexdigest()


class _TextAssembly:
    """The text of the shards, one after the other. The processes of this machine write into it (``DirectText``).

    Only these processes write to it: that which holds the lock of the work folder, and its workers.
    """

    def __init__(self, work: WorkFolder, task: ShardTask, schema: pa.Schema) -> None:
        self._work, self._digest, self._digested = work, hashlib.sha256(), 0
        self._last = _restore_text(work, len(task.source.shards))
        if self._last < 0:
            header = csv_header(task, schema.names) if task.output == "csv" else b""
            work.assembled.write_bytes(_compress(header, task.compression) if header else b"")
        self._update_digest(work.assembled.stat().st_size)

    def add(self, shard: Shard, result: ShardResult) -> None:
        if shard.number <= self._last:
            return
        recorded, end = self._work.result(shard.number), result.end
        if end is None:
            end = self._copy_piece(shard.number)
        if recorded is None or recorded.end != end:  # the text is a piece, or a worker has placed it
            self._sync()
            self._work.finish(shard.number, result.model_copy(update={"end": end}))
            self._work.piece(shard.number).unlink(missing_ok=True)
        self._update_digest(end)

    def _copy_piece(self, shard: int) -> int:
        """Copies a piece to its place in the output; returns the place after it."""
        with self._work.piece(shard).open("rb") as piece, self._work.assembled.open("r+b") as file:
            file.seek(self._digested)
            shutil.copyfileobj(piece, file, COPY_BYTES)
            return file.tell()

    def _update_digest(self, end: int) -> None:
        """Adds the text up to a place; workers may be writing after it."""
        with self._work.assembled.open("rb") as file:
            file.seek(self._digested)
            while data := file.read(min(COPY_BYTES, end - self._digested)):
                self._digest.update(data)
                self._digested += len(data)

    def _sync(self) -> None:
        """Flushes the output to the disk."""
        with self._work.assembled.open("rb") as file:
            os.fsync(file.fileno())

    def close(self) -> str:
        self._sync()
        return self._digest.hexdigest()


def _restore_text(work: WorkFolder, shards: int) -> int:
    """Cuts the text after the first shards, up to the last one whose text is in the output; returns its number or -1.

    Shards whose text comes after a gap are not finished; if text is lost, none is whose text was in the output.
    """
    ends = dict[int, int]()
    for number in range(shards):
        result = work.result(number)
        if result is not None and result.end is not None:
            ends[number] = result.end
        elif result is not None and not work.piece(number).exists():  # it was copied, and then recorded again
            work.forget(number)
    last = next(number for number in itertools.count(-1) if number + 1 not in ends)
    if last >= 0 and not (work.assembled.is_file() and work.assembled.stat().st_size >= ends[last]):
        last = -1
    if last >= 0:
        os.truncate(work.assembled, ends[last])
    for number in ends:
        if number > last:
            work.forget(number)
    return last


class _ParquetAssembly:
    """One Parquet file with the row groups of the shards."""

    def __init__(self, work: WorkFolder, schema: pa.Schema) -> None:
        self._work, self._file = work, _DigestingFile(work.assembled)
        self._joiner = RowGroupJoiner(self._file, schema)

    def add(self, shard: Shard, result: ShardResult) -> None:
        if result.scored:
            with self._work.piece(shard.number).open("rb") as piece:
                self._joiner.add(piece)

    def close(self) -> str:
        self._joiner.close()
        return self._file.finish()


class _FolderAssembly:
    """A folder of Parquet files; each shard is a file, or a file in the folder of each partition."""

    def __init__(self, work: WorkFolder, schema: pa.Schema) -> None:
        self._work, self._schema, self._names = work, schema, list[str]()
        shutil.rmtree(work.assembled, ignore_errors=True)
        work.assembled.mkdir()

    def add(self, shard: Shard, result: ShardResult) -> None:
        piece = self._work.piece(shard.number)
        if result.scored:
            for file in sorted(piece.rglob("*.parquet")):
                name = file.parent.relative_to(piece) / f"part-{shard.number:06d}.parquet"
                self._link(file, name)

    def _link(self, file: Path, name: Path) -> None:
        target = self._work.assembled / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
        self._names.append(name.as_posix())

    def close(self) -> str:
        if not self._names:
            pq.write_table(self._schema.empty_table(), self._work.assembled / "part-000000.parquet")
        return digest_of(self._work.assembled)


def csv_header(task: ShardTask, names: Sequence[str]) -> bytes:
    """The header of an output CSV: that of the input and the added names, or all names."""
    source, safe = task.source, task.options.safe_csv
    fields = [csv_name(name, source.separator, safe=safe) for name in names]
    if task.copied_columns is None:
        fields = [source.header.decode(errors="replace"), *fields[len(source.columns) :]]
    return source.separator.join(fields).encode() + source.newline


def digest_of(output: Path) -> str:
    """The SHA-256 of a file, or of the names and digests of the files in a folder."""
    if not output.is_dir():
        return files.sha256(output)
    inside = sorted(path for path in output.rglob("*") if path.is_file())
    lines = [f"{files.sha256(path)}  {path.relative_to(output).as_posix()}" for path in inside]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def assemble_quarantine(task: ShardTask, results: Sequence[ShardResult], path: Path) -> None:
    """Writes the quarantine as a CSV: file, row (from 1, headers not counted), field, reason and the row's text."""
    work, first, file = WorkFolder(path=task.work), 0, -1
    with files.replacing(path) as target:
        text = io.TextIOWrapper(target, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "row", "field", "reason", "record"])
        for shard, result in zip(task.source.shards, results, strict=True):
            if shard.file != file:
                first, file = 0, shard.file
            name = task.source.files[file].path.name
            with work.quarantine(shard.number).open("rb") as lines:
                for line in lines:
                    row = json.loads(line)
                    writer.writerow([name, first + row["number"] + 1, row["field"], row["reason"], row["record"]])
            first += result.rows
        text.flush()
        text.detach()


def replace_output(work: WorkFolder, output: Path) -> None:
    """Gives the assembled output its name; an earlier output is removed."""
    assembled, old = work.assembled, work.path / "replaced"
    if not assembled.exists():
        return  # an interrupted job has done it
    if output.is_dir() or assembled.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        if output.exists():
            output.replace(old)
    assembled.replace(output)
    files.sync(output.parent)


def _compress(data: bytes, compression: str) -> bytes:
    if not compression:
        return data
    target = pa.BufferOutputStream()
    with pa.CompressedOutputStream(target, compression) as stream:
        stream.write(data)
    return bytes(target.getvalue().to_pybytes())
