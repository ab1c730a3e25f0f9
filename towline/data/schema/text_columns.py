"""Columns of text, read whole: which kind of values they spell, and those values. Needs Arrow alone, not pandas.

``towline.data.schema.values`` says what one text means. This module gives the same results for arrays: plain
numbers and ISO times by Arrow, every other text by ``ValueReader``, once for each distinct text.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towline.data.schema.values import DECIMAL_YEAR, NULL_MARKERS, PLAIN, Spelling, ValueFormat, ValueReader, parse_time

_PLAIN_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ZERO_PADDED = r"^[+-]?0\d+$"
_WHOLE = r"^[+-]?\d{1,18}$"
_WHOLE_LEVEL = r"\s*-?(0|[1-9]\d*)(\.0+)?\s*$"
_DIGITS = (
    ("%Y", 1_000, 9_999),
    ("%Y%m", 1_000_01, 9_999_12),
    ("%Y%m%d", 1_000_01_01, 9_999_12_31),
    ("epoch_s", 100_000_000, 99_999_999_999),  # from 1973 on
    ("epoch_ms", 100_000_000_000, 99_999_999_999_999),
)
_PLAIN_TIME = r"^([1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?$"
_DATE = r"^\s*\d{4}-\d\d-\d\d"
_EXACT = 2**53  # whole numbers up to here are exact as float64


def is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def large_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same as large_string, blank text as null: CSV cannot tell an empty text from a null, so nothing does."""
    column = values.cast(pa.large_string())
    empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    return pc.if_else(empty, pa.scalar(None, pa.large_string()), column)


