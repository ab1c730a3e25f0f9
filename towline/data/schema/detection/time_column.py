"""The column with the time at which a row was observed: a model is trained on the past and judged on later rows.

Birth years, model years and other dates of a row's past are none. A year is taken only where its name says that it is
the year of the observation, and where it has at least three values. Numbers such as 20260331 are dates under any name
if each of at least 20 different ones is a day (or 202603: a month) of the calendar.
"""

import datetime as dt
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.data.schema import text_columns
from towline.data.schema.detection.notation import detect_date_formats
from towline.data.schema.values import DECIMAL_YEAR, EPOCHS, EXCEL, ValueFormat

_SAMPLE = 5_000  # rows whose values are read
_LEAST = 3  # distinct times
# different numbers: of random six-digit numbers, 1 in 8 is a month, of eight-digit ones 1 in 27 a day
_LEAST_UNNAMED = 20
_READ = 0.99  # of the values of the sample
_NULLS = 0.01
_TIME_WORDS = {
    "date", "dates", "datetime", "datetimes", "time", "timestamp", "timestamps", "ts", "day", "month", "week", "period",
    "quarter", "at", "epoch", "unix", "datum", "fecha", "zeit",
}  # fmt: skip
_DATE_WORDS = {"date", "dates", "datetime", "datetimes", "datum", "fecha", "timestamp", "timestamps"}
_YEAR_WORDS = {"year", "yr", "yyyy"}
_MONTH_NAMES = ({"month"}, {"mon"}, {"mm"}, {"month", "of", "year"})
_DAY_NAMES = ({"day"}, {"dd"}, {"mday"}, {"dom"}, {"day", "of", "month"}, {"date", "of", "month"})
# words of a year by which rows may be ordered
_EVENT_WORDS = {
    "acc", "accident", "admission", "arrival", "collected", "created", "event", "fiscal", "inspection", "interview",
    "issue", "issued", "measured", "obs", "observation", "observed", "onset", "order", "ordered", "posted", "purchase",
    "received", "recorded", "release", "reported", "response", "sale", "sample", "school", "sold", "start", "survey",
    "tax", "test", "trade", "transaction", "visit",
}  # fmt: skip
# words of a date that is not the time of the observation
_PAST_WORDS = {
    "birth", "birthday", "born", "build", "built", "close", "closed", "dead", "death", "deadline", "deceased", "dob",
    "due", "dth", "earliest", "end", "expiration", "expires", "expiry", "fm", "founded", "geboorte", "geboortedatum",
    "geburtsdatum", "geburtstag", "grad", "graduation", "hire", "nacimiento", "naissance", "nascimento", "nascita",
    "hired", "joined", "last", "latest", "manufactured", "marriage", "married", "model", "next", "opened", "phd",
    "prev", "previous", "prior", "remod", "remodeled", "renovated", "retired", "since", "updated", "veh", "vehicle",
}  # fmt: skip
_KEY_WORDS = {"code", "id", "key", "no", "nr", "num", "number"}
# with a time of day that of a ticket or a case; else the date of a shop or an account
_EVENT_WITH_CLOCK = {"opened"}
_YEARS = ((1_700, 2_099, "%Y", "years"), (30, 99, "%y", "two-digit years"))
_NUMBERS = (
    (1_900_01_01, 2_100_12_31, "%Y%m%d", "dates written as %Y%m%d"),
    (1_900_01, 2_100_12, "%Y%m", "months written as %Y%m"),
    (300_000_000, 4_000_000_000, "epoch_s", "times in epoch seconds"),
    (300_000_000_000, 4_000_000_000_000, "epoch_ms", "times in epoch milliseconds"),
    (300_000_000_000_000, 4_000_000_000_000_000, "epoch_us", "times in epoch microseconds"),
    (300_000_000_000_000_000, 4_000_000_000_000_000_000, "epoch_ns", "times in epoch nanoseconds"),
    (1_900_01_01_00_00_00, 2_100_12_31_23_59_59, "%Y%m%d%H%M%S", "times written as %Y%m%d%H%M%S"),
)
_NO_TIMES = {"candidate", "downtime", "lifetime", "mandate", "overtime", "runtime", "update", "uptime", "validate"}
_EXCEL_DATES = (29_221, 62_458)  # from 1980 to 2070
_CALENDAR_FORMATS = ("%Y%m%d", "%Y%m", "%Y%m%d%H%M%S")


