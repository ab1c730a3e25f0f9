"""A classifier of columns: which of nine kinds a column is, from its name, its statistics and five of its values.

The kinds are those of the SortingHat benchmark (Shah et al., "Towards Benchmarking Feature Type Inference for AutoML
Platforms", SIGMOD 2021), on whose labelled columns ``benchmarks/kind_model.py`` fits it. Its two stages: a naive Bayes
classifier of the letters of the name and of the values, then gradient-boosted trees over its log-probabilities and the
features below. It is data (``kind_model.npz``), evaluated with numpy.
"""

import functools
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import pandas as pd

from towline.data.schema.values import is_blank, is_null_marker

LabelledKind = Literal[
    "categorical", "context-specific", "datetime", "embedded-number", "list", "not-generalizable", "numeric",
    "sentence", "url",
]  # fmt: skip
LABELLED_KINDS: tuple[LabelledKind, ...] = LabelledKind.__args__  # type: ignore[attr-defined]
FILE = Path(__file__).with_name("kind_model.npz")
BUCKETS = 4_096  # of hashed letter groups
_ROWS = 20_000  # evenly spaced rows that statistics are computed from
_HEAD = 1_000  # first rows that values are shown from
_VALUES = 5
_LONGEST = 2_000  # letters of a value
_FLOOR = -12.0  # the least log-probability of the first stage
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_PATTERNS = {
    "slash_date": r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}(?:\s.*)?|#{6,}",
    "iso_date": r"\d{4}-\d\d-\d\d.*|\d{4}/\d\d/\d\d.*",
    "month": rf".*\b{_MONTH}\b.*\d.*|.*\d.*\b{_MONTH}\b.*",
    "clock": r".*\b\d{1,2}:\d\d\b.*",
    "year": r"(?:1[6-9]|20)\d\d",
    "compact_date": r"(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])?",
    "integer": r"[+-]?\d+",
    "zero_padded": r"0\d+",
    "number": r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?",
    "thousands": r"[^\w]*\d{1,3}(?:[,' \u00a0]\d{2,3})+(?:[.,]\d+)?[^\w]*",
    "decimal_comma": r"[+-]?\d+,\d+",
    "percent": r".*\d\s*%.*",
    "currency": r".*[$€£¥₹]\s*-?\d.*|.*\d\s*(?:[$€£¥₹]|USD|EUR)",
    "unit": r"[<>~]?\s*[+-]?[\d.,]+\s*-?[a-zA-Z\"'/%°]{1,12}\.?",
    "letters_number": r"[a-zA-Z#]{1,8}[\s-]?\d+",
    "range": r"\D*\d+[\d,.]*\s*(?:-|to|–)\s*\D?\d+.*",
    "bracket": r"[\[({<].*[\])}>]",
    "square_bracket": r"\[.*[,;].*",
    "delimited": r"[^,;|]+(?:[,;|][^,;|]+){1,}",
    "short_words": r"\S{1,6}(?: \S{1,6}){3,}",
    "word": r"[A-Za-z]+",
    "code": r"(?=.*\d)(?=.*[A-Za-z])[\w-]+",
    "hexadecimal": r"[0-9a-f-]{8,}",
    "missing": r"[.\-?*#]+|#?null!?|unknown|missing|other|none|n/?a|-9+",
    "flag": r"yes|no|y|n|true|false|t|f|m|male|female",
    "place": r"(?:POINT|POLY|LINE|MULTI).*\(.*|-?\d+\.\d+,\s*-?\d+\.\d+",
    "email": r"[^@\s]+@[^@\s]+\.\w+",
}
_FULL = {name: re.compile(pattern, re.IGNORECASE | re.DOTALL) for name, pattern in _PATTERNS.items()}
_URL = re.compile(r"https?://|www\.|\.(?:com|org|net|html?|jpg|png|php)\b", re.IGNORECASE)
_MARKS = {"commas": ",", "semicolons": ";", "bars": "|", "slashes": "/", "colons": ":", "dots": ".", "dashes": "-"}
_STOP_WORDS = {
    "the", "of", "and", "to", "in", "a", "is", "for", "on", "with", "as", "at", "by", "an", "be", "this", "that",
    "from", "or", "are", "it", "was", "not", "you", "your", "i", "we", "our",
}  # fmt: skip


