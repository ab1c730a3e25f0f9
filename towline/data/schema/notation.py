"""Text that is nearly all numbers or dates in another notation than the config says, and the setting that reads it."""

import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from towline.data.schema.values import ValueFormat, is_blank, is_null_marker, parse_number, parse_time

SHARE = 0.9  # of the values that are not null
_MARKED = 0.05  # the least share that the default notation does not read: zero-padded codes have none
_SHORTEST = 6  # letters of a date, as 1/1/26
_SAMPLE = 2_000  # distinct values that are looked at
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
    """What a column is written in, the share of its values that are, and the config or change that reads it."""

    what: str
    share: float
    remedy: str
    example: str

    def described(self, *, hidden: bool = False) -> str:
        """For people; ``hidden``: without a value of the column."""
        return self.what if hidden else f"{self.what}, as {self.example!r}"


def detect_notation(values: pd.Series) -> Notation | None:
    """The notation of a column of text; None where most values are neither numbers nor dates.

    Args:
        values: text as it is written, nulls included.

    Example:
        >>> detect_notation(pd.Series(["$ 1.50", "$ 2.25"])).what
        'numbers with a currency'
    """
    counts = values.dropna().astype(str).value_counts().head(_SAMPLE)
    counts = counts[[not (is_blank(text) or is_null_marker(text)) for text in counts.index]]
    if counts.empty:
        return None
    texts, weights = list(counts.index), counts.to_numpy(float) / counts.sum()
    if not any(character.isdigit() for text in texts[:20] for character in text):
        return None
    return _number(texts, weights) or _date(str(values.name), texts, weights)


def _number(texts: list[str], weights: np.ndarray) -> Notation | None:
    shares = {
        (what, remedy): float(weights[[not np.isnan(parse_number(text, fmt)) for text in texts]].sum())
        for what, remedy, fmt in _NUMBERS
    }
    best = max(shares.values())
    marked = float(weights[[np.isnan(parse_number(text)) for text in texts]].sum())
    if best >= SHARE and marked >= _MARKED:
        equal = [option for option, share in shares.items() if share == best][:2]
        what, remedy = " or ".join(what for what, _ in equal), ", or ".join(remedy for _, remedy in equal)
        return Notation(f"numbers with {what}", best, remedy, texts[0])
    for what, pattern in _UNITS:
        share = float(weights[[bool(pattern.fullmatch(text)) for text in texts]].sum())
        if share >= SHARE:
            return Notation(f"numbers with {what}", share, "remove it in the source", texts[0])
    return None


def _date(name: str, texts: list[str], weights: np.ndarray) -> Notation | None:
    formats, share = _date_formats(texts, weights)
    if not formats:
        return None
    remedy = ", or ".join(f"data.date_format: {{{name}: '{date_format}'}}" for date_format in formats)
    return Notation("dates in another form", share, remedy, texts[0])


def detect_date_formats(values: pd.Series) -> list[str]:
    """The ``strptime`` formats that read every value of a column of text; two where day and month may be exchanged."""
    texts = values.dropna().astype(str).str.strip().drop_duplicates().head(_SAMPLE).tolist()
    texts = [text for text in texts if not (is_blank(text) or is_null_marker(text))]
    if any(len(text) < _SHORTEST or not any(character.isdigit() for character in text) for text in texts[:5]):
        return []
    formats, share = _date_formats(texts, np.full(len(texts), 1 / max(len(texts), 1)))
    return formats if share > 1 - 1e-9 else []


def _date_formats(texts: list[str], weights: np.ndarray) -> tuple[list[str], float]:
    shares = []
    for date in _DATES:
        for clock in _CLOCKS:
            date_format = date + clock
            if any(parse_time(text, date_format) for text in texts[:2]):
                read = [parse_time(text, date_format) is not None for text in texts]
                shares.append((float(weights[read].sum()), date_format))
    best = max((share for share, _ in shares), default=0.0)
    return ([date_format for share, date_format in shares if share == best][:2] if best >= SHARE else []), best
