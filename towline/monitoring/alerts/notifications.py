"""Who is told, once: an alert is open until it is resolved, and while it is open nobody is told of it again.

The log (``towline.watch``) always is, and a webhook where the config names one. What a webhook did not take waits in
the file and goes with the next round: nothing that is wrong out there stops the watch.
"""

import datetime as dt
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from towline import files
from towline.config import AlertConfig, Frozen, PipelineConfig, Settings
from towline.monitoring.alerts.webhook import post
from towline.monitoring.policy import Decision
from towline.monitoring.results import DriftResult, QualityResult
from towline.monitoring.slo.burn_rate import Objective, Severity
from towline.store import StoreLayout

LOG = logging.getLogger("towline.watch")
FILE = "alerts.jsonl"
MOST = 1000  # alerts that are kept, the newest
OLD = dt.timedelta(days=1)  # what has been over for so long is told to nobody any more
_ACTIONS = {
    "warn": "something looks wrong",
    "retrain": "it is trained again",
    "roll back": "the champion before serves again",
    "block": "the input is broken: nothing is trained on it",
}


class Alert(Frozen):
    """What somebody should know.

    Attributes:
        model: whose. kind: slo, or reaction (what the policy decided). subject: which of the kind.
        severity: page (now) or ticket (in working hours).
        title, detail: one line; some more.
        at: when it was found.
        facts: numbers behind it, as JSON.
    """

    model: str
    kind: str
    severity: Severity
    title: str
    detail: str = ""
    at: dt.datetime
    facts: dict[str, Any] = Field(default_factory=dict)
    subject: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Two alerts of a model with the same key are the same alert."""
        return self.kind, self.subject


class AlertState(Frozen):
    """An alert from its opening to its end.

    Attributes:
        alert: what it is.
        id: the same in each message about it.
        resolved: when it was found to be over; None while it is open.
        told: the status that the webhook last heard of.
    """

    alert: Alert
    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    resolved: dt.datetime | None = None
    told: str = ""

    @property
    def status(self) -> str:
        return "resolved" if self.resolved else f"open, {self.alert.severity}"

    def document(self) -> dict[str, Any]:
        """What a webhook gets; ``text`` is what chats show."""
        told = self.alert.model_dump(mode="json")
        mark = "resolved" if self.resolved else self.alert.severity
        return {
            "id": self.id,
            "status": "resolved" if self.resolved else "open",
            **told,
            "resolved": self.resolved and self.resolved.isoformat(),
            "text": f"[{mark}] {_line(self.alert.title)}" + (f"\n{self.alert.detail}" if self.alert.detail else ""),
        }


class DeliveryReport(Frozen):
    """What became of a round of alerts.

    Attributes:
        opened, resolved: how many are new, and over.
        webhook: ``none`` (there is none, or nothing to tell), ``sent``, or ``failed`` (``why``; it is tried again with
            the next round).
    """

    opened: int = 0
    resolved: int = 0
    webhook: Literal["none", "sent", "failed"] = "none"
    why: str = ""

    def text(self) -> str:
        counted = [f"{self.opened} opened"] if self.opened else []
        counted += [f"{self.resolved} resolved"] if self.resolved else []
        away = {"sent": ["webhook told"], "failed": [f"webhook failed: {self.why}"]}.get(self.webhook, [])
        return ", ".join([*(counted or ["nothing new"]), *away])


def send(alert: Alert, config: AlertConfig, store: Path) -> DeliveryReport:
    """Tells of one alert, unless it is open already and no more severe than it was.

    Raises:
        TransientError: the store cannot be written.
    """
    return _tell(alert.model, config, store, alert.at, lambda known: _opened(known, [alert]))


def settle(
    model: str,
    kind: str,
    alerts: Sequence[Alert],
    config: AlertConfig,
    store: Path,
    at: dt.datetime,
    unknown: Iterable[str] = (),
) -> DeliveryReport:
    """Tells of all alerts of a kind that there are now; others of the kind that are open are over.

    Args:
        model: whose.
        kind: of all of them.
        alerts: there may be none.
        config: whom to tell.
        store: where it is kept, in ``watch/<model>/alerts.jsonl``.
        at: now.
        unknown: subjects of which nobody knows; what is open of them stays so.

    Raises:
        TransientError: the store cannot be written.
    """
    stay = {*unknown, *(alert.subject for alert in alerts)}

    def change(known: Sequence[AlertState]) -> list[AlertState]:
        over = [
            one.model_copy(update={"resolved": at})
            if not one.resolved and one.alert.kind == kind and one.alert.subject not in stay
            else one
            for one in known
        ]
        return _opened(over, alerts)

    return _tell(model, config, store, at, change)


def tell(
    settings: Settings, config: PipelineConfig, found: DriftResult | QualityResult | None, decision: Decision
) -> str:
    """Tells of a decision; one that is ``nothing`` resolves what was told before. What was done, in words.

    A block is a page, the rest tickets. A warning of an SLO is left to the alert of its objective.

    Raises:
        TransientError: the store cannot be written.
    """
    now, alerts = dt.datetime.now(dt.UTC), []
    if decision.action != "nothing" and (decision.action, decision.trigger) != ("warn", "slo"):
        facts: dict[str, Any] = {"action": decision.action, "trigger": decision.trigger, "cause": decision.cause}
        if found is not None:
            facts |= {"state": found.state, "version": found.version, "rows": found.rows}
        once = f" {decision.cause[:16]}" if decision.action in ("retrain", "roll back") else ""
        alert = Alert(
            model=config.name,
            kind="reaction",
            subject=decision.action + once,
            severity="page" if decision.action == "block" else "ticket",
            title=f"{config.name}: {_ACTIONS[decision.action]}",
            detail=decision.reason,
            at=now,
            facts=facts,
        )
        alerts.append(alert)
    return settle(config.name, "reaction", alerts, config.alerts, settings.store, now).text()


def tell_objectives(
    settings: Settings, config: PipelineConfig, objectives: Sequence[Objective], now: dt.datetime
) -> DeliveryReport:
    """Tells of objectives that burn, and of budgets that are spent; one that is met again is resolved.

    Raises:
        TransientError: the store cannot be written.
    """
    alerts, unknown = [], []
    for one in objectives:
        burning, spent = one.name, f"{one.name} budget"  # two things: the one ends long before the other
        if one.state == "unknown":
            unknown += [burning, spent]
        elif one.state == "burning":
            unknown.append(spent)
            alerts.append(_objective(config.name, one, burning, "burns its error budget", now))
        elif one.state == "spent":
            alerts.append(_objective(config.name, one, spent, "has spent its error budget", now))
    return settle(config.name, "slo", alerts, config.alerts, settings.store, now, unknown)


def _objective(model: str, one: Objective, subject: str, what: str, now: dt.datetime) -> Alert:
    return Alert(
        model=model,
        kind="slo",
        subject=subject,
        severity=one.severity or "ticket",
        title=f"{model}: {one.name} {what}",
        detail=one.reason,
        at=now,
        facts={
            "goal": one.goal,
            "good": one.good,
            "budget": one.budget,
            "burns": {burn.window: burn.rate for burn in one.burns},
        },
    )


def opened(store: Path, model: str) -> tuple[Alert, ...]:
    """The alerts that are open, oldest first."""
    return tuple(one.alert for one in read(store, model) if not one.resolved)


def read(store: Path, model: str) -> tuple[AlertState, ...]:
    """All alerts that are kept, oldest first."""
    return tuple(files.records(_path(store, model), AlertState))


def _opened(known: Sequence[AlertState], alerts: Iterable[Alert]) -> list[AlertState]:
    """With these open. One that was a ticket and is a page now is told again; a page stays one until it is over."""
    changed = list(known)
    for alert in alerts:
        place = next((i for i, one in enumerate(changed) if not one.resolved and one.alert.key == alert.key), None)
        if place is None:
            changed.append(AlertState(alert=alert))
        elif alert.severity == "page" and changed[place].alert.severity == "ticket":
            worse = alert.model_copy(update={"at": changed[place].alert.at})
            changed[place] = changed[place].model_copy(update={"alert": worse})
    return changed


def _tell(
    model: str,
    config: AlertConfig,
    store: Path,
    now: dt.datetime,
    change: Callable[[Sequence[AlertState]], list[AlertState]],
) -> DeliveryReport:
    path = _path(store, model)
    with files.locked(path.with_suffix(".lock")):
        known = read(store, model)
        before = {one.id: one.status for one in known}
        after = change(known)
        news = [one for one in after if before.get(one.id) != one.status]
        if news:
            _write(path, after)
    for one in news:
        level = logging.INFO if one.resolved else logging.ERROR if one.alert.severity == "page" else logging.WARNING
        told = "resolved: " if one.resolved else ""
        LOG.log(level, "%s%s: %s", told, _line(one.alert.title), _line(one.alert.detail))
    over = sum(one.resolved is not None for one in news)
    webhook, why = _deliver(path, model, config, store, now)
    return DeliveryReport(opened=len(news) - over, resolved=over, webhook=webhook, why=why)


def _deliver(
    path: Path, model: str, config: AlertConfig, store: Path, now: dt.datetime
) -> tuple[Literal["none", "sent", "failed"], str]:
    """Everything the webhook has not heard of, in order, up to the first that fails; one process at a time."""
    if config.webhook is None:
        return "none", ""
    with files.locked(path.with_suffix(".webhook.lock")):
        waiting = [one for one in read(store, model) if one.told != one.status and not _long_over(one, now)]
        for one in waiting:
            if why := post(config, one.document()):
                LOG.warning("the webhook was not told: %s; it is tried again with the next round", why)
                return "failed", why
            heard = {one.id: one.status}
            with files.locked(path.with_suffix(".lock")):
                known = read(store, model)
                _write(path, [each.model_copy(update={"told": heard.get(each.id, each.told)}) for each in known])
        return ("sent" if waiting else "none"), ""


def _long_over(one: AlertState, now: dt.datetime) -> bool:
    return one.resolved is not None and one.resolved < now - OLD


def _write(path: Path, episodes: Sequence[AlertState]) -> None:
    files.write(path, "".join(f"{one.model_dump_json()}\n" for one in episodes[-MOST:]))


def _path(store: Path, model: str) -> Path:
    return StoreLayout(store).monitoring(model) / FILE


def _line(text: str) -> str:
    """On one line, whatever a value of the data that stands in it holds."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
