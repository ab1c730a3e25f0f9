"""What the watch finds out: small records, kept by night, read by the policy, the status page and the replay."""

import datetime as dt
from typing import Literal

from towline.config import Frozen
from towline.training.evaluation.predictions import Interval

DriftState = Literal["ok", "drift", "invalid_schema", "unknown"]
QualityState = Literal["ok", "degraded", "unknown"]


class DriftCheckResult(Frozen):
    """One thing about one column (``prediction`` is one too).

    Attributes:
        column: its name.
        what: distribution, gap, level, nulls, unseen, out of range; or, of input that is broken: missing, unfit, new,
            all null; of the column ``rows``: repeated, clock.
        value: the distance in sds (numbers) or Jensen-Shannon distance (categories), or a share of the rows.
        threshold: from which on it alarms; None where it never does.
        alarm: whether it does.
        broken: whether it tells of input that no model should learn from.
        detail: in words, with examples where they help.
    """

    column: str
    name: str
    value: float
    threshold: float | None
    alarm: bool
    invalid: bool = False
    detail: str = ""


class DriftResult(Frozen):
    """One window of production against the training rows of the version that served.

    Attributes:
        state: ``unknown`` where there are too few rows; ``broken`` where the input breaks its contract.
        start, end: of the rows; ``end`` is not included.
        checks: alarms first, then by how near they are to their threshold.
        budget: nights a year that may alarm with nothing changed.
    """

    state: DriftState
    version: int
    rows: int
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    checks: tuple[DriftCheckResult, ...] = ()
    budget: float
    reason: str


class SliceMetric(Frozen):
    """The metric on the rows with one value of one column."""

    column: str
    value: str
    rows: int
    metric: Interval


class PerformanceEstimate(Frozen):
    """The metric before labels are there, and whether it can be believed; ``why`` says it in words."""

    value: float | None
    low: float | None = None
    high: float | None = None
    trusted: bool
    why: str


class QualityResult(Frozen):
    """How good one version's predictions of a window turned out to be.

    Attributes:
        state: ``unknown`` where too few labels are there, or the interval holds the bound.
        bound: the value of the metric that is still accepted.
        rows: predictions of the window. due: old enough to have a label. labelled: of these, with one.
        estimate: of predictions whose labels were still to come.
        expected: what the estimate says of the very rows that ``value`` is of: how right such estimates are.
    """

    state: QualityState
    version: int
    metric: str
    value: Interval
    holdout: float | None
    bound: float
    rows: int
    labelled: int
    due: int
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    slices: tuple[SliceMetric, ...] = ()
    estimate: PerformanceEstimate | None = None
    expected: Interval | None = None
    reason: str


class ChampionComparison(Frozen):
    """The same labelled rows answered by the champion and the one before it.

    Attributes:
        rows: how many.
        champion, previous: the metric of each; None where that version cannot answer.
        better: whether the previous champion is better beyond doubt (a paired interval without 0).
        sound: whether the input is what the contract says.
    """

    rows: int
    champion: float | None
    previous: float | None
    better: bool
    sound: bool
    reason: str
