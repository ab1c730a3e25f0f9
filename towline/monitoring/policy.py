"""The monitoring policy decides what to do about drift and degraded quality: one pure function of the evidence.

The scheduled flows and the backtest use the same function.
"""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

from towline.config import Frozen, RetrainConfig
from towline.config.monitoring import PolicyTrigger
from towline.formatting import format_number
from towline.html.notebook import render_fields, render_table
from towline.monitoring.gain_evidence import GainVerdict, judge_gain
from towline.monitoring.results import ChampionComparison, DriftResult, GainResult, QualityResult

Action = Literal["nothing", "warn", "retrain", "roll back", "block"]


class Evidence(Frozen):
    """Everything a decision is based on.

    Attributes:
        now: time of the decision.
        champion: version that serves.
        since: time from which it serves.
        previous: version that a rollback would promote; None if there is none.
        drift, quality: the last windows of this champion, oldest first.
        gain: the windows of this champion since the last training, oldest first.
        labels_arrive: whether labels arrive, so that the gain of a training can be measured.
        comparison: with the previous champion on the last quality window, if that is degraded.
        new_rows: number of rows that the champion was not trained on; None if not counted.
        last_training: time of the last training that a decision started.
        breach: description of an SLO whose error budget burns too fast; else empty.
        on_breach: reaction to a breach by the config.
        clock_problem: description of wrong timestamps; else empty.
    """

    now: dt.datetime
    champion: int
    since: dt.datetime
    previous: int | None = None
    drift: tuple[DriftResult, ...] = ()
    quality: tuple[QualityResult, ...] = ()
    gain: tuple[GainResult, ...] = ()
    labels_arrive: bool = False
    comparison: ChampionComparison | None = None
    new_rows: int | None = None
    last_training: dt.datetime | None = None
    breach: str = ""
    on_breach: Literal["alert", "rollback", "retrain"] = "alert"
    clock_problem: str = ""


class Decision(Frozen):
    """An action and its reason. Decisions with the same ``cause`` are carried out once."""

    action: Action
    trigger: PolicyTrigger | None
    reason: str
    cause: str


class MonitoringRun(Frozen):
    """The result of one monitoring run: the measurement, the decision and the action.

    Attributes:
        report: path of the drift report, if one was written.
        done: result of the action; empty if there was none.
    """

    model: str
    version: int
    at: dt.datetime
    drift: DriftResult | None = None
    quality: QualityResult | None = None
    gain: GainResult | None = None
    decision: Decision | None = None
    report: str = ""
    done: str = ""

    def _repr_html_(self) -> str:
        fields: dict[str, object] = {"model": f"{self.model}@{self.version}", "report": self.report}
        for name, result in (("drift", self.drift), ("quality", self.quality), ("gain", self.gain)):
            fields |= {name: result.state, f"{name} in words": result.reason} if result else {}
        if self.decision:
            fields |= {"decision": self.decision.action, "because": self.decision.reason, "done": self.done}
        checks = [
            (check.column, check.name, format_number(check.value), format_number(check.threshold), check.detail)
            for check in (self.drift.checks if self.drift else ())
        ]
        header = ("column", "check", "value", "threshold", "detail")
        return render_fields(fields) + (render_table(header, checks) if checks else "")


def decide(evidence: Evidence, config: RetrainConfig) -> Decision:
    """The first rule that applies.

    1. Block if the input of the last window violates its contract: no model is trained on it.
    2. Roll back if the previous champion is better on the same rows, or on an SLO breach if the config says so.
    3. Retrain if a training pays (``gain``) or, while its gain cannot be measured, if ``bad_windows`` of the last
       ``recent_windows`` are bad; and if the cooldown is over and there are new rows. If one of these conditions fails,
       warn.
    4. Warn of a single bad window, a breach or wrong timestamps.

    A bad window that ended before the last training is not reported again: the training is the reaction to it.
    """
    for rule in (_block, _roll_back, _retrain, _warn):
        if decision := rule(evidence, config):
            return decision
    reasons = [window.reason for window in _last_windows(evidence)]
    if evidence.last_training and any(_precedes_training(window, evidence) for window in _last_windows(evidence)):
        reasons.append(f"a training started at {evidence.last_training:%Y-%m-%d %H:%M}, after this window")
    if verdict := _judge_gain(evidence, config):
        reasons.append(verdict.reason)
    return _decision(evidence, "nothing", None, "; ".join(reasons) or "no window was checked yet", evidence.now)


def _block(evidence: Evidence, _: RetrainConfig) -> Decision | None:
    for window in evidence.drift[-1:]:
        if window.state == "invalid_schema":
            return _decision(evidence, "block", "drift", f"invalid input: {window.reason}", window.end)
    comparison = _comparison(evidence)
    if comparison and not comparison.input_valid:
        end = evidence.quality[-1].end
        return _decision(evidence, "block", "quality", f"invalid input: {comparison.reason}", end)
    return None


def _roll_back(evidence: Evidence, config: RetrainConfig) -> Decision | None:
    if evidence.previous is None:
        return None
    comparison = _comparison(evidence)
    if comparison and comparison.previous_is_better:
        reason = f"version {evidence.previous} is better on the same {comparison.rows:,} rows: {comparison.reason}"
        return _decision(evidence, "roll back" if config.rollback else "warn", "quality", reason)
    if evidence.breach and evidence.on_breach == "rollback":
        return _decision(evidence, "roll back", "slo", evidence.breach)
    return None


