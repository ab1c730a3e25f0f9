"""The result of a behaviour test."""

from typing import Literal

from towline.config import Frozen

BehaviourOutcome = Literal["pass", "fail", "inconclusive"]


class BehaviourCheck(Frozen):
    """The result of one test of the prediction function.

    Attributes:
        name: the kind and the subject of the test, e.g. ``invariance gender``.
        outcome: pass, fail or inconclusive.
        detail: one sentence with the numbers.
        value: the measured value, if it is a single finite number.
        bound: the limit for ``value``.
    """

    name: str
    outcome: BehaviourOutcome
    detail: str
    value: float | None = None
    bound: float | None = None