class TimeColumn(NamedTuple):
    """A column of times: its name, how its values are written, and why it is taken.

    ``date_format`` is a value for ``data.date_format``; None: the values are read without one.
    """

    name: str
    date_format: str | None
    evidence: str


class _Candidate(NamedTuple):
    column: TimeColumn
    rank: tuple[float, ...]
    moments: np.ndarray

    def refines(self, other: "_Candidate") -> bool:
        """Whether these are moments of the other's days."""
        days = self.moments.astype("datetime64[D]")
        return bool((days == other.moments).all() and (days != self.moments).any())


def suggest_time_column(
    frame: pd.DataFrame, target: str | None = None, latest: dt.datetime | None = None
) -> TimeColumn | None:
    """Finds the column by which rows are ordered in time.

    Args:
        frame: a table, with typed columns or with text as it is written; 5,000 evenly spaced rows of it are read.
        target: a column that is not considered.
        latest: columns with later times (UTC) are not considered; None: all are.

    Returns:
        The column and the evidence for it, or None if no column says when the rows were observed.

    Example:
        >>> suggest_time_column(pd.DataFrame({"sold_on": ["3/31/2026", "4/1/2026", "4/2/2026"]})).date_format
        '%m/%d/%Y'
    """
    rows = np.unique(np.linspace(0, max(len(frame) - 1, 0), min(len(frame), _SAMPLE)).astype(int))
    candidates = []
    for place, name in enumerate(frame.columns):
        if name == target or not isinstance(values := frame[name], pd.Series):
            continue
        if len(values) and float(values.isna().mean()) <= _NULLS:
            candidate = _make_candidate(values.iloc[rows], place, latest)
            candidates += [candidate] if candidate else []
    if not candidates:
        return None
    best = max(candidates, key=lambda candidate: candidate.rank)
    finer = [candidate for candidate in candidates if candidate.refines(best)]
    return max(finer, key=lambda candidate: candidate.rank, default=best).column


def find_date_parts(frame: pd.DataFrame) -> list[str]:
    """The columns with the month and the day of a date whose year is another column; typed columns.

    Example:
        >>> find_date_parts(pd.DataFrame({"year": [2024, 2024], "month": [2, 3], "day_of_month": [29, 1], "n": [4, 5]}))
        ['month', 'day_of_month']
    """
    parts = []
    for part_names, most in ((_MONTH_NAMES, 12), (_DAY_NAMES, 31)):
        for name in frame.columns:
            values = frame[name]
            numeric = values.dtype.kind in "iuf" and values.between(1, most).mean() >= _READ
            if numeric and _words(str(name)) in part_names:
                parts.append(str(name))
                break
    return parts


def _make_candidate(values: pd.Series, place: int, latest: dt.datetime | None) -> _Candidate | None:
    """The column as a candidate; the rank goes by the fineness of its times, then name, then order of the rows."""
    words = _words(str(values.name))
    past = words & _PAST_WORDS
    if past - _EVENT_WITH_CLOCK:
        return None
    moments, date_format, what = _read(values, words)
    if moments is None:
        return None
    present = moments[~np.isnat(moments)]
    distinct = len(np.unique(present))
    if distinct < _LEAST or len(present) < _READ * len(moments):
        return None
    if latest is not None and present.max() > np.datetime64(latest):
        return None
    clock = bool((present != present.astype("datetime64[D]")).any())
    if past and not clock:
        return None
    ordered = bool((np.diff(present) >= np.timedelta64(0)).all())
    start, end = (str(np.datetime_as_string(edge, unit="D")) for edge in (present.min(), present.max()))
    order = "the rows are in its order" if ordered else "the rows are not in its order"
    evidence = f"{what} from {start} to {end}, {order}"
    named = bool(words & (_TIME_WORDS | _YEAR_WORDS))
    fine = 0 if what.endswith("years") else 1 if "decimal" in what else 2
    column = TimeColumn(str(values.name), date_format, evidence)
    return _Candidate(column, (fine, named, clock, ordered, -place), moments)


