"""Reads the rows of a CSV: numbers and categories by Arrow, column by column; values that Arrow cannot read as text."""

import codecs
import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from towline.batch.input.records import Records, first_record_end
from towline.batch.input.row_batch import RejectedRow, RowBatch
from towline.batch.input.shards import SourceFile
from towline.data.schema.contract import Column
from towline.data.source import formats
from towline.data.source.encodings import decoder_of
from towline.errors import DataError

HEAD_BYTES = 1 << 20
_TEXT, _LEVELS = pa.large_string(), pa.dictionary(pa.int32(), pa.string())


class Header(NamedTuple):
    """The header of a CSV.

    Attributes:
        names: of the columns.
        text: as it is written, without its newline.
        body: place of the first byte after it.
        newline: that ends its line.
    """

    names: tuple[str, ...]
    text: bytes
    body: int
    newline: bytes


def read_header(head: bytes, separator: str, where: str) -> Header:
    """The header in the first bytes of a CSV.

    Raises:
        DataError: the text is empty.
    """
    start = body = formats.length_before_header(head) or (
        len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    )
    while body < len(head):
        end = first_record_end(head, body, head.count(b'"', 0, body), quoted=True)
        start, body = body, len(head) if end < 0 else end
        line = head[start:body]
        text = line.rstrip(b"\r\n")
        if text.strip():
            if formats.has_row_names(head[start:], separator):
                text = separator.encode() + text
            fields = next(csv.reader(io.StringIO(text.decode(errors="replace"), newline=""), delimiter=separator))
            return Header(tuple(formats.name_columns(fields)), text, body, line[len(line.rstrip(b"\r\n")) :] or b"\n")
    raise DataError("the file is empty", where=where, remedy="give a CSV with a header line and rows")


def open_text(file: SourceFile) -> Any:
    """The text of a file as a stream of UTF-8, decompressed if its name says so."""
    name = file.path.name.lower()
    if name.endswith((".gz", ".zst")):
        stream = pa.input_stream(str(file.path), compression="gzip" if name.endswith(".gz") else "zstd")
    else:
        stream = file.path.open("rb")
    if file.encoding == "utf-8":
        return stream
    return _Utf8Stream(stream, file.encoding)


