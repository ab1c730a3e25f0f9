"""What a replay finds: step by step, policy by policy."""

import datetime as dt
from typing import Literal, get_args

import pandas as pd

from towline.config import GREATER_IS_BETTER, Frozen, Metric
from towline.monitoring.policy import Action, Trigger
from towline.monitoring.results import DriftState, QualityState
from towline.notebook import format_number, render_table

PolicyName = Literal["never", "schedule", "drift", "quality", "both"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


class Step(Frozen):
    """The rows from ``start`` up to but not at ``end``, and what the round at their end found and did.

    Attributes:
        rows: how many.
        value: the metric on all of them, labels that came too late for the round included; None where undefined.
        version: of the model that answered, counted within the replay.
        learnt_to: the newest row that it learnt from.
        drift, alarms: of the round, and the columns that alarmed.
        quality, measured: of the round, and the metric as far as its labels were known.
        action, trigger, reason: what was decided.
        outcome: what came of it: promoted, refused, rolled back, or not started, with the reason; else empty.
        cpu_s: CPU seconds of the training that it led to.
    """

    start: dt.datetime
    end: dt.datetime
    rows: int
    value: float | None
    version: int
    learnt_to: dt.datetime
    drift: DriftState = "unknown"
    alarms: tuple[str, ...] = ()
    quality: QualityState = "unknown"
    measured: float | None = None
    action: Action = "nothing"
    trigger: Trigger | None = None
    reason: str = ""
    outcome: str = ""
    cpu_s: float = 0.0

    @property
    def trained(self) -> bool:
        return self.cpu_s > 0


class PolicyResult(Frozen):
    """One policy from beginning to end.

    Attributes:
        value: the mean of the steps' metrics, weighted by their rows.
        by_step: the same mean with each step counting alike, however thin it is.
    """

    policy: PolicyName
    value: float | None
    by_step: float | None
    retrainings: int
    promoted: int
    alarms: int
    cpu_s: float
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, policy: PolicyName, steps: list[Step]) -> "PolicyResult":
        known = [(step.value, step.rows) for step in steps if step.value is not None]
        rows = sum(count for _, count in known)
        return cls(
            policy=policy,
            value=sum(value * count for value, count in known) / rows if rows else None,
            by_step=sum(value for value, _ in known) / len(known) if known else None,
            retrainings=sum(step.trained for step in steps),
            promoted=sum(step.outcome.startswith("promoted") for step in steps),
            alarms=sum(step.drift == "drift" for step in steps),
            cpu_s=round(sum(step.cpu_s for step in steps), 1),
            steps=tuple(steps),
        )


class BacktestResult(Frozen):
    """The policies side by side.

    Attributes:
        first_cpu_s: of the training that each life begins with.
        best: the policy with the best metric; of equal ones the one with the fewest trainings.
        notes: what to know when reading the numbers.
    """

    model: str
    metric: Metric
    start: dt.datetime
    end: dt.datetime
    step: str
    delay: dt.timedelta
    first_cpu_s: float
    lives: tuple[PolicyResult, ...]
    best: PolicyName
    notes: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        rows = [
            (life.policy, format_number(life.value), life.retrainings, life.promoted, life.alarms, life.cpu_s)
            for life in self.lives
        ]
        header = ("policy", self.metric, "trainings", "promoted", "alarms", "CPU s")
        return render_table(header, rows, caption=f"{self.model}: the best policy is {self.best}")

    def ratio(self, life: PolicyResult, mean: Literal["value", "by_step"] = "value") -> float | None:
        """The metric as a share of that of never retraining; None where that was not asked for."""
        never = next((getattr(one, mean) for one in self.lives if one.policy == "never"), None)
        value = getattr(life, mean)
        return value / never if never and value is not None else None


def best(lives: list[PolicyResult], metric: Metric) -> PolicyName:
    sign = -1 if GREATER_IS_BETTER[metric] else 1
    known = [life for life in lives if life.value is not None] or lives
    return min(known, key=lambda life: (sign * (life.value or 0.0), life.retrainings)).policy


def naive(moment: dt.datetime | str) -> pd.Timestamp:
    """A time as tables hold it: UTC, without a zone."""
    stamp = pd.Timestamp(moment)
    return stamp if stamp.tzinfo is None else stamp.tz_convert("UTC").tz_localize(None)


def aware(moment: pd.Timestamp) -> dt.datetime:
    """The same with its zone, as records hold it."""
    found: dt.datetime = moment.to_pydatetime().replace(tzinfo=dt.UTC)
    return found
