"""The state of the watch as Prometheus reads it."""

import datetime as dt
from collections.abc import Iterable, Iterator

from towline.config import GREATER_IS_BETTER, Frozen
from towline.monitoring.alerts.notifications import Alert
from towline.monitoring.results import DriftResult, QualityResult
from towline.monitoring.slo.burn_rate import Objective


class FlowDueTime(Frozen):
    """When a flow last came to an end, and when it should have come to the next one, where its schedule says so."""

    flow: str
    last: dt.datetime | None = None
    due: dt.datetime | None = None


class SloTarget(Frozen):
    """Of a config: the share of good requests, and within how many seconds 95 % of them answer.

    Attributes:
        edge: the next edge of the service's histogram at or above ``p95``.
    """

    availability: float | None = None
    p95: float | None = None
    edge: float | None = None


class ModelMetricsSnapshot(Frozen):
    """What is known of one model.

    Attributes:
        version, since, trained: of its champion.
        drift, quality: the last windows.
        readable: whether its part of the store could be read; else nothing else is known.
    """

    model: str
    version: int | None = None
    since: dt.datetime | None = None
    trained: dt.datetime | None = None
    drift: DriftResult | None = None
    quality: QualityResult | None = None
    objectives: tuple[Objective, ...] = ()
    alerts: tuple[Alert, ...] = ()
    rounds: tuple[FlowDueTime, ...] = ()
    promise: SloTarget = SloTarget()
    readable: bool = True


_GAUGES = {
    "watch_readable": ("1 where what the watch keeps of a model can be read.", ()),
    "champion_version": ("The version that serves, as the ledger has it.", ()),
    "model_age_seconds": ("Since the champion serves.", ()),
    "model_trained_timestamp_seconds": ("When the champion was trained, since 1970.", ()),
    "drift_alarm": ("1 where a column has drifted or is broken.", ("column",)),
    "drift_ratio": ("How far away a column is from its training rows; 1 alarms.", ("column",)),
    "drift_rows": ("Rows of the last night.", ()),
    "input_broken": ("1 where the rows of the last night break their contract.", ()),
    "quality": ("The metric on late labels, of the last window.", ("metric",)),
    "quality_low": ("The lower end of its 95 % interval.", ("metric",)),
    "quality_high": ("The upper end of its 95 % interval.", ("metric",)),
    "quality_bound": ("The value of the metric that is still accepted.", ("metric",)),
    "quality_headroom": ("How much better the metric is than its bound; negative where it is worse.", ("metric",)),
    "quality_bad": ("1 where the last window is bad.", ()),
    "quality_coverage": ("Share of the predictions due for a label that have one.", ()),
    "quality_estimate": ("The metric before labels are there.", ("metric", "trusted")),
    "slo_target": ("Share of requests that must be good.", ("objective",)),
    "slo_p95_seconds": ("Within which 95 % of requests must answer.", ()),
    "slo_p95_edge_seconds": ("The edge of the service's histogram at or above it.", ()),
    "slo_budget_remaining": ("Share of the error budget that is left.", ("objective",)),
    "slo_burn_rate": ("1 uses the budget up in its period.", ("objective", "window")),
    "slo_breached": ("1 where the budget burns too fast.", ("objective",)),
    "alerts_open": ("Alerts of the watch that are open.", ("severity",)),
    "last_round_timestamp_seconds": ("When a flow last came to an end, since 1970.", ("flow",)),
    "round_due_timestamp_seconds": ("When the round after the last one was due by its schedule.", ("flow",)),
}
_Row = tuple[str, tuple[str, ...], float | None]


def exposition(models: Iterable[ModelMetricsSnapshot], now: dt.datetime, ledger: bool | None = None) -> str:
    """Gauges of all models, and whether the ledger can be read. What is unknown is absent, rather than 0."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges = {
        name: Gauge(f"towline_{name}", text, ("model", *labels), registry=registry)
        for name, (text, labels) in _GAUGES.items()
    }
    if ledger is not None:
        Gauge("towline_ledger_up", "1 where the ledger can be read.", registry=registry).set(ledger)
    for one in models:
        for name, labels, value in _rows(one, now):
            if value is not None:
                gauges[name].labels(one.model, *labels).set(value)
    return generate_latest(registry).decode()


def _rows(one: ModelMetricsSnapshot, now: dt.datetime) -> Iterator[_Row]:
    yield "watch_readable", (), one.readable
    if not one.readable:
        return
    yield "champion_version", (), one.version
    yield "model_age_seconds", (), None if one.since is None else (now - one.since).total_seconds()
    yield "model_trained_timestamp_seconds", (), _seconds(one.trained)
    yield from _drift(one.drift)
    yield from _quality(one.quality)
    yield from _objectives(one.objectives)
    yield "slo_target", ("availability",), one.promise.availability
    yield "slo_p95_seconds", (), one.promise.p95
    yield "slo_p95_edge_seconds", (), one.promise.edge
    for severity in ("page", "ticket"):
        yield "alerts_open", (severity,), sum(alert.severity == severity for alert in one.alerts)
    for each in one.rounds:
        yield "last_round_timestamp_seconds", (each.flow,), _seconds(each.last)
        yield "round_due_timestamp_seconds", (each.flow,), _seconds(each.due)


def _drift(drift: DriftResult | None) -> Iterator[_Row]:
    if drift is None:
        return
    yield "drift_rows", (), drift.rows
    if drift.state == "unknown":
        return
    yield "input_broken", (), drift.state == "invalid_schema"
    alarms: dict[str, bool] = {}
    ratios: dict[str, float] = {}
    for check in drift.checks:
        alarms[check.column] = alarms.get(check.column, False) or check.alarm or check.invalid
        if check.threshold:
            ratio = check.value / check.threshold
            ratios[check.column] = max(ratios.get(check.column, 0.0), ratio)
    for column, alarmed in alarms.items():
        yield "drift_alarm", (column,), alarmed
        yield "drift_ratio", (column,), ratios.get(column)


def _quality(quality: QualityResult | None) -> Iterator[_Row]:
    if quality is None:
        return
    metric, value, bound = (quality.metric,), quality.value.value, quality.bound
    yield "quality", metric, value
    yield "quality_low", metric, quality.value.low
    yield "quality_high", metric, quality.value.high
    yield "quality_bound", metric, bound
    if value is not None:
        better = GREATER_IS_BETTER.get(quality.metric, False)
        yield "quality_headroom", metric, value - bound if better else bound - value
    yield "quality_bad", (), None if quality.state == "unknown" else quality.state == "degraded"
    yield "quality_coverage", (), quality.labelled / quality.due if quality.due else None
    if quality.estimate is not None:
        trusted = "yes" if quality.estimate.trusted else "no"
        yield "quality_estimate", (quality.metric, trusted), quality.estimate.value


def _objectives(objectives: Iterable[Objective]) -> Iterator[_Row]:
    for one in objectives:
        if one.state != "unknown":
            yield "slo_breached", (one.name,), one.state == "burning"
            yield "slo_budget_remaining", (one.name,), one.budget
            for burn in one.burns:
                yield "slo_burn_rate", (one.name, burn.window), burn.rate


def _seconds(moment: dt.datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
