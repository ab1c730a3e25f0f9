"""Reads what the store says of all models, for Prometheus: one that cannot be read takes none of the others away."""

import datetime as dt
import logging
import threading
import zoneinfo
from collections.abc import Iterable, Sequence

from towline.config import PipelineConfig, ScheduleConfig, Settings, SloConfig
from towline.config.monitoring import LATENCY_BUCKETS_S
from towline.errors import ReleaseError, TowlineError
from towline.manifest import read_manifest
from towline.monitoring.alerts import notifications
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.prometheus import FlowDueTime, ModelMetricsSnapshot, SloTarget, exposition
from towline.monitoring.slo import slo_history
from towline.monitoring.slo.burn_rate import evaluate
from towline.monitoring.status import summary
from towline.registry.ledger import Entry, Ledger, champion_of, open_ledger

FRESH = dt.timedelta(seconds=10)  # asked again sooner, the same text is told

_LOG = logging.getLogger("towline.watch")


class Watch:
    """The text for Prometheus, read at most every ten seconds however many ask.

    What the ledger said is remembered while it is away, so that alarms neither end nor begin with it. A model whose
    rows are not what was written is told as one that cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._rows: dict[str, list[Entry] | None] = {}
        self._told: tuple[dt.datetime, str] | None = None

    def text(self, now: dt.datetime) -> str:
        with self._lock:
            if self._told is None or not dt.timedelta() <= now - self._told[0] < FRESH:
                up = self._read()
                models = [self._watched(model, now) for model in sorted(self._rows)]
                self._told = now, exposition(models, now, up)
            return self._told[1]

    def _read(self) -> bool:
        ledger = open_ledger(self._settings)
        try:
            self._rows = {model: _rows(ledger, model) for model in ledger.models()}
        except TowlineError as error:
            _LOG.warning("the ledger cannot be read: %s (%s)", error.what, error.where)
            return False
        return True

    def _watched(self, model: str, now: dt.datetime) -> ModelMetricsSnapshot:
        rows = self._rows[model]
        if rows is None:
            return ModelMetricsSnapshot(model=model, readable=False)
        try:
            return watched(self._settings, model, rows, now)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one model's files, the others are told
            _LOG.warning("what the watch keeps of %s cannot be read: %s: %s", model, type(error).__name__, error)
            return ModelMetricsSnapshot(model=model, readable=False)


def _rows(ledger: Ledger, model: str) -> list[Entry] | None:
    """A model's rows, oldest first; None where they are not what was written."""
    try:
        return ledger.history(model)[::-1]
    except ReleaseError as error:
        _LOG.error("the ledger of %s is not believed: %s", model, error.what)
        return None


def watched(settings: Settings, model: str, rows: Sequence[Entry], now: dt.datetime) -> ModelMetricsSnapshot:
    """One model.

    Args:
        settings: where the store is.
        model: its name.
        rows: of the ledger, oldest first.
        now: the moment.

    Raises:
        ValueError: a file of the watch is damaged.
        OSError: one cannot be read.
    """
    serving, journal = champion_of(rows), Journal.of(settings, model)
    config = summary.promised(settings, serving)
    version = serving.version if serving else None
    since = summary.moment(serving.time) if serving else None
    nights, windows = journal.drift(version), journal.quality(version)
    ended = [summary.moment(row.time) for row in rows if row.event in ("promoted", "refused")]
    last = {
        "training": max(ended, default=None),
        "drift": journal.last_run("drift"),
        "quality": journal.last_run("quality"),
    }
    return ModelMetricsSnapshot(
        model=model,
        version=version,
        since=since,
        trained=_trained(settings, serving),
        drift=nights[-1] if nights else None,
        quality=windows[-1] if windows else None,
        objectives=evaluate(
            slo_history.read(journal.folder),
            config.slo,
            now,
            quality=journal.quality(),
            metric=config.evaluation.metric,
        )
        if config
        else (),
        alerts=notifications.opened(settings.store, model),
        rounds=tuple(_rounds(last.items(), config, since)),
        promise=_promise(config.slo) if config else SloTarget(),
    )


def _trained(settings: Settings, serving: Entry | None) -> dt.datetime | None:
    try:
        return summary.moment(read_manifest(settings.layout.release(serving.release)).created) if serving else None
    except ReleaseError:
        return None


def due(line: str, zone: str, after: dt.datetime) -> dt.datetime | None:
    """When a cron line is next due; None where the line is none, or nobody here can read such lines."""
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:
        return None
    try:
        found: dt.datetime = next(CronSim(line, after.astimezone(zoneinfo.ZoneInfo(zone))))
    except (CronSimError, StopIteration):
        return None
    return found


def _rounds(
    last: Iterable[tuple[str, dt.datetime | None]], config: PipelineConfig | None, since: dt.datetime | None
) -> list[FlowDueTime]:
    """A flow that never ran is due the first time since the champion serves."""
    schedule = config.schedule if config else ScheduleConfig(drift=None, quality=None)
    lines = {"training": schedule.train, "drift": schedule.drift, "quality": schedule.quality}
    found = []
    for flow, moment in last:
        line, begun = lines[flow], moment or since
        next_ = due(line, schedule.timezone, begun) if line and begun else None
        found.append(FlowDueTime(flow=flow, last=moment, due=next_))
    return found


def _promise(slo: SloConfig) -> SloTarget:
    seconds = None if slo.p95_ms is None else slo.p95_ms / 1000
    edge = None if seconds is None else next((edge for edge in LATENCY_BUCKETS_S if edge >= seconds), None)
    return SloTarget(availability=slo.availability, p95=seconds, edge=edge)
