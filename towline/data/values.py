"""What one value means, whatever it came in: the same for a cell of a column and a field of a request."""

import datetime as dt
import math
import numbers
import re
from decimal import Decimal
from typing import Any

import numpy as np

LARGEST = 1e150  # the squares of larger values are infinite: nothing that scales or sums can use them
_DATE = r"(?!0000)(\d{4})(?:-(\d\d)(?:-(\d\d))?|/(\d\d)/(\d\d)|(\d\d)(\d\d))?"
_TIME = r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d{1,9}))?)?)?\s*(Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?)?"
_ISO = re.compile(rf"\s*{_DATE}{_TIME}\s*", re.ASCII)


def blank(value: Any) -> bool:
    """Whether it holds nothing: null in any library's way, or a text of spaces."""
    if isinstance(value, str):
        return not value.strip()
    if value is None:
        return True
    try:
        return bool(value != value)  # noqa: PLR0124 - NaN and NaT are not equal to themselves
    except (TypeError, ValueError, ArithmeticError):  # NA and a signalling NaN will not say; an array says too much
        return isinstance(value, Decimal) or type(value).__name__ == "NAType"


def number(value: Any, boolean: bool = False) -> float:
    """The number it is or spells (``boolean``: "true" and "false" too); NaN for null and for anything else."""
    if isinstance(value, str):
        text = value.strip().lower()
        if boolean and text in ("true", "false"):
            return float(text == "true")
        try:
            return math.nan if "_" in text else float(text)
        except ValueError:
            return math.nan
    if not isinstance(value, (numbers.Real, Decimal, np.bool_)):
        return math.nan
    try:
        return float(value)
    except (OverflowError, ValueError):  # an integer beyond all floats, a signalling NaN
        return math.nan


def level(value: Any) -> str | None:
    """A category's name: 3.0 and 3 are "3"; null, "" and what is no scalar are None."""
    if isinstance(value, str):
        return str(value) or None
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, numbers.Integral):
        try:
            return str(int(value))
        except ValueError:  # longer than Python spells out
            return None
    if isinstance(value, (numbers.Real, Decimal)):
        return _whole(number(value))
    return str(value) if isinstance(value, dt.date) and not blank(value) else None


def instant(value: Any) -> dt.datetime | None:
    """A time in naive UTC, from ISO 8601 text or a date object; None for null and for anything else.

    Numbers are not taken for seconds since 1970. Digits beyond microseconds are cut off.
    """
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    try:
        if isinstance(value, str):
            return _parsed(value)
        if isinstance(value, dt.datetime) and not blank(value):
            moment = dt.datetime.combine(value.date(), value.time(), value.tzinfo)  # of a subclass, the plain one
            return _utc(moment)
        if isinstance(value, dt.date) and not blank(value):
            return dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - naive UTC is the canonical form
    except (ValueError, OverflowError):  # the 31st of February; before the year 1 in UTC
        return None
    return None


def _whole(value: float) -> str | None:
    if math.isnan(value):
        return None
    return str(int(value) if value.is_integer() else value)


def _parsed(text: str) -> dt.datetime | None:
    found = _ISO.fullmatch(text)
    if not found:
        return None
    year, *days, hour, minute, second, fraction, zone = found.groups()
    month, day = next(((m, d) for m, d in zip(days[::2], days[1::2], strict=True) if m), (None, None))
    moment = dt.datetime(  # noqa: DTZ001 - as above
        int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0),
        int((fraction or "0").ljust(6, "0")[:6]),
    )  # fmt: skip
    if not zone or zone == "Z":
        return moment
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
    offset = dt.timedelta(hours=hours, minutes=minutes)
    return moment - offset if zone[0] == "+" else moment + offset


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment if moment.tzinfo is None else moment.astimezone(dt.UTC).replace(tzinfo=None)