class ColumnStatistics(NamedTuple):
    """The input of the classifier for a column.

    ``rows``, ``nulls`` and ``distinct`` are counts; mean, standard deviation, least and greatest value are 0 for text.
    ``values`` are up to five distinct ones as text, in the order of the rows.
    """

    name: str
    rows: int
    nulls: int
    distinct: int
    mean: float
    std: float
    min: float
    max: float
    values: tuple[str, ...]


def describe_column(values: pd.Series) -> ColumnStatistics:
    """The statistics of a column of a table; of at most 20,000 evenly spaced rows."""
    step = -(-len(values) // _ROWS)
    rows = values.iloc[::step] if step > 1 else values
    numeric = values.dtype.kind in "iuf"
    moments = (0.0, 0.0, 0.0, 0.0)
    if numeric:
        numbers = rows.to_numpy(np.float64)
        present = numbers[np.isfinite(numbers)]
        if len(present):
            with np.errstate(over="ignore", invalid="ignore"):  # the squares of large values
                std = float(present.std(ddof=1)) if len(present) > 1 else 0.0
                moments = (float(present.mean()), std, float(present.min()), float(present.max()))
        nulls, distinct = len(rows) - len(present), len(pd.unique(present))
    else:
        given = rows.dropna().astype(str)
        nulls, distinct = len(rows) - len(given), int(given.nunique())
    head = values.iloc[:_HEAD].dropna()
    shown = dict.fromkeys(_text(value) for value in (head if len(head) else rows.dropna().iloc[:_HEAD]).unique())
    return ColumnStatistics(
        str(values.name), len(rows), nulls, distinct, *moments, tuple(itertools.islice(shown, _VALUES))
    )


def _text(value: object) -> str:
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.10g}"
    return str(value)[:_LONGEST]


def compute_features(column: ColumnStatistics) -> np.ndarray:
    """The features (f,) of a column that the second stage reads besides the first stage's log-probabilities."""
    values = [text.strip() for text in column.values]
    markers = [text for text in values if _is_marker(text)]
    values = list(dict.fromkeys(text for text in values if text and not _is_marker(text)))
    distinct = column.distinct - (1 if any(text.lower() != "nan" for text in markers) else 0)
    features = (
        _count_features(column, distinct)
        | _moment_features(column, distinct)
        | _number_features(values)
        | _text_features(values)
        | {name: _share(bool(pattern.fullmatch(text)) for text in values) for name, pattern in _FULL.items()}
        | _name_features(column.name, values)
    )
    return np.nan_to_num(np.array(list(features.values()), dtype=np.float64), nan=0.0, posinf=60.0, neginf=-60.0)


