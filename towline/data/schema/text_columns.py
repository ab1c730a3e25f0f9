"""Parsers for Arrow columns of text: the kind of values that a column has, and these values.

``values`` defines the meaning of a single text; this module gives the same results for columns. Arrow parses plain
numbers and ISO times, a ``ValueReader`` every other text, once for each distinct text. pandas is not needed.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towline.config import Kind
from towline.data.schema.values import (
    DECIMAL_YEAR,
    EPOCHS,
    NULL_MARKERS,
    PLAIN,
    TEXT_KINDS,
    Spelling,
    ValueFormat,
    ValueReader,
    marker_texts,
    parse_time,
)

_PLAIN_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ZERO_PADDED = r"^[+-]?0\d+$"
_WHOLE = r"^[+-]?\d{1,18}$"
_WHOLE_LEVEL = r"\s*-?(0|[1-9]\d*)(\.0+)?\s*$"
_DIGITS = (
    ("%Y", 1_000, 9_999),
    ("%Y%m", 1_000_01, 9_999_12),
    ("%Y%m%d", 1_000_01_01, 9_999_12_31),
    ("epoch_s", 100_000_000, 99_999_999_999),  # from 1973 on
    ("epoch_ms", 100_000_000_000, 9_999_999_999_999),
    ("%Y%m%d%H%M%S", 1_000_01_01_00_00_00, 9_999_12_31_23_59_59),
    ("epoch_us", 100_000_000_000_000, 9_999_999_999_999_999),
    ("epoch_ns", 100_000_000_000_000_000, 9_199_999_999_999_999_999),
)
_PLAIN_TIME = r"^([1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?$"
_DATE = r"^\s*\d{4}-\d\d-\d\d"
_DATE_OR_BASIC_TIME = _DATE + r"|^\s*\d{8}T\d{4}"  # eight digits alone are a number
_FIRST_TIME = np.datetime64("0001-01-01", "us")
PIECE_ROWS = 2**19  # that are converted together
_HEAD_VALUES = 100  # values that are converted first, since they reject most types
_MAX_EXACT = 2**53  # the largest whole number up to which float64 is exact


def is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def large_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column as large_string with blank text as null, because CSV does not distinguish empty text from null."""

    def blank_to_null(piece: pa.Array) -> pa.Array:
        texts = piece.cast(pa.large_string())
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
        return pc.if_else(empty, pa.scalar(None, pa.large_string()), texts)

    return pa.chunked_array([blank_to_null(piece) for piece in iterate_pieces(values)], pa.large_string())


def iterate_pieces(values: pa.ChunkedArray) -> Iterator[pa.Array]:
    """The values in pieces of at most ``PIECE_ROWS``, so that memory holds intermediate results of a piece only."""
    for chunk in values.chunks:
        for start in range(0, len(chunk), PIECE_ROWS):
            yield chunk.slice(start, PIECE_ROWS)


