"""Sources: the input of a job. A source names its columns, its digest and its shards, and reads the rows of a shard."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv
from pydantic import ConfigDict

from towline import files
from towline.batch.input.csv_rows import HEAD_BYTES, CsvReader, open_text, read_general, read_header
from towline.batch.input.json_lines import JsonReader, infer_schema
from towline.batch.input.records import read_blocks
from towline.batch.input.row_batch import RowBatch, batch_rows
from towline.batch.input.shards import (
    FilePath,
    Format,
    Shard,
    SourceFile,
    open_parquet,
    parquet_errors,
    parquet_shards,
    scan_text,
    text_shards,
)
from towline.config import Frozen
from towline.data.schema import arrow_types, text_columns
from towline.data.schema.contract import Contract
from towline.data.schema.values import TEXT_KINDS
from towline.data.source import formats
from towline.data.source.compression import is_compressed, read_decompressed
from towline.data.source.encodings import (
    EncodingDetector,
    decoder_of,
    has_only_carriage_returns,
    read_as_utf8,
    replace_carriage_returns,
)
from towline.data.source.json_tables import read_objects
from towline.data.source.text_layouts import is_plain, to_plain_csv
from towline.errors import DataError
from towline.remote_files import RemoteFile, is_url, list_remote_files

_COMPRESSED = (".gz", ".zst")
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".jsonl": "json lines", ".ndjson": "json lines",
}  # fmt: skip


class ShardedFiles(Frozen):
    """Files of one format with the same columns.

    Attributes:
        format: of the files.
        files: in the order of their names.
        columns: of the rows.
        shards: in the order of the rows.
        digest: SHA-256 of the digests of the files.
        separator: of a CSV.
        header: the text of a CSV's header.
        newline: of a CSV.
        types: the Arrow schema of Parquet files, or of the first rows of JSON lines; empty for a CSV.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    format: Format
    files: tuple[SourceFile, ...]
    columns: tuple[str, ...]
    shards: tuple[Shard, ...]
    digest: str
    separator: str = ","
    header: bytes = b""
    newline: bytes = b"\n"
    types: str = ""

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types; every column of a CSV is text."""
        if not self.types:
            return pa.schema([(name, pa.large_string()) for name in self.columns])
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.types)))

    def read(
        self, shard: Shard, contract: Contract, copied: Sequence[str] | None, *, as_text: bool
    ) -> Iterator[RowBatch]:
        """The rows of a shard.

        Args:
            shard: of this source.
            contract: names the model's inputs.
            copied: the columns that are copied; None: the text of the rows is copied.
            as_text: whether the output is a CSV, which needs no types.

        Raises:
            DataError: the file cannot be read, or has changed since the source was opened.
            IrregularTextError: the text must be read by ``read_general``.
        """
        file = self.files[shard.file]
        if self.format == "parquet":
            return _check_around(file, self._read_parquet(file, shard, contract, copied or ()))
        if self.format == "csv" and file.reading == "general":
            every = self.columns if copied is None else copied
            return _check_around(file, self.read_general(shard, contract, every))
        reader: CsvReader | JsonReader
        if self.format == "csv":
            places = None if copied is None else [self.columns.index(name) for name in copied]
            reader = CsvReader(self.columns, self.separator, contract.input_columns, places)
        else:
            types = None if copied is None else pa.schema([self.schema.field(name) for name in copied])
            inputs = {column.name for column in contract.input_columns}
            filled = inputs.intersection(self.columns)
            reader = JsonReader(types, as_text=as_text, filled=filled, known=self.columns)
        return _check_around(file, self._read_text(file, shard, reader))

    def read_general(self, shard: Shard, contract: Contract, copied: Sequence[str]) -> Iterator[RowBatch]:
        """The rows of a CSV whose records cannot be found by counting quotes, read by Arrow's parser."""
        file = self.files[shard.file]
        if isinstance(file.path, RemoteFile):  # those whose quotes are irregular were copied
            what, remedy = "a record is longer than 256 MB", "copy the file to this machine, and score the copy"
            raise DataError(what, where=str(file.path), remedy=remedy)
        tables = formats.stream_csv(file.path, self.separator)
        places = [self.columns.index(name) for name in copied]
        return read_general(tables, self.columns, contract.input_columns, places)

    def _read_text(self, file: SourceFile, shard: Shard, reader: CsvReader | JsonReader) -> Iterator[RowBatch]:
        is_csv = self.format == "csv"
        first, has_header = 0, is_csv and file.reading == "stream"
        try:
            with open_text(file) as stream:
                size = _skip(stream, file, shard)
                for block in read_blocks(stream, size, quoted=is_csv, separator=self.separator):
                    if has_header:
                        block = block[read_header(block, self.separator, str(file.path)).body :]  # noqa: PLW2901
                        has_header = False
                    if not block:
                        continue
                    batch = reader.read(block, first)
                    first += len(batch.records or ())
                    yield batch
        except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
            what = f"cannot read the file: {str(error)[:200]}"
            raise DataError(what, where=str(file.path), remedy="check or copy it again") from None
        except DataError as error:
            where = " ".join([str(file.path), error.where]).strip()
            raise DataError(error.what, where=where, remedy=error.remedy) from None

    def _read_parquet(
        self, file: SourceFile, shard: Shard, contract: Contract, copied: Sequence[str]
    ) -> Iterator[RowBatch]:
        inputs = {column.name: column for column in contract.input_columns}
        needed = [name for name in self.columns if name in inputs or name in copied]
        schema, first = self.schema, 0
        levels = [
            name
            for name, column in inputs.items()
            if column.kind in TEXT_KINDS and text_columns.is_text(schema.field(name).type)
        ]
        with parquet_errors(file.path), open_parquet(file.path, read_dictionary=levels) as parquet:
            groups = list(range(shard.start, shard.end))
            batches = parquet.iter_batches(batch_rows(len(needed)), groups, columns=needed, use_threads=False)
            for batch in map(arrow_types.plain_texts, batches):
                columns = [batch.column(name).cast(schema.field(name).type) for name in copied]
                yield RowBatch(
                    first + np.arange(len(batch)),
                    {name: arrow_types.null_far_times(batch.column(name)) for name in inputs},
                    pa.RecordBatch.from_arrays(columns, schema=pa.schema([schema.field(name) for name in copied])),
                )
                first += len(batch)


