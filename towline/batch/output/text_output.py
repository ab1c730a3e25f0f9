"""Text of the output: the fields of a CSV and the values of JSON lines, made column by column."""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from towline.data.schema.arrow_types import null_far_times
from towline.data.schema.text_columns import is_text

_FORMULA = r"^[=+\-@\t\r]"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_TEXT, _BYTES = pa.large_string(), pa.large_binary()


def csv_fields(column: pa.Array | pa.Scalar, separator: str, *, safe: bool = False) -> pa.Array | pa.Scalar:
    """The fields of a column (n,) large_string: quoted where needed, empty for null, NaN and times after 9999.

    Args:
        column: of any type; a scalar gives a scalar.
        separator: of the columns.
        safe: put ' before text that a spreadsheet would run as a formula.
    """
    if isinstance(column, pa.Scalar):
        return csv_fields(pa.array([column.as_py()], column.type), separator, safe=safe)[0]
    if pa.types.is_dictionary(column.type):  # each distinct value once
        return pc.fill_null(csv_fields(column.dictionary, separator, safe=safe).take(column.indices), "")
    if not pa.types.is_nested(column.type) and not is_text(column.type):
        return pc.fill_null(_plain_text(null_far_times(column), "True", "False"), "")
    texts = _json_texts(column) if pa.types.is_nested(column.type) else column.cast(_TEXT)
    if safe:
        formula = pc.and_not(pc.match_substring_regex(texts, _FORMULA), pc.match_substring_regex(texts, _NUMBER))
        texts = pc.if_else(formula, pc.binary_join_element_wise(_scalar("'"), texts, _scalar("")), texts)
    special = pc.match_substring_regex(texts, f'["\\r\\n{_escape(separator)}]')
    if pc.any(special).as_py():
        doubled = pc.replace_substring(texts, '"', '""')
        texts = pc.if_else(
            special, pc.binary_join_element_wise(_scalar('"'), doubled, _scalar('"'), _scalar("")), texts
        )
    return pc.fill_null(texts, "")


def csv_name(name: str, separator: str, *, safe: bool = False) -> str:
    """The name of a column as a field of a header."""
    if safe and name[:1] in ("=", "+", "-", "@", "\t", "\r"):
        name = "'" + name
    quoted = any(mark in name for mark in (separator, '"', "\r", "\n"))
    return '"' + name.replace('"', '""') + '"' if quoted else name


def csv_lines(
    records: pa.Array | None, columns: Sequence[pa.Array | pa.Scalar], separator: str, newline: str
) -> pa.Buffer:
    """Lines of a CSV.

    Args:
        records: the text of the rows, to which the columns are appended; None: the columns alone.
        columns: fields, as ``csv_fields`` makes them; a scalar is the same in each row.
        separator: of the columns.
        newline: at the end of each line.
    """
    parts = [column.cast(_BYTES) for column in columns]
    parts = parts if records is None else [records, *parts]
    ending = [b""]
    while len(parts) > 1 and isinstance(parts[-1], pa.Scalar):  # the constants at the end are one text
        ending.insert(0, parts.pop().as_py())
    if len(ending) > 1:
        last = separator.encode().join(ending[:-1]) + newline.encode()
        return _contents(pc.binary_join_element_wise(*parts, _scalar(last), _scalar(separator.encode())))
    first, *rest = parts
    joined = pc.binary_join_element_wise(first, *rest, _scalar(separator.encode())) if rest else first
    return _contents(pc.binary_join_element_wise(joined, _scalar(newline.encode()), _scalar(b"")))


def json_values(column: pa.Array | pa.Scalar) -> pa.Array | pa.Scalar:
    """The values of a column (n,) as JSON, large_string; null for null, NaN, far times. A scalar gives a scalar."""
    if isinstance(column, pa.Scalar):
        return json_values(pa.array([column.as_py()], column.type))[0]
    kind = column.type
    if pa.types.is_dictionary(kind):
        return pc.fill_null(json_values(column.dictionary).take(column.indices), "null")
    if is_text(kind) or pa.types.is_nested(kind) or pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pc.fill_null(_json_texts(null_far_times(column)), "null")
    return pc.fill_null(_plain_text(column, "true", "false"), "null")


def json_lines(records: pa.Array | None, names: Sequence[str], columns: Sequence[pa.Array]) -> pa.Buffer:
    """JSON lines: the objects of ``records`` with members appended, or objects of the members alone.

    Args:
        records: JSON objects, each in one line.
        names: of the members.
        columns: their values, as ``json_values`` makes them; or scalars.
    """
    parts: list[pa.Array | pa.Scalar] = []
    for number, (name, column) in enumerate(zip(names, columns, strict=True)):
        label = json.dumps(name, ensure_ascii=False) + ": "
        parts += [_scalar((label if not number else ", " + label).encode()), column.cast(_BYTES)]
    begin: pa.Array | pa.Scalar = _scalar(b"{")
    if records is not None:
        inner = pc.binary_slice(pc.ascii_trim_whitespace(records.cast(_TEXT)).cast(pa.binary()), 0, -1)
        inner = pc.ascii_rtrim_whitespace(inner.cast(_TEXT))
        empty = pc.equal(pc.binary_length(inner), 1)
        comma = pc.if_else(empty, _scalar(""), _scalar(", "))
        begin = pc.binary_join_element_wise(inner, comma, _scalar("")).cast(_BYTES)
    return _contents(pc.binary_join_element_wise(begin, *parts, _scalar(b"}\n"), _scalar(b"")))


def _plain_text(column: pa.Array, true: str, false: str) -> pa.Array:
    """Numbers, booleans and times as text; null for null and NaN."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return pc.if_else(column, _scalar(true), _scalar(false))
    if pa.types.is_floating(kind):
        finite = pc.is_finite(column)
        if not pc.all(finite).as_py():
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    return column.cast(_TEXT)


def _json_texts(column: pa.Array) -> pa.Array:
    """JSON of each distinct value; null for null."""
    if pa.types.is_nested(column.type):
        return pa.array([None if value is None else _dump(value) for value in column.to_pylist()], _TEXT)
    encoded = column.dictionary_encode()
    return pa.array([_dump(value) for value in encoded.dictionary.to_pylist()], _TEXT).take(encoded.indices)


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _scalar(text: str | bytes) -> pa.Scalar:
    return pa.scalar(text, _TEXT if isinstance(text, str) else _BYTES)


def _escape(separator: str) -> str:
    return "\\" + separator if separator in "|^-]\\" else separator


def _contents(texts: pa.Array) -> pa.Buffer:
    """The texts of an array one after the other."""
    if not len(texts):
        return pa.py_buffer(b"")
    offsets = pa.Array.from_buffers(pa.int64(), len(texts) + 1, [None, texts.buffers()[1]], offset=texts.offset)
    start, end = offsets[0].as_py(), offsets[len(texts)].as_py()
    return texts.buffers()[2].slice(start, end - start)
