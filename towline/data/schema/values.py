"""Values: the meaning of a single value, which is the same in a file, a database, a table and a request.

A ``ValueFormat`` says how the text of a column is written (decimal mark, date format, null markers). A ``ValueReader``
applies it. The functions read single values in the default format.
"""

import datetime as dt
import math
import numbers
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import numpy as np

from towline.config import FORMAT_SEPARATOR, DataConfig, Frozen, Kind
from towline.data.schema.measures import NUMBER_UNITS, SCALES, Measure, parse_measure

LARGEST = 1e150  # squares of larger values are infinite, so they cannot be scaled or summed
#: texts that mean null in a column of numbers, booleans or times; in a category they are levels
NULL_MARKERS = frozenset({
    "", "na", "n/a", "<na>", "#n/a", "#na", "#n/a n/a", "nan", "-nan", "nat", "null", "none", "n.a.",
    "?", "??", "-", "--", "---", ".", "..", "...",
    "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity",  # a quotient with 0, or an overflow
    "0000-00-00", "0000-00-00 00:00:00",  # MySQL's empty date
})  # fmt: skip
EPOCHS = {"epoch_d": 86_400_000_000, "epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1, "epoch_ns": 0.001}  # in µs
DECIMAL_YEAR, EXCEL, QUARTER, WEEK = "decimal_year", "excel", "quarter", "week"
CURRENCY = (
    r"[$€£¥₹₽₩₺₫฿]|us\$|r\$|c\$|a\$|rs\.?|kr\.?|zł|"
    r"usd|eur|gbp|chf|jpy|inr|brl|cad|aud|pln|sek|nok|dkk|cny|czk|huf|try|zar|mxn"
)
_TRUE = frozenset({"true", "t", "yes", "y"})
_FALSE = frozenset({"false", "f", "no", "n"})
#: names of classes, in lower case, that mean yes and no
AFFIRMATIVE = _TRUE | {"1", "positive", "pos", "ja", "si", "sí", "sì", "oui", "sim", "tak", "ano", "evet", "igen", "да"}
NEGATIVE = _FALSE | {"0", "negative", "neg", "nein", "non", "não", "nao", "nee", "nej", "nei", "nie", "hayır", "нет"}
_DATE = r"(?!0000)(\d{4})(?:-(\d\d)(?:-(\d\d))?|/(\d\d)/(\d\d)|(\d\d)(\d\d))?"
_TIME = (
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?)?\s*(Z|UTC|GMT|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?"
)
_ISO = re.compile(rf"\s*{_DATE}{_TIME}\s*", re.ASCII)
_DASHED = re.compile(r"\s*\d{4}-\d\d-\d\d", re.ASCII)
_NO_FRACTION = re.compile(r"(?<=\d)\.0+$", re.ASCII)  # 1950.0
_WORD = re.compile(r"(?<![^\W\d_])[^\W\d_]++\b\.?")
_QUARTER = re.compile(
    r"(?P<year>\d{4})[ \-/.]*q(?P<quarter>[1-4])|(?:q(?P<q>[1-4])|(?P<n>[1-4])q)[ \-/.']*(?P<y>\d{4}|\d\d)",
    re.IGNORECASE | re.ASCII,
)
_WEEK = re.compile(
    r"(?P<year>\d{4})[ \-/.]*(?:w|wk|cw|kw) ?(?P<week>\d\d?)|(?:w|wk|cw|kw) ?(?P<w>\d\d?)[ \-/.]*(?P<y>\d{4})",
    re.IGNORECASE | re.ASCII,
)
_MONTHS = {  # English by the names and abbreviations of German, French, Spanish, Italian, Portuguese and Dutch
    name: english
    for english, names in {
        "January": "januar jänner janvier enero gennaio janeiro januari jän janv ene gen",
        "February": "februar février fevrier febrero febbraio fevereiro februari févr fevr fév fev",
        "March": "märz maerz mars marzo março marco maart mär mrz mrt", "April": "avril abril aprile avr abr",
        "May": "mai mayo maggio maio mei mag", "June": "juni juin junio giugno junho giu",
        "July": "juli juillet julio luglio julho juil lug", "August": "août aout agosto augustus ago",
        "September": "septembre septiembre settembre setembro sept set",
        "October": "oktober octobre octubre ottobre outubro okt ott out", "November": "novembre noviembre novembro",
        "December": "dezember décembre decembre diciembre dicembre dezembro dez déc dic",
    }.items()
    for name in (english.lower(), english[:3].lower(), *names.split())
}  # fmt: skip
_SHORT_MONTHS = {name: english[:3] for name, english in _MONTHS.items()}
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\.", re.IGNORECASE)
_ZONE = re.compile(r"\b(?:GMT|UTC)(?:([+-])(\d{1,2})(?::?(\d\d))?)?$", re.ASCII)
_NO_CENTS = re.compile(r"(.*\d)[.,][-–—]{1,2}", re.ASCII)
_COMMA = re.compile(r"[+-]?\d+,(?:\d{1,2}|\d{4,})", re.ASCII)  # three digits may be thousands
_WHOLE = re.compile(r"\s*(-?(?:0|[1-9]\d*))(?:\.0+)?\s*", re.ASCII)

Spelling = Literal["text", "number", "boolean", "date", "caseless"]
TEXT_KINDS: frozenset[Kind] = frozenset({"category", "text"})  # kinds with canonical values of type str


class ValueFormat(Frozen):
    """How the text of one column is written.

    Attributes:
        decimal: the decimal mark of numbers.
        thousands: the mark between groups of three digits; empty: none.
        na_values: texts, and numbers as text, that mean null in this column.
        date_format: of times: a ``strptime`` format, ``epoch_s``, ``epoch_ms``, ``epoch_d`` (days since 1970),
            ``excel`` (days since 1899-12-30), ``decimal_year`` (2026.5 is the middle of 2026), ``quarter`` (2026 Q1,
            Q1/2026, 1Q26 are the 1st of January 2026) or ``week`` (2026-W02, W02/2026 are the Monday of the second week
            of ISO 8601); dates of ISO 8601 are always read.
        spelling: the type of a category's levels. ``text``: as written. With ``number``, ``boolean`` and ``date``,
            equal values are one level (1.0 and 1; True and true; 2026-01-31 and 2026-01-31T00:00). With ``caseless``,
            levels that differ in case and spaces only are one level.
        coerce: a text that is not of the column's kind is null instead of an error.
        decimal_comma: numbers with a decimal comma occur together with numbers with a point.
        unit: a currency or unit that may stand before or after a number, in lower case, such as $ or kg; it is ignored.
        measure: texts that ``parse_measure`` reads are numbers, too: a ``duration`` (``3h 20m``, ``1:05:30``), the time
            of a ``clock`` (``14:30``), ``feet`` and inches, or a quantity in several units (``500 g``, ``1.2 kg``).
    """

    decimal: str = "."
    thousands: str = ""
    na_values: tuple[str, ...] = ()
    date_format: str | None = None
    spelling: Spelling = "text"
    coerce: bool = False
    decimal_comma: bool = False
    unit: str = ""
    measure: Measure = "number"

    @property
    def number_unit(self) -> str:
        """The unit of the numbers as they are read; empty if it is not known.

        Example:
            >>> ValueFormat(unit="lb").number_unit, ValueFormat(measure="mass").number_unit
            ('lb', 'kg')
        """
        return NUMBER_UNITS.get(self.measure) or self.unit


PLAIN = ValueFormat()


def column_format(data: DataConfig, name: str) -> ValueFormat:
    """The format of a column according to the config."""
    declared = data.date_format
    return ValueFormat(
        decimal=data.decimal,
        thousands=data.thousands,
        na_values=data.na_values,
        date_format=declared.get(name) if isinstance(declared, dict) else declared,
        coerce=data.columns.get(name) == "numeric",
        spelling="caseless" if name in data.ignore_case else "text",
    )


class ValueReader:
    """Reads the values of one column.

    Args:
        kind: of the column.
        fmt: how its text is written.

    Example:
        >>> ValueReader("numeric", ValueFormat(decimal=",", thousands=".")).read("1.234,5")
        1234.5
    """

    def __init__(self, kind: Kind, fmt: ValueFormat = PLAIN) -> None:
        self.kind, self.format = kind, fmt
        self._na = frozenset(marker_texts(fmt))
        readers: dict[str, Callable[[Any], Any]] = {
            "numeric": partial(parse_number, fmt=fmt),
            "boolean": parse_boolean,
            "datetime": partial(parse_time, date_format=fmt.date_format),
        }
        self._read = readers.get(kind) or partial(category_name, spelling=fmt.spelling)
        self._null = math.nan if kind in ("numeric", "boolean") else None

    def read(self, value: Any) -> Any:
        """The canonical value; NaN (numeric, boolean) or None for null and for values that cannot be read.

        Returns:
            A float for a numeric or boolean column, text for a category, a naive UTC ``datetime`` for a datetime.
        """
        return self._null if self._na and self._is_marker(value) else self._read(value)

    def is_null(self, value: Any) -> bool:
        """Whether a value means null: null, blank text, or a null marker."""
        if is_blank(value) or (self._na and self._is_marker(value)):
            return True
        return self.kind in ("numeric", "boolean", "datetime") and is_null_marker(value)

    def misfits(self, value: Any) -> bool:
        """Whether a value is neither null nor of the column's kind."""
        read = self.read(value)
        return (read is None or read != read) and not self.is_null(value)  # noqa: PLR0124 - NaN

    def spell(self, value: Any) -> str | None:
        """The canonical text of a value; None for null and for values that cannot be read."""
        read = self.read(value)
        if self.kind == "boolean":
            return None if read != read else category_name(bool(read))  # noqa: PLR0124 - NaN
        if isinstance(read, dt.datetime):
            return read.isoformat()
        return category_name(read)

    def _is_marker(self, value: Any) -> bool:
        if not isinstance(value, str):
            return category_name(value) in self._na
        text = value.strip()
        if text in self._na:
            return True
        is_number = self.kind == "numeric" or self.format.spelling == "number"
        return is_number and _number_text(parse_number(text, self.format)) in self._na


def marker_texts(fmt: ValueFormat) -> list[str]:
    """The texts of ``na_values``, and the canonical texts of those that are numbers: -999 for -999.0.

    Example:
        >>> marker_texts(ValueFormat(na_values=("?", "-999.0")))
        ['-999', '-999.0', '?']
    """
    canonical = (_number_text(parse_number(text)) for text in fmt.na_values)
    return sorted({*fmt.na_values, *(text for text in canonical if text is not None)})


def is_blank(value: Any) -> bool:
    """Whether a value is null in any library, or a text of spaces."""
    if isinstance(value, str):
        return not value.strip()
    if value is None:
        return True
    try:
        return bool(value != value)  # noqa: PLR0124 - NaN and NaT are not equal to themselves
    except (TypeError, ValueError, ArithmeticError):  # pandas' NA, a signalling NaN, or an array
        return isinstance(value, Decimal) or type(value).__name__ == "NAType"


def is_null_marker(value: Any) -> bool:
    """Whether a value means null among numbers, booleans and times: an infinity, or a text such as NA or null."""
    if isinstance(value, str):
        return value.strip().lower() in NULL_MARKERS
    return isinstance(value, (numbers.Real, Decimal)) and value in (math.inf, -math.inf)


def parse_number(value: Any, fmt: ValueFormat = PLAIN) -> float:
    """The finite number that a value is or that its text means; NaN for null and for anything else.

    A duration is its seconds, to the microsecond.
    """
    if isinstance(value, str):
        number = _parse_number_text(value.strip(), fmt)
    elif isinstance(value, (dt.timedelta, np.timedelta64)):
        return float(seconds_of(value))
    elif isinstance(value, dt.time) and fmt.measure == "clock":
        return parse_measure(value.isoformat(), "clock")
    elif not isinstance(value, (numbers.Real, Decimal, np.bool_)):
        return math.nan
    else:
        try:
            number = float(value)
        except (OverflowError, ValueError):  # an integer larger than all floats, a signalling NaN
            return math.nan
    return number if math.isfinite(number) else math.nan


def seconds_of(durations: Any) -> Any:
    """The seconds of a duration or of an array of durations, to the microsecond; NaN for NaT."""
    microseconds = np.asarray(durations, dtype="timedelta64").astype("timedelta64[us]")
    return np.where(np.isnat(microseconds), np.nan, microseconds.astype(np.int64) / 1e6)


def parse_boolean(value: Any) -> float:
    """1.0 for true (True, "yes", 1, …), 0.0 for false; NaN for null and for anything else."""
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return float(text in _TRUE)
    read = parse_number(value)
    return read if read in (0.0, 1.0) else math.nan


def category_name(value: Any, spelling: Spelling = "text") -> str | None:
    """The name of a category; None for null, blank text and values that are not scalars.

    Text stays as written, unless ``spelling`` says that the levels are numbers, booleans or dates, or that case is
    ignored. 3.0 and 3 become "3", True becomes "true", a date "2026-01-31" and a time "2026-01-31 13:00:00" (UTC).
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        return str(value) if spelling == "text" else _SPELLED[spelling](value)
    if isinstance(value, (dt.timedelta, np.timedelta64)):
        return _number_text(parse_number(value))
    if isinstance(value, (bool, np.bool_)):
        return str(int(value)) if spelling == "number" else "true" if value else "false"
    if isinstance(value, numbers.Integral):
        try:
            text: str | None = str(int(value))
        except ValueError:  # more digits than Python converts
            return None
    elif isinstance(value, (numbers.Real, Decimal)):
        text = _number_text(parse_number(value))
    elif isinstance(value, (dt.time, uuid.UUID)):
        return str(value)
    else:
        return None if (moment := parse_time(value)) is None else _date_text(moment)
    return _boolean_text(text) if spelling == "boolean" and text else text


def parse_time(value: Any, date_format: str | None = None) -> dt.datetime | None:
    """A time in naive UTC, from text or a date object; None for null and for anything else.

    Text is read by ``date_format``, else as ISO 8601. Numbers are read if the format has digits only (``%Y``, ``%Y%m``,
    ``%Y%m%d``, ``epoch_s``, ``epoch_ms``). Digits beyond microseconds are cut off.
    """
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    try:
        if date_format and isinstance(value, (str, numbers.Real)) and not isinstance(value, (bool, np.bool_)):
            moment = parse_formatted_time(value, date_format)
            return moment if moment or not isinstance(value, str) else _parse_iso_time(value)
        if isinstance(value, str):
            return _parse_iso_time(value)
        if isinstance(value, dt.datetime) and not is_blank(value):
            moment = dt.datetime.combine(value.date(), value.time(), value.tzinfo)  # not a subclass
            return _utc(moment)
        if isinstance(value, dt.date) and not is_blank(value):
            return dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - naive UTC is the canonical form
    except (ValueError, OverflowError):  # the 31st of February; before the year 1 in UTC
        return None
    return None


def remove_unit(text: str, unit: str) -> str:
    """Removes the currency or unit from a number that is text, and the spaces around it.

    A number in parentheses is negative, as accountants write it.

    Example:
        >>> remove_unit("-$ 1,250.50", "$"), remove_unit("70 KG", "kg"), remove_unit("($3.20)", "$")
        ('-1,250.50', '70', '-3.20')
    """
    text = text.strip()
    if text[:1] == "(" and text[-1:] == ")":
        text = "-" + text[1:-1].strip()
    sign, rest = (text[0], text[1:].lstrip()) if text[:1] in ("-", "+") else ("", text)
    lowered = rest.lower()
    if lowered.startswith(unit):
        return sign + rest[len(unit) :].lstrip()
    return sign + rest[: len(rest) - len(unit)].rstrip() if lowered.endswith(unit) else text


def _parse_number_text(text: str, fmt: ValueFormat) -> float:
    scale, text = "", text.replace("\N{MINUS SIGN}", "-")
    if fmt.unit or text[:1] == "(":
        text = remove_unit(text, fmt.unit)
        if text[-1:].lower() in SCALES and re.fullmatch(CURRENCY, fmt.unit):  # $1.2M
            scale, text = SCALES[text[-1].lower()], text[:-1].rstrip()
    text = _move_minus(text)
    if fmt.thousands:
        mark = {" ": r"[ \u00a0\u2009\u202f]", "'": "['’]"}.get(fmt.thousands) or re.escape(fmt.thousands)
        groups = rf"\d{{1,3}}(?:{mark}\d{{3}})+"
        if fmt.thousands == ",":  # 12,34,567 in India
            groups = rf"(?:{groups}|\d{{1,2}}(?:,\d\d)+,\d{{3}})"
        if re.fullmatch(rf"[+-]?(?!0){groups}(?:{re.escape(fmt.decimal)}\d*)?", text, re.ASCII):
            text = re.sub(mark, "", text)
    if fmt.decimal_comma and _COMMA.fullmatch(text):
        text = text.replace(",", ".")
    if fmt.decimal != ".":
        if "." in text:
            return math.nan
        text = text.replace(fmt.decimal, ".")
    try:
        return math.nan if "_" in text else float(text + scale)
    except ValueError:
        return math.nan if fmt.measure == "number" else parse_measure(text, fmt.measure)


def _move_minus(text: str) -> str:
    """A number with its minus sign before it, which SAP writes behind it, and without a dash for no cents (``15.-``).

    Example:
        >>> _move_minus("3,50-"), _move_minus("15.-"), _move_minus("-1'200,--")
        ('-3,50', '15', "-1'200")
    """
    if text[-1:] not in ("-", "–", "—"):
        return text
    if no_cents := _NO_CENTS.fullmatch(text):
        return no_cents[1]
    return "-" + text[:-1].rstrip() if text[-1] == "-" and "0" <= text[0] <= "9" else text


def _number_text(value: float) -> str | None:
    if math.isnan(value):
        return None
    return str(int(value) if value.is_integer() else value)


def _normalize_whole_number(text: str) -> str:
    match = _WHOLE.fullmatch(text)
    return ("0" if match[1] == "-0" else match[1]) if match else text


def _boolean_text(text: str) -> str:
    lowered = text.strip().lower()
    if lowered in ("true", "1", "1.0"):
        return "true"
    return "false" if lowered in ("false", "0", "0.0") else text


def _dated_text(text: str) -> str:
    moment = parse_time(text) if _DASHED.match(text) else None
    return _date_text(moment) if moment else text


def fold_case(text: str) -> str:
    """A text in lower case, with single blanks and in one form of Unicode (NFKC).

    Example:
        >>> fold_case(" New\N{NO-BREAK SPACE} YORK")
        'new york'
    """
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def find_case_variants(levels: Iterable[str]) -> list[list[str]]:
    """The groups of levels that differ in case and spaces only.

    Example:
        >>> find_case_variants(["Yes", "no", "yes ", "maybe"])
        [['Yes', 'yes ']]
    """
    groups: dict[str, list[str]] = {}
    for level in levels:
        groups.setdefault(fold_case(level), []).append(level)
    return [variants for variants in groups.values() if len(variants) > 1]


def _date_text(moment: dt.datetime) -> str:
    return moment.date().isoformat() if moment.time() == dt.time.min else moment.isoformat(sep=" ")


_SPELLED: dict[str, Callable[[str], str]] = {
    "number": _normalize_whole_number, "boolean": _boolean_text, "date": _dated_text, "caseless": fold_case,
}  # fmt: skip


def parse_formatted_time(value: Any, date_format: str) -> dt.datetime | None:
    """The time that a text or number means in a format, or in the first of several that reads it; None if none does."""
    if FORMAT_SEPARATOR in date_format:
        moments = (parse_formatted_time(value, each) for each in date_format.split(FORMAT_SEPARATOR))
        return next((moment for moment in moments if moment is not None), None)
    if date_format in (DECIMAL_YEAR, EXCEL):
        return (_parse_decimal_year if date_format == DECIMAL_YEAR else _parse_excel_date)(parse_number(value))
    if isinstance(value, str):
        text = value.strip()
        if "." not in date_format:
            text = _NO_FRACTION.sub("", text)
    else:
        read = float(value)
        if not read.is_integer() and date_format not in EPOCHS:
            return None
        text = str(int(value) if read.is_integer() else read)
    if date_format in (QUARTER, WEEK):
        return (_parse_quarter if date_format == QUARTER else _parse_week)(text)
    if date_format in EPOCHS:
        return _parse_epoch(text, date_format)
    try:
        if "%b" in date_format or "%B" in date_format:
            months = _SHORT_MONTHS if "%b" in date_format else _MONTHS
            text = _WORD.sub(lambda word: months.get(word[0].lower().rstrip("."), word[0]), text)
        return _utc(dt.datetime.strptime(_plain_clock(text, date_format), date_format))  # noqa: DTZ007 - naive UTC
    except ValueError:
        return None


def _plain_clock(text: str, date_format: str) -> str:
    """A time whose half of the day and zone ``strptime`` reads: ``a. m.`` and ``GMT+1`` are am and +0100."""
    if "%p" in date_format:
        text = _HALF_DAY.sub(r"\1m", text)
    if date_format.endswith("%z"):
        text = _ZONE.sub(lambda zone: f"{zone[1] or '+'}{int(zone[2] or 0):02}{zone[3] or '00'}", text)
    return text


def _parse_epoch(text: str, unit: str) -> dt.datetime | None:
    if not re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII):
        return None
    epoch, microseconds = dt.datetime(1970, 1, 1), float(text) * EPOCHS[unit]  # noqa: DTZ001 - naive UTC
    # float64 may be slightly less than a fraction: 1700000000.123
    return epoch + dt.timedelta(microseconds=round(microseconds) if "." in text else int(microseconds))


def _parse_quarter(text: str) -> dt.datetime | None:
    parts = _QUARTER.fullmatch(text)
    if not parts:
        return None
    year, quarter = parts["year"] or parts["y"], int(parts["quarter"] or parts["q"] or parts["n"])
    century = "" if len(year) > 2 else "20" if int(year) < 69 else "19"  # as strptime's %y
    return dt.datetime(int(century + year), 3 * quarter - 2, 1) if int(century + year) else None  # noqa: DTZ001


def _parse_week(text: str) -> dt.datetime | None:
    """The Monday of a week of ISO 8601."""
    parts = _WEEK.fullmatch(text)
    try:
        return (
            dt.datetime.fromisocalendar(int(parts["year"] or parts["y"]), int(parts["week"] or parts["w"]), 1)
            if parts
            else None
        )
    except ValueError:  # the year has no such week
        return None


def _parse_excel_date(days: float) -> dt.datetime | None:
    """The time of a serial date of Excel; from March 1900 on, because Excel has a 29th of February 1900."""
    if not 61 <= days < 2_958_466:  # the end of 9999
        return None
    return dt.datetime(1899, 12, 30) + dt.timedelta(days=days)  # noqa: DTZ001 - naive UTC


def _parse_decimal_year(years: float) -> dt.datetime | None:
    if not 1 <= years < dt.MAXYEAR:  # NaN too
        return None
    start = dt.datetime(int(years), 1, 1)  # noqa: DTZ001 - naive UTC
    length = start.replace(year=start.year + 1) - start
    seconds = round((years - start.year) * length.total_seconds())
    return start + dt.timedelta(seconds=seconds)


def _parse_iso_time(text: str) -> dt.datetime | None:
    parts = _ISO.fullmatch(text)
    if not parts:
        return None
    year, *days, hour, minute, second, fraction, zone = parts.groups()
    midnight = hour == "24" and not int(minute or 0) + int(second or 0) + int(fraction or 0)  # the end of a day
    month, day = next(((m, d) for m, d in zip(days[::2], days[1::2], strict=True) if m), (None, None))
    moment = dt.datetime(  # noqa: DTZ001 - as above
        int(year), int(month or 1), int(day or 1), 0 if midnight else int(hour or 0), int(minute or 0),
        int(second or 0), int((fraction or "0").ljust(6, "0")[:6]),
    )  # fmt: skip
    if midnight:
        moment += dt.timedelta(days=1)
    if not zone or zone in ("Z", "UTC", "GMT"):
        return moment
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
    offset = dt.timedelta(hours=hours, minutes=minutes)
    return moment - offset if zone[0] == "+" else moment + offset


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment if moment.tzinfo is None else moment.astimezone(dt.UTC).replace(tzinfo=None)