def open_source(
    source: str, inputs: Sequence[FilePath], separator: str | None, contract: Contract, copies: Path
) -> ShardedFiles:
    """Opens files, and checks before the first row is read that they have the model's columns.

    Args:
        source: how the files were given, for errors.
        inputs: the files.
        separator: of a CSV; None: it is detected in the first file.
        contract: of the model.
        copies: folder for the remote files that cannot be read in ranges.

    Raises:
        ConfigError: a URL must not be read, or its scheme is unknown.
        TransientError: the server of a URL does not answer.
        DataError: a file cannot be read, or the columns differ between the files or from those of the contract.
    """
    paths = [_copy_if_needed(path, copies) for path in inputs]
    kinds = {path: _block_format(path) or "csv" for path in paths}  # other texts are CSV
    kind = kinds[paths[0]]
    if other := next((path for path in paths if kinds[path] != kind), None):
        raise DataError(f"{kinds[other]}, but the first file is {kind}", where=str(other), remedy="give one format")
    mark = separator or (_detect_separator(paths[0]) if kind == "csv" else ",")
    if kind == "csv" and (not is_plain(mark) or any(has_only_carriage_returns(_read_head(path)) for path in paths)):
        paths, separator = [_write_as_csv(path, mark, copies) for path in paths], mark if is_plain(mark) else ","
    opened = _open_parquet(paths) if kind == "parquet" else _open_text(paths, kind, separator, copies)
    if kind != "json lines":
        contract.check_columns(opened.columns, source)
        _check_types(opened, contract)
    return opened


def list_inputs(source: str, folder: Path) -> Sequence[FilePath]:
    """The files of a source.

    Args:
        source: a file, a folder or a glob pattern, or the URL of one.
        folder: at which a relative path starts.

    Raises:
        ConfigError: a URL must not be read, or its scheme is unknown.
        TransientError: the server of a URL does not answer.
        DataError: there is no such file.
    """
    if is_url(source):
        return list_remote_files(source, formats.TABLES, "IN")
    path = (folder / source).absolute()
    if not path.is_dir():
        return formats.list_files(source, folder, "IN")
    paths = formats.list_folder(path)
    if not paths:
        remedy = f"give the files as a pattern, e.g. '{source.rstrip('/')}/**/*.parquet'"
        raise DataError("no CSV, Parquet or JSON file in the folder", where=str(path), remedy=remedy)
    return paths


def _copy_if_needed(path: FilePath, copies: Path) -> FilePath:
    """The path of a local copy that can be read in blocks, if the file itself cannot.

    Copied are remote files that are compressed or that their server sends only as a whole, files in other compressions
    than gzip and Zstandard, and JSON arrays, whose objects are written one a line.
    """
    name, is_direct = path.name.lower(), _block_format(path) is not None
    if isinstance(path, RemoteFile):
        if is_direct and path.has_ranges and not name.endswith(_COMPRESSED):
            return path
        path = path.copy_to(copies)
    return path if is_direct else _unpack(path, copies)


