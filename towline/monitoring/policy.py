"""From evidence to a decision: one pure function, the same for the nightly flows and for the replay of history."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Literal

from towline.config import Frozen, RetrainConfig
from towline.monitoring.results import ChampionComparison, DriftResult, QualityResult
from towline.notebook import format_number, render_fields, render_table

Action = Literal["nothing", "warn", "retrain", "roll back", "block"]
Trigger = Literal["drift", "quality", "slo", "schedule"]


class Evidence(Frozen):
    """What is known when it is decided.

    Attributes:
        now: the moment.
        champion, since: the version that serves, and from when on.
        previous: what a rollback leads to; None if there is nothing.
        drift, quality: the last windows of this champion, oldest first.
        triage: of the last quality window, where it is bad.
        new_rows: labelled rows that the champion was not trained on; None where unknown.
        trained: when a training was last started by a decision.
        breach: an SLO whose budget burns too fast, in words; else empty.
        on_breach: what the config wants then.
        clock: what is odd about the time of the rows, in words; else empty.
    """

    now: dt.datetime
    champion: int
    since: dt.datetime
    previous: int | None = None
    drift: tuple[DriftResult, ...] = ()
    quality: tuple[QualityResult, ...] = ()
    triage: ChampionComparison | None = None
    new_rows: int | None = None
    trained: dt.datetime | None = None
    breach: str = ""
    on_breach: Literal["alert", "rollback", "retrain"] = "alert"
    clock: str = ""


class Decision(Frozen):
    """What is to be done, and why. ``cause`` is the same for the same cause, so that nothing is done twice for it."""

    action: Action
    trigger: Trigger | None
    reason: str
    cause: str


class MonitoringRun(Frozen):
    """What came of one round: what was seen, and what was decided about it."""

    model: str
    version: int
    at: dt.datetime
    drift: DriftResult | None = None
    quality: QualityResult | None = None
    decision: Decision | None = None
    report: str = ""
    done: str = ""

    def _repr_html_(self) -> str:
        fields: dict[str, object] = {"model": f"{self.model}@{self.version}", "report": self.report}
        for name, result in (("drift", self.drift), ("quality", self.quality)):
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
    """The first that holds, in this order.

    Block where the last window's input breaks its contract: nothing is learnt from it. Roll back where the previous
    champion does better on the same rows. Retrain where ``need`` of the last ``of`` windows are bad, the cooldown is
    over and there are new rows to learn from; where one of these lacks, warn. Warn of a single bad window.
    """
    for rule in (_blocked, _rolled_back, _retrained, _warned):
        if decision := rule(evidence, config):
            return decision
    said = [window.reason for window in _last(evidence)]
    return _decision(evidence, "nothing", None, "; ".join(said) or "no window was looked at yet", evidence.now)


def _blocked(evidence: Evidence, _: RetrainConfig) -> Decision | None:
    for window in evidence.drift[-1:]:
        if window.state == "invalid_schema":
            return _decision(evidence, "block", "drift", f"the input is broken: {window.reason}", window.end)
    triage = _triage(evidence)
    if triage and not triage.sound:
        end = evidence.quality[-1].end
        return _decision(evidence, "block", "quality", f"the input is broken: {triage.reason}", end)
    return None


def _rolled_back(evidence: Evidence, config: RetrainConfig) -> Decision | None:
    if evidence.previous is None:
        return None
    triage = _triage(evidence)
    if triage and triage.better:
        told = f"version {evidence.previous} does better on the same {triage.rows:,} rows: {triage.reason}"
        return _decision(evidence, "roll back" if config.rollback else "warn", "quality", told)
    if evidence.breach and evidence.on_breach == "rollback":
        return _decision(evidence, "roll back", "slo", evidence.breach)
    return None


def _retrained(evidence: Evidence, config: RetrainConfig) -> Decision | None:
    signs = _signs(evidence, config)
    for trigger, bad, reason in signs:
        if bad >= config.need:
            held = _held(evidence, config)
            if not held:
                return _decision(evidence, "retrain", trigger, reason)
            return _decision(evidence, "warn", trigger, f"{reason}; no training: {held}", evidence.now)
    for trigger, bad, reason in signs:
        told = f"{reason}; {bad} bad of {config.of} windows, {config.need} lead to training"
        return _decision(evidence, "warn", trigger, told, evidence.now)
    return None


def _warned(evidence: Evidence, _: RetrainConfig) -> Decision | None:
    """Signs that lead to nothing by the config; a clock that cannot be trusted."""
    said = [evidence.breach] if evidence.breach else []
    said += [window.reason for window in _last(evidence) if window.state in ("degraded", "drift")]
    said += [evidence.clock] if evidence.clock and not any(evidence.clock in each for each in said) else []
    trigger: Trigger | None = "slo" if evidence.breach else None
    return _decision(evidence, "warn", trigger, "; ".join(said), evidence.now) if said else None


def _signs(evidence: Evidence, config: RetrainConfig) -> list[tuple[Trigger, int, str]]:
    """What could lead to training: by what, how many bad windows, the last one's reason."""
    drift, quality = evidence.drift[-config.of :], evidence.quality[-config.of :]
    signs: list[tuple[Trigger, int, str]] = []
    if evidence.breach and evidence.on_breach == "retrain":
        signs.append(("slo", config.need, evidence.breach))
    if "quality" in config.signs and (bad := _bad([window.state == "degraded" for window in quality])):
        signs.append(("quality", bad, quality[-1].reason))
    if "drift" in config.signs and (bad := _bad([window.state == "drift" for window in drift])):
        signs.append(("drift", bad, drift[-1].reason))
    return signs


def _last(evidence: Evidence) -> list[DriftResult | QualityResult]:
    return [*evidence.quality[-1:], *evidence.drift[-1:]]


def _triage(evidence: Evidence) -> ChampionComparison | None:
    return evidence.triage if evidence.quality and evidence.quality[-1].state == "degraded" else None


def _bad(windows: Sequence[bool]) -> int:
    """How many of the last windows are bad; 0 where the very last one is not."""
    return sum(windows) if windows and windows[-1] else 0


def _held(evidence: Evidence, config: RetrainConfig) -> str:
    """Why no training may start now; empty where it may."""
    if evidence.trained and evidence.now < evidence.trained + config.cooldown:
        return f"the last one was on {evidence.trained:%Y-%m-%d}, cooldown {config.cooldown.days} days"
    if evidence.new_rows is not None and evidence.new_rows < config.min_rows:
        return f"{evidence.new_rows:,} new rows, {config.min_rows:,} are needed"
    return ""


def _decision(
    evidence: Evidence, action: Action, trigger: Trigger | None, reason: str, moment: dt.datetime | None = None
) -> Decision:
    """A cause is an action on one champion since it serves (and since the last training), or at one moment.

    What led to a training is no part of it: two flows that see the same ill at once start one training.
    """
    parts = (action, evidence.champion, evidence.since, evidence.trained, moment)
    cause = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
    return Decision(action=action, trigger=trigger, reason=reason, cause=cause)
