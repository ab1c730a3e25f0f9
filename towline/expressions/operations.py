"""The operations of expressions: the functions and operators, for one row and for columns.

An operation has one definition, for values that are not null. The results of NumPy and of Python are equal for the
operations that IEEE 754 defines exactly; every other operation calls the same Python function for each row of a column.
An operation is *total*: where its result is not a finite number, it is null.
"""

import datetime as dt
import math
import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from towline.expressions.patterns import LinearPattern, PatternError, compile_like

Type = Literal["number", "text", "boolean", "datetime"]

_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - naive UTC is the canonical form
_MICROSECOND = dt.timedelta(microseconds=1)
_UNITS = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000}
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_BOOLEANS = {"true": True, "t": True, "yes": True, "y": True, "1": True,
             "false": False, "f": False, "no": False, "n": False, "0": False}  # fmt: skip

RowFunction = Callable[..., Any]
ColumnFunction = Callable[..., np.ndarray]


class ConstantError(Exception):
    """A constant argument is invalid; the message says why."""


class Operation(NamedTuple):
    """A strict operation: null if one of its arguments is null.

    Attributes:
        parameters: types of its arguments: those with ``!`` are constants; the last with ``...`` may be repeated.
        result: type of its result; ``any`` or ``ordered``: that of its arguments.
        build: from the constants to the function of one row, and that of columns if NumPy computes the same. An error
            of arithmetic of the former, or a result that is not finite, is null.
        meaning: for the documentation.
    """

    parameters: tuple[str, ...]
    result: str
    build: Callable[..., tuple[RowFunction, ColumnFunction | None]]
    meaning: str


def _plain(
    signature: str, meaning: str, function: RowFunction, column_function: ColumnFunction | None = None
) -> Operation:
    parameters, _, result = signature.partition(" -> ")
    return Operation(tuple(parameters.split()), result, lambda: (function, column_function), meaning)


def _built(signature: str, meaning: str, build: Callable[..., tuple[RowFunction, ColumnFunction | None]]) -> Operation:
    parameters, _, result = signature.partition(" -> ")
    return Operation(tuple(parameters.split()), result, build, meaning)


def _check_whole_number(value: float, low: int, high: int, name: str) -> int:
    if not value.is_integer() or not low <= value <= high:
        raise ConstantError(f"{name} must be a whole number from {low} to {high:,}, not {value:g}")
    return int(value)


def _build_round(digits: float = 0.0) -> tuple[RowFunction, ColumnFunction | None]:
    places = _check_whole_number(digits, 0, 15, "the number of digits")
    if not places:
        return _round_whole, _round_whole_column
    # exactly between two results are the odd multiples of a power of two alone
    steps, fives, tens = 2.0 ** (places + 1), 5**places, 10**places

    def round_value(value: float) -> float:
        multiple = value * steps
        if multiple % 2.0 != 1.0:
            return round(value, places)
        size: float = (abs(int(multiple)) * fives + 1) // 2 / tens
        return size if value >= 0 else -size

    return round_value, None


def _round_whole(value: float) -> float:
    size = abs(value)
    whole = float(int(size))
    whole += size - whole >= 0.5
    return whole if value >= 0 else -whole


def _round_whole_column(values: np.ndarray) -> np.ndarray:
    size = np.abs(values)
    whole = np.floor(size)
    whole += size - whole >= 0.5
    rounded: np.ndarray = np.where(values >= 0, whole, -whole)
    return rounded


def _build_bucket(*edges: float) -> tuple[RowFunction, ColumnFunction]:
    if any(low >= high for low, high in pairwise(edges)):
        raise ConstantError("the edges of a bucket must ascend")

    def count_edges(values: np.ndarray) -> np.ndarray:
        counts: np.ndarray = np.asarray(np.searchsorted(np.array(edges), values, "right"), dtype=np.float64)
        return counts

    return lambda value: float(bisect_right(edges, value)), count_edges


def _build_substring(start: float, length: float | None = None) -> tuple[RowFunction, None]:
    first = _check_whole_number(start, 1, 1_000_000, "the first character") - 1
    end = None if length is None else first + _check_whole_number(length, 0, 1_000_000, "the number of characters")
    return lambda text: text[first:end], None


def _build_replace(old: str, new: str) -> tuple[RowFunction, None]:
    if not old:
        raise ConstantError("the text to replace is empty")
    return lambda text: text.replace(old, new), None


def _build_matches(pattern: str) -> tuple[RowFunction, None]:
    try:
        return LinearPattern(pattern).search, None
    except PatternError as error:
        raise ConstantError(f"not a regular expression: {error}") from None