def _block_format(path: FilePath) -> Format | None:
    """The format of a file that can be read in blocks, by its name; None for another file."""
    name = path.name.lower()
    packed = name.endswith(_COMPRESSED)
    kind = _SUFFIXES.get(PurePath(name.rpartition(".")[0] if packed else name).suffix)
    return None if packed and kind == "parquet" else kind


def _unpack(path: Path, copies: Path) -> Path:
    """A copy of a file as a plain CSV or as JSON lines; the file itself if it is plain and no JSON array."""
    file_format = formats.detect_format(path)
    if file_format == "parquet" or (file_format == "csv" and not is_compressed(path.name)):
        return path
    suffix = ".jsonl" if file_format == "json" else ".csv"
    target = _copy_path(path, copies, suffix)
    if target.exists():
        return target
    blocks = (
        (json.dumps(row).encode() + b"\n" for row in read_objects(path))
        if file_format == "json"
        else read_decompressed(path)
    )
    with files.replacing(target) as copy:
        copy.writelines(blocks)
    return target


def _copy_path(path: Path, copies: Path, suffix: str) -> Path:
    return copies / files.sha256(path)[:16] / f"{path.name.partition('.')[0]}{suffix}"


def _detect_separator(path: FilePath) -> str:
    return formats.detect_separator_of(_read_head(path).splitlines(keepends=True)[:20])


def _write_as_csv(path: FilePath, separator: str, copies: Path) -> Path:
    """A copy of a text table as a CSV whose lines end with LF; with commas if its separator is not plain."""
    path = path.copy_to(copies) if isinstance(path, RemoteFile) else path
    target = _copy_path(path, copies, ".csv")
    if not target.exists():
        raw, _ = read_as_utf8(path)
        if has_only_carriage_returns(raw):
            raw = replace_carriage_returns(raw)
        files.write(target, raw if is_plain(separator) else to_plain_csv(raw, separator))
    return target


def _reorder_columns(
    path: FilePath, names: Sequence[str], expected: Sequence[str], first: FilePath, separator: str, copies: Path
) -> Path:
    """A copy of a CSV with the columns in the order of the first file.

    Raises:
        DataError: the files have other columns.
    """
    if sorted(names) != sorted(expected):
        raise _other_columns(path, first, names, expected)
    path = path.copy_to(copies) if isinstance(path, RemoteFile) else path
    order = hashlib.sha256("\0".join(expected).encode()).hexdigest()[:16]
    target = _copy_path(path, copies / order, ".csv")
    if not target.exists():
        schema = pa.schema([(name, pa.large_string()) for name in expected])
        options = pyarrow.csv.WriteOptions(delimiter=separator)
        with files.replacing(target) as copy, pyarrow.csv.CSVWriter(copy, schema, write_options=options) as writer:
            for table in formats.stream_csv(path, separator):
                writer.write_table(table.select(list(expected)).replace_schema_metadata(None))
    return target


