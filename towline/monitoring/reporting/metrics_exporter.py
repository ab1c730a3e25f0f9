"""Exports the monitoring state of all models as Prometheus metrics.

If the files of one model cannot be read, the metrics of the others are exported all the same.
"""

import datetime as dt
import logging
import threading
import zoneinfo
from collections.abc import Iterable, Iterator, Sequence

from towline.config import Frozen, PipelineConfig, ScheduleConfig, Settings, SloConfig
from towline.config.monitoring import LATENCY_BUCKETS_S
from towline.errors import ReleaseError, TowlineError
from towline.manifest import read_manifest
from towline.monitoring.alerts.notifications import Alert, read_open_alerts
from towline.monitoring.gain_evidence import GainVerdict
from towline.monitoring.journal import Journal
from towline.monitoring.results import DriftResult, QualityResult
from towline.monitoring.slo import slo_history
from towline.monitoring.slo.burn_rate import SloStatus, evaluate_slos
from towline.monitoring.status import summary
from towline.promotion.outcome import read_last_run_end
from towline.registry.ledger import VERDICTS, Entry, Ledger, champion_of, open_ledger

CACHE_TIME = dt.timedelta(seconds=10)  # requests within it get the same text

_LOG = logging.getLogger("towline.monitoring")


class FlowTimes(Frozen):
    """When a flow ended last, and when its next run was due by its schedule, if it has one."""

    flow: str
    last: dt.datetime | None = None
    due: dt.datetime | None = None


class ModelMetricsSnapshot(Frozen):
    """Everything that is exported about one model.

    Attributes:
        version: its champion.
        since: time from which the champion serves.
        trained: time of the champion's training.
        drift, quality: the last windows.
        gain: whether a training pays; None if its gain was not measured.
        min_gain: share of the loss that a training has to avoid.
        slo: the SLOs of its config; None if the config is not known.
        readable: whether the model's files could be read; if not, the other fields are empty.
    """

    model: str
    version: int | None = None
    since: dt.datetime | None = None
    trained: dt.datetime | None = None
    drift: DriftResult | None = None
    quality: QualityResult | None = None
    gain: GainVerdict | None = None
    min_gain: float | None = None
    slos: tuple[SloStatus, ...] = ()
    alerts: tuple[Alert, ...] = ()
    flows: tuple[FlowTimes, ...] = ()
    slo: SloConfig | None = None
    readable: bool = True


class MetricsExporter:
    """The text for Prometheus, computed at most every ten seconds.

    If the ledger cannot be read, its last known content is used, so that alerts neither start nor end because of it. A
    model whose ledger rows were changed is exported as not readable.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._entries: dict[str, list[Entry] | None] = {}
        self._cached: tuple[dt.datetime, str] | None = None

    def text(self, now: dt.datetime) -> str:
        with self._lock:
            if self._cached is None or not dt.timedelta() <= now - self._cached[0] < CACHE_TIME:
                ledger_up = self._read_ledger()
                models = [self._snapshot(model, now) for model in sorted(self._entries)]
                self._cached = now, format_metrics(models, now, ledger_up)
            return self._cached[1]

    def _read_ledger(self) -> bool:
        ledger = open_ledger(self._settings)
        try:
            self._entries = {model: _read_history(ledger, model) for model in ledger.models()}
        except TowlineError as error:
            _LOG.warning("the ledger cannot be read: %s (%s)", error.what, error.where)
            return False
        return True

    def _snapshot(self, model: str, now: dt.datetime) -> ModelMetricsSnapshot:
        entries = self._entries[model]
        if entries is None:
            return ModelMetricsSnapshot(model=model, readable=False)
        try:
            return take_snapshot(self._settings, model, entries, now)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one model, the others are exported
            _LOG.warning("the monitoring files of %s cannot be read: %s: %s", model, type(error).__name__, error)
            return ModelMetricsSnapshot(model=model, readable=False)


def take_snapshot(settings: Settings, model: str, entries: Sequence[Entry], now: dt.datetime) -> ModelMetricsSnapshot:
    """Reads the state of one model.

    Args:
        settings: for the store.
        model: name of the model.
        entries: its ledger entries, oldest first.
        now: current time.

    Raises:
        ValueError: a file is damaged.
        OSError: a file cannot be read.
    """
    champion, journal = champion_of(entries), Journal.of(settings, model)
    config = summary.read_champion_config(settings, champion)
    version = champion.version if champion else None
    since = summary.parse_ledger_time(champion.time) if champion else None
    drift, quality = journal.drift(version), journal.quality(version)
    trainings = [summary.parse_ledger_time(entry.time) for entry in entries if entry.event in VERDICTS]
    if last_training := read_last_run_end(settings, model):  # the ledger has no entry of a run without a version
        trainings.append(last_training)
    last_runs = {
        "training": max(trainings, default=None),
        "drift": journal.last_run("drift"),
        "quality": journal.last_run("quality"),
    }
    slos: tuple[SloStatus, ...] = ()
    if config:
        history, metric = slo_history.read_history(journal.folder), config.evaluation.metric
        slos = evaluate_slos(history, config.slo, now, quality=journal.quality(), metric=metric)
    return ModelMetricsSnapshot(
        model=model,
        version=version,
        since=since,
        trained=_training_time(settings, champion),
        drift=drift[-1] if drift else None,
        quality=quality[-1] if quality else None,
        gain=summary.judge_champion_gain(journal, champion, entries, config, now),
        min_gain=config.retrain.min_gain if config else None,
        slos=slos,
        alerts=read_open_alerts(settings.store, model),
        flows=tuple(_flow_times(last_runs.items(), config, since)),
        slo=config.slo if config else None,
    )


def _read_history(ledger: Ledger, model: str) -> list[Entry] | None:
    """A model's entries, oldest first; None if they were changed."""
    try:
        return ledger.history(model)[::-1]
    except ReleaseError as error:
        _LOG.error("the ledger rows of %s were changed: %s", model, error.what)
        return None


