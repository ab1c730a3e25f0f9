"""Results of a backtest: step by step, policy by policy."""

import datetime as dt
from typing import Literal, get_args

import pandas as pd

from towline.config import Frozen
from towline.config.monitoring import PolicyTrigger
from towline.formatting import format_number
from towline.html.notebook import render_table
from towline.monitoring.policy import Action
from towline.monitoring.results import DriftState, QualityState
from towline.training.evaluation.definitions import Metric

PolicyName = Literal["never", "schedule", "drift", "quality", "both", "gain"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


class BacktestStep(Frozen):
    """The rows from ``start`` until ``end`` (not included), and the monitoring run at the end.

    Attributes:
        rows: number of rows.
        value: the metric on all rows, including labels that came too late for the monitoring run; None if undefined.
        version: version that made the predictions, counted within the backtest.
        trained_until: time of the newest row that this version was trained on.
        drift: drift state of the monitoring run.
        alarms: columns with an alarm.
        quality: quality state of the monitoring run.
        measured: the metric on the labels that were known by then.
        gain: share of the loss that a refit avoids on the newest window; None if it was not measured.
        refit_cpu_s: CPU seconds of that refit.
        action, trigger, reason: the decision.
        outcome: result of the action (promoted, refused, rolled back, or why there is no model); else empty.
        cpu_s: CPU seconds of the training that was started.
    """

    start: dt.datetime
    end: dt.datetime
    rows: int
    value: float | None
    version: int
    trained_until: dt.datetime
    drift: DriftState = "unknown"
    alarms: tuple[str, ...] = ()
    quality: QualityState = "unknown"
    measured: float | None = None
    gain: float | None = None
    refit_cpu_s: float = 0.0
    action: Action = "nothing"
    trigger: PolicyTrigger | None = None
    reason: str = ""
    outcome: str = ""
    cpu_s: float = 0.0

    @property
    def has_training(self) -> bool:
        return self.cpu_s > 0


class PolicyResult(Frozen):
    """One policy over the whole period.

    Attributes:
        value: mean of the steps' metrics, weighted by their rows.
        mean_of_steps: unweighted mean of the steps' metrics.
        alarms: number of steps with drift.
        cpu_s: CPU seconds of its trainings.
        refit_cpu_s: CPU seconds of its refits, which measure the gain of a training.
    """

    policy: PolicyName
    value: float | None
    mean_of_steps: float | None
    retrainings: int
    promoted: int
    alarms: int
    cpu_s: float
    refit_cpu_s: float = 0.0
    steps: tuple[BacktestStep, ...]

    @classmethod
    def of(cls, policy: PolicyName, steps: list[BacktestStep]) -> "PolicyResult":
        measured = [(step.value, step.rows) for step in steps if step.value is not None]
        rows = sum(count for _, count in measured)
        return cls(
            policy=policy,
            value=sum(value * count for value, count in measured) / rows if rows else None,
            mean_of_steps=sum(value for value, _ in measured) / len(measured) if measured else None,
            retrainings=sum(step.has_training for step in steps),
            promoted=sum(step.outcome.startswith("promoted") for step in steps),
            alarms=sum(step.drift == "drift" for step in steps),
            cpu_s=round(sum(step.cpu_s for step in steps), 1),
            refit_cpu_s=round(sum(step.refit_cpu_s for step in steps), 1),
            steps=tuple(steps),
        )


class BacktestResult(Frozen):
    """The policies side by side.

    Attributes:
        step: length of a step.
        delay: time until a label is known.
        first_cpu_s: CPU seconds of the first training, which all policies share.
        policies: their results.
        best: the policy with the best metric; of equal policies, that with the fewest trainings.
        notes: limits of the numbers.
    """

    model: str
    metric: str
    start: dt.datetime
    end: dt.datetime
    step: str
    delay: dt.timedelta
    first_cpu_s: float
    policies: tuple[PolicyResult, ...]
    best: PolicyName
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        rows = [
            (
                policy_result.policy,
                format_number(policy_result.value),
                policy_result.retrainings,
                policy_result.promoted,
                policy_result.alarms,
                policy_result.cpu_s,
            )
            for policy_result in self.policies
        ]
        header = ("policy", self.metric, "trainings", "promoted", "alarms", "CPU s")
        return render_table(header, rows, caption=f"{self.model}: the best policy is {self.best}")

    def ratio_to_never(self, result: PolicyResult, mean: Literal["value", "mean_of_steps"] = "value") -> float | None:
        """The metric as a share of that of never retraining; None if that policy was not simulated."""
        never = next((getattr(each, mean) for each in self.policies if each.policy == "never"), None)
        value = getattr(result, mean)
        return value / never if never and value is not None else None


def find_best(results: list[PolicyResult], metric: Metric) -> PolicyName:
    sign = -1 if metric.greater_is_better else 1
    measured = [result for result in results if result.value is not None] or results
    return min(measured, key=lambda result: (sign * (result.value or 0.0), result.retrainings)).policy


def to_naive(moment: dt.datetime | str) -> pd.Timestamp:
    """A time as tables hold it: in UTC, without a time zone."""
    stamp = pd.Timestamp(moment)
    return stamp if stamp.tzinfo is None else stamp.tz_convert("UTC").tz_localize(None)


def to_aware(moment: pd.Timestamp) -> dt.datetime:
    """A time as results hold it: in UTC, with its time zone."""
    aware: dt.datetime = moment.to_pydatetime().replace(tzinfo=dt.UTC)
    return aware
