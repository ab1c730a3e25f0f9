"""Link functions turn raw scores into values or probabilities, one row at a time.

The compiled plan and the boosting candidates call the same functions, so that their results are equal to the last bit.
NumPy's vectorised ``exp`` gives other last bits than ``math.exp``, and ``sum`` other ones than a loop from Python 3.12.
"""

import functools
import math
import operator
from collections.abc import Iterable, Sequence


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
