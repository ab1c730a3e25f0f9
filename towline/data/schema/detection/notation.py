"""Notation: how numbers and dates are written in a column of text that no config describes.

If one notation reads all values of a column, it is used. Otherwise ``detect_notation`` names the setting that reads
most of them. Numbers with a few other words among them are numbers; the words are null.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from towline.config import FORMAT_SEPARATOR
from towline.data.schema import text_columns
from towline.data.schema.measures import (
    CURRENCY_SIGNS,
    QUANTITIES,
    Measure,
    has_several_units,
    parse_measure,
    parse_range,
)
from towline.data.schema.values import (
    CURRENCY,
    PLAIN,
    QUARTER,
    WEEK,
    ValueFormat,
    is_blank,
    is_null_marker,
    parse_formatted_time,
    parse_number,
    parse_time,
    remove_unit,
)

MIN_SHARE = 0.9  # of the values that are not null
_MIN_UNREADABLE = 0.05  # minimum share that the default notation cannot read; it can read codes with leading zeros
_SHORTEST = 6  # letters of a date, as 1/1/26
_MAX_DISTINCT = 2_000  # distinct values that are examined
_FEW_NUMBERS = 20  # a column with at most as many distinct numbers and a frequent word is a category
_FREQUENT_WORD = 0.01
_MOST_WORDS = 10  # different ones among numbers that are no codes, and a fifth as many as numbers
_ROUNDING = 1e-9
_NUMBERS = (
    ("a decimal comma", "data.decimal: ','", ValueFormat(decimal=",")),
    ("commas between thousands", "data.thousands: ','", ValueFormat(thousands=",")),
    ("points between thousands", "data.decimal: ',' and data.thousands: '.'", ValueFormat(decimal=",", thousands=".")),
    ("spaces between thousands", "data.thousands: ' '", ValueFormat(thousands=" ")),
    (
        "spaces between thousands and a decimal comma",
        "data.decimal: ',' and data.thousands: ' '",
        ValueFormat(decimal=",", thousands=" "),
    ),
    ("apostrophes between thousands", 'data.thousands: "\'"', ValueFormat(thousands="'")),
    (
        "apostrophes between thousands and a decimal comma",
        "data.decimal: ',' and data.thousands: \"'\"",
        ValueFormat(decimal=",", thousands="'"),
    ),
)
_DATES = (
    "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y", "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%m/%d/%y",
    "%d/%m/%y", "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d%b%Y", "%b %d, %Y", "%b %d %Y", "%Y-%b-%d",
    "%b-%Y", "%b-%y", "%b %Y", "%Y %b", "%m/%Y", "%Y-%m", "%Y/%m", "%d. %b %Y", "%d de %b de %Y",
    "%a %d %b %Y", "%a, %d %b %Y", "%A, %b %d, %Y", "%A, %d %b %Y",
)  # fmt: skip
_CLOCKS = (
    "", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", ", %H:%M:%S", "_%H:%M:%S", " %I:%M %p", " %I:%M:%S %p", " %I:%M%p",
    " %H:%M:%S %z", " %I:%M:%S %p %z",
)  # fmt: skip
_MOMENTS = ("%a %b %d %H:%M:%S %Y", "%d%b%Y:%H:%M:%S", "%d/%b/%Y:%H:%M:%S %z")
_FORMATS = (*(date + clock for date in _DATES for clock in _CLOCKS), *_MOMENTS, QUARTER, WEEK)
# single letters are listed only if they are common units: 12A and 7B are codes
_UNIT = (
    r"%|°c|°f|°|kg|g|mg|lbs?|oz|mm|cm|m|km|ft|in|mi|miles?|mph|kmh|km/h|ml|l|liters?|litres?|gal|mpg|kmpl|"
    r"/(?:5|10|20|100)|ms|s|secs?|seconds?|mins?|minutes?|h|hrs?|hours?|days?|weeks?|months?|yrs?|years?|"
    r"kb|mb|gb|tb|w|kw|kwh|hp|bhp|hz|khz|mhz|ghz|cc|px|sqft|sq ft|m2|m²"
)
_AMOUNT = r"\d(?:[\d.,'’ \u00a0\u2009\u202f]*\d)?(?:[.,][-–—]{1,2})?"  # with marks between thousands, or 15.-
_MONEY = rf"({CURRENCY})\s*[+-]?{_AMOUNT}\s*[kmb]?|{_AMOUNT}\s*[kmb]?\s*({CURRENCY})"
_WITH_UNIT = re.compile(rf"\s*[+-]?\s*(?:{_MONEY}|{_AMOUNT}\s*({_UNIT}))\s*", re.IGNORECASE)
_IN_PARENTHESES = re.compile(r"\s*\((.*)\)\s*")  # a negative amount
# any other word may be a unit too, if a blank is before it and it is the same in nearly all values: 3 Tage, 12 pieces
_WITH_WORD = re.compile(rf"\s*[+-]?\s*{_AMOUNT}\s+([^\W\d_]{{2,20}})\s*")
# of an approximate number; a sign may be before a number, and a letter after it may be part of a code
_MARK = re.compile(r"[^\d.,'’ +kmb-]|\d\s*[kmb]?\s*[+-]", re.IGNORECASE)
_COMMA = r"^\s*[+-]?\d+,(\d{1,2}|\d{4,})\s*$"  # with three digits it could be a mark between thousands


class Notation(NamedTuple):
    """The notation of a column, the share of values in it, and the setting or change that reads it.

    ``formats`` are the one or two formats that read it; none if no setting reads it.
    """

    what: str
    share: float
    remedy: str
    example: str
    formats: tuple[ValueFormat, ...] = ()

    def described(self, *, hidden: bool = False) -> str:
        """The notation with an example; ``hidden``: without the example."""
        return self.what if hidden else f"{self.what}, as {self.example!r}"


class TextColumn(NamedTuple):
    """A column of text with the values that it means.

    Attributes:
        values: numbers, booleans, times, or the text itself.
        format: how they are written.
        nulls: (n,) bool: texts that were read as null, without blanks and the usual markers such as NA.
    """

    values: pa.ChunkedArray
    format: ValueFormat
    nulls: np.ndarray


def read_text_column(column: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> TextColumn:
    """Reads a column of text that the config does not declare.

    Args:
        column: text.
        fmt: the format that the config gives for all columns.
        max_unreadable: the largest share of values that are not numbers in a column of numbers.

    Returns:
        The text itself if no notation reads it, or if the words among its numbers are levels of a category.
    """
    none = np.zeros(len(column), dtype=bool)
    typed = text_columns.infer_text(column, fmt)
    if not text_columns.is_text(typed.type):
        return TextColumn(typed, fmt, _unusual_markers(column) if pa.types.is_floating(typed.type) else none)
    if text_columns.has_zero_padding(typed):
        return TextColumn(typed, fmt, none)
    if measure := detect_measure(typed, fmt):
        fmt = fmt.model_copy(update={"measure": measure})
        measured = text_columns.infer_text(column, fmt)
        return TextColumn(measured, fmt, none)
    if unit := detect_unit(typed):
        fmt = fmt.model_copy(update={"unit": unit})
        if _has_points_between_thousands(_distinct_texts(column.to_pandas())[0], fmt):
            fmt = fmt.model_copy(update={"decimal": ",", "thousands": "."})
        without = text_columns.infer_text(column, fmt)
        if not text_columns.is_text(without.type):
            return TextColumn(without, fmt, none)
    if find_approximate_numbers(typed, fmt):
        approximate = _read_mixed(typed, fmt.model_copy(update={"measure": "approximate"}), max_unreadable)
        if approximate:
            return approximate
    return _read_other_notation(typed, fmt, max_unreadable) or TextColumn(typed, fmt, none)


def _read_other_notation(column: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> TextColumn | None:
    """Numbers or times of another notation, perhaps with a few other texts among them; None for other columns."""
    for other in _unambiguous_formats(column, fmt, max_unreadable):
        values = text_columns.infer_text(column, other)
        if not text_columns.is_text(values.type):
            return TextColumn(values, other, np.zeros(len(column), dtype=bool))
        if mixed := _read_mixed(column, other, max_unreadable):
            return mixed
    return _read_mixed(column, fmt, max_unreadable) or _read_mixed_times(column, fmt, max_unreadable)


def read_declared_numbers(column: pa.ChunkedArray, fmt: ValueFormat) -> TextColumn:
    """Reads a column of text that the config declares numeric: what is not a number is null."""
    if measure := detect_measure(column, fmt):
        fmt = fmt.model_copy(update={"measure": measure})
    elif unit := detect_unit(column):
        fmt = fmt.model_copy(update={"unit": unit})
    if find_approximate_numbers(column, fmt):
        fmt = fmt.model_copy(update={"measure": "approximate"})
    fmt = _allow_decimal_comma(column, detect_number_format(column, fmt, max_unreadable=1) or fmt)
    floats, nulls = text_columns.parse_numbers(column, fmt)
    exact = text_columns.whole_or_float(floats, column)
    return TextColumn(exact or pa.chunked_array([pa.array(floats, from_pandas=True)]), fmt, nulls)


def detect_unit(column: pa.ChunkedArray) -> str:
    """The currency or unit, in lower case, that the numbers of a column of text have; empty if most of them have none.

    Example:
        >>> detect_unit(pa.chunked_array([["$1,250.50", "-$3", "n/a"]]))
        '$'
    """
    texts, weights = _distinct_texts(column.slice(0, 10 * _MAX_DISTINCT).to_pandas())
    amounts = [_IN_PARENTHESES.sub(r"\1", text) for text in texts]
    matches = [_WITH_UNIT.fullmatch(text) or _WITH_WORD.fullmatch(text) for text in amounts]
    units = {str(match[match.lastindex or 0]).lower() for match in matches if match}
    share = float(weights[[match is not None for match in matches]].sum()) if texts else 0.0
    return units.pop() if len(units) == 1 and share >= MIN_SHARE else ""


def detect_measure(column: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> Measure | None:
    """The measure that reads all values of a column of text, detected from its parts; None: another kind of text.

    ``45 min`` with ``1 h 20 min``, ``2 years`` with ``1 month``, and ``12:30`` with ``1:05:30`` are durations,
    ``1.2K`` in a column with ``649`` is a number of thousands. ``500 g`` with ``1.2 kg`` is a mass.

    Example:
        >>> detect_measure(pa.chunked_array([["1h 5m", "45m"]])), detect_measure(pa.chunked_array([["14:30", "9:05"]]))
        ('duration', 'clock')
    """
    texts = [text.strip() for text in _distinct_texts(column.slice(0, 10 * _MAX_DISTINCT).to_pandas())[0]]
    for measure, evidence in _MEASURES:
        if texts and evidence(texts) and not np.isnan([parse_measure(text, measure) for text in texts]).any():
            read = text_columns.parse_numbers(column, fmt.model_copy(update={"measure": measure}))
            return None if read[1].any() else measure
    return None


def find_approximate_numbers(column: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> list[str]:
    """The texts with a bound or a mark and the ranges of a column of many numbers; empty for other columns.

    Ranges ascend, and mostly have as many digits at both ends, unlike codes, telephone numbers and dates.

    Example:
        >>> lengths = [f"{number}-{number + 5}" for number in range(10, 60)]
        >>> find_approximate_numbers(pa.chunked_array([lengths]))[:2]
        ['10-15', '11-16']
        >>> find_approximate_numbers(pa.chunked_array([["10-5", *lengths]]))
        []
    """
    fmt = fmt.model_copy(update={"measure": "number"})
    texts = _distinct_texts(column.slice(0, 10 * _MAX_DISTINCT).to_pandas())[0]
    unread = [text for text in texts if np.isnan(parse_number(text, fmt))]
    without_unit = {text: remove_unit(text, fmt.unit) for text in unread}
    limits = {text: parse_range(number) for text, number in without_unit.items() if _MARK.search(number)}
    marked = [text for text, numbers in limits.items() if numbers]
    currencies = {character for text in marked for character in without_unit[text] if character in CURRENCY_SIGNS}
    ranges = [limits[text] for text in marked if len(limits[text]) == 2]
    same = [len(str(int(abs(low)))) == len(str(int(high))) for low, high in ranges]
    ascend = all(low <= high for low, high in ranges)
    numbers = len(texts) - len(unread) + len(marked)
    is_approximate = numbers > _FEW_NUMBERS and ascend and (not ranges or float(np.mean(same)) >= 0.5)
    return marked if is_approximate and len(currencies) <= 1 else []


def _is_clock(texts: list[str]) -> bool:
    """Whether these are times of day: as many parts in each, and no hour above 24."""
    hours = [text.partition(":")[0] for text in texts]
    return len({text.count(":") for text in texts}) == 1 and all(
        len(hour) <= 2 and hour.isdecimal() and int(hour) <= 24 for hour in hours
    )


def _is_duration(texts: list[str]) -> bool:
    """Whether a text has several parts, or the texts have words for several units."""
    words = {word.lower().rstrip("s") for text in texts for word in re.findall(r"[A-Za-z]{2,}", text)}
    several = r"[+-]?\s*\d+(\.\d+)?\s*[A-Za-z]+\.?[\s,]*(and\s+)?\d.*|.*\d:\d\d.*|[+-]?P.*\d.*"
    return len(words) > 1 or any(re.fullmatch(several, text) for text in texts)


def _is_scaled(texts: list[str]) -> bool:
    """Whether some texts end in K, and others in M, B or a digit: a letter at all of them may be a unit."""
    ends = {text[-1:].lower() for text in texts}
    return "k" in ends and len({"" if end.isdigit() else end for end in ends}) > 1


def _is_height(texts: list[str]) -> bool:
    return any(len(re.findall(r"\d+", text)) > 1 for text in texts)


_MEASURES: tuple[tuple[Measure, Callable[[list[str]], bool]], ...] = (
    *((quantity, partial(has_several_units, quantity)) for quantity in QUANTITIES),
    ("clock", _is_clock), ("duration", _is_duration), ("feet", _is_height), ("scaled", _is_scaled),
)  # fmt: skip


def _unusual_markers(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool: markers of null that are punctuation, such as a question mark, and infinities."""
    pattern = r"^([?.\-]+|[+\-]?inf(inity)?)$"
    marked = [
        pc.match_substring_regex(pc.utf8_trim_whitespace(chunk), pattern, ignore_case=True).fill_null(False)
        for chunk in column.chunks
    ]
    return np.asarray(pa.chunked_array(marked, pa.bool_()).to_numpy())


