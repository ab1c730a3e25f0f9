"""Ages: the days from a date to the time of its row, or from 1970 to a date if rows have no time.

Training, one row and many rows give equal numbers: the microseconds are counted exactly and divided once.
"""

import datetime as dt
import math

import numpy as np

_MICROSECONDS_A_DAY = 86_400_000_000.0
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - naive UTC is the canonical form
_MICROSECOND = dt.timedelta(microseconds=1)
_FIRST_YEAR, _END_YEAR = 1000, 2900
_FIRST, _END = np.datetime64(f"{_FIRST_YEAR}-01-01"), np.datetime64(f"{_END_YEAR}-01-01")


def compute_ages(dates: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """(n,) days from ``dates`` to ``times``, or since 1970 without times; NaN if one of them is null.

    Dates before the year 1000 and from 2900 on, such as 0001-01-01 and 9999-12-31, stand for an unknown or open date:
    their age is NaN.

    Args:
        dates: (n,) datetime64[us], naive UTC.
        times: (n,) datetime64[us], naive UTC.

    Example:
        >>> compute_ages(np.array(["2026-01-01"], "M8[us]"), np.array(["2026-01-02T12:00"], "M8[us]"))
        array([1.5])
    """
    spans = (dates if times is None else times) - (np.datetime64(0, "us") if times is None else dates)
    ages = spans.astype("timedelta64[us]").astype(np.int64) / _MICROSECONDS_A_DAY
    return np.where(np.isnat(spans) | (dates < _FIRST) | (dates >= _END), np.nan, ages)


def compute_age(date: dt.datetime | None, time: dt.datetime | None, *, has_time: bool) -> float:
    """The same for one row; ``time`` is used if ``has_time``."""
    end, start = (time, date) if has_time else (date, _EPOCH)
    if end is None or start is None or date is None or not _FIRST_YEAR <= date.year < _END_YEAR:
        return math.nan
    return ((end - start) // _MICROSECOND) / _MICROSECONDS_A_DAY
