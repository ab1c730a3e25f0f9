"""Alert notifications: an alert is open until it is resolved, and each change of its state is notified once.

Alerts are always logged (``towline.monitoring``), and sent to a webhook if the config has one. What the webhook did not
accept is stored and sent again with the next monitoring run. A failing webhook never stops monitoring.
"""

import datetime as dt
import logging
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from towline import files
from towline.config import AlertConfig, Frozen, PipelineConfig, Settings
from towline.monitoring.alerts.webhook import post_webhook
from towline.monitoring.policy import Decision
from towline.monitoring.results import DriftResult, QualityResult
from towline.monitoring.slo.burn_rate import Severity, SloStatus
from towline.store import StoreLayout

LOG = logging.getLogger("towline.monitoring")
FILE = "alerts.jsonl"
MAX_ALERTS = 1000  # stored, the newest
MAX_RESOLVED_AGE = dt.timedelta(days=1)  # alerts resolved earlier are not sent any more
_ACTIONS = {
    "warn": "a problem was detected",
    "retrain": "a training was started",
    "roll back": "the previous champion serves again",
    "block": "the input is invalid, training is blocked",
}


class Alert(Frozen):
    """A problem that needs the attention of a person.

    Attributes:
        model: name of the model.
        kind: ``slo``, ``reaction`` (a decision of the policy) or ``rollout``.
        severity: page (act now) or ticket (act in working hours).
        title: one line.
        detail: more about it.
        at: time when it was detected.
        data: the numbers behind it, as JSON.
        subject: which alert of its kind.
    """

    model: str
    kind: str
    severity: Severity
    title: str
    detail: str = ""
    at: dt.datetime
    data: dict[str, Any] = Field(default_factory=dict)
    subject: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Two alerts of a model with the same key are the same alert."""
        return self.kind, self.subject


class AlertState(Frozen):
    """An alert and its state.

    Attributes:
        alert: the alert.
        id: the same in all messages about it.
        resolved: time when it was resolved; None while it is open.
        notified: the status that the webhook received last.
    """

    alert: Alert
    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    resolved: dt.datetime | None = None
    notified: str = ""

    @property
    def status(self) -> str:
        return "resolved" if self.resolved else f"open, {self.alert.severity}"

    def document(self) -> dict[str, Any]:
        """The message to a webhook; chats show its ``text``."""
        label = "resolved" if self.resolved else self.alert.severity
        return {
            "id": self.id,
            "status": "resolved" if self.resolved else "open",
            **self.alert.model_dump(mode="json"),
            "resolved": self.resolved and self.resolved.isoformat(),
            "text": f"[{label}] {_to_line(self.alert.title)}" + (f"\n{self.alert.detail}" if self.alert.detail else ""),
        }


class DeliveryReport(Frozen):
    """The result of a notification.

    Attributes:
        opened, resolved: number of alerts that were opened and resolved.
        webhook: ``none`` (no webhook, or nothing to send), ``sent``, or ``failed`` (``why``; it is repeated with the
            next monitoring run).
    """

    opened: int = 0
    resolved: int = 0
    webhook: Literal["none", "sent", "failed"] = "none"
    why: str = ""

    def text(self) -> str:
        changes = [f"{self.opened} opened"] if self.opened else []
        changes += [f"{self.resolved} resolved"] if self.resolved else []
        delivery = {"sent": ["webhook notified"], "failed": [f"webhook failed: {self.why}"]}.get(self.webhook, [])
        return ", ".join([*(changes or ["no change"]), *delivery])


class AlertStore:
    """The alerts of a model: ``alerts.jsonl`` in its monitoring folder.

    Args:
        store: folder of the store.
        model: name of the model.
        config: where alerts are sent.
    """

    def __init__(self, store: Path, model: str, config: AlertConfig) -> None:
        self.path, self.config = _alerts_path(store, model), config

    def replace(
        self, kind: str, alerts: Sequence[Alert], at: dt.datetime, unknown: Iterable[str] = ()
    ) -> DeliveryReport:
        """Opens all current alerts of a kind, and resolves the other open alerts of that kind.

        Args:
            kind: kind of all these alerts.
            alerts: the current alerts; may be empty.
            at: current time.
            unknown: subjects with an unknown state; their open alerts stay open.

        Raises:
            TransientError: the store cannot be written.
        """
        current = {*unknown, *(alert.subject for alert in alerts)}
        with files.exclusive_lock(self.path.with_suffix(".lock")):
            before = _read(self.path)
            statuses = {state.id: state.status for state in before}
            updated = [
                state.model_copy(update={"resolved": at})
                if not state.resolved and state.alert.kind == kind and state.alert.subject not in current
                else state
                for state in before
            ]
            after = _open_alerts(updated, alerts)
            changed = [state for state in after if statuses.get(state.id) != state.status]
            if changed:
                _write(self.path, after)
        for state in changed:
            alert, level = state.alert, logging.ERROR if state.alert.severity == "page" else logging.WARNING
            prefix, level = ("resolved: ", logging.INFO) if state.resolved else ("", level)
            LOG.log(level, "%s%s: %s", prefix, _to_line(alert.title), _to_line(alert.detail))
        resolved = sum(state.resolved is not None for state in changed)
        return self._deliver(at).model_copy(update={"opened": len(changed) - resolved, "resolved": resolved})

    def _deliver(self, now: dt.datetime) -> DeliveryReport:
        """Sends all pending states, pages first, until the webhook fails; one process at a time.

        An alert that the webhook rejects, for example for its length, does not hold up the others.
        """
        if self.config.webhook is None:
            return DeliveryReport()
        with files.exclusive_lock(self.path.with_suffix(".webhook.lock")):
            unsent = [state for state in _read(self.path) if state.notified != state.status]
            pending = [state for state in unsent if not state.resolved or state.resolved >= now - MAX_RESOLVED_AGE]
            why = ""
            for state in sorted(pending, key=lambda state: state.alert.severity != "page"):
                failure = post_webhook(self.config, state.document())
                if failure is None:
                    self._mark_notified(state)
                    continue
                why = failure.reason
                LOG.warning("the webhook failed: %s; it is repeated with the next monitoring run", why)
                if not failure.rejects_alert:
                    break
            return DeliveryReport(webhook="failed" if why else "sent" if pending else "none", why=why)

    def _mark_notified(self, sent: AlertState) -> None:
        with files.exclusive_lock(self.path.with_suffix(".lock")):
            update = {"notified": sent.status}
            states = _read(self.path)
            _write(self.path, [state.model_copy(update=update) if state.id == sent.id else state for state in states])


def notify_decision(
    settings: Settings, config: PipelineConfig, result: DriftResult | QualityResult | None, decision: Decision
) -> str:
    """Opens the alert of a decision, or resolves earlier ones if it is ``nothing``; returns what was done, in words.

    A block is a page, other decisions are tickets. A warning of an SLO is left to the alert of that SLO.

    Raises:
        TransientError: the store cannot be written.
    """
    now, alerts = dt.datetime.now(dt.UTC), []
    if decision.action != "nothing" and (decision.action, decision.trigger) != ("warn", "slo"):
        data: dict[str, Any] = {"action": decision.action, "trigger": decision.trigger, "cause": decision.cause}
        if result is not None:
            data |= {"state": result.state, "version": result.version, "rows": result.rows}
        # each training and rollback is a separate alert
        suffix = f" {decision.cause[:16]}" if decision.action in ("retrain", "roll back") else ""
        alert = Alert(
            model=config.name,
            kind="reaction",
            subject=decision.action + suffix,
            severity="page" if decision.action == "block" else "ticket",
            title=f"{config.name}: {_ACTIONS[decision.action]}",
            detail=decision.reason,
            at=now,
            data=data,
        )
        alerts.append(alert)
    return AlertStore(settings.store, config.name, config.alerts).replace("reaction", alerts, now).text()


def notify_rollout(settings: Settings, config: PipelineConfig, version: int, action: str, reason: str) -> str:
    """Notifies of a rollout after which the champion still serves; resolves the alert when another rollout continues.

    Raises:
        TransientError: the store cannot be written.
    """
    alert = Alert(
        model=config.name,
        kind="rollout",
        severity="ticket",
        title=f"{config.name}: the rollout of version {version} has ended, the champion stays",
        detail=reason,
        at=dt.datetime.now(dt.UTC),
        subject="rollout",
    )
    alerts = [alert] if action in ("abort", "end") else []
    return AlertStore(settings.store, config.name, config.alerts).replace("rollout", alerts, alert.at).text()


def notify_slos(
    settings: Settings, config: PipelineConfig, statuses: Sequence[SloStatus], now: dt.datetime
) -> DeliveryReport:
    """Opens alerts of breaches and exhausted budgets; those of SLOs that are met again are resolved.

    Raises:
        TransientError: the store cannot be written.
    """
    alerts, unknown = [], []
    for status in statuses:
        # two alerts: a breach ends long before its budget recovers
        breach, budget = status.name, f"{status.name} budget"
        if status.state == "unknown":
            unknown += [breach, budget]
        elif status.state == "burning":
            unknown.append(budget)
            alerts.append(_slo_alert(config.name, status, breach, "burns its error budget too fast", now))
        elif status.state == "exhausted":
            alerts.append(_slo_alert(config.name, status, budget, "has exhausted its error budget", now))
    return AlertStore(settings.store, config.name, config.alerts).replace("slo", alerts, now, unknown)


def _slo_alert(model: str, status: SloStatus, subject: str, problem: str, now: dt.datetime) -> Alert:
    return Alert(
        model=model,
        kind="slo",
        subject=subject,
        severity=status.severity or "ticket",
        title=f"{model}: {status.name} {problem}",
        detail=status.reason,
        at=now,
        data={
            "goal": status.goal,
            "good": status.good,
            "budget": status.budget,
            "burns": {burn.window: burn.rate for burn in status.burns},
        },
    )


def read_alerts(store: Path, model: str) -> tuple[AlertState, ...]:
    """All stored alerts, oldest first."""
    return _read(_alerts_path(store, model))


def read_open_alerts(store: Path, model: str) -> tuple[Alert, ...]:
    """The open alerts, oldest first."""
    return tuple(state.alert for state in read_alerts(store, model) if not state.resolved)


def _open_alerts(states: Sequence[AlertState], alerts: Iterable[Alert]) -> list[AlertState]:
    """Opens these alerts. A ticket that becomes a page is notified again; an open page does not become a ticket."""
    updated = list(states)
    for alert in alerts:
        position = next(
            (i for i, state in enumerate(updated) if not state.resolved and state.alert.key == alert.key), None
        )
        if position is None:
            updated.append(AlertState(alert=alert))
        elif alert.severity == "page" and updated[position].alert.severity == "ticket":
            escalated = alert.model_copy(update={"at": updated[position].alert.at})
            updated[position] = updated[position].model_copy(update={"alert": escalated})
    return updated


def _read(path: Path) -> tuple[AlertState, ...]:
    return tuple(files.read_records(path, AlertState))


def _write(path: Path, states: Sequence[AlertState]) -> None:
    files.write(path, "".join(f"{state.model_dump_json()}\n" for state in states[-MAX_ALERTS:]))


def _alerts_path(store: Path, model: str) -> Path:
    return StoreLayout(store).monitoring(model) / FILE


def _to_line(text: str) -> str:
    """The text on one line, even if values of the data contain line breaks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
