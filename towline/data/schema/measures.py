"""Measures: numbers written with several units or parts, such as durations, times of day, 5'11", 1.2K, 500 g."""

import math
import re
from collections.abc import Sequence
from typing import Literal

Measure = Literal[
    "number", "duration", "clock", "feet", "scaled", "approximate", "mass", "length", "area", "volume", "storage"
]  # fmt: skip

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
CURRENCY_SIGNS = "$€£¥₹"
_APPROXIMATE_NUMBER = rf"[{CURRENCY_SIGNS}]?\s?([1-9]\d{{0,2}}(?:,\d{{3}})+|\d+)(\.\d+)?\s?([kmb](?![a-z]))?"
_APPROXIMATE = re.compile(
    r"(?:([<>]=?|[≤≥~≈]|c\.|ca\.|ca |circa |about |around |approx\. ?|over |under |above |below |up to |at least "
    r"|(?:less|more|fewer|greater) than )\s*)?([+-]?)"
    rf"{_APPROXIMATE_NUMBER}(?:\s*(?:-|–|—|to)\s*{_APPROXIMATE_NUMBER})?"
    r"\s*(\+|\*{1,3}|[†‡?]|(?:\[\w{1,3}\])+|\((?:[a-z]+ )?(?:est|e|approx|p|prelim|r)\.?\)"
    r"|or (?:more|less|older)|and (?:over|above))?",
    re.ASCII | re.IGNORECASE,
)
_AMOUNT = re.compile(
    r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s*((?:sq\.?\s*)?[a-z]+[2²]?)\.?", re.ASCII | re.IGNORECASE
)
QUANTITIES: dict[Measure, dict[str, float]] = {  # the units of each
    "mass": {  # kilograms
        "mg": 1e-6, "g": 1e-3, "gr": 1e-3, "gram": 1e-3, "kg": 1, "kilo": 1, "kilogram": 1, "oz": 0.028349523125,
        "ounce": 0.028349523125, "lb": 0.45359237, "pound": 0.45359237,
    },
    "length": {  # metres
        "mm": 1e-3, "cm": 0.01, "m": 1, "meter": 1, "metre": 1, "km": 1e3, "in": 0.0254, "inch": 0.0254,
        "ft": 0.3048, "foot": 0.3048, "yd": 0.9144, "yard": 0.9144, "mi": 1609.344, "mile": 1609.344,
    },
    "area": {  # square metres
        "cm2": 1e-4, "m2": 1, "sqm": 1, "km2": 1e6, "sqkm": 1e6, "ft2": 0.09290304, "sqft": 0.09290304, "ha": 1e4,
        "hectare": 1e4, "acre": 4046.8564224,
    },
    "volume": {  # litres
        "ml": 1e-3, "cl": 0.01, "dl": 0.1, "l": 1, "liter": 1, "litre": 1, "gal": 3.785411784, "gallon": 3.785411784,
    },
    "storage": {  # bytes
        "b": 1, "byte": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30,
        "tib": 2**40,
    },
}  # fmt: skip
# of the numbers that ``parse_measure`` returns
NUMBER_UNITS: dict[Measure, str] = {
    "duration": "s", "clock": "s after midnight", "feet": "in", "mass": "kg", "length": "m", "area": "m²",
    "volume": "l", "storage": "bytes",
}  # fmt: skip
MAX_LENGTH = 100  # characters of a measure: the number of a longer text may be beyond float64
SCALES = {"k": "e3", "m": "e6", "b": "e9"}  # exponents of thousands, millions and billions


def parse_measure(text: str, measure: Measure) -> float:
    """The number that a text of several parts means; NaN for any other text.

    A duration and a time of day are seconds; ``5:30`` are minutes and seconds of a duration, hours and minutes of
    a clock. A month is a twelfth of 365.25 days. Feet are inches. A scaled number may end in K, M or B: thousands,
    millions and billions. An approximate number is a bound, the middle of a range, or has a mark. A mass is in
    kilograms, a length in metres, an area in square metres, a volume in litres, storage in bytes.

    Example:
        >>> parse_measure("3h 20m", "duration"), parse_measure("2:30 pm", "clock"), parse_measure("5'11\\"", "feet")
        (12000.0, 52200.0, 71.0)
        >>> parse_measure("1.2K", "scaled"), parse_measure("500 g", "mass"), parse_measure("1.5 GB", "storage")
        (1200.0, 0.5, 1500000000.0)
    """
    text = text.strip()
    return _parse(text, measure) if len(text) <= MAX_LENGTH else math.nan


def _parse(text: str, measure: Measure) -> float:
    if measure in QUANTITIES:
        return _parse_amount(text, QUANTITIES[measure])
    if measure == "approximate":
        limits = parse_range(text)
        return sum(limits) / len(limits) if limits else math.nan
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


def _parse_amount(text: str, units: dict[str, float]) -> float:
    amount = _AMOUNT.fullmatch(text)
    unit = units.get(_normal_unit(amount[2])) if amount else None
    return float(amount[1].replace(",", "")) * unit if amount and unit else math.nan


def parse_range(text: str) -> tuple[float, ...]:
    """The ends of a range, or the number of a text with a bound or a mark; empty for any other text.

    Example:
        >>> parse_range("<0.5"), parse_range("12 (est.)"), parse_range("$53K-$91K (Glassdoor est.)"), parse_range("A5")
        ((0.5,), (12.0,), (53000.0, 91000.0), ())
    """
    match = _APPROXIMATE.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
    if not match:
        return ()
    _, sign, low, low_decimals, low_scale, high, high_decimals, high_scale, _ = match.groups()
    first = _scaled_number(low, low_decimals, low_scale or (high_scale if high else None))
    first = -first if sign == "-" else first
    return (first, _scaled_number(high, high_decimals, high_scale)) if high else (first,)


def _scaled_number(whole: str, decimals: str | None, scale: str | None) -> float:
    return float(whole.replace(",", "") + (decimals or "") + (SCALES[scale.lower()] if scale else ""))


def has_several_units(quantity: Measure, texts: Sequence[str]) -> bool:
    """Whether all texts are amounts of a quantity, such as a mass, with at least two units or spellings of a unit.

    Example:
        >>> has_several_units("mass", ["70 kg", "154 lbs"]), has_several_units("mass", ["70 kg", "71 kg"])
        (True, False)
    """
    amounts = [_AMOUNT.fullmatch(text.strip()) for text in texts]
    units = {amount[2].lower() if amount else "" for amount in amounts}
    return len(units) > 1 and set(map(_normal_unit, units)) <= QUANTITIES[quantity].keys()


def _normal_unit(unit: str) -> str:
    unit = re.sub(r"[\s.]", "", unit.lower()).replace("²", "2")
    return {"feet": "foot", "inches": "inch"}.get(unit) or (unit.removesuffix("s") if len(unit) > 2 else unit)


def _clock_seconds(clock: re.Match[str], measure: Measure) -> float:
    days, sign, first, second, third, fraction, half = clock.groups()
    if third is None and measure == "duration" and not days:
        total = float(int(first) * 60 + int(second))
    else:
        hour = int(first) % 12 + (12 if half.lower() == "p" else 0) if half else int(first)
        total = hour * 3600 + int(second) * 60 + float(f"{third or 0}.{fraction or 0}")
    return int(days or 0) * 86_400 + (-total if sign == "-" else total)
