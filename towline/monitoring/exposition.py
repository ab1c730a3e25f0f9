"""The state of the watch as Prometheus reads it, for the textfile collector of its node exporter."""

import datetime as dt
from collections.abc import Iterable, Iterator

from towline.config import Frozen
from towline.monitoring.alerts import Alert
from towline.monitoring.evidence import Drift, Quality
from towline.monitoring.slo import Objective


class Watched(Frozen):
    """What is known of one model; ``version`` and ``since``, of its champion."""

    model: str
    version: int | None = None
    since: dt.datetime | None = None
    drift: Drift | None = None
    quality: Quality | None = None
    objectives: tuple[Objective, ...] = ()
    alerts: tuple[Alert, ...] = ()


_GAUGES = {
    "drift_alarm": ("1 where a column has drifted or is broken.", ("column",)),
    "quality": ("The metric on late labels, of the last window.", ("metric",)),
    "quality_bad": ("1 where the last window is bad.", ()),
    "slo_budget_remaining": ("Share of the error budget that is left.", ("objective",)),
    "slo_burn_rate": ("1 uses the budget up in its period.", ("objective", "window")),
    "slo_breached": ("1 where the budget burns too fast.", ("objective",)),
    "alerts_open": ("Alerts that are open.", ("severity",)),
    "model_age_seconds": ("Since the champion serves.", ()),
}
_Row = tuple[str, tuple[str, ...], float | None]


def exposition(models: Iterable[Watched], now: dt.datetime) -> str:
    """Gauges of all models. What is unknown is absent, rather than 0."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges = {
        name: Gauge(f"towline_{name}", text, ("model", *labels), registry=registry)
        for name, (text, labels) in _GAUGES.items()
    }
    for one in models:
        for name, labels, value in (*_model(one, now), *_objectives(one.objectives)):
            if value is not None:
                gauges[name].labels(one.model, *labels).set(value)
    return generate_latest(registry).decode()


def _model(one: Watched, now: dt.datetime) -> Iterator[_Row]:
    if one.since is not None:
        yield "model_age_seconds", (), (now - one.since).total_seconds()
    for column, alarmed in _columns(one.drift).items():
        yield "drift_alarm", (column,), alarmed
    if one.quality is not None:
        yield "quality", (one.quality.metric,), one.quality.value.value
        yield "quality_bad", (), None if one.quality.state == "unknown" else one.quality.state == "bad"
    for severity in ("page", "ticket"):
        yield "alerts_open", (severity,), sum(alert.severity == severity for alert in one.alerts)


def _objectives(objectives: Iterable[Objective]) -> Iterator[_Row]:
    for one in objectives:
        if one.state != "unknown":
            yield "slo_breached", (one.name,), one.state == "burning"
            yield "slo_budget_remaining", (one.name,), one.budget
            for burn in one.burns:
                yield "slo_burn_rate", (one.name, burn.window), burn.rate


def _columns(drift: Drift | None) -> dict[str, bool]:
    found: dict[str, bool] = {}
    if drift is not None and drift.state != "unknown":
        for finding in drift.findings:
            found[finding.column] = found.get(finding.column, False) or finding.alarm or finding.broken
    return found