def parse_numbers(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Parses numbers: float64 (n,), NaN for null and other text; and (n,) bool, True for text that is not a number."""
    reader = ValueReader("numeric", fmt)
    plain = fmt.decimal == "." and not fmt.thousands and not fmt.na_values
    fast = (_PLAIN_NUMBER, pa.float64()) if plain else None
    return _read(values, reader, np.dtype(np.float64), fast)


def parse_times(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Parses times: datetime64[us] (n,) in naive UTC; and (n,) bool, True for text that is not a time."""
    fast = None if fmt.date_format or fmt.na_values else (_PLAIN_TIME, pa.timestamp("us"))
    return _read(values, ValueReader("datetime", fmt), np.dtype("datetime64[us]"), fast)


def parse_booleans(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Parses booleans: float64 1.0 and 0.0 (n,), NaN for null; and (n,) bool, True for text that is not a boolean."""
    return _read(values, ValueReader("boolean", fmt), np.dtype(np.float64), None)


def is_inexact(column: pa.ChunkedArray) -> bool:
    """Whether these are whole numbers that float64 cannot represent exactly, such as identifiers."""
    if not pa.types.is_integer(column.type) or column.null_count == len(column):
        return False
    bounds = pc.min_max(column).as_py()
    if max(bounds["max"], -bounds["min"]) <= _MAX_EXACT:
        return False
    return any(int(float(value)) != value for value in column.unique().drop_null().to_pylist())


def conform_batch(batch: pa.RecordBatch, readers: Mapping[str, ValueReader]) -> pa.RecordBatch:
    """Parses the text columns of a file's rows.

    A column with text that is not of its kind is unchanged, so that the caller can count such values.

    Args:
        batch: the rows.
        readers: by column; other columns are unchanged.
    """
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        reader = readers.get(name)
        columns.append(_parse_as(column, reader) if reader and is_text(column.type) else column)
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _parse_as(column: pa.Array, reader: ValueReader) -> pa.Array:
    texts = large_text(pa.chunked_array([column]))
    if reader.kind in TEXT_KINDS:
        return pa.array(_by_distinct(texts, reader.read, np.dtype(object)), pa.large_string())
    if reader.kind not in PARSERS:
        return column
    values, unread = PARSERS[reader.kind](texts, reader.format)
    return column if unread.any() and not reader.format.coerce else pa.array(values, from_pandas=True)


def infer_text(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> pa.ChunkedArray:
    """Converts text to the type that all of its values have.

    Returns:
        int64, float64, bool or timestamp[us] if every value has this type (null markers become null), else the text.
        Whole numbers with leading zeros (00501) are codes and stay text; so do numbers that float64 cannot represent
        exactly.
    """
    head = _present_head(values, fmt)  # rejects most types quickly
    if not len(head):
        return pa.chunked_array([pa.nulls(len(values))])
    for convert in (_to_numbers, _to_booleans, _to_times):
        if convert(head, fmt) is not None and (converted := convert(values, fmt)) is not None:
            return converted
    return null_markers(values, fmt)


def _present_head(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """The first 100 values that are neither null nor a null marker."""
    markers = sorted(set(NULL_MARKERS) | {text.lower() for text in fmt.na_values})
    pieces, present = list[pa.Array](), 0
    for piece in iterate_pieces(values):
        trimmed = pc.utf8_lower(pc.utf8_trim_whitespace(piece))
        is_present = pc.invert(pc.is_in(trimmed, value_set=pa.array(markers, trimmed.type)))
        pieces.append(piece.filter(pc.fill_null(is_present, False)).slice(0, _HEAD_VALUES - present))
        present += len(pieces[-1])
        if present == _HEAD_VALUES:
            break
    return pa.chunked_array(pieces, values.type)


def null_markers(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """Text with the null markers of its format as null."""
    if not fmt.na_values:
        return values
    trimmed = pc.utf8_trim_whitespace(values)
    is_marker = pc.is_in(trimmed, value_set=pa.array(marker_texts(fmt), trimmed.type))
    return pc.if_else(is_marker, pa.scalar(None, values.type), values)


def whole_or_float(floats: np.ndarray, values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Parsed numbers as int64 if all are whole and not null, else as float64; None if float64 is not exact.

    Args:
        floats: (n,) the parsed numbers; NaN for null.
        values: their text.
    """
    missing = np.isnan(floats)
    present = floats[~missing]
    if len(present) and (np.abs(present) >= _MAX_EXACT).any():
        digits = pc.match_substring_regex(pc.ascii_trim_whitespace(values), r"^[+-]?\d+$")
        large = pc.and_(digits, pa.array(np.abs(floats) >= _MAX_EXACT))
        for text in values.filter(pc.fill_null(large, False)).unique().to_pylist():
            if int(float(text)) != int(text):
                return None
    if not missing.any() and all(pc.all(_matches(chunk, _WHOLE)).as_py() for chunk in values.chunks if len(chunk)):
        return pa.chunked_array([pa.array(floats.astype(np.int64))])
    return pa.chunked_array([pa.array(floats, from_pandas=True)])


def has_zero_padding(values: pa.ChunkedArray) -> bool:
    """Whether a whole number among the values has leading zeros: then they are codes."""
    return any(pc.any(_matches(chunk, _ZERO_PADDED)).as_py() for chunk in values.chunks)


def _matches(values: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(pc.ascii_trim_whitespace(values), pattern)


def _to_numbers(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray | None:
    if has_zero_padding(values):
        return None
    floats, unread = parse_numbers(values, fmt)
    return None if unread.any() else whole_or_float(floats, values)


def _to_booleans(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray | None:
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values.unique())).to_pylist()
    if not set(words) - {None} <= {"true", "false"} | NULL_MARKERS:  # yes and no are categories
        return None
    flags, unread = parse_booleans(values, fmt)
    return None if unread.any() else flag_array(flags)


def _to_times(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray | None:
    if not fmt.date_format and not pc.any(pc.match_substring_regex(values, _DATE_OR_BASIC_TIME)).as_py():
        return None
    moments, unread = parse_times(values, fmt)
    if not fmt.date_format:
        unread |= ~are_dates(values) & ~np.isnat(moments)
    return None if unread.any() else pa.chunked_array([pa.array(moments)])


def are_dates(values: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool: texts that begin as an ISO 8601 date, and not as a number does."""
    return np.asarray(pc.fill_null(pc.match_substring_regex(values, _DATE_OR_BASIC_TIME), False).to_numpy())


def are_mostly_dates(values: pa.ChunkedArray) -> bool:
    """Whether most of the first texts begin as an ISO 8601 date."""
    head = _present_head(values, PLAIN)
    return len(head) > 0 and bool(are_dates(head).mean() > 0.5)


def parse_categories(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """The levels of a category as text; whole numbers, booleans and dates get one spelling."""
    if is_text(values.type):
        values = null_markers(values, fmt)
    if is_text(values.type) and fmt.spelling == "text":
        fmt = fmt.model_copy(update={"spelling": detect_spelling(values)})
    texts = _by_distinct(values, ValueReader("category", fmt).read, np.dtype(object))
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def detect_spelling(values: pa.ChunkedArray) -> Spelling:
    """The type that all levels of a category have."""
    distinct = values.unique().drop_null().to_pylist()
    patterns: dict[Spelling, str] = {"number": _WHOLE_LEVEL, "boolean": r"\s*(true|false)\s*$", "date": _DATE}
    for kind, pattern in patterns.items():
        if all(re.match(pattern, text, re.IGNORECASE | re.ASCII) for text in distinct) and distinct:
            if kind == "date" and any(parse_time(text) is None for text in distinct):
                continue
            return kind
    return "text"


def detect_digits_format(values: pa.ChunkedArray) -> str | None:
    """The format of times that are written as digits, epochs or decimal years; None if the format is ambiguous."""
    trimmed = pc.ascii_trim_whitespace(values)
    if not len(values.drop_null()):
        return None
    whole = pc.all(pc.match_substring_regex(trimmed, r"^\d+$")).as_py()
    if not whole:
        if pc.all(pc.match_substring_regex(trimmed, r"^(1\d|20)\d\d(\.\d+)?$")).as_py():
            return DECIMAL_YEAR
        if not pc.all(pc.match_substring_regex(trimmed, r"^\d+(\.\d+)?$")).as_py():
            return None
    texts = values.unique().drop_null().to_pylist()
    numbers = [int(text) if whole else float(text) for text in texts]
    least, most = min(numbers), max(numbers)
    for date_format, low, high in _DIGITS:
        if low <= least and most <= high and (whole or date_format in EPOCHS):
            return None if any(parse_time(number, date_format) is None for number in numbers) else date_format
    return None


def flag_array(flags: np.ndarray) -> pa.ChunkedArray:
    """Arrow booleans from 1.0, 0.0 and NaN."""
    return pa.chunked_array([pa.array(flags == 1.0, mask=np.isnan(flags))])


PARSERS: Mapping[Kind, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "numeric": parse_numbers, "datetime": parse_times, "boolean": parse_booleans,
}  # fmt: skip


def _read(
    values: pa.ChunkedArray, reader: ValueReader, dtype: np.dtype[Any], fast: tuple[str, pa.DataType] | None
) -> tuple[np.ndarray, np.ndarray]:
    values = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    if values.num_chunks > 1:  # what is held besides the values is of one chunk
        parts = [_read(pa.chunked_array([chunk]), reader, dtype, fast) for chunk in values.chunks]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    count = len(values)
    read = np.full(count, np.nan if dtype.kind == "f" else np.datetime64("NaT", "us"), dtype=dtype)
    unread = np.zeros(count, dtype=bool)
    rest = pc.is_valid(values).to_numpy()
    if fast:
        with contextlib.suppress(pa.ArrowInvalid):  # a text that is not plain
            read = _parse_plain(values, fast[1])
            rest &= ~np.isfinite(read)
            fast = None
    if fast:  # the texts that match a pattern are parsed by Arrow
        pattern, kind = fast
        trimmed = pc.ascii_trim_whitespace(values)
        matches = pc.fill_null(pc.match_substring_regex(trimmed, pattern), False)
        try:
            read[matches.to_numpy()] = trimmed.filter(matches).cast(kind).to_numpy()
            rest &= ~matches.to_numpy() | np.isinf(read) if dtype.kind == "f" else ~matches.to_numpy()
        except pa.ArrowInvalid:  # such as the 31st of February
            pass
    if rest.any():
        others = values.filter(pa.array(rest))
        read[rest] = _by_distinct(others, reader.read, dtype)
        unread[rest] = _by_distinct(others, reader.misfits, np.dtype(bool))
    return (read + 0.0 if dtype.kind == "f" else read), unread  # -0.0 is 0.0


def _parse_plain(values: pa.ChunkedArray, kind: pa.DataType) -> np.ndarray:
    """Converts all numbers or times in one call. Values that are not finite must be read again: overflows or text.

    Raises:
        pa.ArrowInvalid: a text is not plain, or has spaces around it.
    """
    read: np.ndarray = values.cast(kind).to_numpy().copy()
    if kind != pa.float64():
        read[read < _FIRST_TIME] = np.datetime64("NaT")  # Arrow reads the year 0
    return read


def _by_distinct(values: pa.ChunkedArray, read: Callable[[Any], Any], dtype: np.dtype[Any]) -> np.ndarray:
    """The results of ``read`` for all values; it is called once for each distinct value."""
    encoded = values.combine_chunks().dictionary_encode() if isinstance(values, pa.ChunkedArray) else values
    distinct = encoded.dictionary.to_pylist()
    lookup = np.empty(len(distinct) + 1, dtype=dtype)
    for place, text in enumerate(distinct):
        lookup[place] = read(text)
    lookup[-1] = read(None)
    indices = pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)
    result: np.ndarray = lookup[indices]
    return result
