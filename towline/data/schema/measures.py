"""Measures: numbers that are written in several parts, such as durations, times of day, feet and inches, 1.2K."""

import math
import re
from typing import Literal

Measure = Literal["number", "duration", "clock", "feet", "scaled"]

_UNITS = {  # seconds
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1, "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hr": 3600, "hrs": 3600, "hour": 3600, "hours": 3600, "d": 86_400, "day": 86_400, "days": 86_400,
    "wk": 604_800, "wks": 604_800, "week": 604_800, "weeks": 604_800, "mo": 2_629_800, "mos": 2_629_800,
    "month": 2_629_800, "months": 2_629_800, "yr": 31_557_600, "yrs": 31_557_600, "year": 31_557_600,
    "years": 31_557_600,
}  # fmt: skip
_PART = r"(\d++(?:\.\d++)?)\s*+([A-Za-z]++)\.?(?:\s*+,\s*+|\s++and\s++|\s*+)"
_PARTS, _ALL_PARTS = re.compile(_PART, re.ASCII), re.compile(rf"(?:{_PART})++", re.ASCII)
_CLOCK = re.compile(
    r"(?:([+-]?\d+)\s*(?:days?|d)\s*,?\s*)?([+-]?)(\d+):([0-5]\d)(?::([0-5]\d)(?:[.,](\d{1,9}))?)?(?:\s*([ap])\.?m\.?)?",
    re.ASCII | re.IGNORECASE,
)
_ISO_DURATION = re.compile(r"([+-]?)P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?(?<![PT])", re.ASCII)
_FEET = re.compile(
    # inches are less than 12: 1'550 is a number with an apostrophe between thousands
    r"(\d+)\s*(?:'|’|′|ft\.?|feet|foot)\s*(?:((?:0?\d|1[01])(?:\.\d+)?)\s*(?:\"|”|″|''|’’|in\.?|inch(?:es)?)?)?",
    re.ASCII | re.IGNORECASE,
)
_SCALED = re.compile(r"([+-]?[\d,]*\d(?:\.\d+)?)\s*([kmb]?)", re.ASCII | re.IGNORECASE)
SCALES = {"k": "e3", "m": "e6", "b": "e9"}  # exponents of thousands, millions and billions


def parse_measure(text: str, measure: Measure) -> float:
    """The number that a text of several parts means; NaN for any other text.

    A duration and a time of day are seconds; ``5:30`` are minutes and seconds of a duration, hours and minutes of
    a clock. A month is a twelfth of 365.25 days. Feet are inches. A scaled number may end in K, M or B: thousands,
    millions and billions.

    Example:
        >>> parse_measure("3h 20m", "duration"), parse_measure("2:30 pm", "clock"), parse_measure("5'11\\"", "feet")
        (12000.0, 52200.0, 71.0)
        >>> parse_measure("1.2K", "scaled")
        1200.0
    """
    text = text.strip()
    if measure == "feet":
        feet = _FEET.fullmatch(text)
        return int(feet[1]) * 12 + float(feet[2] or 0) if feet else math.nan
    if measure == "scaled":
        scaled = _SCALED.fullmatch(text)
        return float(scaled[1].replace(",", "") + SCALES.get(scaled[2].lower(), "")) if scaled else math.nan
    if clock := _CLOCK.fullmatch(text):
        return _clock_seconds(clock, measure)
    if measure == "clock":
        return math.nan
    if iso := _ISO_DURATION.fullmatch(text):
        sign, days, hours, minutes, seconds = iso.groups()
        total = int(days or 0) * 86_400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)
        return -total if sign == "-" else total
    sign, text = (text[0], text[1:].lstrip()) if text[:1] in ("-", "+") else ("", text)
    if re.fullmatch(r"\d+\s?h\s?\d\d", text, re.ASCII):  # 6h38
        text += "m"
    parts = _PARTS.findall(text) if _ALL_PARTS.fullmatch(text) else []
    sizes = [_UNITS.get(unit if len(unit) == 1 else unit.lower()) for _, unit in parts]
    if not parts or None in sizes:
        return math.nan
    total = sum(float(number) * size for (number, _), size in zip(parts, sizes, strict=True) if size)
    return -total if sign == "-" else total


def _clock_seconds(clock: re.Match[str], measure: Measure) -> float:
    days, sign, first, second, third, fraction, half = clock.groups()
    if third is None and measure == "duration" and not days:
        total = float(int(first) * 60 + int(second))
    else:
        hour = int(first) % 12 + (12 if half.lower() == "p" else 0) if half else int(first)
        total = hour * 3600 + int(second) * 60 + float(f"{third or 0}.{fraction or 0}")
    return int(days or 0) * 86_400 + (-total if sign == "-" else total)