def _build_date_diff(unit: str) -> tuple[RowFunction, ColumnFunction]:
    if unit in ("year", "month"):
        months = 1 if unit == "month" else 12
        return (
            lambda start, end: float(
                (end.year * 12 + end.month - 1) // months - (start.year * 12 + start.month - 1) // months
            ),
            lambda start, end: (_months(end) // months - _months(start) // months).astype(np.float64),
        )
    if unit not in _UNITS:
        raise ConstantError(f"no unit {unit!r}: write year, month, {', '.join(_UNITS)}")
    length = _UNITS[unit]
    return (
        lambda start, end: float(_microseconds(end) // length - _microseconds(start) // length),
        lambda start, end: (end.astype(np.int64) // length - start.astype(np.int64) // length).astype(np.float64),
    )


def _microseconds(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _between(unit: str) -> Operation:
    length = float(_UNITS[unit])

    def measure_span(start: dt.datetime, end: dt.datetime) -> float:
        span = end - start  # a division by a timedelta takes three times as long
        return (span.days * _UNITS["day"] + span.seconds * 1_000_000 + span.microseconds) / length

    return _plain(
        "datetime datetime -> number",
        f"{unit}s from the first to the second time, with fractions",
        measure_span,
        lambda start, end: (end - start).astype(np.int64) / length,
    )


def _months(times: np.ndarray) -> np.ndarray:
    """Months since the year 0."""
    months: np.ndarray = times.astype("datetime64[M]").astype(np.int64) + 1970 * 12
    return months


def _within_day(times: np.ndarray, unit: str, count: int) -> np.ndarray:
    parts: np.ndarray = (times.astype(np.int64) // _UNITS[unit] % count).astype(np.float64)
    return parts


def _day_number(times: np.ndarray, start: str) -> np.ndarray:
    days = (times.astype("datetime64[D]") - times.astype(f"datetime64[{start}]").astype("datetime64[D]")).astype(int)
    numbers: np.ndarray = (days + 1).astype(np.float64)
    return numbers


def _floor(values: np.ndarray) -> np.ndarray:
    floors: np.ndarray = np.floor(values) + 0.0  # -0.0 is 0.0, as in Python
    return floors


def _ceil(values: np.ndarray) -> np.ndarray:
    ceilings: np.ndarray = np.ceil(values) + 0.0
    return ceilings


def number_to_text(value: float) -> str:
    """A number as text: whole numbers without a point, others with the fewest digits that read as the same number."""
    return str(int(value)) if value.is_integer() else repr(value)


def _power(base: float, exponent: float) -> float:
    """The power; ``math.pow`` gives 1 for some powers of NaN."""
    return math.pow(base, exponent) if base == base and exponent == exponent else math.nan  # noqa: PLR0124 - NaN


def _text_to_number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


#: strict operations by their name; the rest are forms of ``compilation``
OPERATIONS: Mapping[str, Operation] = {
    "+": _plain("number number -> number", "sum", operator.add, np.add),
    "-": _plain("number number -> number", "difference", operator.sub, np.subtract),
    "*": _plain("number number -> number", "product", operator.mul, np.multiply),
    "/": _plain("number number -> number", "quotient; division by zero is null", operator.truediv, np.divide),
    "%": _plain("number number -> number", "remainder, with the sign of the first; by zero: null", math.fmod, np.fmod),
    "negative": _plain("number -> number", "-x", operator.neg, np.negative),
    "=": _plain("any any -> boolean", "equal", operator.eq, np.equal),
    "<>": _plain("any any -> boolean", "not equal; also !=", operator.ne, np.not_equal),
    "<": _plain("ordered ordered -> boolean", "smaller; texts by code points", operator.lt, np.less),
    "<=": _plain("ordered ordered -> boolean", "smaller or equal", operator.le, np.less_equal),
    ">": _plain("ordered ordered -> boolean", "greater", operator.gt, np.greater),
    ">=": _plain("ordered ordered -> boolean", "greater or equal", operator.ge, np.greater_equal),
    "not": _plain("boolean -> boolean", "true for false, false for true", operator.not_, np.logical_not),
    "abs": _plain("number -> number", "absolute value", abs, np.abs),
    "floor": _plain("number -> number", "largest whole number up to x", lambda x: float(math.floor(x)), _floor),
    "ceil": _plain("number -> number", "smallest whole number from x on", lambda x: float(math.ceil(x)), _ceil),
    "round": _built(
        "number number!? -> number",
        "to a number of digits after the point (0); exact halves away from zero",
        _build_round,
    ),
    "sqrt": _plain("number -> number", "square root; of a negative number: null", math.sqrt, np.sqrt),
    "exp": _plain("number -> number", "e to the power x; beyond 1.8e308: null", math.exp),
    "ln": _plain("number -> number", "natural logarithm; of 0 and negative numbers: null", math.log),
    "log10": _plain("number -> number", "logarithm to base 10; of 0 and negative numbers: null", math.log10),
    "power": _plain("number number -> number", "x to the power y; null where it is not a finite number", _power),
    "bucket": _built("number number!... -> number", "number of the edges up to x; the edges ascend", _build_bucket),
    "||": _plain("text text -> text", "both texts, joined", operator.add),
    "length": _plain("text -> number", "number of characters (code points)", lambda text: float(len(text))),
    "lower": _plain("text -> text", "in lower case, as Unicode defines it", str.lower),
    "upper": _plain("text -> text", "in upper case, as Unicode defines it", str.upper),
    "trim": _plain("text -> text", "without white space at both ends", str.strip),
    "substring": _built(
        "text number! number!? -> text", "characters from position start (1 is the first)", _build_substring
    ),
    "replace": _built("text text! text! -> text", "every occurrence of a text replaced", _build_replace),
    "starts_with": _plain("text text -> boolean", "whether it starts with a text", str.startswith),
    "ends_with": _plain("text text -> boolean", "whether it ends with a text", str.endswith),
    "contains": _plain("text text -> boolean", "whether it contains a text", operator.contains),
    "like": _built(
        "text text! -> boolean", "% is any text, _ one character", lambda pattern: (compile_like(pattern), None)
    ),
    "regexp_matches": _built(
        "text text! -> boolean", "whether a part of it matches a regular expression", _build_matches
    ),
    "year": _plain("datetime -> number", "year", lambda at: float(at.year), lambda at: _months(at) // 12 * 1.0),
    "quarter": _plain(
        "datetime -> number", "1 to 4", lambda at: float((at.month + 2) // 3), lambda at: _months(at) % 12 // 3 + 1.0
    ),
    "month": _plain("datetime -> number", "1 to 12", lambda at: float(at.month), lambda at: _months(at) % 12 + 1.0),
    "day": _plain("datetime -> number", "1 to 31", lambda at: float(at.day), lambda at: _day_number(at, "M")),
    "day_of_year": _plain(
        "datetime -> number", "1 to 366", lambda at: float(at.timetuple().tm_yday), lambda at: _day_number(at, "Y")
    ),
    "weekday": _plain(
        "datetime -> number",
        "0 (Monday) to 6 (Sunday)",
        lambda at: float(at.weekday()),
        lambda at: (at.astype(np.int64) // _UNITS["day"] + 3) % 7 * 1.0,  # 1970-01-01 was a Thursday
    ),
    "hour": _plain("datetime -> number", "0 to 23", lambda at: float(at.hour), lambda at: _within_day(at, "hour", 24)),
    "minute": _plain(
        "datetime -> number", "0 to 59", lambda at: float(at.minute), lambda at: _within_day(at, "minute", 60)
    ),
    "second": _plain(
        "datetime -> number", "0 to 59", lambda at: float(at.second), lambda at: _within_day(at, "second", 60)
    ),
    "date_diff": _built(
        "text! datetime datetime -> number",
        "number of year, month, day, hour, minute or second boundaries from the first to the second time",
        _build_date_diff,
    ),
    "days_between": _between("day"),
    "hours_between": _between("hour"),
    "seconds_between": _between("second"),
}

#: conversions by ``cast``: (from, to)
CASTS: Mapping[tuple[str, str], Operation] = {
    ("number", "text"): _plain("number -> text", "2, 0.5", number_to_text),
    ("boolean", "text"): _plain("boolean -> text", "true, false", lambda flag: "true" if flag else "false"),
    ("text", "number"): _plain("text -> number", "null if the text is not a number", _text_to_number),
    ("boolean", "number"): _plain("boolean -> number", "1, 0", float, lambda flags: flags.astype(np.float64)),
    ("text", "boolean"): _plain(
        "text -> boolean", "true, t, yes, y, 1 and false, f, no, n, 0 in any case; others are null",
        lambda text: _BOOLEANS.get(text.strip().lower()),
    ),
    ("number", "boolean"): _plain(
        "number -> boolean", "false for 0, true for others", lambda x: x != 0.0, lambda x: x != 0.0
    ),
}  # fmt: skip