def _retrain(evidence: Evidence, config: RetrainConfig) -> Decision | None:
    triggers = _active_triggers(evidence, config)
    for trigger in triggers:
        if trigger.bad_windows >= config.bad_windows:
            obstacle = _training_obstacle(evidence, config)
            if not obstacle:
                return _decision(evidence, "retrain", trigger.name, trigger.reason)
            return _decision(evidence, "warn", trigger.name, f"{trigger.reason}; no training: {obstacle}", evidence.now)
    for trigger in triggers:
        count = (
            f"{trigger.bad_windows} of {config.recent_windows} windows are bad, {config.bad_windows} start a training"
        )
        return _decision(evidence, "warn", trigger.name, f"{trigger.reason}; {count}", evidence.now)
    return None


def _warn(evidence: Evidence, config: RetrainConfig) -> Decision | None:
    """Problems that the config does not act on, and wrong timestamps."""
    reasons = [evidence.breach] if evidence.breach else []
    bad = [window for window in _last_windows(evidence) if window.state in ("degraded", "drift")]
    reasons += [window.reason for window in bad if not _precedes_training(window, evidence)]
    if reasons and (verdict := _judge_gain(evidence, config)):
        reasons.append(verdict.reason)
    if evidence.clock_problem and not any(evidence.clock_problem in reason for reason in reasons):
        reasons.append(evidence.clock_problem)
    # the SLO has an alert of its own, other reasons have not
    trigger: PolicyTrigger | None = "slo" if reasons == [evidence.breach] else None
    return _decision(evidence, "warn", trigger, "; ".join(reasons), evidence.now) if reasons else None


class _ActiveTrigger(NamedTuple):
    """A reason to retrain; ``bad_windows`` counts those among the recent ones."""

    name: PolicyTrigger
    bad_windows: int
    reason: str


def _active_triggers(evidence: Evidence, config: RetrainConfig) -> list[_ActiveTrigger]:
    drift, quality = evidence.drift[-config.recent_windows :], evidence.quality[-config.recent_windows :]
    triggers: list[_ActiveTrigger] = []
    if evidence.breach and evidence.on_breach == "retrain":
        triggers.append(_ActiveTrigger("slo", config.bad_windows, evidence.breach))
    if "gain" in config.triggers and is_gain_measurable(evidence):
        verdict = _judge_gain(evidence, config)
        if verdict and verdict.pays:
            triggers.append(_ActiveTrigger("gain", config.bad_windows, verdict.reason))
        return triggers
    windows: tuple[tuple[PolicyTrigger, Sequence[DriftResult | QualityResult], str], ...] = (
        ("quality", quality, "degraded"),
        ("drift", drift, "drift"),
    )
    for name, recent, state in windows:
        count = _count_bad([window.state == state for window in recent])
        if name in config.triggers and count and not _precedes_training(recent[-1], evidence):
            triggers.append(_ActiveTrigger(name, count, recent[-1].reason))
    return triggers


def is_gain_measurable(evidence: Evidence) -> bool:
    """Whether the gain of a training is or will be known, so that drift and quality need not stand for it."""
    return evidence.labels_arrive and all(window.state != "unavailable" for window in evidence.gain[-1:])


def _judge_gain(evidence: Evidence, config: RetrainConfig) -> GainVerdict | None:
    return judge_gain(evidence.gain, config.min_gain) if "gain" in config.triggers else None


def _last_windows(evidence: Evidence) -> list[DriftResult | QualityResult]:
    return [*evidence.quality[-1:], *evidence.drift[-1:]]


def _precedes_training(window: DriftResult | QualityResult, evidence: Evidence) -> bool:
    return bool(evidence.last_training and window.end and window.end <= evidence.last_training)


def _comparison(evidence: Evidence) -> ChampionComparison | None:
    return evidence.comparison if evidence.quality and evidence.quality[-1].state == "degraded" else None


def _count_bad(windows: Sequence[bool]) -> int:
    """How many windows are bad; 0 if the last one is not."""
    return sum(windows) if windows and windows[-1] else 0


def _training_obstacle(evidence: Evidence, config: RetrainConfig) -> str:
    """Why no training may start now; empty if it may."""
    if evidence.last_training and evidence.now < evidence.last_training + config.cooldown:
        return f"the last one was on {evidence.last_training:%Y-%m-%d}, cooldown {config.cooldown.days} days"
    if evidence.new_rows is not None and evidence.new_rows < config.min_rows:
        return f"{evidence.new_rows:,} new rows, {config.min_rows:,} are needed"
    return ""


def _decision(
    evidence: Evidence,
    action: Action,
    trigger: PolicyTrigger | None,
    reason: str,
    window_end: dt.datetime | None = None,
) -> Decision:
    """A decision with its cause: the action, the champion since it serves, the last training and the window.

    The trigger is not part of the cause: two flows that see the same problem at the same time start one training.
    """
    parts = (action, evidence.champion, evidence.since, evidence.last_training, window_end)
    cause = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
    return Decision(action=action, trigger=trigger, reason=reason, cause=cause)