class _Utf8Stream(io.RawIOBase):
    """A text in another encoding as a stream of UTF-8."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream, self._decoder = stream, decoder_of(encoding)

    def read(self, size: int = -1) -> bytes:
        text, raw = "", b" "
        while raw and not text:  # a part may end within a character
            raw = self._stream.read(size)
            text = self._decoder.decode(raw, final=not raw or size < 0)
        return text.encode()

    def close(self) -> None:
        self._stream.close()
        super().close()


class CsvReader:
    """Reads blocks of CSV records.

    Args:
        names: of the columns, in the order of the file.
        separator: of the columns.
        inputs: the model's input columns.
        copied: positions of the columns that are copied; None: the text of the rows is copied.
    """

    def __init__(
        self, names: Sequence[str], separator: str, inputs: Sequence[Column], copied: Sequence[int] | None
    ) -> None:
        self._names, self._copied = tuple(names), copied
        self._parsing: dict[str, Any] = {"delimiter": separator}
        self._inputs = {column.name: self._names.index(column.name) for column in inputs}
        needed = sorted({*self._inputs.values(), *(copied or ())})
        self._text = {str(place): _TEXT for place in needed}
        typed = {self._inputs[column.name]: _fast_type(column) for column in inputs}
        self._typed = {str(place): _TEXT if place in (copied or ()) else typed.get(place, _TEXT) for place in needed}

    def read(self, block: bytes, first: int) -> RowBatch:
        """The rows of a block of whole records.

        Args:
            block: the text.
            first: number of its first row.

        Raises:
            DataError: the text cannot be read.
        """
        records = Records(block, quoted=True)
        table, faults = self._parse(block)
        if len(faults) + len(table) != len(records):
            raise DataError(
                f"the parser reads {len(faults) + len(table):,} rows and there are {len(records):,} lines",
                where=f"row {first + 1}",
                remedy="correct the quotes of the file",
            )
        places = np.arange(len(records))
        rejected = []
        if faults:
            malformed = np.array([fault.number - 1 for fault in faults])
            places = np.delete(places, malformed)
            rejected = [
                RejectedRow(
                    first + fault.number - 1,
                    "",
                    f"{fault.actual_columns} field{'s' * (fault.actual_columns != 1)}, but the header has "
                    f"{fault.expected_columns}",
                    fault.text,
                )
                for fault in faults
            ]
        columns = {int(name): table.column(name).combine_chunks() for name in table.column_names}
        copied = None
        if self._copied is not None:
            copied = pa.RecordBatch.from_arrays(
                [columns[place] for place in self._copied], [self._names[place] for place in self._copied]
            )
        inputs = {name: _without_minus_zero(columns[place]) for name, place in self._inputs.items()}
        return RowBatch(first + places, inputs, copied, records, places, tuple(rejected))

    def _parse(self, block: bytes) -> tuple[pa.Table, list[Any]]:
        if self._typed != self._text:
            with contextlib.suppress(pa.ArrowInvalid):  # a text that is not a plain number
                table, faults = self._parse_as(block, self._typed)
                if _all_finite(table):
                    return table, faults
            # the values of such a column are often of this kind in the other blocks too
            self._typed = {name: _TEXT if kind == pa.float64() else kind for name, kind in self._typed.items()}
        try:
            return self._parse_as(block, self._text)
        except pa.ArrowInvalid as error:
            reason = str(error).split("\n")[0][:200]
            raise DataError(f"not a readable CSV: {reason}", remedy="correct the file") from None

    def _parse_as(self, block: bytes, types: Mapping[str, pa.DataType]) -> tuple[pa.Table, list[Any]]:
        faults: list[Any] = []

        def reject(row: Any) -> str:
            faults.append(row)
            return "skip"

        table = pyarrow.csv.read_csv(
            pa.BufferReader(block),
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(block) + 1, column_names=list(map(str, range(len(self._names))))
            ),
            pyarrow.csv.ParseOptions(**self._parsing, newlines_in_values=b'"' in block, invalid_row_handler=reject),
            pyarrow.csv.ConvertOptions(
                column_types=types, include_columns=list(types), strings_can_be_null=True, null_values=[""]
            ),
        )
        return table, faults


def read_general(
    tables: Iterator[pa.Table], names: Sequence[str], inputs: Sequence[Column], copied: Sequence[int]
) -> Iterator[RowBatch]:
    """The rows of tables of text with these columns."""
    first = 0
    for table in tables:
        for batch in table.to_batches():
            columns = dict(zip(names, batch.columns, strict=True))
            chosen = [names[place] for place in copied]
            yield RowBatch(
                first + np.arange(len(batch)),
                {column.name: columns[column.name] for column in inputs},
                pa.RecordBatch.from_arrays([columns[name] for name in chosen], chosen),
            )
            first += len(batch)


def _fast_type(column: Column) -> pa.DataType:
    """The type as which Arrow reads a column; text if only a ``ValueReader`` reads it."""
    fmt = column.format
    if column.kind == "category":
        return _LEVELS
    plain = fmt.decimal == "." and not fmt.thousands and not fmt.na_values
    return pa.float64() if column.kind == "numeric" and plain else _TEXT


def _without_minus_zero(values: pa.Array) -> pa.Array:
    """-0 is read as 0, as from text."""
    return pc.add(values, 0.0) if values.type == pa.float64() else values


def _all_finite(table: pa.Table) -> bool:
    """Whether no number is infinite or NaN: these are overflows, or texts such as inf, which the contract reads."""
    for column in table.columns:
        if column.type == pa.float64():
            for chunk in column.chunks:
                finite = np.isfinite(chunk.to_numpy(zero_copy_only=False))
                if np.count_nonzero(finite) + chunk.null_count != len(chunk):
                    return False
    return True