def _training_time(settings: Settings, champion: Entry | None) -> dt.datetime | None:
    try:
        manifest = read_manifest(settings.layout.release(champion.release)) if champion else None
    except ReleaseError:
        return None
    return summary.parse_ledger_time(manifest.created) if manifest else None


def next_run(cron: str, timezone: str, after: dt.datetime) -> dt.datetime | None:
    """The next time of a cron schedule; None if it is invalid, or if cronsim is not installed."""
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        return None
    try:
        due: dt.datetime = next(CronSim(cron, after.astimezone(zoneinfo.ZoneInfo(timezone))))
    except (CronSimError, StopIteration):
        return None
    return due


def _flow_times(
    last_runs: Iterable[tuple[str, dt.datetime | None]], config: PipelineConfig | None, since: dt.datetime | None
) -> Iterator[FlowTimes]:
    """A flow that never ran is due at the first scheduled time since the champion serves."""
    schedule = config.schedule if config else ScheduleConfig(drift=None, quality=None)
    crons = {"training": schedule.train, "drift": schedule.drift, "quality": schedule.quality}
    for flow, last in last_runs:
        cron, start = crons[flow], last or since
        due = next_run(cron, schedule.timezone, start) if cron and start else None
        yield FlowTimes(flow=flow, last=last, due=due)


_GAUGES = {
    "monitoring_readable": ("1 if the model's monitoring files can be read.", ()),
    "champion_version": ("The champion's version by the ledger.", ()),
    "model_age_seconds": ("Time since the champion serves.", ()),
    "model_trained_timestamp_seconds": ("Time of the champion's training, since 1970.", ()),
    "drift_alarm": ("1 if a column has drifted or is invalid.", ("column",)),
    "drift_ratio": ("A column's largest ratio of value and threshold; 1 raises an alarm.", ("column",)),
    "drift_importance": ("Share of the model's importance that the columns with an alarm carry.", ()),
    "drift_rows": ("Rows of the last window.", ()),
    "input_invalid": ("1 if the last window's input violates its contract.", ()),
    "quality": ("The metric on labels, in the last window.", ("metric",)),
    "quality_low": ("Lower end of its 95 % interval.", ("metric",)),
    "quality_high": ("Upper end of its 95 % interval.", ("metric",)),
    "quality_bound": ("The worst acceptable value of the metric.", ("metric",)),
    "quality_headroom": ("How much better the metric is than its bound; negative if it is worse.", ("metric",)),
    "quality_degraded": ("1 if the quality of the last window is degraded.", ()),
    "quality_coverage": ("Share of the predictions due for a label that have one.", ()),
    "quality_estimate": ("The metric estimated without labels.", ("metric", "trusted")),
    "retraining_gain": ("Share of the champion's loss that a training would avoid, as measured on labels.", ()),
    "retraining_gain_required": ("The least gain that starts a training.", ()),
    "retraining_gain_e_value": ("Evidence that the gain is not 0.", ()),
    "retraining_pays": ("1 if the gain is at least the required one and the evidence sufficient.", ()),
    "slo_target": ("Share of requests that must be good.", ("objective",)),
    "slo_p95_seconds": ("Latency that 95 % of requests must not exceed.", ()),
    "slo_p95_edge_seconds": ("The bound of the service's histogram at or above it.", ()),
    "slo_budget_remaining": ("Share of the error budget that is left.", ("objective",)),
    "slo_burn_rate": ("At 1 the budget lasts for its period.", ("objective", "window")),
    "slo_breached": ("1 if the budget burns too fast.", ("objective",)),
    "alerts_open": ("Open alerts.", ("severity",)),
    "last_run_timestamp_seconds": ("Time when a flow ended last, since 1970.", ("flow",)),
    "run_due_timestamp_seconds": ("Time when the run after the last one was due by its schedule.", ("flow",)),
}
_Metric = tuple[str, tuple[str, ...], float | None]


