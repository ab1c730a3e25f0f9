"""Joins Parquet files: their row groups are copied byte for byte, and one footer lists them at their new places.

So each shard is encoded where it is scored, and the output is the same for any number of workers. The footer of a
Parquet file is a structure of Thrift's compact protocol; Arrow does not change the offsets in it.

Sources: https://parquet.apache.org/docs/file-format/metadata and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import io
import struct
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAGIC = b"PAR1"
SAMPLE_ROWS, MIN_SAMPLE_ROWS = 10_000, 100
_COPY_BYTES = 1 << 22

# types of values in the compact protocol
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
# fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData
_SCHEMA, _NUM_ROWS, _ROW_GROUPS = 2, 3, 4
_COLUMNS, _GROUP_ROWS, _GROUP_OFFSET, _ORDINAL = 1, 3, 5, 7
_CHUNK_OFFSET, _CHUNK_METADATA, _OFFSET_INDEX, _COLUMN_INDEX = 2, 3, 4, 6
_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _BLOOM_FILTER = 9, 10, 11, 14

Fields = dict[int, tuple[int, Any]]  # of a structure: number of a field → its type and its value


def open_parquet_writer(sink: Any, first: pa.RecordBatch) -> pq.ParquetWriter:
    """A writer of Parquet with the columns of the first rows. Columns get dictionaries, unless few values repeat there.

    A dictionary of values that are nearly all different costs time, and Arrow gives it up as soon as it is large.

    Args:
        sink: path or file.
        first: the first rows.
    """
    nested = any(pa.types.is_nested(field.type) for field in first.schema)  # their leaves have other names
    repeating = [name for name, column in zip(first.schema.names, first.columns, strict=True) if _repeats(column)]
    return pq.ParquetWriter(sink, first.schema, compression="zstd", use_dictionary=nested or repeating)


def _repeats(column: pa.Array) -> bool:
    sample = column[:SAMPLE_ROWS]
    try:
        distinct = int(pc.count_distinct(sample, mode="all").as_py())
    except pa.ArrowNotImplementedError:
        return True
    return len(sample) < MIN_SAMPLE_ROWS or 2 * distinct <= len(sample)


class RowGroupJoiner:
    """Writes a Parquet file that consists of the row groups of other files.

    Args:
        file: open for writing, empty; it is not closed.
        schema: of all files.
    """

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        empty = io.BytesIO()
        pq.ParquetWriter(empty, schema).close()
        self._footer, _ = _read_footer(empty)
        self._file, self._rows, self._groups = file, 0, list[bytes]()
        self._place = file.write(MAGIC)

    def add(self, piece: IO[bytes]) -> None:
        """Appends the row groups of a Parquet file.

        Args:
            piece: open for reading.

        Raises:
            ValueError: its columns differ from the schema.
        """
        footer, end = _read_footer(piece)
        if footer[_SCHEMA] != self._footer[_SCHEMA]:
            raise ValueError("the columns of a piece differ from the schema of the output")
        for group in footer[_ROW_GROUPS][1][1]:
            _shift_group(group, self._place - len(MAGIC))
            self._rows += group[_GROUP_ROWS][1]
            self._groups.append(_encode_fields(group))
        piece.seek(len(MAGIC))
        left = end - len(MAGIC)
        self._place += left
        while left:
            left -= self._file.write(piece.read(min(left, _COPY_BYTES)))

    def close(self) -> None:
        """Writes the footer."""
        fields = self._footer | {_NUM_ROWS: (_I64, self._rows), _ROW_GROUPS: (_LIST, (_STRUCT, self._groups))}
        footer = _encode_fields(fields)
        self._file.write(footer + struct.pack("<I", len(footer)) + MAGIC)


def _read_footer(file: IO[bytes]) -> tuple[Fields, int]:
    """The fields of FileMetaData, and its place in the file."""
    end = file.seek(-8, io.SEEK_END)
    (length,) = struct.unpack("<I", file.read(4))
    file.seek(end - length)
    return _Decoder(file.read(length)).fields(), end - length


def _shift_group(group: Fields, shift: int) -> None:
    """Adds a number of bytes to all offsets of a row group."""
    group.pop(_ORDINAL, None)  # optional, and 16 bits
    _shift(group, shift, _GROUP_OFFSET)
    for chunk in group[_COLUMNS][1][1]:
        _shift(chunk, shift, _CHUNK_OFFSET, _OFFSET_INDEX, _COLUMN_INDEX)
        _shift(chunk[_CHUNK_METADATA][1], shift, _DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _BLOOM_FILTER)


def _shift(fields: Fields, shift: int, *numbers: int) -> None:
    for number in numbers:
        if number in fields and (offset := fields[number][1]):  # 0: deprecated, and not set
            fields[number] = (_I64, offset + shift)


class _Decoder:
    """Reads Thrift's compact protocol. Lists and sets are pairs of the type of their items and the items."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def fields(self) -> Fields:
        fields, number = Fields(), 0
        while header := self._byte():
            delta, type_ = header >> 4, header & 15
            number = number + delta if delta else _unzigzag(self._varint())
            fields[number] = (type_, type_ == _TRUE if type_ in (_TRUE, _FALSE) else self._value(type_))
        return fields

    def _value(self, type_: int) -> Any:
        if type_ in (_I16, _I32, _I64):
            return _unzigzag(self._varint())
        if type_ == _BINARY:
            return self._bytes(self._varint())
        if type_ == _STRUCT:
            return self.fields()
        if type_ in (_LIST, _SET):
            header = self._byte()
            count, items = header >> 4, header & 15
            return items, [self._value(items) for _ in range(self._varint() if count == 15 else count)]
        if type_ == _DOUBLE:
            return self._bytes(8)
        if type_ in (_TRUE, _FALSE, _BYTE):  # an item of a list is a byte
            return self._byte()
        raise ValueError(f"a footer of Parquet has no values of type {type_}")

    def _byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1]

    def _bytes(self, count: int) -> bytes:
        self._place += count
        return self._data[self._place - count : self._place]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift


def _encode_fields(fields: Fields) -> bytes:
    encoded, last = bytearray(), 0
    for number, (type_, value) in sorted(fields.items()):
        delta = number - last
        short = 0 < delta < 16
        header = _FALSE if type_ in (_TRUE, _FALSE) and not value else type_
        encoded += bytes([delta << 4 | header]) if short else bytes([header]) + _varint(_zigzag(number))
        if type_ not in (_TRUE, _FALSE):
            encoded += _encode(type_, value)
        last = number
    return bytes(encoded) + b"\0"


def _encode(type_: int, value: Any) -> bytes:
    if type_ in (_I16, _I32, _I64):
        return _varint(_zigzag(value))
    if type_ in (_BINARY, _DOUBLE):
        return (_varint(len(value)) if type_ == _BINARY else b"") + bytes(value)
    if type_ == _STRUCT:
        return value if isinstance(value, bytes) else _encode_fields(value)
    if type_ in (_LIST, _SET):
        items, values = value
        header = bytes([len(values) << 4 | items]) if len(values) < 15 else bytes([0xF0 | items]) + _varint(len(values))
        return header + b"".join(_encode(items, item) for item in values)
    return bytes([value])


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _zigzag(value: int) -> int:
    return value << 1 ^ value >> 63


def _unzigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)
