"""Link functions turn raw scores into values or probabilities, of one row or of columns.

The compiled plan and the boosting candidates call the same functions, so that their results are equal to the last bit.
NumPy's vectorised ``exp`` gives other last bits than ``math.exp``, and ``sum`` other ones than a loop from Python 3.12:
the functions of columns use neither.
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np


def add(values: Iterable[float]) -> float:
    """The sum of values, added from left to right."""
    return functools.reduce(operator.add, values)


def exponential(score: float) -> float:
    """The exponential of a score; infinity if it is too large for a float."""
    try:
        return math.exp(score)
    except OverflowError:
        return math.inf


def expit(score: float) -> list[float]:
    """The probabilities of the negative and of the positive class, from the log-odds."""
    positive = 1 / (1 + exponential(-score))
    return [1 - positive, positive]


def softmax(scores: Sequence[float]) -> list[float]:
    """The probability of each class."""
    highest = max(scores)
    shares = [exponential(score - highest) for score in scores]
    total = add(shares)
    return [share / total for share in shares]


def add_columns(values: np.ndarray) -> np.ndarray:
    """(n,) the sums of the rows of ``values`` (n, columns), each added from left to right."""
    return functools.reduce(operator.add, values.T)


def exponentials(scores: np.ndarray) -> np.ndarray:
    """(n,) the exponential of each score."""
    try:
        return np.fromiter(map(math.exp, scores.tolist()), np.float64, len(scores))
    except OverflowError:
        return np.fromiter(map(exponential, scores.tolist()), np.float64, len(scores))


def softmax_rows(scores: np.ndarray) -> np.ndarray:
    """(n, classes) the probabilities of each row of finite scores."""
    shares = exponentials((scores - scores.max(axis=1, keepdims=True)).ravel()).reshape(scores.shape)
    probabilities: np.ndarray = shares / add_columns(shares)[:, None]
    return probabilities
