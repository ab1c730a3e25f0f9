"""Results of monitoring: records of drift detection, measured quality and champion comparisons.

They are stored in the journal of a model and read by the policy, the status page, the metrics and the backtest.
"""

import datetime as dt
from typing import Literal

from pydantic import Field

from towline.config import GREATER_IS_BETTER, Frozen
from towline.training.evaluation.predictions import Interval

CLOCK = "clock"  # name of the check of timestamps

DriftState = Literal["ok", "drift", "invalid_schema", "unknown"]
QualityState = Literal["ok", "degraded", "unknown"]
GainState = Literal["measured", "unknown", "unavailable"]


class DriftCheckResult(Frozen):
    """The result of one check of one column; the model's ``prediction`` counts as a column.

    Attributes:
        column: name of the column; ``rows`` for checks of whole rows.
        name: distribution, cumulative share, category share, nulls, unseen categories, out of range; of invalid input
            missing column, duplicate column, wrong type, all null; without alarms unknown column, repeated rows,
            clock, clock column.
        value: distance in standard deviations (numbers), Jensen-Shannon distance (categories), or a share of the rows.
        threshold: value above which the check raises an alarm; None if it has none.
        alarm: whether it does.
        invalid: whether the input violates the contract, so that no model should be trained on it.
        detail: explanation, with examples where they help.
    """

    column: str
    name: str
    value: float
    threshold: float | None = None
    alarm: bool = False
    invalid: bool = False
    detail: str = ""


class DriftResult(Frozen):
    """Drift of one window: its rows compared with the training rows of the version that served.

    Attributes:
        state: ``unknown`` with too few rows, ``invalid_schema`` if the input violates its contract.
        start: start of the window.
        end: end of the window, not included.
        checks: alarms first, then by how near they are to their threshold.
        budget: the yearly false-alarm budget: windows without drift that may raise an alarm.
        importance: share of the model's permutation importance that the columns with an alarm of drift carry; None
            without drift, or if the release has no importance.
    """

    state: DriftState
    version: int
    rows: int
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    checks: tuple[DriftCheckResult, ...] = ()
    budget: float
    importance: float | None = None
    reason: str

    @property
    def is_alarm(self) -> bool:
        return self.state in ("drift", "invalid_schema")


class SliceMetric(Frozen):
    """The metric on the rows that have one value of one column."""

    column: str
    value: str
    rows: int
    metric: Interval


class PerformanceEstimate(Frozen):
    """The metric estimated without labels, and whether the estimate can be trusted; ``why`` explains it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    trusted: bool
    why: str


class QualityResult(Frozen):
    """Quality of one version's predictions in one window, measured on ground-truth labels.

    Attributes:
        state: ``unknown`` with too few labels, or if the interval contains the bound.
        bound: the worst acceptable value of the metric.
        rows: number of predictions in the window.
        due: number of them that are old enough to have a label.
        labelled: number of those that have one.
        estimate: estimate for predictions whose labels are not due yet.
        expected: estimate for the same rows that ``value`` is measured on; shows how accurate estimates are.
    """

    state: QualityState
    version: int
    metric: str
    greater_is_better: bool = Field(default_factory=lambda fields: GREATER_IS_BETTER.get(fields["metric"], False))
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
    """The champion and the champion before it, compared on the same labelled rows.

    Attributes:
        rows: number of rows.
        champion, previous: the metric of each version; None if it cannot predict these rows.
        previous_is_better: whether the interval of the paired difference lies on the previous champion's side of 0.
        input_valid: whether the input satisfies the contract.
    """

    rows: int
    champion: float | None
    previous: float | None
    previous_is_better: bool
    input_valid: bool
    reason: str


class GainResult(Frozen):
    """The champion and refits of its recipe on the labelled rows of one window.

    Attributes:
        state: ``unknown`` with too few labels; ``unavailable`` if the recipe cannot be fitted again or compared.
        rows: number of labelled rows.
        loss: name of the loss of a row.
        champion, refit: its mean; None if it was not measured.
        blocks: mean loss of champion and refit in each block of consecutive rows.
        fitted_rows: largest number of rows that the recipe was fitted on.
        cpu_s: CPU seconds of fitting and predicting.
    """

    state: GainState
    version: int
    start: dt.datetime | None = None
    end: dt.datetime | None = None
    rows: int = 0
    loss: str = ""
    champion: float | None = None
    refit: float | None = None
    blocks: tuple[tuple[float, float], ...] = ()
    fitted_rows: int = 0
    cpu_s: float = 0.0
    reason: str