def format_metrics(models: Iterable[ModelMetricsSnapshot], now: dt.datetime, ledger_up: bool | None = None) -> str:
    """The text format of Prometheus. An unknown value is absent rather than 0."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges = {
        name: Gauge(f"towline_{name}", text, ("model", *labels), registry=registry)
        for name, (text, labels) in _GAUGES.items()
    }
    if ledger_up is not None:
        Gauge("towline_ledger_up", "1 if the ledger can be read.", registry=registry).set(ledger_up)
    for snapshot in models:
        for name, labels, value in _metrics(snapshot, now):
            if value is not None:
                gauges[name].labels(snapshot.model, *labels).set(value)
    return generate_latest(registry).decode()


def _metrics(snapshot: ModelMetricsSnapshot, now: dt.datetime) -> Iterator[_Metric]:
    yield "monitoring_readable", (), snapshot.readable
    if not snapshot.readable:
        return
    yield "champion_version", (), snapshot.version
    yield "model_age_seconds", (), None if snapshot.since is None else (now - snapshot.since).total_seconds()
    yield "model_trained_timestamp_seconds", (), _timestamp(snapshot.trained)
    if snapshot.drift is not None:
        yield from _drift_metrics(snapshot.drift)
    if snapshot.quality is not None:
        yield from _quality_metrics(snapshot.quality)
    if snapshot.gain is not None:
        yield "retraining_gain", (), snapshot.gain.gain
        yield "retraining_gain_required", (), snapshot.min_gain
        yield "retraining_gain_e_value", (), snapshot.gain.e_value
        yield "retraining_pays", (), snapshot.gain.pays
    yield from _slo_metrics(snapshot)
    for severity in ("page", "ticket"):
        yield "alerts_open", (severity,), sum(alert.severity == severity for alert in snapshot.alerts)
    for flow in snapshot.flows:
        yield "last_run_timestamp_seconds", (flow.flow,), _timestamp(flow.last)
        yield "run_due_timestamp_seconds", (flow.flow,), _timestamp(flow.due)


def _drift_metrics(drift: DriftResult) -> Iterator[_Metric]:
    yield "drift_rows", (), drift.rows
    if drift.state == "unknown":
        return
    yield "drift_importance", (), drift.importance
    yield "input_invalid", (), drift.state == "invalid_schema"
    alarms: dict[str, bool] = {}
    ratios: dict[str, float] = {}
    for check in drift.checks:
        alarms[check.column] = alarms.get(check.column, False) or check.alarm or check.invalid
        if check.threshold:
            ratios[check.column] = max(ratios.get(check.column, 0.0), check.value / check.threshold)
    for column, alarm in alarms.items():
        yield "drift_alarm", (column,), alarm
        yield "drift_ratio", (column,), ratios.get(column)


def _quality_metrics(quality: QualityResult) -> Iterator[_Metric]:
    metric, value, bound = (quality.metric,), quality.value.value, quality.bound
    yield "quality", metric, value
    yield "quality_low", metric, quality.value.low
    yield "quality_high", metric, quality.value.high
    yield "quality_bound", metric, bound
    if value is not None:
        yield "quality_headroom", metric, value - bound if quality.greater_is_better else bound - value
    yield "quality_degraded", (), None if quality.state == "unknown" else quality.state == "degraded"
    yield "quality_coverage", (), quality.labelled / quality.due if quality.due else None
    if quality.estimate is not None:
        trusted = "yes" if quality.estimate.trusted else "no"
        yield "quality_estimate", (quality.metric, trusted), quality.estimate.value


def _slo_metrics(snapshot: ModelMetricsSnapshot) -> Iterator[_Metric]:
    for status in snapshot.slos:
        if status.state != "unknown":
            yield "slo_breached", (status.name,), status.state == "burning"
            yield "slo_budget_remaining", (status.name,), status.budget
            for burn in status.burns:
                yield "slo_burn_rate", (status.name, burn.window), burn.rate
    if snapshot.slo:
        yield "slo_target", ("availability",), snapshot.slo.availability
        seconds = None if snapshot.slo.p95_ms is None else snapshot.slo.p95_ms / 1000
        yield "slo_p95_seconds", (), seconds
        if seconds is not None:
            yield "slo_p95_edge_seconds", (), next((edge for edge in LATENCY_BUCKETS_S if edge >= seconds), None)


def _timestamp(moment: dt.datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