def hash_letters(column: ColumnStatistics) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of the letter groups in the words of the name, and in the values with every digit as 9."""
    values = [re.sub(r"\d", "9", text.strip().lower()[:40]) for text in column.values if text.strip()]
    return _hash(_words(column.name), (2, 3, 4)), _hash(values, (2, 3))


class KindModel:
    """The fitted classifier.

    Args:
        arrays: ``letters`` (2, 9, 4096): the log-probability of a bucket given a kind, for names and for values;
            ``priors`` (9,): that of a kind; ``roots``, ``feature``, ``threshold``, ``left``, ``right`` and ``value``:
            the nodes of the trees, those of one boosting round after the other, a tree for each kind in a round.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._letters = arrays["letters"].astype(np.float64)
        self._priors = arrays["priors"].astype(np.float64)
        self._trees = {name: arrays[name] for name in ("roots", "feature", "threshold", "left", "right", "value")}

    @classmethod
    @functools.cache
    def read(cls) -> "KindModel":
        """The model that is part of the package."""
        with np.load(FILE, allow_pickle=False) as arrays:
            return cls(dict(arrays))

    def predict(self, columns: Sequence[ColumnStatistics]) -> np.ndarray:
        """The probabilities (n, 9) of ``LABELLED_KINDS``."""
        if not columns:
            return np.empty((0, len(LABELLED_KINDS)))
        inputs = np.stack([np.concatenate([compute_features(c), *self._first_stage(c)]) for c in columns])
        nodes = np.tile(self._trees["roots"], (len(columns), 1))
        rows = np.arange(len(columns))[:, None]
        while (inner := self._trees["feature"][nodes] >= 0).any():
            below = inputs[rows, self._trees["feature"][nodes]] <= self._trees["threshold"][nodes]
            nodes = np.where(inner, np.where(below, self._trees["left"][nodes], self._trees["right"][nodes]), nodes)
        leaves = self._trees["value"][nodes].astype(np.float64)
        scores = leaves.reshape(len(columns), -1, len(LABELLED_KINDS)).sum(axis=1)
        exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        return cast("np.ndarray", exponents / exponents.sum(axis=1, keepdims=True))

    def _first_stage(self, column: ColumnStatistics) -> tuple[np.ndarray, ...]:
        return tuple(
            naive_bayes(table, self._priors, buckets)
            for table, buckets in zip(self._letters, hash_letters(column), strict=True)
        )