def parse_numbers(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Text as float64 (n,), NaN for null and for what is no number; and which values (n,) bool are no number."""
    reader = ValueReader("numeric", fmt)
    plain = fmt.decimal == "." and not fmt.thousands and not fmt.na_values
    fast = (_PLAIN_NUMBER, pa.float64()) if plain else None
    return _read(values, reader, np.dtype(np.float64), fast)


def parse_times(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Text as datetime64[us] (n,) in naive UTC, NaT for null and for what is no time; and which values are no time."""
    fast = None if fmt.date_format or fmt.na_values else (_PLAIN_TIME, pa.timestamp("us"))
    return _read(values, ValueReader("datetime", fmt), np.dtype("datetime64[us]"), fast)


def parse_booleans(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Text as float64 1.0 and 0.0 (n,), NaN for null and for what is no flag; and which values are no flag."""
    return _read(values, ValueReader("boolean", fmt), np.dtype(np.float64), None)


def parse_levels(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> np.ndarray:
    """Text as the names of levels: objects (n,), str or None."""
    reader = ValueReader("category", fmt)
    return _by_distinct(values, reader.read, np.dtype(object))


def is_inexact(column: pa.ChunkedArray) -> bool:
    """Whether these are whole numbers, such as identifiers, of which float64 would make neighbours equal."""
    if not pa.types.is_integer(column.type) or column.null_count == len(column):
        return False
    bounds = pc.min_max(column).as_py()
    if max(bounds["max"], -bounds["min"]) <= _EXACT:
        return False
    return any(int(float(value)) != value for value in column.unique().drop_null().to_pylist())


def conform_batch(batch: pa.RecordBatch, readers: Mapping[str, ValueReader]) -> pa.RecordBatch:
    """Rows of a file with the text of each known column as the values it spells.

    A column that holds text which is not of its kind stays as it is, for the caller to count.
    """
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        reader = readers.get(name)
        columns.append(_conform(column, reader) if reader and is_text(column.type) else column)
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _conform(column: pa.Array, reader: ValueReader) -> pa.Array:
    kind, fmt, texts = reader.kind, reader.format, large_text(pa.chunked_array([column]))
    if kind == "category":
        return pa.array(parse_levels(texts, fmt), pa.large_string())
    if kind not in _ARRAYS:
        return column
    values, unread = _ARRAYS[kind](texts, fmt)
    return column if unread.any() and not fmt.coerce else pa.array(values, from_pandas=True)


def infer_text(values: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> pa.ChunkedArray:
    """The values that a column of text spells, in the type that all of them have.

    Returns:
        int64, float64, bool or timestamp[us] where every value is one (markers of null are null then), else the text.
        Zero-padded whole numbers (00501) are codes and stay text; so do numbers that float64 cannot hold exactly.
    """
    marked = set(NULL_MARKERS) | {text.lower() for text in fmt.na_values}
    trimmed = pc.utf8_lower(pc.utf8_trim_whitespace(values))
    present = pc.invert(pc.is_in(trimmed, value_set=pa.array(sorted(marked), trimmed.type)))
    given = values.filter(pc.fill_null(present, False))
    if not len(given):
        return pa.chunked_array([pa.nulls(len(values))])
    head = given.slice(0, 100)
    for attempt in (_as_numbers, _as_booleans, _as_times):
        if attempt(head, fmt) is not None and (typed := attempt(values, fmt)) is not None:
            return typed
    return null_markers(values, fmt)


def null_markers(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """Text with the column's own markers of null as null."""
    if not fmt.na_values:
        return values
    trimmed = pc.utf8_trim_whitespace(values)
    marked = pc.is_in(trimmed, value_set=pa.array(list(fmt.na_values), trimmed.type))
    return pc.if_else(marked, pa.scalar(None, values.type), values)


def whole_or_float(floats: np.ndarray, values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Numbers that text spells: int64 where all are whole and none is null, else float64; None if not exact."""
    missing = np.isnan(floats)
    present = floats[~missing]
    if len(present) and (np.abs(present) >= _EXACT).any():
        digits = pc.match_substring_regex(pc.ascii_trim_whitespace(values), r"^[+-]?\d+$")
        large = pc.and_(digits, pa.array(np.abs(floats) >= _EXACT))
        for text in values.filter(pc.fill_null(large, False)).unique().to_pylist():
            if int(float(text)) != int(text):
                return None
    written_whole = pc.match_substring_regex(pc.ascii_trim_whitespace(values), _WHOLE)
    if not missing.any() and pc.all(written_whole).as_py():
        return pa.chunked_array([pa.array(floats.astype(np.int64))])
    return pa.chunked_array([pa.array(floats, from_pandas=True)])


def has_zero_padding(values: pa.ChunkedArray) -> bool:
    """Whether a whole number among them has leading zeros: then they are codes."""
    return bool(pc.any(pc.match_substring_regex(pc.ascii_trim_whitespace(values), _ZERO_PADDED)).as_py())


def _as_numbers(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray | None:
    if has_zero_padding(values):
        return None
    floats, unread = parse_numbers(values, fmt)
    return None if unread.any() else whole_or_float(floats, values)


def _as_booleans(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray | None:
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values.unique())).to_pylist()
    if not set(words) - {None} <= {"true", "false"} | NULL_MARKERS:  # yes and no are classes like any others
        return None
    flags, unread = parse_booleans(values, fmt)
    return None if unread.any() else flag_array(flags)


def _as_times(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray | None:
    if not fmt.date_format and not pc.any(pc.match_substring_regex(values, _DATE)).as_py():
        return None
    moments, unread = parse_times(values, fmt)
    if not fmt.date_format:
        dated = pc.fill_null(pc.match_substring_regex(values, _DATE), False).to_numpy()
        unread |= ~dated & ~np.isnat(moments)
    return None if unread.any() else pa.chunked_array([pa.array(moments)])


def parse_categories(values: pa.ChunkedArray, fmt: ValueFormat) -> pa.ChunkedArray:
    """The levels of a category: text as written, but for whole numbers, flags and dates, which have one spelling."""
    if is_text(values.type):
        values = null_markers(values, fmt)
        fmt = fmt.model_copy(update={"spelling": detect_spelling(values)})
    texts = _by_distinct(values, ValueReader("category", fmt).read, np.dtype(object))
    return pa.chunked_array([pa.array(texts, pa.large_string())])


def detect_spelling(values: pa.ChunkedArray) -> Spelling:
    """What all levels of a category are."""
    distinct = values.unique().drop_null().to_pylist()
    patterns: dict[Spelling, str] = {"number": _WHOLE_LEVEL, "boolean": r"\s*(true|false)\s*$", "date": _DATE}
    for kind, pattern in patterns.items():
        if all(re.match(pattern, text, re.IGNORECASE | re.ASCII) for text in distinct) and distinct:
            if kind == "date" and any(parse_time(text) is None for text in distinct):
                continue
            return kind
    return "text"


def detect_digits_format(values: pa.ChunkedArray) -> str | None:
    """The format of times that are written in digits alone, where all of them can be only one."""
    trimmed = pc.ascii_trim_whitespace(values)
    if not len(values.drop_null()):
        return None
    if not pc.all(pc.match_substring_regex(trimmed, r"^\d+$")).as_py():
        return DECIMAL_YEAR if pc.all(pc.match_substring_regex(trimmed, r"^(1\d|20)\d\d(\.\d+)?$")).as_py() else None
    whole = [int(text) for text in values.unique().drop_null().to_pylist()]
    least, most = min(whole), max(whole)
    for date_format, low, high in _DIGITS:
        if low <= least and most <= high:
            return None if any(parse_time(value, date_format) is None for value in whole) else date_format
    return None


def flag_array(flags: np.ndarray) -> pa.ChunkedArray:
    """1.0, 0.0 and NaN as Arrow booleans."""
    return pa.chunked_array([pa.array(flags == 1.0, mask=np.isnan(flags))])


_ARRAYS = {"numeric": parse_numbers, "datetime": parse_times, "boolean": parse_booleans}


def _read(
    values: pa.ChunkedArray, reader: ValueReader, dtype: np.dtype[Any], fast: tuple[str, pa.DataType] | None
) -> tuple[np.ndarray, np.ndarray]:
    values = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    count = len(values)
    read = np.full(count, np.nan if dtype.kind == "f" else np.datetime64("NaT", "us"), dtype=dtype)
    unread = np.zeros(count, dtype=bool)
    rest = pc.is_valid(values).to_numpy()
    if fast:
        pattern, kind = fast
        trimmed = pc.ascii_trim_whitespace(values)
        matches = pc.fill_null(pc.match_substring_regex(trimmed, pattern), False)
        try:
            read[matches.to_numpy()] = trimmed.filter(matches).cast(kind).to_numpy()
            rest &= ~matches.to_numpy()
        except pa.ArrowInvalid:  # the 31st of February
            pass
    if rest.any():
        others = values.filter(pa.array(rest))
        read[rest] = _by_distinct(others, reader.read, dtype)
        unread[rest] = _by_distinct(others, reader.misfits, np.dtype(bool))
    return (read + 0.0 if dtype.kind == "f" else read), unread  # -0.0 is 0.0


def _by_distinct(values: pa.ChunkedArray, read: Callable[[Any], Any], dtype: np.dtype[Any]) -> np.ndarray:
    """What ``read`` makes of each value, asked once for each distinct one."""
    encoded = values.combine_chunks().dictionary_encode() if isinstance(values, pa.ChunkedArray) else values
    distinct = encoded.dictionary.to_pylist()
    lookup = np.empty(len(distinct) + 1, dtype=dtype)
    for place, text in enumerate(distinct):
        lookup[place] = read(text)
    lookup[-1] = read(None)
    indices = pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)
    result: np.ndarray = lookup[indices]
    return result