def _read(values: pd.Series, words: set[str]) -> tuple[np.ndarray | None, str | None, str]:
    """The values as datetime64[us] (None if they are not times), their format, and a description of them."""
    if values.dtype.kind == "M":
        times = values.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(values.dt, "tz", None) else values
        return times.to_numpy("datetime64[us]"), None, "dates"
    if values.dtype.kind in "iuf":
        return _read_numbers(values.to_numpy(np.float64), words)
    present = values.dropna()
    if values.dtype.kind == "b" or present.empty or not all(isinstance(value, str) for value in present):
        return None, None, ""
    texts = pa.chunked_array([pa.array(values, pa.large_string(), from_pandas=True)])
    if not any(character.isdigit() for character in str(present.iloc[0])):
        return None, None, ""
    numbers, unread = text_columns.parse_numbers(texts)
    if not unread.any() and not text_columns.has_zero_padding(texts):
        return _read_numbers(numbers, words)
    moments, _ = text_columns.parse_times(texts)
    if np.mean(~np.isnat(moments)) >= _READ:
        return moments, None, "dates"
    formats = detect_date_formats(values)
    reads = [text_columns.parse_times(texts, ValueFormat(date_format=each))[0] for each in formats]
    if not reads:
        return None, None, ""
    best = int(np.argmax([np.mean(np.diff(read) >= np.timedelta64(0)) for read in reads]))
    other = f" (or {formats[1 - best]}: no value tells which)" if len(formats) > 1 else ""
    return reads[best], formats[best], f"dates written as {formats[best]}{other}"


def _read_numbers(values: np.ndarray, words: set[str]) -> tuple[np.ndarray | None, str | None, str]:
    present = values[np.isfinite(values)]
    named = bool(words & (_TIME_WORDS | _YEAR_WORDS | _EVENT_WORDS)) and not words & _KEY_WORDS
    if present.size == 0 or not (named or len(np.unique(present)) >= _LEAST_UNNAMED):
        return None, None, ""
    date_format, what = _number_format(present, words)
    if date_format is None or not (named or date_format in _CALENDAR_FORMATS):
        return None, None, ""
    if date_format.startswith("epoch") and not _names_moment(words):
        return None, None, ""
    texts = pa.chunked_array([pa.array([_number_text(value) for value in values.tolist()], pa.large_string())])
    moments, unread = text_columns.parse_times(texts, ValueFormat(date_format=date_format))
    return (moments, date_format, what) if named or not unread.any() else (None, None, "")


def _number_text(value: float) -> str | None:
    return None if not np.isfinite(value) else str(int(value)) if value.is_integer() else f"{value:.15g}"


def _names_moment(words: set[str]) -> bool:
    """Whether a name is that of a time or of an event; ``order`` may be a number, and ``tax`` an amount."""
    happened = {word for word in words & _EVENT_WORDS if word.endswith("ed")} | words & {"sold"}
    return bool(happened or words & _TIME_WORDS)


def _number_format(present: np.ndarray, words: set[str]) -> tuple[str | None, str]:
    """The format in which numbers are times, and a description of them."""
    low, high = float(present.min()), float(present.max())
    if words & _DATE_WORDS and low >= _EXCEL_DATES[0] and high <= _EXCEL_DATES[1]:
        return EXCEL, "serial dates of Excel"
    whole = bool((present == np.floor(present)).all())
    if not whole and low >= _YEARS[0][0] and high <= _YEARS[0][1] and len(np.unique(present % 1)) <= 366:
        return DECIMAL_YEAR, "times in decimal years"
    years = words & _YEAR_WORDS and not words - _YEAR_WORDS - _TIME_WORDS - _EVENT_WORDS
    for least, most, date_format, what in (_YEARS if years else ()) + _NUMBERS:
        if low >= least and high <= most and (whole or date_format in EPOCHS):
            return date_format, what
    return None, ""


def _words(name: str) -> set[str]:
    """The words of a name; year, date and time are split off where they are written together with another word."""
    parts = re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    suffix = r"(?<=[a-z]{2})(date|time|year|yr)$"
    parts = [part if part in _NO_TIMES else re.sub(suffix, r" \1", part) for part in parts]
    parts = [re.sub(r"^(yr|year)(?!s)(?=[a-z]{2})", r"\1 ", part) for part in parts]
    return set(" ".join(parts).split())