def _read_mixed(column: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> TextColumn | None:
    """Numbers with a few other texts among them; None if these are too many, or levels of a category."""
    head = column.drop_null().slice(0, _MAX_DISTINCT)
    if not len(head) or text_columns.parse_numbers(head, fmt)[1].mean() > 0.5:
        return None
    fmt = _allow_decimal_comma(column, fmt)
    floats, unread = text_columns.parse_numbers(column, fmt)
    others, present = int(unread.sum()), int(unread.sum() + (~np.isnan(floats)).sum())
    if others > max(1, max_unreadable * present) or others * 2 > present:
        return None
    words = column.filter(pa.array(unread)).value_counts().field("counts")
    frequent = len(words) and pc.max(words).as_py() > max(2, _FREQUENT_WORD * present)
    if frequent and len(np.unique(floats[~np.isnan(floats)])) <= _FEW_NUMBERS:
        return None
    values = text_columns.whole_or_float(floats, column)
    if values is None:  # numbers that float64 cannot hold exactly are identifiers
        return None
    fmt = fmt.model_copy(update={"coerce": bool(unread.any())})
    return TextColumn(values, fmt, unread | _unusual_markers(column))


def _read_mixed_times(column: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> TextColumn | None:
    """Times of one notation with a few other texts among them; None if these are too many, or levels of a category."""
    if not fmt.date_format and not text_columns.are_mostly_dates(column):
        formats, _ = _date_formats(*_distinct_texts(column.to_pandas()))
        if len(formats) != 1:
            return None
        fmt = fmt.model_copy(update={"date_format": formats[0]})
    moments, unread = text_columns.parse_times(column, fmt)
    if not fmt.date_format:
        unread |= ~text_columns.are_dates(column) & ~np.isnat(moments)
        moments[unread] = np.datetime64("NaT")
    others, times = int(unread.sum()), moments[~np.isnat(moments)]
    if not len(times) or others > max(1, max_unreadable * (others + len(times))):
        return None
    words = column.filter(pa.array(unread)).value_counts().field("counts")
    frequent = pc.max(words).as_py() > max(2, _FREQUENT_WORD * (others + len(times))) if len(words) else False
    if frequent and len(np.unique(times)) <= _FEW_NUMBERS:
        return None
    fmt = fmt.model_copy(update={"coerce": bool(unread.any())})
    return TextColumn(pa.chunked_array([pa.array(moments)]), fmt, unread)


def find_words_among_numbers(column: pa.ChunkedArray, fmt: ValueFormat = PLAIN) -> list[str]:
    """The few texts, such as unknown or <0.1, that occur repeatedly among many different numbers of a column.

    The list is empty if there are none, if most values are texts, or if the values may be codes.

    Example:
        >>> find_words_among_numbers(pa.chunked_array([["unknown"] * 20 + [str(number) for number in range(60)]]))
        ['unknown']
    """
    if text_columns.has_zero_padding(column):
        return []
    texts, weights = _distinct_texts(column.to_pandas())
    fmt = detect_number_format(column, fmt, max_unreadable=1) or fmt
    is_word = np.array([np.isnan(parse_number(text, fmt)) for text in texts], dtype=bool)
    words, numbers = int(is_word.sum()), int((~is_word).sum())
    many = numbers > max(_FEW_NUMBERS, 5 * words) and weights[is_word].sum() <= 0.5
    return [text for text, word in zip(texts, is_word, strict=True) if word] if many and words <= _MOST_WORDS else []


def _allow_decimal_comma(column: pa.ChunkedArray, fmt: ValueFormat) -> ValueFormat:
    """The format; of numbers with a decimal point it also reads those with a decimal comma if the column has some."""
    plain = fmt.decimal == "." and not fmt.thousands
    has_commas = plain and pc.any(pc.match_substring_regex(column, _COMMA)).as_py()
    return fmt.model_copy(update={"decimal_comma": True}) if has_commas else fmt


def _unambiguous_formats(column: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> Iterator[ValueFormat]:
    """The format that reads all sampled numbers, or all sampled values as dates, if there is one meaning only."""
    if numbers := detect_number_format(column, fmt, max_unreadable):
        yield numbers
    if not fmt.date_format:
        dates = detect_date_formats(column.to_pandas())
        if len(dates) == 1:
            yield fmt.model_copy(update={"date_format": dates[0]})


def detect_number_format(column: pa.ChunkedArray, fmt: ValueFormat, max_unreadable: float) -> ValueFormat | None:
    """The format that reads all sampled numbers of a column of text; None if ``fmt`` does, or with several meanings.

    Marks that the config sets have priority: another decimal mark is used only if no format with this one reads them.

    Example:
        >>> detect_number_format(pa.chunked_array([["1,550.50", "27.1"]]), ValueFormat(decimal=","), 0).thousands
        ','
    """
    texts, weights = _distinct_texts(column.to_pandas())
    if not texts:
        return None
    others = sorted((PLAIN, *(other for _, _, other in _NUMBERS)), key=lambda other: other.decimal != fmt.decimal)
    if _has_points_between_thousands(texts, fmt):
        return fmt.model_copy(update={"decimal": ",", "thousands": "."})
    if _has_commas_between_thousands(texts, fmt.unit):
        others = [other for other in others if other.decimal != ","]
    marks = [{"decimal": other.decimal, "thousands": other.thousands} for other in others]
    formats = [fmt, *(fmt.model_copy(update=changes) for changes in marks)]
    values = np.array([[parse_number(text, other) for text in texts] for other in formats])
    is_number = ~np.isnan(values).all(axis=0)
    able = np.flatnonzero(~np.isnan(values[:, is_number]).any(axis=1)).tolist()
    if not is_number.any() or not able or 0 in able or weights[is_number].sum() < 1 - max_unreadable:
        return None
    if fmt.decimal != PLAIN.decimal or fmt.thousands:
        able = [place for place in able if formats[place].decimal == fmt.decimal] or able
    one_meaning = (values[able][:, is_number] == values[able[0], is_number]).all()
    return formats[able[0]] if one_meaning else None


def _has_points_between_thousands(texts: list[str], fmt: ValueFormat) -> bool:
    """Whether all points of prices stand before three digits, and most after two or three: 234.500 €, not 1.859 €."""
    if fmt.decimal != "." or fmt.thousands or not re.fullmatch(CURRENCY, fmt.unit):
        return False
    numbers = [text for text in (remove_unit(text, fmt.unit) for text in texts) if re.fullmatch(r"[+-]?[\d.,]+", text)]
    points = [text for text in numbers if "." in text]
    grouped = all(re.fullmatch(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?", text) for text in points)
    small = [text for text in numbers if re.fullmatch(r"[+-]?\d{1,3}(,\d+)?", text)]
    long = sum(re.match(r"[+-]?\d{2,3}\.|[+-]?\d\.\d{3}\.", text) is not None for text in points)
    return grouped and len(points) + len(small) == len(numbers) and 2 * long > len(numbers)


def _has_commas_between_thousands(texts: list[str], unit: str) -> bool:
    """Whether the commas separate thousands: each stands before three digits, and some numbers have none.

    With a decimal comma, either all numbers have the same number of decimals, or some have fewer than three. Prices do
    not have three decimals, so for a currency all numbers may have a comma.
    """
    plain = [remove_unit(text, unit) for text in texts]
    numbers = [text for text in plain if re.fullmatch(r"[+-]?[\d,]*\d(\.\d+)?", text, re.ASCII)]
    commas = [text for text in numbers if "," in text]
    grouped = all(re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text) for text in commas)
    small = [text for text in numbers if re.fullmatch(r"[+-]?\d{1,3}(\.\d+)?", text)]
    return (
        bool(commas)
        and grouped
        and len(commas) + len(small) == len(numbers)
        and (bool(small) or re.fullmatch(CURRENCY, unit) is not None)
    )


def detect_notation(values: pd.Series) -> Notation | None:
    """The notation of a column of text; None if most values are neither numbers nor dates.

    Args:
        values: the text, with nulls.

    Example:
        >>> detect_notation(pd.Series(["1.5 kg", "2 lb"])).what
        'numbers with units'
    """
    texts, weights = _distinct_texts(values)
    return (_detect_numbers(texts, weights) or _detect_dates(str(values.name), texts, weights)) if texts else None


def _distinct_texts(values: pd.Series) -> tuple[list[str], np.ndarray]:
    """The most frequent texts that are not null, with their shares; none if they hold no digits."""
    counts = values.dropna().astype(str).value_counts().head(_MAX_DISTINCT)
    counts = counts[[not (is_blank(text) or is_null_marker(text)) for text in counts.index]]
    if not any(character.isdigit() for text in counts.index[:20] for character in text):
        return [], np.empty(0)
    return list(counts.index), counts.to_numpy(float) / counts.sum()


def _detect_numbers(texts: list[str], weights: np.ndarray) -> Notation | None:
    shares = {
        (what, remedy, fmt): float(weights[[not np.isnan(parse_number(text, fmt)) for text in texts]].sum())
        for what, remedy, fmt in _NUMBERS
    }
    best = max(shares.values())
    is_word = np.array([np.isnan(parse_number(text)) for text in texts])
    unreadable = float(weights[is_word].sum())
    if unreadable >= _MIN_UNREADABLE and MIN_SHARE <= best <= 1 - unreadable + _ROUNDING:
        words = [text for text, unread in zip(texts, is_word, strict=True) if unread]
        remedy = f"data.na_values: [{json.dumps(words[0], ensure_ascii=False)}] if this means null"
        return Notation("numbers with other words among them", best, remedy, words[0])
    if best >= MIN_SHARE and unreadable >= _MIN_UNREADABLE:
        equal = [option for option, share in shares.items() if share == best][:2]
        what, remedy = " or ".join(what for what, _, _ in equal), ", or ".join(remedy for _, remedy, _ in equal)
        return Notation(f"numbers with {what}", best, remedy, texts[0], tuple(fmt for _, _, fmt in equal))
    share = float(weights[[bool(_WITH_UNIT.fullmatch(text)) for text in texts]].sum())
    remedy = "write all values in one unit"
    return Notation("numbers with units", share, remedy, texts[0]) if share >= MIN_SHARE else None


def _detect_dates(name: str, texts: list[str], weights: np.ndarray) -> Notation | None:
    formats, share = _date_formats(texts, weights)
    if not formats:
        return None
    remedy = ", or ".join(f"data.date_format: {{{name}: '{date_format}'}}" for date_format in formats)
    readers = tuple(ValueFormat(date_format=date_format) for date_format in formats)
    return Notation("dates in another form", share, remedy, texts[0], readers)


def detect_date_formats(values: pd.Series) -> list[str]:
    """The date formats that read every value of a column of text; two if day and month can be exchanged."""
    texts = values.dropna().astype(str).str.strip().drop_duplicates().head(_MAX_DISTINCT).tolist()
    texts = [text for text in texts if not (is_blank(text) or is_null_marker(text))]
    if any(len(text) < _SHORTEST or not any(character.isdigit() for character in text) for text in texts[:5]):
        return []
    formats, share = _date_formats(texts, np.full(len(texts), 1 / max(len(texts), 1)))
    return formats if share > 1 - 1e-9 else []


def _is_season(text: str) -> bool:
    """Whether a text is two consecutive years, such as 2011-12."""
    match = re.fullmatch(r"\d\d(\d\d)[-/](\d\d)", text.strip())
    return match is not None and (int(match[1]) + 1) % 100 == int(match[2])


def _date_formats(texts: list[str], weights: np.ndarray) -> tuple[list[str], float]:
    """The formats that read the largest share of the texts, if it is large enough, and this share.

    A column with a format may also have ISO 8601 times, or times of a second format.
    """
    readings = dict[str, np.ndarray]()
    is_iso = np.array([parse_time(text) is not None for text in texts])
    examples = (*texts[:2], *[text for text, known in zip(texts, is_iso, strict=True) if not known][:2])
    seasons = all(_is_season(text) for text in texts)
    for date_format in _FORMATS:
        if seasons and date_format in ("%Y-%m", "%Y/%m"):
            continue
        if any(parse_formatted_time(text, date_format) for text in examples):
            readings[date_format] = is_iso | [parse_formatted_time(text, date_format) is not None for text in texts]
    shares = {date_format: float(weights[read].sum()) for date_format, read in readings.items()}
    best = max(shares.values(), default=0.0)
    formats = [date_format for date_format, share in shares.items() if share == best][:2]
    if formats and not readings[formats[0]].all():
        pairs, share = _pair_formats(formats, readings, texts, weights)
        formats, best = (pairs, share) if share > best else (formats, best)
    return (formats if best >= MIN_SHARE else []), best


def _pair_formats(
    formats: Sequence[str], readings: Mapping[str, np.ndarray], texts: Sequence[str], weights: np.ndarray
) -> tuple[list[str], float]:
    """The pairs of formats that read most texts, and their share.

    The second format reads texts that the first one does not, and has day and month in the same order.
    """
    shares = dict[str, float]()
    for first in formats:
        order = _is_day_first(first)
        others = np.flatnonzero(~readings[first])
        for second in _FORMATS:
            if None in (order, second_order := _is_day_first(second)) or second_order == order:
                read = [place for place in others if parse_formatted_time(texts[int(place)], second) is not None]
                if read:
                    share = float(weights[readings[first]].sum() + weights[read].sum())
                    shares[f"{first}{FORMAT_SEPARATOR}{second}"] = share
    best = max(shares.values(), default=0.0)
    return [pair for pair, share in shares.items() if share == best][:2], best


def _is_day_first(date_format: str) -> bool | None:
    """Whether the day is before the month; None if the month is not a number between two others."""
    day, month = date_format.find("%d"), date_format.find("%m")
    return None if -1 in (day, month) or date_format.startswith("%Y") else day < month