def _check_around(file: SourceFile, batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    """The batches; the file is checked to be unchanged before the first and after the last one."""
    file.check_unchanged()
    yield from batches
    file.check_unchanged()


def _open_text(paths: Sequence[FilePath], kind: Format, separator: str | None, copies: Path) -> ShardedFiles:
    opened, cuts = [], []
    header, types, first = None, "", paths[0]
    for path in paths:
        head = _read_head(path)
        if kind == "csv":
            separator = separator or _detect_separator(path)
            own = read_header(head, separator, str(path))
            formats.check_header(own.names, separator, str(path))
            if header and own.names != header.names:
                path = _reorder_columns(path, own.names, header.names, first, separator, copies)  # noqa: PLW2901
                own = read_header(_read_head(path), separator, str(path))
            header = header or own
        elif not types and head:
            types = _encode_schema(infer_schema(head[: head.rfind(b"\n") + 1] or head, str(path)))
        file, ends = _scan(path, kind, separator, copies)
        if kind == "csv":
            file = file.model_copy(update={"body": own.body})
        opened.append(file)
        cuts.append(ends)
    if not header and not types:
        raise DataError("the file is empty", where=str(first), remedy="give one JSON object a line")
    names = header.names if header else tuple(_decode_schema(types).names)
    return ShardedFiles(
        format=kind,
        files=tuple(opened),
        columns=names,
        shards=tuple(text_shards(opened, cuts)),
        digest=_combine(opened),
        separator=separator or ",",
        header=header.text if header else b"",
        newline=header.newline if header else b"\n",
        types=types,
    )


def _scan(path: FilePath, kind: Format, separator: str | None, copies: Path) -> tuple[SourceFile, list[int]]:
    """A file of text, and where its shards end; a remote one that cannot be read in ranges is copied."""
    if isinstance(path, Path) and path.name.lower().endswith(_COMPRESSED):
        return _identify(path).model_copy(update={"encoding": _detect_encoding(path)}), []
    with files.disk(Path(str(path))):
        file, ends = scan_text(path, separator or ",", quoted=kind == "csv")
    if isinstance(path, RemoteFile) and file.reading != "ranges":
        file = file.model_copy(update={"path": path.copy_to(copies)})
    return file, ends


def _identify(path: FilePath) -> SourceFile:
    if isinstance(path, RemoteFile):
        return SourceFile(path=path, digest=path.digest, size=path.size)
    return SourceFile(path=path, digest=files.sha256(path), size=path.stat().st_size)


def _open_parquet(paths: Sequence[FilePath]) -> ShardedFiles:
    opened, schema = list[SourceFile](), pa.schema([])
    for path in paths:
        with parquet_errors(path):
            with open_parquet(path) as parquet:
                empty = parquet.schema_arrow.remove_metadata().empty_table()
                own = arrow_types.plain_texts(empty).schema
            file = _identify(path)
        if not opened:
            schema = own
            if twice := next((name for name in own.names if own.names.count(name) > 1), None):
                raise DataError(f"column {twice!r} occurs twice", where=str(path), remedy="rename one")
        elif sorted(own.names) != sorted(schema.names):
            raise _other_columns(path, paths[0], own.names, schema.names)
        elif other := next((field for field in own if field.type != schema.field(field.name).type), None):
            raise DataError(
                f"column {other.name!r} is {other.type}, in {paths[0].name} it is {schema.field(other.name).type}",
                where=str(path),
                remedy="give files with the same columns and types",
            )
        opened.append(file)
    return ShardedFiles(
        format="parquet",
        files=tuple(opened),
        columns=tuple(schema.names),
        shards=tuple(parquet_shards(opened)),
        digest=_combine(opened),
        types=_encode_schema(schema),
    )


def _check_types(source: ShardedFiles, contract: Contract) -> None:
    """Refuses columns whose type cannot have values of their kind."""
    for column in contract.input_columns:
        kind = source.schema.field(column.name).type
        is_date = pa.types.is_date(kind) or pa.types.is_timestamp(kind)  # durations and times of day are numbers
        wrong = pa.types.is_nested(kind) or (column.kind in ("numeric", "boolean") and is_date)
        if wrong or arrow_types.is_binary(kind):
            what = f"column {column.name!r} is {kind}, and the contract says {column.kind}"
            raise DataError(what, where=str(source.files[0].path), remedy="correct the type of the column")


def _other_columns(path: FilePath, first: FilePath, names: Sequence[str], expected: Sequence[str]) -> DataError:
    missing, added = set(expected) - set(names), set(names) - set(expected)
    parts = [
        *([f"without {', '.join(sorted(missing)[:5])}"] if missing else []),
        *([f"with {', '.join(sorted(added)[:5])}"] if added else []),
    ]
    what = f"the columns differ from those of {first.name}: {' and '.join(parts) or 'one occurs twice'}"
    return DataError(what, where=str(path), remedy="give files with the same columns")


def _detect_encoding(path: FilePath, max_bytes: float = math.inf) -> str:
    """The encoding of the decompressed text, or of its first ``max_bytes`` bytes."""
    detector, size = EncodingDetector(path), 0
    with open_text(SourceFile(path=path, digest="", size=0)) as stream:
        while size < max_bytes and detector.encoding in ("", "utf-8") and (block := stream.read(HEAD_BYTES)):
            detector.add(block)
            size += len(block)
    return detector.close() if size < max_bytes else detector.encoding


def _read_head(path: FilePath) -> bytes:
    """The first MB of the decoded text."""
    try:
        with open_text(SourceFile(path=path, digest="", size=0)) as stream:
            raw: bytes = stream.read(HEAD_BYTES)
        formats.check_text(raw, str(path))
        encoding = _detect_encoding(path, HEAD_BYTES)
        return raw if encoding == "utf-8" else decoder_of(encoding).decode(raw).encode()
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        what = f"cannot read the file: {str(error)[:200]}"
        raise DataError(what, where=str(path), remedy="check or copy it again") from None


def _skip(stream: IO[bytes], file: SourceFile, shard: Shard) -> int | None:
    """Goes to the start of a shard; returns its number of bytes, None for the rest of the stream."""
    if file.reading == "stream":
        return None
    stream.seek(shard.start)
    return shard.end - shard.start


def _combine(opened: Sequence[SourceFile]) -> str:
    """The digest of one file, or of the digests of several files."""
    if len(opened) == 1:
        return opened[0].digest
    return hashlib.sha256("\n".join(file.digest for file in opened).encode()).hexdigest()


def _encode_schema(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def _decode_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
