"""The task of a target: binary, multiclass or regression.

Text and booleans are classes. Numbers are classes if they are few codes: by their name, or if they start at 0 or 1 and
their frequencies do not rise and fall as those of a count or a rating do.
"""

import math
import re
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import Task
from towline.data.schema.detection.notation import detect_number_format
from towline.data.schema.values import PLAIN, ValueFormat, parse_number
from towline.errors import ConfigError

_CODES = 3  # numbers of up to three values are classes
_PLAIN = 4  # frequencies of fewer values than five rise and fall by chance
_MOST = 20  # classes, unless the name says that the target is a class
_MOST_NAMED = 100
_TEXTS = 2_000  # different ones that are read
_ROWS = 5  # of a class, on average
_DEVIATION = 0.1  # from frequencies that rise and fall, of their range
_CLASS_WORDS = {
    "activity", "brand", "cat", "category", "class", "classes", "classification", "cluster", "code", "color",
    "cultivar", "diagnosis", "digit", "disease", "gender", "group", "kind", "label", "letter", "mode", "origin",
    "outcome", "race", "region", "result", "segment", "sex", "species", "state", "status", "type", "variety",
}  # fmt: skip
_GROUP_WORDS = {"band", "bin", "bracket", "bucket", "range", "tier", "zone"}  # of a quantity, such as price_range
_MOST_GROUPS = 10
_QUANTITY_WORDS = {
    "age", "amount", "average", "avg", "children", "cost", "count", "counts", "day", "days", "duration", "height",
    "hour", "hours", "income", "index", "kids", "length", "mean", "minutes", "month", "months", "num", "number",
    "percent", "points", "price", "qty", "quality", "quantity", "rank", "rate", "rating", "ratings", "rings", "salary",
    "sales", "score", "scores", "size", "stars", "sum", "temp", "temperature", "time", "times", "total", "value",
    "visits", "wage", "weight", "width", "wins", "year", "years",
}  # fmt: skip


class InferredTask(NamedTuple):
    """A task, and the reason for it."""

    task: Task
    reason: str


def infer_task(target: pd.Series) -> InferredTask:
    """The task of a target, from its name and its values.

    Raises:
        ConfigError: the target holds dates.

    Example:
        >>> infer_task(pd.Series([1, 2, 4, 1, 3, 7, 1, 2, 5, 6] * 10, name="animal_class")).task
        'multiclass'
    """
    if target.dtype.kind == "M":
        what = f"the target {target.name!r} has dates"
        raise ConfigError(what, where="data.target", remedy="name a column of numbers or classes")
    present = target.dropna()
    levels = int(present.nunique())
    if target.dtype.kind not in "iufb" and (texts := find_texts_among_numbers(present)):
        raise ConfigError(
            f"the target {target.name!r} has numbers, and other texts such as {texts[0][:40]!r}",
            where="data.target",
            remedy=f"set data.columns: {{{target.name}: numeric}} to leave out rows without a number, "
            "or task: multiclass",
        )
    if target.dtype.kind not in "iuf" or 0 < levels <= 2:
        return InferredTask("binary" if levels <= 2 else "multiclass", f"{levels} different values")
    values, counts = np.unique(present.to_numpy(np.float64), return_counts=True)
    if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        return InferredTask("regression", "numbers that are not whole")
    reason = _deny_classes(values, counts, str(target.name))
    return InferredTask("regression" if reason else "multiclass", reason or f"{levels} codes")


def find_texts_among_numbers(present: pd.Series, fmt: ValueFormat = PLAIN) -> list[str]:
    """The different texts that are not numbers, such as <0.5, of a target whose other texts are many numbers.

    The list is empty if all texts are numbers: then they are codes, such as 00501.

    Args:
        present: text without nulls.
        fmt: of the numbers, if it reads them; else they have the one notation that does.
    """
    texts = [str(text) for text in present.unique()[:_TEXTS]]
    fmt = detect_number_format(pa.chunked_array([pa.array(texts, pa.large_string())]), fmt, max_unreadable=1) or fmt
    others = [text for text in texts if math.isnan(parse_number(text, fmt))]
    return others if len(texts) > _MOST and 2 * len(others) <= len(texts) else []


def _deny_classes(values: np.ndarray, counts: np.ndarray, name: str) -> str:
    """Why whole numbers are not classes; empty if they are."""
    levels = len(values)
    words = _words(name)
    if words and words[-1] in _GROUP_WORDS and levels <= _MOST_GROUPS and counts.sum() >= _ROWS * levels:
        return ""
    word = next((word for word in reversed(words) if word in _CLASS_WORDS | _QUANTITY_WORDS), "")
    if levels > (_MOST_NAMED if word in _CLASS_WORDS else _MOST) or counts.sum() < _ROWS * levels:
        return f"numbers of {levels} different values"
    if word:
        return f"numbers that are named a {word}" if word in _QUANTITY_WORDS else ""
    if levels <= _CODES:
        return ""
    span = values[-1] - values[0] + 1
    if values[0] not in (-1, 0, 1) or span - levels > 1:
        return "numbers that do not count from 0 or 1"
    if levels > _PLAIN and (_rises_and_falls(counts) or (values[0] == 0 and _rises_and_falls(counts[1:]))):
        return "numbers whose frequencies rise and fall, as those of a count or a rating"
    return ""


def _rises_and_falls(counts: np.ndarray) -> bool:
    """Whether the frequencies have one peak, but for small deviations and steps within half a standard error.

    Frequencies that are equal by chance have none: balanced classes, such as digits. So their chi-squared statistic has
    to be above its mean by three standard deviations.
    """
    even, freedom = counts.mean(), len(counts) - 1
    if ((counts - even) ** 2 / even).sum() <= freedom + 3 * math.sqrt(2 * freedom):
        return False
    steps, errors = np.diff(counts), np.sqrt(counts[1:] + counts[:-1]) / 2
    falls, rises = (-steps - errors).clip(min=0), (steps - errors).clip(min=0)
    against = [falls[:peak].sum() + rises[peak:].sum() for peak in range(len(counts))]
    return bool(min(against) <= _DEVIATION * np.ptp(counts))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())