def naive_bayes(table: np.ndarray, priors: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """The log-probabilities (9,) of the kinds given buckets of letters, at least -12."""
    scores = table[:, buckets].sum(axis=1) + priors
    scores = scores - scores.max()
    return cast("np.ndarray", np.maximum(scores - np.log(np.exp(scores).sum()), _FLOOR))


def _is_marker(text: str) -> bool:
    return is_blank(text) or is_null_marker(text) or text.lower() == "#null!"


def _hash(words: Iterable[str], sizes: tuple[int, ...]) -> np.ndarray:
    buckets = set()
    for word in words:
        padded = f" {word} "
        for size in sizes:
            buckets |= {zlib.crc32(padded[i : i + size].encode("utf-8", "replace")) % BUCKETS
                        for i in range(len(padded) - size + 1)}  # fmt: skip
    return np.array(sorted(buckets), dtype=np.int64)


def _words(name: str) -> list[str]:
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", name)
    name = re.sub(r"([A-Za-z])(\d)", r"\1 \2", name)
    name = re.sub(r"(\d)([A-Za-z])", r"\1 \2", name)
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+", name) if word]


def _share(flags: Iterable[bool]) -> float:
    listed = list(flags)
    return sum(listed) / max(len(listed), 1)


def _log(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value) if math.isfinite(value) else 60.0


def _number(text: str) -> float:
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _count_features(column: ColumnStatistics, distinct: int) -> dict[str, float]:
    present = max(column.rows - column.nulls, 0)
    return {
        "rows": math.log1p(column.rows),
        "present": math.log1p(present),
        "nulls": column.nulls / max(column.rows, 1),
        "distinct": math.log1p(max(distinct, 0)),
        "few_distinct": min(distinct, 60),
        "distinct_share": distinct / max(column.rows, 1),
        "distinct_share_of_present": min(distinct / max(present, 1), 2),
        "repeated": min(column.rows - distinct, 1_000),
        "rows_of_a_value": math.log1p(present / max(distinct, 1)),
    }


def _moment_features(column: ColumnStatistics, distinct: int) -> dict[str, float]:
    mean, std, low, high = column.mean, column.std, column.min, column.max
    numeric = any((mean, std, low, high))
    span = high - low
    return {
        "numeric": float(numeric),
        "mean": _log(mean), "std": _log(std), "min": _log(low), "max": _log(high),
        "variation": _log(std / mean) if mean else 0.0,
        "whole": float(low == int(low) and high == int(high)) if numeric else -1.0,
        "dense": min(distinct / (span + 1), 5) if numeric else -1.0,
        "span_of_rows": _log(span / max(column.rows, 1)) if numeric else -1.0,
        "position": (mean - low) / span if span > 0 else -1.0,
        "spread": std / span if span > 0 else -1.0,
        "mean_of_std": mean / std if std > 0 else -1.0,
    }  # fmt: skip


def _number_features(values: list[str]) -> dict[str, float]:
    pairs = [(text, _number(text)) for text in values]
    finite = [(text, number) for text, number in pairs if math.isfinite(number)]
    numbers = [number for _, number in finite]
    names = ("low", "high", "average", "decimals", "decimals_mean", "whole", "years", "up", "by_one", "sorted")
    if not numbers:
        return {"numbers": 0.0} | {f"numbers_{name}": -1.0 for name in names}
    decimals = [len(text.split(".")[1]) if "." in text and "e" not in text.lower() else 0 for text, _ in finite]
    steps = np.diff(numbers)
    computed = (
        _log(min(numbers)), _log(max(numbers)), _log(sum(numbers) / len(numbers)), max(decimals),
        sum(decimals) / len(decimals), _share(number.is_integer() for number in numbers),
        _share(number.is_integer() and 1_800 <= number <= 2_050 for number in numbers),
        float(np.mean(steps > 0)) if len(steps) else -1.0, float(np.mean(steps == 1)) if len(steps) else -1.0,
        float((steps > 0).all()) if len(steps) > 1 else -1.0,
    )  # fmt: skip
    return {"numbers": len(numbers) / len(pairs)} | {f"numbers_{n}": c for n, c in zip(names, computed, strict=True)}


def _text_features(values: list[str]) -> dict[str, float]:
    lengths = [len(text) for text in values] or [0]
    words = [len(text.split()) for text in values] or [0]
    joined, count = "".join(values), max(len(values), 1)
    letters = max(len(joined), 1)
    digits, alphabetic = sum(c.isdigit() for c in joined) / letters, sum(c.isalpha() for c in joined) / letters
    blanks = sum(c.isspace() for c in joined) / letters
    return {
        "values": len(values),
        "length": float(np.mean(lengths)), "length_std": float(np.std(lengths)),
        "length_max": max(lengths), "length_min": min(lengths),
        "words": float(np.mean(words)), "words_std": float(np.std(words)), "words_max": max(words),
        "digits": digits, "alphabetic": alphabetic, "blanks": blanks, "other_marks": 1 - digits - alphabetic - blanks,
        "upper": sum(c.isupper() for c in joined) / letters,
        **{name: joined.count(mark) / count for name, mark in _MARKS.items()},
        "underscores": joined.count("_") / count,
        "quotes": (joined.count("'") + joined.count('"')) / count,
        "stop_words": sum(word.lower() in _STOP_WORDS for text in values for word in text.split()) / count,
        "urls": _share(bool(_URL.search(text)) for text in values),
        "ends_sentence": _share(text.endswith((".", "!", "?")) for text in values),
    }  # fmt: skip


def _name_features(name: str, values: list[str]) -> dict[str, float]:
    stripped, words = name.strip(), _words(name)
    spelled = [word for word in words if word.isalpha()]
    return {
        "name_length": len(stripped),
        "name_words": len(words),
        "name_digits": sum(c.isdigit() for c in stripped),
        "name_upper": sum(c.isupper() for c in stripped) / max(len(stripped), 1),
        "name_is_number": float(math.isfinite(_number(stripped))),
        "name_holds_value": float(any(text.lower() in stripped.lower() for text in values if len(text) > 2)),
        "name_vowels": _share(any(c in "aeiouy" for c in word) for word in spelled) if spelled else -1.0,
        "name_spelled": len(spelled),
        "name_longest": max((len(word) for word in spelled), default=0),
        "name_short": sum(len(word) <= 2 for word in spelled),
    }
