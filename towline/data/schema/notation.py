"""Detection of numbers and dates in a notation that the config does not name, and the setting that reads them."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from towline.data.schema.values import ValueFormat, is_blank, is_null_marker, parse_number, parse_time

MIN_SHARE = 0.9  # of the values that are not null
_MIN_UNREADABLE = 0.05  # least share that the default notation cannot read; it can read codes with leading zeros
_MAX_DISTINCT = 2_000  # distinct values that are examined
_NUMBERS = (
    ("a decimal comma", "data.decimal: ','", ValueFormat(decimal=",")),
    ("commas between thousands", "data.thousands: ','", ValueFormat(thousands=",")),
    ("points between thousands", "data.decimal: ',' and data.thousands: '.'", ValueFormat(decimal=",", thousands=".")),
    ("blanks between thousands", "data.thousands: ' '", ValueFormat(thousands=" ")),
    ("apostrophes between thousands", 'data.thousands: "\'"', ValueFormat(thousands="'")),
)
_DATES = (
    "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%m-%d-%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y.%m.%d", "%m/%d/%y", "%d/%m/%y",
    "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b-%Y", "%b %Y", "%B %Y",
)  # fmt: skip
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
_SYMBOL = r"[$€£¥₹]|USD|EUR|GBP|CHF|JPY"
_AMOUNT = r"[+-]?[\d.,' ]*\d"
_UNITS = (
    ("a percent sign", re.compile(rf"\s*{_AMOUNT}\s*%\s*")),
    ("a currency", re.compile(rf"\s*-?\s*(?:(?:{_SYMBOL})\s*{_AMOUNT}|{_AMOUNT}\s*(?:{_SYMBOL}))\s*")),
)


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


def detect_notation(values: pd.Series) -> Notation | None:
    """The notation of a column of text; None if most values are neither numbers nor dates.

    Args:
        values: the text, with nulls.

    Example:
        >>> detect_notation(pd.Series(["$ 1.50", "$ 2.25"])).what
        'numbers with a currency'
    """
    counts = values.dropna().astype(str).value_counts().head(_MAX_DISTINCT)
    counts = counts[[not (is_blank(text) or is_null_marker(text)) for text in counts.index]]
    if counts.empty:
        return None
    texts, weights = list(counts.index), counts.to_numpy(float) / counts.sum()
    if not any(character.isdigit() for text in texts[:20] for character in text):
        return None
    return _detect_numbers(texts, weights) or _detect_dates(str(values.name), texts, weights)


def _detect_numbers(texts: list[str], weights: np.ndarray) -> Notation | None:
    shares = {
        (what, remedy, fmt): float(weights[[not np.isnan(parse_number(text, fmt)) for text in texts]].sum())
        for what, remedy, fmt in _NUMBERS
    }
    best = max(shares.values())
    unreadable = float(weights[[np.isnan(parse_number(text)) for text in texts]].sum())
    if best >= MIN_SHARE and unreadable >= _MIN_UNREADABLE:
        equal = [option for option, share in shares.items() if share == best][:2]
        what, remedy = " or ".join(what for what, _, _ in equal), ", or ".join(remedy for _, remedy, _ in equal)
        return Notation(f"numbers with {what}", best, remedy, texts[0], tuple(fmt for _, _, fmt in equal))
    for what, pattern in _UNITS:
        share = float(weights[[bool(pattern.fullmatch(text)) for text in texts]].sum())
        if share >= MIN_SHARE:
            return Notation(f"numbers with {what}", share, "remove it in the source", texts[0])
    return None


def _detect_dates(name: str, texts: list[str], weights: np.ndarray) -> Notation | None:
    formats, share = _date_formats(texts, weights)
    if not formats:
        return None
    remedy = ", or ".join(f"data.date_format: {{{name}: '{date_format}'}}" for date_format in formats)
    readers = tuple(ValueFormat(date_format=date_format) for date_format in formats)
    return Notation("dates in another form", share, remedy, texts[0], readers)


def detect_date_formats(values: pd.Series) -> list[str]:
    """The ``strptime`` formats that read every value of a column of text; two if day and month can be exchanged."""
    texts = values.dropna().astype(str).str.strip().drop_duplicates().head(_MAX_DISTINCT).tolist()
    texts = [text for text in texts if not (is_blank(text) or is_null_marker(text))]
    formats, share = _date_formats(texts, np.full(len(texts), 1 / max(len(texts), 1)))
    return formats if share > 1 - 1e-9 else []


def _date_formats(texts: list[str], weights: np.ndarray) -> tuple[list[str], float]:
    """The formats that read the largest share of the texts, if it is large enough, and this share."""
    shares = []
    for date in _DATES:
        for clock in _CLOCKS:
            date_format = date + clock
            if any(parse_time(text, date_format) for text in texts[:2]):
                read = [parse_time(text, date_format) is not None for text in texts]
                shares.append((float(weights[read].sum()), date_format))
    best = max((share for share, _ in shares), default=0.0)
    return ([date_format for share, date_format in shares if share == best][:2] if best >= MIN_SHARE else []), best
